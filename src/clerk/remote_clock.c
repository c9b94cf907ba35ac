/*
 * remote_clock.c
 *		Clerk's clock, as its responses show it.
 *
 * Each response tells the time at Clerk.  What is remembered is how far it is
 * from the monotonic clock, for all processes of the server, since the process
 * that claims a row may have received no response yet.  If the clock is set,
 * its last settings are remembered as well, since an invitation may have been
 * created by any of them.
 *
 * The settings are in shared memory, and in a record of the budget file
 * (clerk/budget_file.c), which survives a crash.  The record is written when
 * a response shows a new setting, before the response has any effect.  In the
 * record, times of the monotonic clock go with a time of the wall clock, since
 * the monotonic clock starts anew with the machine.
 */
#include "postgres.h"

#include "clerk/budget_file.h"
#include "clerk/remote_clock.h"
#include "common/hashfn.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "common/shared_memory.h"
#include "utils/timestamp.h"

/*
 * The number is the version of the layout, because the size alone does not
 * distinguish layouts.
 */
#define SHARED_MEMORY_NAME "clerk_invite clocks 2"

/*
 * URLs that a server may send to at the same time.  Databases normally share
 * one.
 */
#define CLOCKS 16

/*
 * Responses whose times differ by less show the same setting of the clock, in
 * microseconds: a second for the rounding of the Date header, and one for the
 * response's way here.
 */
#define SAME_SETTING (2 * USECS_PER_SEC)

/*
 * What the wall clock and the monotonic clock may drift apart between two runs
 * of the server if neither was set, in microseconds.
 */
#define SAME_MONOTONIC_CLOCK USECS_PER_SEC

/* How far the clock was ahead, and since when. */
typedef struct ClockSetting
{
	int64		ahead;			/* microseconds from the monotonic clock to
								 * this one */
	int64		since;			/* when the first response after another
								 * setting showed it, by the monotonic clock */
}			ClockSetting;

/* The clock behind a URL. */
typedef struct RemoteClock
{
	uint64		url;			/* hash; 0: none */
	int			count;			/* of settings, one if there is a URL */
	ClockSetting settings[CLERK_CLOCK_SETTINGS];	/* the newest first */
} RemoteClock;

typedef struct State
{
	LWLock		lock;			/* protects the fields below */
	bool		loaded;			/* the file has been read */
	RemoteClock clocks[CLOCKS];
} State;

/* The record in the file. */
typedef struct Record
{
	int64		time;			/* when it was written, by the monotonic clock
								 * ... */
	TimestampTz wall_time;		/* ... and by the wall clock */
	RemoteClock clocks[CLOCKS];
} Record;

static State *state = NULL;

static bool lock_state(LWLockMode mode);
static void load(void);
static void save(void);
static bool note_setting(RemoteClock *clock, int64 ahead, int64 now);
static RemoteClock *clock_of_url(uint64 url);
static uint64 current_url(void);

/* Requests the shared memory.  Must be called when the library is loaded. */
void
clerk_remote_clock_request_memory(void)
{
	StaticAssertStmt(sizeof(State) <= CLERK_SHARED_MEMORY_MAX,
					 "the clocks need too much shared memory");
	StaticAssertStmt(sizeof(Record) <= CLERK_BUDGET_RECORD_MAX,
					 "the clocks do not fit into the file");
	clerk_request_shared_memory(sizeof(State));
}

/*
 * Remembers the time in a response that was just received from the URL in the
 * current settings.  Does nothing if it has none, or if the server has no
 * memory to spare.  Without the file, the time is lost in a crash.
 *
 * The time is truncated to the second and has aged on its way here, so the
 * clock is remembered as being slow by that, never fast.
 */
void
clerk_remote_clock_note(const ClerkHttpRequest *request)
{
	pg_time_t	date = clerk_http_date(request);
	uint64		url = current_url();
	int64		now;
	RemoteClock *clock;

	if (date == 0 || !lock_state(LW_EXCLUSIVE))
		return;
	now = clerk_monotonic_microseconds();
	clock = clock_of_url(url);
	if (clock->url != url)
	{
		memset(clock, 0, sizeof(RemoteClock));
		clock->url = url;
	}
	if (note_setting(clock, time_t_to_timestamptz(date) - now, now))
		save();
	LWLockRelease(&state->lock);
}

