/*
 * slots.c
 *		Which databases have a background worker, in shared memory.
 *
 * A slot belongs to a database from the moment when a session decides to start
 * a worker for it until that worker is gone.  Two rules, both applied under
 * the lock, ensure that no wakeup is lost:
 *
 * 1. A session that commits rows sets "woken" once the rows are visible.  A
 *    worker clears it before its pass.  So either the pass sees the rows, or
 *    "woken" stays set.
 * 2. A worker releases its slot only if "woken" is not set.  A session that
 *    commits later finds no worker and starts one.
 *
 * A worker that was requested and has not entered its slot yet does not need
 * the flag: its first pass comes after it has entered.  But a process to which
 * the slot was handed over waits before its first pass.  Therefore neither the
 * handover nor entering clears the flag.
 *
 * If a worker exits other than by its own decision, the postmaster starts a
 * replacement process, regardless of the flag.  Until that process has
 * entered, the slot remains reserved for the database and commits start no
 * other worker.  Otherwise, a worker that fails repeatedly would be started
 * more often the more transactions commit.
 *
 * The memory is allocated from the server's spare shared memory when it is
 * first needed, so that the library works without being preloaded.
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

/*
 * More databases of one server than are likely to send invitations at the same
 * time.
 */
#define SLOTS 32

/*
 * The number is the version of the layout, because the size alone does not
 * distinguish layouts.
 */
#define SHARED_MEMORY_NAME "clerk_invite workers 3"

/*
 * The postmaster starts a new worker within milliseconds, and restarts one
 * that has exited after a second.  A process that has not entered its slot
 * after this timeout has failed to start, and the worker may be requested
 * again; if the first process appears after all, the second one finds it and
 * exits.
 *
 * After START_ATTEMPTS attempts the timeout doubles with each further one, at
 * most START_TIMEOUT_DOUBLINGS times: if the library cannot be loaded, each
 * requested worker stays registered and the postmaster retries it every
 * second, so there should be few of them.  (The first attempts may load a
 * library of another version, whose workers use slots with another layout.)
 */
#define START_TIMEOUT_MS 5000
#define START_ATTEMPTS 4
#define START_TIMEOUT_DOUBLINGS 10

/*
 * Upper limit of the delay before a process connects to the database, if
 * earlier processes for this slot exited without completing a pass.  The first
 * two do not wait, the third one waits for a second, and the delay doubles for
 * each further one.
 */
#define MAX_START_DELAY_MS 60000

/*
 * Delay of a process that finds no slot for its database, which means that no
 * session that shares this memory has requested it: the server has crashed,
 * and the worker may be the cause.
 */
#define DELAY_AFTER_CRASH_MS 5000

typedef struct Slot
{
	ClerkWorkerStatus status;	/* state NONE: the slot is free */
	Latch	   *latch;			/* of the process; NULL until it has entered */
	bool		woken;			/* rows were committed since the last pass
								 * began */
	int64		expected_since; /* when the process was requested or its
								 * predecessor exited, by the monotonic clock,
								 * in microseconds */
	int			starts;			/* processes expected since the last completed
								 * pass */
	ClerkWorkerHandover handover;	/* to the process that is expected */
} Slot;

typedef struct Slots
{
	LWLock		lock;			/* protects everything below */
	Latch	   *launcher;		/* NULL if there is none */
	Slot		slots[SLOTS];
} Slots;

/*
 * Of this process: the shared memory, once attached, and a worker's own slot.
 */
static Slots *shared = NULL;
static Slot *own_slot = NULL;

static Slot *find_slot(Oid database);
static Slot *take_slot(Oid database);
static void free_slot(Slot *slot);
static void expect_process(Slot *slot, ClerkWorkerState state);
static bool has_failed_to_start(const Slot *slot);
static void compute_start_delay(const Slot *slot,
								ClerkWorkerSchedule *schedule);
static void unregister_launcher(int code, Datum arg);

/* Requests the shared memory.  Must be called when the library is loaded. */
void
clerk_worker_slots_request_memory(void)
{
	StaticAssertStmt(sizeof(Slots) <= CLERK_SHARED_MEMORY_MAX,
					 "the workers' slots need too much shared memory");
	clerk_request_shared_memory(sizeof(Slots));
}

/*
 * Attaches to the shared memory, or creates it.  Must be called before any of
 * the functions below.  If the server has no shared memory to spare, raises a
 * WARNING and returns false, rather than an error: an INSERT into the outbox
 * must not fail because no worker can be notified.
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
 * Wakes the database's worker.  If there is none and "start" is true, reserves
 * a slot and returns CLERK_WAKE_START: the caller must then start the worker,
 * or call clerk_worker_not_started() if it cannot.
 *
 * Raises no error, so it can be called after a commit.
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
	 * Latches stay in shared memory until the server stops.  If the process
	 * has exited in the meantime, another process that now owns its latch has
	 * a spurious wakeup.
	 */
	if (latch != NULL)
		SetLatch(latch);
	return result;
}

/*
 * Reports that the server had no room for the worker that clerk_worker_wake()
 * asked the caller to start.  The next wakeup tries again, and so does the
 * launcher, if there is one.
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

/* Makes this process the launcher until it exits. */
void
clerk_worker_register_launcher(void)
{
	before_shmem_exit(unregister_launcher, (Datum) 0);
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	shared->launcher = &MyProc->procLatch;
	LWLockRelease(&shared->lock);
}

