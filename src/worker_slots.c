/*
 * worker_slots.c
 *		Which databases have a background worker, in shared memory.
 *
 * A slot belongs to a database from the moment somebody decides to start a
 * worker for it until that worker is gone.  Two rules keep a wake-up from
 * being lost, all under the lock:
 *
 * 1. Whoever commits rows marks the slot as woken after they are visible.  A
 *	  worker takes the mark away before it looks, so it sees them, or the mark
 *	  stays.
 * 2. A worker gives its slot up only if it is not marked.  Whoever comes later
 *	  finds no worker and starts one.
 *
 * A worker that has been asked for and has not entered yet needs no mark: it
 * looks after it has entered.
 *
 * The memory is taken from what the server has to spare when it is first
 * needed, so that the library works without being preloaded.
 */
#include "postgres.h"

#include "compat.h"
#include "miscadmin.h"
#include "shared_memory.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"
#include "worker_slots.h"

/* More databases of one server than are likely to invite at a time. */
#define SLOTS 32

/* With the number of the layout; the size need not tell one from another. */
#define SHARED_MEMORY_NAME "clerk_invite workers 1"

/*
 * The postmaster starts a worker within milliseconds.  One that has not
 * entered after this long has failed to, and may be asked for again; if it
 * comes after all, the second one finds it and leaves.
 */
#define START_TIMEOUT_MS 5000

typedef struct Slot
{
	ClerkWorkerStatus status;	/* state NONE: the slot is free */
	Latch	   *latch;			/* of its process; NULL until it has entered */
	bool		woken;			/* rows were committed since its last look */
} Slot;

typedef struct Slots
{
	LWLock		lock;			/* protects all that follows */
	Latch	   *launcher;		/* NULL: there is none */
	Slot		slots[SLOTS];
} Slots;

/* Of this process: the shared memory once it is known, a worker's own slot. */
static Slots *shared = NULL;
static Slot *own_slot = NULL;

static Slot *find_slot(Oid database);
static Slot *take_slot(Oid database);
static void free_slot(Slot *slot);
static bool has_failed_to_start(const Slot *slot);
static void free_own_slot(int code, Datum arg);
static void forget_launcher(int code, Datum arg);

/* Asks for the memory; to be called when the library is loaded. */
void
clerk_worker_slots_request_memory(void)
{
	StaticAssertStmt(sizeof(Slots) <= CLERK_SHARED_MEMORY_MAX,
					 "the workers' slots need too much shared memory");
	clerk_request_shared_memory(sizeof(Slots));
}

/*
 * Finds or makes the shared memory; to be called before any of the functions
 * below.  False, with a WARNING, if the server has none to spare: whoever
 * inserts a row shall not fail because nobody can be told of it.
 */
bool
clerk_worker_slots_attach(void)
{
	if (shared == NULL)
		shared = clerk_find_shared_memory(SHARED_MEMORY_NAME, sizeof(Slots));
	if (shared == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("no background worker can be told that there are invitations to send"),
				 errdetail("There is not enough shared memory left."),
				 errhint("Add clerk_invite to \"shared_preload_libraries\", or call clerk_send_invitations().")));
	return shared != NULL;
}

/*
 * Wakes the database's worker.  If it has none and "start" is true, reserves
 * its slot and returns CLERK_WAKE_START: the caller must then start one, or
 * say with clerk_worker_not_started() that it could not.
 *
 * Raises no error, so it may be called where a transaction has committed.
 */
ClerkWakeResult
clerk_worker_wake(Oid database, bool start)
{
	ClerkWakeResult result = CLERK_WAKE_DONE;
	Latch	   *latch = NULL;
	Slot	   *slot;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	if (slot != NULL && slot->latch != NULL)
	{
		slot->woken = true;
		latch = slot->latch;
	}
	else if (start &&
			 (slot == NULL || slot->status.state == CLERK_WORKER_WANTED ||
			  has_failed_to_start(slot)))
	{
		if (slot == NULL)
			slot = take_slot(database);
		if (slot == NULL)
			result = CLERK_WAKE_NO_SLOT;
		else
		{
			slot->status.state = CLERK_WORKER_STARTING;
			slot->status.started_at = GetCurrentTimestamp();
			result = CLERK_WAKE_START;
		}
	}
	LWLockRelease(&shared->lock);

	/*
	 * The latch is in shared memory for good.  If its process has ended
	 * meanwhile, another one wakes for nothing.
	 */
	if (latch != NULL)
		SetLatch(latch);
	return result;
}

/*
 * The server has no room for the worker: whoever wakes it next tries again, and
 * so does the launcher, if there is one.
 */
void
clerk_worker_not_started(Oid database)
{
	Latch	   *launcher;
	Slot	   *slot;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	launcher = shared->launcher;
	slot = find_slot(database);
	if (slot != NULL && slot->latch == NULL)
	{
		if (launcher != NULL)
			slot->status.state = CLERK_WORKER_WANTED;
		else
			free_slot(slot);
	}
	LWLockRelease(&shared->lock);
	/* The launcher itself waits before it tries again. */
	if (launcher != NULL && launcher != MyLatch)
		SetLatch(launcher);
}

/* Makes this process the launcher until it ends. */
void
clerk_worker_register_launcher(void)
{
	before_shmem_exit(forget_launcher, (Datum) 0);
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	shared->launcher = &MyProc->procLatch;
	LWLockRelease(&shared->lock);
}

