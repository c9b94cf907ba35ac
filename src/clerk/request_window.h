/*
 * request_window.h
 *		Counts requests in a sliding time window.
 *
 * Times are in microseconds, by a clock that never goes back.
 */
#ifndef CLERK_REQUEST_WINDOW_H
#define CLERK_REQUEST_WINDOW_H

#include "datatype/timestamp.h"

#define CLERK_WINDOW_BUCKETS 128
#define CLERK_BUCKET_PARTS 256

/*
 * Requests to one endpoint, by the time of their responses.  Bucket number N
 * is in counts[N % CLERK_WINDOW_BUCKETS].  It counts the requests whose
 * responses arrived from N * width to (N + 1) * width.  The ring holds the
 * bucket "newest" and the CLERK_WINDOW_BUCKETS - 1 buckets before it.
 * latest[N % CLERK_WINDOW_BUCKETS] is the part of bucket N in which its latest
 * response arrived, from 0 to CLERK_BUCKET_PARTS - 1.
 */
typedef struct ClerkRequestWindow
{
	int64		width;			/* of a bucket, in microseconds */
	TimestampTz configured_at;	/* latest PgReloadTime of a process that uses
								 * this width */
	int64		newest;			/* number of the newest bucket */
	uint32		held;			/* reserved, but not started yet */
	uint32		under_way;		/* started, but no response yet */
	uint32		counts[CLERK_WINDOW_BUCKETS];
	uint8		latest[CLERK_WINDOW_BUCKETS];
} ClerkRequestWindow;

extern void clerk_window_configure(ClerkRequestWindow *window, int64 now);
extern void clerk_window_advance(ClerkRequestWindow *window, int64 now);
extern void clerk_window_add(ClerkRequestWindow *window, int64 time,
							 uint32 count);
extern int64 clerk_window_sum(const ClerkRequestWindow *window);
extern int64 clerk_window_expiry_time(const ClerkRequestWindow *window,
									  int64 count);

#endif							/* CLERK_REQUEST_WINDOW_H */
