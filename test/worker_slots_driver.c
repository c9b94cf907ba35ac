/*
 * worker_slots_driver.c
 *		SQL functions that call src/worker/slots.c directly: for databases that
 *		do not exist, and for workers that were registered long ago.
 *
 * This library contains its own copy of that file, which works on the same
 * shared memory.  It must be linked with -Bsymbolic so that it calls its own
 * copy.
 */
#include "postgres.h"

#include "fmgr.h"

#include "../src/common/monotonic_clock.c"
#include "../src/common/shared_memory.c"
#include "../src/worker/slots.c"

PG_MODULE_MAGIC;

/* No database of a test cluster has an OID like this. */
#define FIRST_OID 1000000000

PG_FUNCTION_INFO_V1(driver_reserve_slots);
PG_FUNCTION_INFO_V1(driver_age_starts);

/*
 * (count integer) RETURNS integer: reserves slots as the first commits in so
 * many databases do; returns for how many of them a worker would have to be
 * started
 */
Datum
driver_reserve_slots(PG_FUNCTION_ARGS)
{
	int			count = 0;

	clerk_worker_slots_attach();
	for (int i = 0; i < PG_GETARG_INT32(0); i++)
		if (clerk_worker_wake(FIRST_OID + i, true) == CLERK_WAKE_START)
			count++;
	PG_RETURN_INT32(count);
}

/*
 * (seconds integer): makes workers that are starting appear to have been
 * registered so many seconds earlier
 */
Datum
driver_age_starts(PG_FUNCTION_ARGS)
{
	clerk_worker_slots_attach();
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SLOTS; i++)
		if (shared->slots[i].status.state == CLERK_WORKER_STARTING)
			shared->slots[i].expected_since -= PG_GETARG_INT32(0) * USECS_PER_SEC;
	LWLockRelease(&shared->lock);
	PG_RETURN_VOID();
}