/* A database for which there was no room; invalid if there is none. */
Oid
clerk_worker_wanted(void)
{
	Oid			database = InvalidOid;

	LWLockAcquire(&shared->lock, LW_SHARED);
	for (int i = 0; i < SLOTS && !OidIsValid(database); i++)
		if (shared->slots[i].status.state == CLERK_WORKER_WANTED)
			database = shared->slots[i].status.database;
	LWLockRelease(&shared->lock);
	return database;
}

/* Tells of all workers: an array in the current memory context, its length. */
int
clerk_worker_list(ClerkWorkerStatus **list)
{
	int			count = 0;

	*list = palloc(SLOTS * sizeof(ClerkWorkerStatus));
	LWLockAcquire(&shared->lock, LW_SHARED);
	for (int i = 0; i < SLOTS; i++)
		if (shared->slots[i].status.state != CLERK_WORKER_NONE)
			(*list)[count++] = shared->slots[i].status;
	LWLockRelease(&shared->lock);
	return count;
}

/*
 * Makes this process the database's worker until it leaves or ends; false if
 * there is another one, or no slot.
 *
 * Another one is woken: whoever has started this process may not have found it,
 * if his library is of another version and has slots of another layout.
 */
bool
clerk_worker_enter(Oid database)
{
	static bool registered = false;
	Latch	   *other = NULL;
	Slot	   *slot;

	if (!registered)
		before_shmem_exit(free_own_slot, (Datum) 0);
	registered = true;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	if (slot == NULL)
		slot = take_slot(database);
	if (slot != NULL && slot->latch == NULL)
	{
		slot->status.pid = MyProcPid;
		slot->status.state = CLERK_WORKER_SENDING;
		slot->status.started_at = GetCurrentTimestamp();
		slot->latch = &MyProc->procLatch;
		own_slot = slot;
	}
	else if (slot != NULL)
	{
		slot->woken = true;
		other = slot->latch;
	}
	LWLockRelease(&shared->lock);
	if (other != NULL)
		SetLatch(other);
	return own_slot != NULL;
}

/* Whether this process is a worker. */
bool
clerk_is_worker(void)
{
	return own_slot != NULL;
}

/* From now on this worker sees what was committed before. */
void
clerk_worker_begin_look(void)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	own_slot->woken = false;
	own_slot->status.state = CLERK_WORKER_SENDING;
	own_slot->status.wakes_at = 0;
	LWLockRelease(&shared->lock);
}

/*
 * This worker waits until then, or until it is woken; "trouble" says what keeps
 * it from sending, and is empty if nothing does.  It is kept in ASCII, since
 * the databases that read it may have other encodings.
 */
void
clerk_worker_begin_rest(TimestampTz wakes_at, const char *trouble)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	own_slot->status.state = CLERK_WORKER_WAITING;
	own_slot->status.wakes_at = wakes_at;
	strlcpy(own_slot->status.trouble, trouble, CLERK_WORKER_TROUBLE_SIZE);
	for (char *c = own_slot->status.trouble; *c != '\0'; c++)
		if (IS_HIGHBIT_SET(*c))
			*c = '?';
	LWLockRelease(&shared->lock);
}

/* Whether rows were committed since this worker's last look. */
bool
clerk_worker_is_woken(void)
{
	bool		woken;

	LWLockAcquire(&shared->lock, LW_SHARED);
	woken = own_slot->woken;
	LWLockRelease(&shared->lock);
	return woken;
}

/* Gives the slot up; false, and the worker must look again, if it is woken. */
bool
clerk_worker_leave(void)
{
	bool		woken;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	woken = own_slot->woken;
	if (!woken)
	{
		free_slot(own_slot);
		own_slot = NULL;
	}
	LWLockRelease(&shared->lock);
	return !woken;
}

/*
 * Gives the slot up in any case: for this process to end, or to start a worker
 * that looks in its place.  If it cannot start one, it may enter again.
 */
void
clerk_worker_give_up(void)
{
	if (own_slot == NULL)
		return;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	free_slot(own_slot);
	own_slot = NULL;
	LWLockRelease(&shared->lock);
}

/* NULL if the database has none. */
static Slot *
find_slot(Oid database)
{
	for (int i = 0; i < SLOTS; i++)
		if (shared->slots[i].status.state != CLERK_WORKER_NONE &&
			shared->slots[i].status.database == database)
			return &shared->slots[i];
	return NULL;
}

/*
 * A slot that is free, or whose worker has failed to start, as of a database
 * that was dropped before; NULL if all are in use.
 */
static Slot *
take_slot(Oid database)
{
	for (int i = 0; i < SLOTS; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->status.state == CLERK_WORKER_NONE || has_failed_to_start(slot))
		{
			free_slot(slot);
			slot->status.database = database;
			return slot;
		}
	}
	return NULL;
}

static void
free_slot(Slot *slot)
{
	memset(slot, 0, sizeof(Slot));
}

static bool
has_failed_to_start(const Slot *slot)
{
	return slot->status.state == CLERK_WORKER_STARTING &&
		TimestampDifferenceExceeds(slot->status.started_at,
								   GetCurrentTimestamp(), START_TIMEOUT_MS);
}

/* However a worker ends, the next commit can start another one. */
static void
free_own_slot(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	clerk_worker_give_up();
}

static void
forget_launcher(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->launcher == &MyProc->procLatch)
		shared->launcher = NULL;
	LWLockRelease(&shared->lock);
}
