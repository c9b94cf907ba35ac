/*
 * request_window.h
 *		Counts of requests in a sliding window of time.
 *
 * Times are microseconds of a clock that does not go back.
 */
#ifndef CLERK_REQUEST_WINDOW_H
#define CLERK_REQUEST_WINDOW_H

#include "datatype/timestamp.h"

#define CLERK_WINDOW_BUCKETS 128

/*
 * Requests to an endpoint, by time.  Bucket number N, of which counts[N %
 * CLERK_WINDOW_BUCKETS] is the content, holds those that were answered from N * width to
 * (N + 1) * width; it has the newest bucket and those before it.
 */
typedef struct ClerkRequestWindow
{
	int64		width;			/* of a bucket: microseconds */
	TimestampTz configured_at;	/* when the setting was read that says so */
	int64		newest;			/* number of the newest bucket */
	uint32		held;			/* reserved, and not started yet */
	uint32		under_way;		/* started, and not answered yet */
	uint32		counts[CLERK_WINDOW_BUCKETS];
} ClerkRequestWindow;

extern void clerk_window_configure(ClerkRequestWindow *window, int64 now);
extern void clerk_window_advance(ClerkRequestWindow *window, int64 now);
extern uint32 *clerk_window_bucket(ClerkRequestWindow *window, int64 time);
extern int64 clerk_window_sum(const ClerkRequestWindow *window);
extern int64 clerk_window_when_gone(const ClerkRequestWindow *window,
									int64 count);

#endif							/* CLERK_REQUEST_WINDOW_H */
