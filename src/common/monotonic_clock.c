/*
 * monotonic_clock.c
 *		A monotonic clock.
 *
 * Intervals are measured by this clock, so that setting the wall clock does
 * not shorten or lengthen them.
 */
#include "postgres.h"

#include <time.h>

#include "common/monotonic_clock.h"

/*
 * CLOCK_BOOTTIME, which only Linux has, continues while the machine is
 * suspended, as time does at Clerk.  On other systems a measured interval may
 * be shorter than it was.  Then we wait too long, which does no harm.
 */
#ifdef CLOCK_BOOTTIME
#define CLOCK CLOCK_BOOTTIME
#else
#define CLOCK CLOCK_MONOTONIC
#endif

/*
 * Returns the microseconds since an unspecified moment that is the same for
 * all processes until the machine restarts.  The value is never negative, but
 * it may be small.
 */
int64
clerk_monotonic_microseconds(void)
{
	struct timespec time;

	/* This fails only for a clock that does not exist, and this one does. */
	(void) clock_gettime(CLOCK, &time);
	return time.tv_sec * INT64CONST(1000000) + time.tv_nsec / 1000;
}
