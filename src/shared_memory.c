/*
 * shared_memory.c
 *		A structure in shared memory, with the library preloaded or not.
 *
 * Each structure begins with the LWLock that protects it.  Where the library is
 * preloaded the server is asked for the memory in time; otherwise a structure
 * is made from what the server has to spare when somebody first needs it.
 */
#include "postgres.h"

#include "compat.h"
#include "miscadmin.h"
#include "shared_memory.h"
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

/*
 * Finds the structure of this name, or makes one that is zero but for its lock;
 * a layout that changes needs another name.  Returns NULL if the server has no
 * memory to spare.
 */
void *
clerk_find_shared_memory(const char *name, Size size)
{
	MemoryContext caller = CurrentMemoryContext;
	LWLock	   *volatile lock = NULL;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	PG_TRY();
	{
		lock = ShmemInitStruct(name, size, &found);
	}
	PG_CATCH();
	{
		/* It cleans up after itself. */
		MemoryContextSwitchTo(caller);
		FlushErrorState();
		/* An error forgets that a lock holds interrupts off. */
		HOLD_INTERRUPTS();
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
