/*
 * shared_memory.c
 *		Structures in shared memory, with or without preloading the library.
 *
 * Each structure begins with the LWLock that protects it.  If the library is
 * preloaded, the memory is requested at server start.  Otherwise a structure
 * is allocated from the server's spare shared memory when it is first needed.
 */
#include "postgres.h"

#include "common/shared_memory.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

/* The locks' name in pg_stat_activity. */
#define TRANCHE "clerk_invite"

static Size requested = 0;
static void (*previous_shmem_request_hook) (void) = NULL;

static void request_all(void);

/*
 * Requests memory for a structure of this size, in bytes.  Must be called when
 * the library is loaded.  Does nothing if the library is not preloaded.
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

/* Returns whether the server loaded this library when it started. */
bool
clerk_is_preloaded(void)
{
	return requested > 0;
}

/*
 * Returns the structure of this name and size, in bytes.  If it does not exist
 * yet, allocates it, initializes its lock and sets everything else to zero.
 * Returns NULL if the server has no memory to spare.  Raises no error.  The
 * caller must not hold any LWLock.
 *
 * After an upgrade, processes with the old library and processes with the new
 * one run at the same time.  They share a structure only if it has the same
 * layout in both: the size is part of the name, and "name" must change with a
 * layout that has the same size.
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
	interrupts_held = InterruptHoldoffCount;
	cancels_held = QueryCancelHoldoffCount;
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	PG_TRY();
	{
		lock = ShmemInitStruct(full_name, size, &found);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		FlushErrorState();

		/*
		 * Our lock, and since PostgreSQL 19 that of ShmemInitStruct(), which
		 * leaves it to the end of the transaction to release it.
		 */
		LWLockReleaseAll();

		/* Raising an error resets these counters. */
		InterruptHoldoffCount = interrupts_held;
		QueryCancelHoldoffCount = cancels_held;
	}
	PG_END_TRY();
	if (lock == NULL)
		return NULL;
	if (!found)
	{
		memset(lock, 0, size);
		LWLockInitialize(lock, clerk_new_lwlock_tranche(TRANCHE));
	}
	LWLockRelease(AddinShmemInitLock);
	clerk_name_lwlock_tranche(lock->tranche, TRANCHE);
	return lock;
}
