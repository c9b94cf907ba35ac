/*
 * shared_memory.c
 *		A structure in shared memory, with the library preloaded or not.
 *
 * Each structure begins with the LWLock that protects it.  Where the library is
 * preloaded the server is asked for the memory in time; otherwise a structure
 * is made from what the server has to spare when somebody first needs it.
 */
#include "postgres.h"

#include "common/shared_memory.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

/* Names the locks in pg_stat_activity. */
#define TRANCHE "clerk_invite"

static Size requested = 0;
static void (*previous_shmem_request_hook) (void) = NULL;

static void request_all(void);

/*
 * Asks for the memory of a structure while the server still can be asked: to
 * be called when the library is loaded.
 */
void
clerk_request_shared_memory(Size size)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	if (requested == 0)
		clerk_at_shmem_request(request_all, previous_shmem_request_hook);
	requested += MAXALIGN(size);
	clerk_shmem_requested(MAXALIGN(size));
}

static void
request_all(void)
{
	if (previous_shmem_request_hook != NULL)
		previous_shmem_request_hook();
	RequestAddinShmemSpace(requested);
}

/* Whether the server has loaded this library at its start, for all processes. */
bool
clerk_is_preloaded(void)
{
	return requested > 0;
}

/*
 * Finds the structure of this name, or makes one that is zero but for its lock.
 * Returns NULL if the server has no memory to spare.
 *
 * After an upgrade, processes with the old library run beside those with the
 * new one.  They share a structure as long as they have the same idea of it:
 * its size becomes a part of the name, and the name must change with a layout
 * that keeps the size.
 */
void *
clerk_find_shared_memory(const char *name, Size size)
{
	MemoryContext caller = CurrentMemoryContext;
	LWLock	   *volatile lock = NULL;
	char		full_name[SHMEM_INDEX_KEYSIZE];
	uint32		interrupts_held;
	uint32		cancels_held;
	bool		found;

	snprintf(full_name, sizeof(full_name), "%s %zu", name, size);
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	interrupts_held = InterruptHoldoffCount;
	cancels_held = QueryCancelHoldoffCount;
	PG_TRY();
	{
		lock = ShmemInitStruct(full_name, size, &found);
	}
	PG_CATCH();
	{
		/* It releases its own lock. */
		MemoryContextSwitchTo(caller);
		FlushErrorState();

		/*
		 * An error forgets what holds interrupts off: this lock, and whatever
		 * the caller has.
		 */
		InterruptHoldoffCount = interrupts_held;
		QueryCancelHoldoffCount = cancels_held;
	}
	PG_END_TRY();
	if (lock != NULL && !found)
	{
		memset(lock, 0, size);
		LWLockInitialize(lock, clerk_new_lwlock_tranche(TRANCHE));
	}
	LWLockRelease(AddinShmemInitLock);
	if (lock != NULL)
		clerk_name_lwlock_tranche(lock->tranche, TRANCHE);
	return lock;
}
