/*
 * slots.c
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
 * A worker that has been asked for and has not entered yet needs no mark for
 * that: it looks after it has entered.
 *
 * A worker that ends without its own decision, mark or not, is followed by
 * another process, which the postmaster starts in its place.  Until that has
 * entered, the slot stays the database's: a commit in between starts none, so
 * that a worker that fails again and again is not started more often the more
 * is committed.
 *
 * The memory is taken from what the server has to spare when it is first
 * needed, so that the library works without being preloaded.
 */
#include "postgres.h"

#include "common/monotonic_clock.h"
#include "common/shared_memory.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"
#include "worker/slots.h"

/* More databases of one server than are likely to invite at a time. */
#define SLOTS 32

/* With the number of the layout; the size need not tell one from another. */
#define SHARED_MEMORY_NAME "clerk_invite workers 2"

/*
 * The postmaster starts a worker within milliseconds, and starts one that has
 * ended again after a second.  One that has not entered after this long has
 * failed to, and may be asked for again; if it comes after all, the second one
 * finds it and leaves.  After some attempts the time doubles with each, so many
 * times at most: whatever was asked for stays with the postmaster, if its
 * library cannot be loaded, and tries again each second.  (The first attempts
 * may be those of a library of another version, whose workers enter slots of
 * another layout.)
 */
#define START_TIMEOUT_MS 5000
#define START_ATTEMPTS 4
#define START_TIMEOUT_DOUBLINGS 10

/*
 * How long a process waits before it connects if several before it have ended
 * without a whole look: nothing before the second, then a second, doubling up
 * to a minute.
 */
#define LONGEST_DELAY_MS 60000

/*
 * How long a process waits that finds no slot, and so was not asked for by
 * anybody who shares this memory: the server has crashed, and the worker may
 * be the reason.
 */
#define DELAY_AFTER_CRASH_MS 5000

typedef struct Slot
{
	ClerkWorkerStatus status;	/* state NONE: the slot is free */
	Latch	   *latch;			/* of its process; NULL until it has entered */
	bool		woken;			/* rows were committed since its last look */
	int64		since;			/* by the monotonic clock: how long a process
								 * has been expected */
	int			starts;			/* since one of its processes has looked */
	ClerkWorkerRest before;		/* for the process that enters next; 0: none */
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
static void expect_process(Slot *slot, ClerkWorkerState state);
static bool has_failed_to_start(const Slot *slot);
static void delay_start(const Slot *slot, ClerkWorkerRest *before);
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
				 errmsg("could not notify a background worker of invitations to send"),
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
	if (slot != NULL)
		slot->woken = true;
	if (slot != NULL && slot->latch != NULL)
		latch = slot->latch;
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
			expect_process(slot, CLERK_WORKER_STARTING);
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
		slot->starts--;
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
 * there is another one, or no slot.  Fills in how long it has to wait before it
 * connects, and its predecessor's last error, CLERK_WORKER_ERROR_SIZE
 * bytes that are empty if it had none.  It must see to it that the slot is
 * given up, or kept for its successor, when it ends.
 *
 * Another one is woken: whoever has started this process may not have found it,
 * if his library is of another version and has slots of another layout.
 */
bool
clerk_worker_enter(Oid database, ClerkWorkerRest *before, char *last_error)
{
	Latch	   *other = NULL;
	Slot	   *slot;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	if (slot == NULL)
		slot = take_slot(database);
	if (slot != NULL && slot->latch == NULL)
	{
		delay_start(slot, before);
		strlcpy(last_error, slot->status.last_error, CLERK_WORKER_ERROR_SIZE);
		slot->before.earliest = slot->before.latest = 0;
		slot->starts = Max(slot->starts, 1);
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
	own_slot->status.next_run_at = 0;
	LWLockRelease(&shared->lock);
}

/* A look is over, however it went: this worker can go on. */
void
clerk_worker_end_look(void)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	own_slot->starts = 0;
	LWLockRelease(&shared->lock);
}

/*
 * This worker waits until then, or until it is woken; "last_error" says what keeps
 * it from sending, and is empty if nothing does.  It is kept in ASCII, since
 * the databases that read it may have other encodings.
 */
void
clerk_worker_begin_rest(TimestampTz next_run_at, const char *last_error)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	own_slot->status.state = CLERK_WORKER_WAITING;
	own_slot->status.next_run_at = next_run_at;
	strlcpy(own_slot->status.last_error, last_error, CLERK_WORKER_ERROR_SIZE);
	for (char *c = own_slot->status.last_error; *c != '\0'; c++)
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

/* Gives the slot up in any case, if this process has one. */
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

/*
 * Keeps the slot for the process that this one is about to start in its place,
 * which has to wait so long before it connects.  If none can be started, this
 * one may enter again.
 */
void
clerk_worker_hand_over(const ClerkWorkerRest *before)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	own_slot->before = *before;
	expect_process(own_slot, CLERK_WORKER_STARTING);
	own_slot = NULL;
	LWLockRelease(&shared->lock);
}

/*
 * Keeps the slot, if this process has one, for the process that the postmaster
 * starts in its place.
 */
void
clerk_worker_expect_restart(void)
{
	if (own_slot == NULL)
		return;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	expect_process(own_slot, CLERK_WORKER_RESTARTING);
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

/* From now on a process is on its way to this slot. */
static void
expect_process(Slot *slot, ClerkWorkerState state)
{
	slot->status.state = state;
	slot->status.pid = 0;
	slot->status.started_at = GetCurrentTimestamp();
	slot->status.next_run_at = 0;
	slot->latch = NULL;
	slot->since = clerk_monotonic_microseconds();
	slot->starts++;
}

static bool
has_failed_to_start(const Slot *slot)
{
	int64		timeout = START_TIMEOUT_MS;

	if (slot->status.state != CLERK_WORKER_STARTING &&
		slot->status.state != CLERK_WORKER_RESTARTING)
		return false;
	for (int i = START_ATTEMPTS;
		 i < slot->starts && i < START_ATTEMPTS + START_TIMEOUT_DOUBLINGS; i++)
		timeout *= 2;
	return clerk_monotonic_microseconds() - slot->since > timeout * 1000;
}

/* How long the process waits that enters this slot, before it connects. */
static void
delay_start(const Slot *slot, ClerkWorkerRest *before)
{
	int64		delay = 0;
	int64		until;

	if (slot->starts == 0)
		delay = DELAY_AFTER_CRASH_MS;
	else if (slot->starts > 2)
		delay = 1000;
	for (int i = 3; i < slot->starts && delay < LONGEST_DELAY_MS; i++)
		delay *= 2;
	until = clerk_monotonic_microseconds() +
		Min(delay, LONGEST_DELAY_MS) * 1000;
	before->earliest = Max(slot->before.earliest, until);
	before->latest = Max(slot->before.latest, until);
}

static void
forget_launcher(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->launcher == &MyProc->procLatch)
		shared->launcher = NULL;
	LWLockRelease(&shared->lock);
}
