/*
 * budget_store.c
 *		The budgets of all Clerk instances, in shared memory and in a file that
 *		survives a restart of the server.
 *
 * Elapsed time is measured by the monotonic clock: if the wall clock is set
 * ahead, no request leaves the window early, and if it is set back, no
 * endpoint is closed longer.  "Our time" is the monotonic clock plus
 * State.clock_offset.  The wall clock is used only for times that are passed
 * in or returned, and to find out how long the server was down.
 *
 * The shared memory comes from the server's spare memory when it is first
 * needed, so that the library works without being preloaded.
 *
 * What must survive a restart of the server is written through to a file
 * (clerk/budget_file.c), which is read when the shared memory is created:
 *
 * - A request is in the file before it is sent.  So however the server ends,
 *	 no request that Clerk has counted is missing.
 * - A reservation that has not been started is not in the file.  So no request
 *	 is counted that was not sent: a sender has up to 40 bulk requests
 *	 reserved, which is 80 % of Clerk's budget, and killing it would lose
 *	 them.
 * - The responses to a sender's requests are recorded in the file with the
 *	 last one, or with the next request that is sent.  The response to a
 *	 synchronous call is recorded with the next request, or when the process
 *	 ends, so that the call does not wait for a second system call.
 * - A request without a response in the file was running when the server
 *	 ended.  Its response counts as received when the file is read, or when the
 *	 request's time limit expired, if that was earlier (after 30 s, which is
 *	 0.8 % of Clerk's window of an hour).  For the requests that were running,
 *	 4 % of the budget at most with a sender's default settings, that can be
 *	 too late: less than 0.1 % of a window is lost.
 *
 * If the machine crashes, writes that the kernel has not flushed are lost.
 * Clerk's 429 responses enforce the limit then.
 *
 * A standby sends nothing, so it writes nothing.  A file that was copied from
 * another server contains requests that were sent with the same key, which
 * count here, too, or with another key, which do not affect this one.  The
 * requests in an old file have left the window.
 */
#include "postgres.h"

#include "clerk/budget_file.h"
#include "clerk/budget_store.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "common/shared_memory.h"
#include "compat.h"
#include "utils/timestamp.h"

/* More Clerk instances than the databases of one server are likely to use. */
#define INSTANCES CLERK_BUDGET_FILE_INSTANCES

/*
 * The number is the version of the memory's layout.
 * clerk_find_shared_memory() adds the size to the name, but two layouts may
 * have the same size.  The file's name has a number of its own, for the layout
 * of Record.
 */
#define SHARED_MEMORY_NAME "clerk_invite rate limit 3"

typedef struct State
{
	LWLock		lock;			/* protects the fields below */
	bool		loaded;			/* the file has been read */
	bool		write_failed;	/* the last write to the file failed; has been
								 * logged */
	int64		clock_offset;	/* our time minus the monotonic clock */
	uint64		uses;			/* counts uses, to find the instance used
								 * least recently */
	ClerkInstanceBudgets instances[INSTANCES];
} State;

/* An instance's record in the file.  "held" is always 0 in it. */
typedef struct Record
{
	int64		time;			/* when it was written, by our time ... */
	TimestampTz clock;			/* ... and by the wall clock */
	ClerkInstanceBudgets instance;
} Record;

/* The shared memory; NULL until this process has found it. */
static State *state = NULL;

/*
 * Whether the file lacks changes that this process has made, and to which
 * instance.
 */
static bool file_is_stale = false;
static uint64 stale_instance;

/* errno to be logged, or 0. */
static int	file_error = 0;

static void load(void);
static bool read_record(int number, Record *record);
static void restore_instance(const Record *record,
							 ClerkInstanceBudgets *instance, int64 now);

/*
 * Requests the shared memory.  Must be called when the library is loaded; has
 * an effect only if it is preloaded.
 */
void
clerk_budget_store_request_memory(void)
{
	StaticAssertStmt(sizeof(State) <= CLERK_SHARED_MEMORY_MAX,
					 "the budgets need too much shared memory");
	StaticAssertStmt(sizeof(Record) <= CLERK_BUDGET_RECORD_MAX,
					 "the budgets do not fit into the file");
	clerk_request_shared_memory(sizeof(State));
}

/*
 * Finds or creates the shared memory and locks it.  Returns the current time.
 * Raises 53200 if there is no shared memory left.
 */
ClerkMoment
clerk_budget_store_lock(void)
{
	ClerkMoment now;

	if (state == NULL)
		state = clerk_find_shared_memory(SHARED_MEMORY_NAME, sizeof(State));
	if (state == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not track requests to Clerk"),
				 errdetail("There is not enough shared memory left."),
				 errhint("Add clerk_invite to \"shared_preload_libraries\".")));
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (!state->loaded)
		load();

	/*
	 * Read the clocks under the lock, so that our time never goes back from
	 * one holder of the lock to the next.
	 */
	now.time = clerk_monotonic_microseconds() + state->clock_offset;
	now.clock = GetCurrentTimestamp();
	return now;
}

/*
 * Unlocks the shared memory.  A problem with the file is not an error, but is
 * logged once.
 */
