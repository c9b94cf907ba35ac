/*
 * request_window.c
 *		Counts requests in a sliding time window.
 *
 * The counts are in a ring of CLERK_WINDOW_BUCKETS (128) buckets.  A bucket is
 * 1/127 of the window long, and counts until the latest response in it has
 * left the window.  So a request leaves the window up to 1/127 of its length
 * (0.8 %) later than necessary, but never too early.  A burst, which is what a
 * sender makes of a budget that is available again, leaves it as soon as its
 * last response does, because a bucket stores when that arrived, to 1/256 of
 * its length.
 */
#include "postgres.h"

#include "clerk/request_window.h"
#include "common/settings.h"
#include "utils/timestamp.h"

static bool has_newer_configuration(const ClerkRequestWindow *window);
static void count_all_as_newest(ClerkRequestWindow *window, int64 newest);
static int64 bucket_width(void);
static int64 bucket_number(int64 time, int64 width);
static int64 oldest_bucket(const ClerkRequestWindow *window);
static int64 bucket_expiry_time(const ClerkRequestWindow *window, int64 number,
								int part);

/*
 * Advances a window to the time "now", and sets its length to
 * clerk_invite.rate_limit_window.  If a lock protects the window, "now" must
 * have been determined while the lock was held.
 */
void
clerk_window_configure(ClerkRequestWindow *window, int64 now)
{
	int64		width = bucket_width();

	if (window->width != width && has_newer_configuration(window))
	{
		window->width = width;
		window->configured_at = PgReloadTime;
		count_all_as_newest(window, bucket_number(now, width));
	}
	if (window->width == width)
		window->configured_at = Max(window->configured_at, PgReloadTime);
	clerk_window_advance(window, now);
}

/*
 * Advances a window to the time "now".  If the window is ahead of that time,
 * all its requests are counted as made now.  Our clock never goes back, but a
 * window that was read from a file may contain anything.
 */
void
clerk_window_advance(ClerkRequestWindow *window, int64 now)
{
	int64		newest = bucket_number(now, window->width);
	int			oldest;

	if (window->newest > newest)
		count_all_as_newest(window, newest);
	if (newest - window->newest >= CLERK_WINDOW_BUCKETS)
	{
		memset(window->counts, 0, sizeof(window->counts));
		memset(window->latest, 0, sizeof(window->latest));
		window->newest = newest;
	}
	while (window->newest < newest)
	{
		int			next = ++window->newest % CLERK_WINDOW_BUCKETS;

		window->counts[next] = 0;
		window->latest[next] = 0;
	}

	/* Of the buckets in the ring, only the oldest can have left the window. */
	oldest = oldest_bucket(window) % CLERK_WINDOW_BUCKETS;
	if (window->counts[oldest] > 0 &&
		now >= bucket_expiry_time(window, oldest_bucket(window),
								  window->latest[oldest]))
		window->counts[oldest] = 0;
}

/*
 * Whether this process has read the configuration later than the process that
 * set the window's width.  During a reload some processes have read the new
 * configuration and others have not, and they must not change the width back
 * and forth.  If the time of the other process's reload is in the future, the
 * wall clock was ahead then, and the time means nothing.
 */
static bool
has_newer_configuration(const ClerkRequestWindow *window)
{
	return window->width == 0 || PgReloadTime > window->configured_at ||
		window->configured_at > GetCurrentTimestamp();
}

/*
 * Counts all requests of the window as made now.  This is for cases in which
 * the buckets no longer show the age of a request, such as a change of
 * clerk_invite.rate_limit_window.  The requests stay in the window for up to
 * one window too long.
 */
static void
count_all_as_newest(ClerkRequestWindow *window, int64 newest)
{
	int64		count = clerk_window_sum(window);

	memset(window->counts, 0, sizeof(window->counts));
	memset(window->latest, 0, sizeof(window->latest));
	window->newest = newest;
	if (count == 0)
		return;
	window->counts[newest % CLERK_WINDOW_BUCKETS] = (uint32) Min(count, PG_UINT32_MAX);
	window->latest[newest % CLERK_WINDOW_BUCKETS] = CLERK_BUCKET_PARTS - 1;
}

/*
 * The length of a bucket in microseconds, rounded up: CLERK_WINDOW_BUCKETS - 1
 * buckets must cover at least the window.
 */
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

/* Never negative: the times before 0 are never used. */
static int64
oldest_bucket(const ClerkRequestWindow *window)
{
	return Max(window->newest - CLERK_WINDOW_BUCKETS + 1, 0);
}

/*
 * Returns the time at which a response that arrived in this part of this
 * bucket will have left the window.
 */
static int64
bucket_expiry_time(const ClerkRequestWindow *window, int64 number, int part)
{
	int64		parts = window->width * (part + 1);

	return (number + CLERK_WINDOW_BUCKETS - 1) * window->width +
		(parts + CLERK_BUCKET_PARTS - 1) / CLERK_BUCKET_PARTS;
}

/*
 * Counts responses that arrived at this time.  Has no effect if that is before
 * the window.  A time in the future counts as now.
 */
void
clerk_window_add(ClerkRequestWindow *window, int64 time, uint32 count)
{
	int64		number = bucket_number(time, window->width);
	int			part = CLERK_BUCKET_PARTS - 1;
	int			bucket;

	if (count == 0 || number <= window->newest - CLERK_WINDOW_BUCKETS)
		return;
	if (number <= window->newest)
		part = (int) (Max(time, 0) % window->width * CLERK_BUCKET_PARTS / window->width);
	bucket = Min(number, window->newest) % CLERK_WINDOW_BUCKETS;
	window->counts[bucket] += count;
	window->latest[bucket] = Max(window->latest[bucket], part);
}

/*
 * Returns the number of requests in the window whose responses have arrived.
 */
int64
clerk_window_sum(const ClerkRequestWindow *window)
{
	int64		count = 0;

	for (int i = 0; i < CLERK_WINDOW_BUCKETS; i++)
		count += window->counts[i];
	return count;
}

/*
 * Returns the time at which "count" of the window's requests will have left
 * the window, if those without a response receive it now.
 */
int64
clerk_window_expiry_time(const ClerkRequestWindow *window, int64 count)
{
	for (int64 number = oldest_bucket(window); number <= window->newest; number++)
	{
		int			bucket = number % CLERK_WINDOW_BUCKETS;

		count -= window->counts[bucket];
		if (count <= 0)
			return bucket_expiry_time(window, number, window->latest[bucket]);
	}
	return bucket_expiry_time(window, window->newest, CLERK_BUCKET_PARTS - 1);
}