/* Returns a database whose worker could not be started, or InvalidOid. */
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

/*
 * Sets *list to an array of the status of all workers, in the current memory
 * context, and returns its length.
 */
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
 * Makes this process the database's worker until it leaves or exits.  Returns
 * false if there is another worker or no free slot.  The process must not
 * connect to the database before entry->schedule, and must release the slot, or
 * reserve it for its successor, when it exits.
 *
 * If there is another worker, wakes it: the session that started this process
 * may not have found it because its library has another version, with another
 * layout of the slots.
 */
bool
clerk_worker_enter(Oid database, ClerkWorkerEntry *entry)
{
	Latch	   *other = NULL;
	Slot	   *slot;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	if (slot == NULL)
		slot = take_slot(database);
	if (slot != NULL && slot->latch == NULL)
	{
		compute_start_delay(slot, &entry->schedule);
		entry->handed_over = slot->handover.schedule.latest != 0;
		entry->clock_difference = slot->handover.clock_difference;
		strlcpy(entry->last_error, slot->status.last_error,
				CLERK_WORKER_ERROR_SIZE);
		memset(&slot->handover, 0, sizeof(slot->handover));
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

/* Returns whether this process is a worker. */
bool
clerk_is_worker(void)
{
	return own_slot != NULL;
}

/*
 * Begins a pass of this worker: it sees everything that was committed before.
 */
void
clerk_worker_begin_pass(void)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	own_slot->woken = false;
	own_slot->status.state = CLERK_WORKER_SENDING;
	own_slot->status.next_run_at = 0;
	LWLockRelease(&shared->lock);
}

/*
 * Ends a pass, whether it succeeded or not.  Resets the count of starts, since
 * this worker is able to run.
 */
void
clerk_worker_end_pass(void)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	own_slot->starts = 0;
	LWLockRelease(&shared->lock);
}

/*
 * Records that this worker waits until next_run_at, or until it is woken.
 * "last_error" says what prevents it from sending, and is empty if nothing
 * does.  Characters outside ASCII are replaced, since databases with other
 * encodings may read the text.
 */
void
clerk_worker_begin_wait(TimestampTz next_run_at, const char *last_error)
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

/* Returns whether rows were committed since this worker's last pass began. */
bool
clerk_worker_is_woken(void)
{
	bool		woken;

	LWLockAcquire(&shared->lock, LW_SHARED);
	woken = own_slot->woken;
	LWLockRelease(&shared->lock);
	return woken;
}

/*
 * Releases the slot, unless the worker was woken: then returns false, and the
 * worker must begin another pass.
 */
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

/* Releases the slot unconditionally, if this process has one. */
void
clerk_worker_release_slot(void)
{
	if (own_slot == NULL)
		return;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	free_slot(own_slot);
	own_slot = NULL;
	LWLockRelease(&shared->lock);
}

/*
 * Reserves the slot for the process that this one is about to start as its
 * replacement, which must not connect before handover->schedule.  If no process
 * can be started, this one may enter again.
 */
void
clerk_worker_hand_over(const ClerkWorkerHandover *handover)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	own_slot->handover = *handover;
	expect_process(own_slot, CLERK_WORKER_STARTING);
	own_slot = NULL;
	LWLockRelease(&shared->lock);
}

/*
 * Reserves the slot, if this process has one, for the replacement that the
 * postmaster starts.
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

/* Returns the slot of a database, or NULL. */
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
 * Assigns a slot to a database: a free one, or one whose worker failed to
 * start, for example because its database was dropped before.  Returns NULL if
 * all slots are in use.
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

/* Records that a process is expected to enter this slot. */
static void
expect_process(Slot *slot, ClerkWorkerState state)
{
	slot->status.state = state;
	slot->status.pid = 0;
	slot->status.started_at = GetCurrentTimestamp();
	slot->status.next_run_at = 0;
	slot->latch = NULL;
	slot->expected_since = clerk_monotonic_microseconds();
	slot->starts++;
}

/*
 * Whether a process is expected to enter this slot and has not done so in
 * time.
 */
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
	return clerk_monotonic_microseconds() - slot->expected_since > timeout * 1000;
}

/* Sets *schedule to when the process that enters this slot may connect. */
static void
compute_start_delay(const Slot *slot, ClerkWorkerSchedule *schedule)
{
	int64		delay = 0;
	int64		until;

	if (slot->starts == 0)
		delay = DELAY_AFTER_CRASH_MS;
	else if (slot->starts > 2)
		delay = 1000;
	for (int i = 3; i < slot->starts && delay < MAX_START_DELAY_MS; i++)
		delay *= 2;
	until = clerk_monotonic_microseconds() +
		Min(delay, MAX_START_DELAY_MS) * 1000;
	schedule->earliest = Max(slot->handover.schedule.earliest, until);
	schedule->latest = Max(slot->handover.schedule.latest, until);
}

static void
unregister_launcher(int code pg_attribute_unused(),
					Datum arg pg_attribute_unused())
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->launcher == &MyProc->procLatch)
		shared->launcher = NULL;
	LWLockRelease(&shared->lock);
}