void
clerk_budget_store_unlock(void)
{
	int			error = file_error;

	LWLockRelease(&state->lock);
	file_error = 0;
	errno = error;
	if (error != 0)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not access request budget file \"%s\": %m",
						clerk_budget_file_name()),
				 errdetail("The record of the requests that were sent will be lost when the server restarts.")));
}

/*
 * Returns NULL if the instance has not been used, or so long ago that another
 * one has replaced it.
 */
ClerkInstanceBudgets *
clerk_budget_store_find(uint64 name)
{
	for (int i = 0; i < INSTANCES; i++)
		if (state->instances[i].last_use > 0 && state->instances[i].name == name)
			return &state->instances[i];
	return NULL;
}

/* Finds an instance, or replaces the one used least recently. */
ClerkInstanceBudgets *
clerk_budget_store_use(uint64 name)
{
	ClerkInstanceBudgets *instance = clerk_budget_store_find(name);

	if (instance == NULL)
	{
		instance = &state->instances[0];
		for (int i = 1; i < INSTANCES; i++)
			if (state->instances[i].last_use < instance->last_use)
				instance = &state->instances[i];
		memset(instance, 0, sizeof(ClerkInstanceBudgets));
		instance->name = name;
	}
	instance->last_use = ++state->uses;
	return instance;
}

/* Writes an instance to the file: see the head of this file. */
void
clerk_budget_store_write(const ClerkInstanceBudgets *instance, ClerkMoment now)
{
	Record		record;

	memset(&record, 0, sizeof(record));
	record.time = now.time;
	record.clock = now.clock;
	record.instance = *instance;
	for (int i = 0; i < CLERK_COUNTED_ENDPOINTS; i++)
		record.instance.windows[i].held = 0;
	if (clerk_budget_file_write((int) (instance - state->instances),
								&record, sizeof(record)))
	{
		state->write_failed = false;
		if (instance->name == stale_instance)
			file_is_stale = false;
	}
	else if (!state->write_failed)
	{
		state->write_failed = true;
		file_error = errno;
	}
}

/*
 * Notes that this process has changed an instance's budgets without writing
 * them to the file.  Whatever writes them next includes the change.  Before
 * another instance is changed so, clerk_budget_store_write_deferred() must be
 * called.
 */
void
clerk_budget_store_write_later(uint64 name)
{
	Assert(!file_is_stale || stale_instance == name);
	file_is_stale = true;
	stale_instance = name;
}

/* Writes what clerk_budget_store_write_later() has left to be written. */
void
clerk_budget_store_write_deferred(ClerkMoment now)
{
	ClerkInstanceBudgets *instance = clerk_budget_store_find(stale_instance);

	if (file_is_stale && instance != NULL)
		clerk_budget_store_write(instance, now);
	file_is_stale = false;
}

/*
 * Returns whether the file lacks changes that this process has made.  Needs no
 * lock.
 */
bool
clerk_budget_store_is_stale(void)
{
	return file_is_stale;
}

/*
 * LOAD: fills the shared memory from the file.
 *
 * Our time continues from that of the newest record, advanced by the time that
 * has passed since by the wall clock.  If the wall clock was ahead when the
 * record was written and has been corrected since, no time counts as passed.
 * If it was behind then or is ahead now, requests leave the window too early;
 * nothing can detect that.  Without a record our time starts at the wall
 * clock's time, so that it is never close to 0.
 */
static void
load(void)
{
	TimestampTz clock = GetCurrentTimestamp();
	int64		now = Max(clock, 0);
	int64		newest = -1;
	Record		record;

	for (int i = 0; i < INSTANCES; i++)
	{
		if (read_record(i, &record) && record.time > newest)
		{
			newest = record.time;
			now = record.time + Max(clock - record.clock, 0);
		}
	}
	for (int i = 0; i < INSTANCES; i++)
		if (read_record(i, &record))
			restore_instance(&record, &state->instances[i], now);
	state->clock_offset = now - clerk_monotonic_microseconds();
	state->loaded = true;
}

static bool
read_record(int number, Record *record)
{
	if (clerk_budget_file_read(number, record, sizeof(*record)))
		return true;
	if (errno != 0 && errno != ENOENT)
		file_error = errno;
	return false;
}

/*
 * Restores an instance from its record.  The requests that were running when
 * it was written are over.  If the file was copied from another server, two
 * records may be for the same instance; the one used last is taken.
 */
static void
restore_instance(const Record *record, ClerkInstanceBudgets *instance,
				 int64 now)
{
	int64		responded_at = Min(now, record->time +
								   clerk_request_timeout * INT64CONST(1000));
	ClerkInstanceBudgets *other = clerk_budget_store_find(record->instance.name);

	if (other != NULL && other->last_use > record->instance.last_use)
		return;
	if (other != NULL)
		memset(other, 0, sizeof(ClerkInstanceBudgets));
	*instance = record->instance;
	state->uses = Max(state->uses, instance->last_use);
	for (int i = 0; i < CLERK_COUNTED_ENDPOINTS; i++)
	{
		ClerkRequestWindow *window = &instance->windows[i];

		/*
		 * A reload time that another run of the server recorded does not
		 * apply.
		 */
		window->configured_at = 0;
		if (window->width == 0)
			continue;
		clerk_window_advance(window, now);
		clerk_window_add(window, responded_at, window->under_way);
		window->under_way = 0;
	}
}