/*
 * Returns the current time by Clerk's clock, unless that has been set since the
 * last response; 0 if no response is known.
 */
TimestampTz
clerk_remote_clock_now(void)
{
	TimestampTz now;

	return clerk_remote_clock_settings(0, &now) > 0 ? now : 0;
}

/*
 * Fills in the current time by each setting that Clerk's clock may have had in
 * the last "elapsed" microseconds, as far as responses have shown it, and
 * returns their number, at most CLERK_CLOCK_SETTINGS.  The newest setting is
 * the first.
 */
int
clerk_remote_clock_settings(int64 elapsed, TimestampTz *times)
{
	uint64		url = current_url();
	int			count = 0;
	int64		now;
	RemoteClock *clock;

	if (!lock_state(LW_SHARED))
		return 0;
	now = clerk_monotonic_microseconds();
	clock = clock_of_url(url);
	if (clock->url == url)
	{
		do
		{
			times[count] = now + clock->settings[count].ahead;
			count++;
		} while (count < clock->count &&
				 clock->settings[count - 1].since > now - elapsed);
	}
	LWLockRelease(&state->lock);
	return count;
}

/* Returns false, without the lock, if there is no memory to spare. */
static bool
lock_state(LWLockMode mode)
{
	if (state == NULL)
		state = clerk_find_shared_memory(SHARED_MEMORY_NAME, sizeof(State));
	if (state == NULL)
		return false;
	LWLockAcquire(&state->lock, mode);
	if (state->loaded)
		return true;
	if (mode != LW_EXCLUSIVE)
	{
		LWLockRelease(&state->lock);
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	}
	if (!state->loaded)
		load();
	return true;
}

/*
 * Fills the shared memory from the file.  If the machine was started in the
 * meantime, or the wall clock was set, the time that has passed since is what
 * the wall clock shows.
 */
static void
load(void)
{
	Record		record;
	int64		shift;

	state->loaded = true;
	if (!clerk_budget_file_read(CLERK_BUDGET_FILE_CLOCKS, &record, sizeof(record)))
		return;
	memcpy(state->clocks, record.clocks, sizeof(state->clocks));
	shift = (record.wall_time - record.time) -
		(GetCurrentTimestamp() - clerk_monotonic_microseconds());
	if (shift > -SAME_MONOTONIC_CLOCK && shift < SAME_MONOTONIC_CLOCK)
		return;
	for (int i = 0; i < CLOCKS; i++)
	{
		for (int j = 0; j < state->clocks[i].count; j++)
		{
			state->clocks[i].settings[j].ahead -= shift;
			state->clocks[i].settings[j].since += shift;
		}
	}
}

/* Writes the shared memory to the file. */
static void
save(void)
{
	Record		record;

	memset(&record, 0, sizeof(record));
	record.time = clerk_monotonic_microseconds();
	record.wall_time = GetCurrentTimestamp();
	memcpy(record.clocks, state->clocks, sizeof(record.clocks));
	(void) clerk_budget_file_write(CLERK_BUDGET_FILE_CLOCKS, &record, sizeof(record));
}

/*
 * Makes a setting the newest.  Returns whether it was not.  Responses that
 * overtake each other while the clock is set show two settings in turn; each
 * is remembered once.
 */
static bool
note_setting(RemoteClock *clock, int64 ahead, int64 now)
{
	ClockSetting *settings = clock->settings;
	int			i;

	for (i = 0; i < clock->count; i++)
		if (settings[i].ahead > ahead - SAME_SETTING &&
			settings[i].ahead < ahead + SAME_SETTING)
			break;
	if (i == 0 && clock->count > 0)
	{
		settings[0].ahead = ahead;
		return false;
	}
	if (i == clock->count)
	{
		if (i < CLERK_CLOCK_SETTINGS)
			clock->count++;
		else
			i--;
	}
	memmove(&settings[1], &settings[0], i * sizeof(ClockSetting));
	settings[0].ahead = ahead;
	settings[0].since = now;
	return true;
}

/* Where this clock is remembered; it may be another one's place, too. */
static RemoteClock *
clock_of_url(uint64 url)
{
	return &state->clocks[url % CLOCKS];
}

/* Identifies the URL in the settings; never 0. */
static uint64
current_url(void)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) clerk_api_url,
										   strlen(clerk_api_url), 0);

	return Max(hash, 1);
}
