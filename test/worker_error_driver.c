/*
 * worker_error_driver.c
 *		Raises an error in a worker, outside of a transaction and while it
 *		holds a lock: once per process, when the worker logs that it has
 *		stopped sending. The server must preload this library.
 *
 * The lock is the one on the workers' slots, which the worker needs next.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"

#include "../src/common/monotonic_clock.c"
#include "../src/common/shared_memory.c"
#include "../src/worker/slots.c"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

static emit_log_hook_type previous_hook;

static void
raise_with_lock(ErrorData *error)
{
	static bool raised = false;

	if (previous_hook != NULL)
		previous_hook(error);
	if (raised || error->elevel != LOG || IsTransactionState() ||
		strncmp(error->message, "stopped sending invitations", 27) != 0)
		return;
	raised = true;
	clerk_worker_slots_attach();
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	ereport(ERROR, (errmsg("an error while a lock is held")));
}

void
_PG_init(void)
{
	previous_hook = emit_log_hook;
	emit_log_hook = raise_with_lock;
}
