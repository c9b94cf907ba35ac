/*
 * remote_clock.c
 *		Clerk's clock, as its responses show it.
 *
 * Each response tells the time at Clerk.  What is remembered is how far it is
 * from the monotonic clock, for all processes of the server, since the process
 * that claims a row may have received no response yet.
 */
#include "postgres.h"

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
#define SHARED_MEMORY_NAME "clerk_invite clocks 1"

/*
 * URLs that a server may send to at the same time.  Databases normally share
 * one.
 */
#define CLOCKS 16

/* The clock behind a URL. */
typedef struct RemoteClock
{
	uint64		url;			/* hash; 0: none */
	int64		ahead;			/* microseconds from the monotonic clock to
								 * this one */
} RemoteClock;

typedef struct State
{
	LWLock		lock;			/* protects the clocks */
	RemoteClock clocks[CLOCKS];
} State;

static State *state = NULL;

static RemoteClock *clock_of_url(uint64 url);
static uint64 current_url(void);

/* Requests the shared memory.  Must be called when the library is loaded. */
void
clerk_remote_clock_request_memory(void)
{
	StaticAssertStmt(sizeof(State) <= CLERK_SHARED_MEMORY_MAX,
					 "the clocks need too much shared memory");
	clerk_request_shared_memory(sizeof(State));
}

/*
 * Remembers the time in a response that was just received from the URL in the
 * current settings.  Does nothing if it has none, or if the server has no
 * memory to spare.
 *
 * The time is truncated to the second and has aged on its way here, so the
 * clock is remembered as being slow by that, never fast.
 */
void
clerk_remote_clock_note(const ClerkHttpRequest *request)
{
	pg_time_t	date = clerk_http_date(request);
	uint64		url = current_url();
	RemoteClock *clock;

	if (date == 0)
		return;
	if (state == NULL)
		state = clerk_find_shared_memory(SHARED_MEMORY_NAME, sizeof(State));
	if (state == NULL)
		return;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	clock = clock_of_url(url);
	clock->url = url;
	clock->ahead = time_t_to_timestamptz(date) - clerk_monotonic_microseconds();
	LWLockRelease(&state->lock);
}

/*
 * Returns the current time by Clerk's clock, unless that has been set since the
 * last response; 0 if no response has been received since the server started.
 */
TimestampTz
clerk_remote_clock_now(void)
{
	TimestampTz now = 0;
	uint64		url = current_url();
	RemoteClock *clock;

	if (state == NULL)
		state = clerk_find_shared_memory(SHARED_MEMORY_NAME, sizeof(State));
	if (state == NULL)
		return 0;
	LWLockAcquire(&state->lock, LW_SHARED);
	clock = clock_of_url(url);
	if (clock->url == url)
		now = clerk_monotonic_microseconds() + clock->ahead;
	LWLockRelease(&state->lock);
	return now;
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
	return Max(hash_bytes_extended((const unsigned char *) clerk_api_url,
								   strlen(clerk_api_url), 0), 1);
}
