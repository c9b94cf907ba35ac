/*
 * request_window.c
 *		Counts of requests in a sliding window of time.
 *
 * The counts are kept in a ring of CLERK_WINDOW_BUCKETS buckets, each as long as the window
 * divided by one less, and a bucket counts until the whole of it has left
 * the window.  So a place is free again less than 1/127 of the window (0.8 %)
 * later than it could be, and never too early.
 */
#include "postgres.h"

#include "clerk/request_window.h"
#include "common/settings.h"
#include "utils/timestamp.h"

static bool knows_better(const ClerkRequestWindow *window);
static void make_all_newest(ClerkRequestWindow *window, int64 newest);
static int64 bucket_width(void);
static int64 bucket_number(int64 time, int64 width);

/*
 * Moves a window on to this time, and gives it the length of
 * clerk_invite.rate_limit_window.  Where a lock protects the window, the time
 * must have been taken under it.
 */
void
clerk_window_configure(ClerkRequestWindow *window, int64 now)
{
	int64		width = bucket_width();

	if (window->width != width && knows_better(window))
	{
		window->width = width;
		window->configured_at = PgReloadTime;
		make_all_newest(window, bucket_number(now, width));
	}
	if (window->width == width)
		window->configured_at = Max(window->configured_at, PgReloadTime);
	clerk_window_advance(window, now);
}

/*
 * Moves a window on to this time.  Our time does not go
 * back, but a file can say anything: then all counts as made now.
 */
void
clerk_window_advance(ClerkRequestWindow *window, int64 now)
{
	int64		newest = bucket_number(now, window->width);

	if (window->newest > newest)
		make_all_newest(window, newest);
	if (newest - window->newest >= CLERK_WINDOW_BUCKETS)
	{
		memset(window->counts, 0, sizeof(window->counts));
		window->newest = newest;
	}
	while (window->newest < newest)
		window->counts[++window->newest % CLERK_WINDOW_BUCKETS] = 0;
}

/*
 * Whether this process has read the server's configuration later than the one
 * that the window's width comes from.  During a reload some have read the new
 * one and some the old one, and they must not change the window in turn.  If
 * that other one has read it in the future, the clock was ahead, and says
 * nothing.
 */
static bool
knows_better(const ClerkRequestWindow *window)
{
	return window->width == 0 || PgReloadTime > window->configured_at ||
		window->configured_at > GetCurrentTimestamp();
}

/*
 * The buckets do not tell any more how old a request is, such as when
 * clerk_invite.rate_limit_window changed.  All count as made now, which at
 * worst is a window too long.
 */
static void
make_all_newest(ClerkRequestWindow *window, int64 newest)
{
	int64		count = clerk_window_sum(window);

	memset(window->counts, 0, sizeof(window->counts));
	window->newest = newest;
	window->counts[newest % CLERK_WINDOW_BUCKETS] = (uint32) Min(count, PG_UINT32_MAX);
}

/* Microseconds.  CLERK_WINDOW_BUCKETS - 1 of them are at least a window. */
static int64
bucket_width(void)
{
	int64		window = clerk_rate_limit_window * INT64CONST(1000);

	return (window + CLERK_WINDOW_BUCKETS - 2) / (CLERK_WINDOW_BUCKETS - 1);
}

static int64
bucket_number(int64 time, int64 width)
{
	return Max(time, 0) / width;
}

/* The bucket of a time, which is not in the future; NULL if it is too old. */
uint32 *
clerk_window_bucket(ClerkRequestWindow *window, int64 time)
{
	int64		number = Min(bucket_number(time, window->width), window->newest);

	return number > window->newest - CLERK_WINDOW_BUCKETS ?
		&window->counts[number % CLERK_WINDOW_BUCKETS] : NULL;
}

int64
clerk_window_sum(const ClerkRequestWindow *window)
{
	int64		count = 0;

	for (int i = 0; i < CLERK_WINDOW_BUCKETS; i++)
		count += window->counts[i];
	return count;
}

/*
 * The time when so many of the window's requests will have left the window, if
 * all that are not answered yet are answered now.
 */
int64
clerk_window_when_gone(const ClerkRequestWindow *window, int64 count)
{
	int64		number = Max(window->newest - CLERK_WINDOW_BUCKETS + 1, 0);

	while (number < window->newest &&
		   (count -= window->counts[number % CLERK_WINDOW_BUCKETS]) > 0)
		number++;
	return (number + CLERK_WINDOW_BUCKETS) * window->width;
}
