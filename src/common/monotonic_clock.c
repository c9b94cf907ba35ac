/*
 * monotonic_clock.c
 *		A clock that nobody sets.
 *
 * What must last an hour lasts an hour by this clock, whatever happens to the
 * time of day meanwhile.
 */
#include "postgres.h"

#include <time.h>

#include "common/monotonic_clock.h"

/*
 * Linux has a clock that goes on while the machine is suspended, as Clerk's
 * does.  Elsewhere what is measured may be shorter than it was: then we wait
 * too long, which does no harm.
 */
#ifdef CLOCK_BOOTTIME
#define CLOCK CLOCK_BOOTTIME
#else
#define CLOCK CLOCK_MONOTONIC
#endif

/*
 * Microseconds since some moment that is the same for all processes until the
 * machine starts again, so never negative, and maybe little.
 */
int64
clerk_monotonic_microseconds(void)
{
	struct timespec time;

	/* It fails for a clock that does not exist only, and this one does. */
	(void) clock_gettime(CLOCK, &time);
	return time.tv_sec * INT64CONST(1000000) + time.tv_nsec / 1000;
}
