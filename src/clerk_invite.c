/*
 * clerk_invite.c
 *		Entry point of the module: what happens when the library is loaded.
 *
 * Nothing here may start libcurl: the postmaster may load the library, and
 * neither threads nor connections survive a fork.
 */
#include "postgres.h"

#include "clerk/budget_store.h"
#include "clerk/remote_clock.h"
#include "common/settings.h"
#include "compat.h"
#include "fmgr.h"
#include "worker/launcher.h"
#include "worker/slots.h"

CLERK_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

/*
 * Called once per process when it loads the library; if the library is
 * preloaded, also by the postmaster, while shared memory and background
 * workers can still be requested.
 */
void
_PG_init(void)
{
	clerk_define_settings();
	clerk_budget_store_request_memory();
	clerk_remote_clock_request_memory();
	clerk_worker_slots_request_memory();
	clerk_register_launcher();
}
