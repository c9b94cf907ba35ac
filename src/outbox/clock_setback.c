/*
 * clock_setback.c
 *		Whether the wall clock was set back between two passes.
 */
#include "postgres.h"

#include "common/monotonic_clock.h"
#include "outbox/clock_setback.h"
#include "utils/timestamp.h"

/*
 * Microseconds that the wall clock must have fallen behind the monotonic clock
 * between two passes to count as having been set back.
 */
#define CLOCK_SET_BACK_THRESHOLD INT64CONST(1000000)

/* No pass has read the clocks yet. */
#define UNKNOWN PG_INT64_MAX

/* At the last pass; see clerk_clock_difference(). */
static int64 last_difference = UNKNOWN;

/*
 * Reads the clocks, once a pass.  Returns whether the wall clock was set back
 * since the last pass, or may have been because there was none.
 */
bool
clerk_clock_was_set_back(void)
{
	int64		difference = GetCurrentTimestamp() - clerk_monotonic_microseconds();
	bool		set_back = last_difference == UNKNOWN ||
	difference < last_difference - CLOCK_SET_BACK_THRESHOLD;

	last_difference = difference;
	return set_back;
}

/*
 * Returns the wall clock minus the monotonic clock, in microseconds, as the last
 * pass of this process has seen it.
 */
int64
clerk_clock_difference(void)
{
	return last_difference;
}

/*
 * Continues with the difference that the last pass of another process has seen.
 */
void
clerk_clock_expect_difference(int64 difference)
{
	last_difference = difference;
}
