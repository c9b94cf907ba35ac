/*
 * server_clock.c
 *		A monotonic clock for times that are stored in a table.
 *
 * A reading consists of the time since the machine started, in milliseconds,
 * and a number that identifies the current run of the server.  A reading from
 * another run, possibly on another machine, cannot be compared with a new one.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "common/monotonic_clock.h"
#include "common/server_clock.h"
#include "utils/timestamp.h"

/*
 * 48 bits hold the milliseconds of 8,900 years; 15 bits and the sign are left.
 */
#define RUN_SHIFT 48
#define RUN_MASK INT64CONST(0x7FFF)
#define TIME_MASK ((INT64CONST(1) << RUN_SHIFT) - 1)

/* Returns the current reading, which is never negative. */
int64
clerk_server_clock(void)
{
	int64		run = hash_bytes((const unsigned char *) &PgStartTime,
								 sizeof(PgStartTime)) & RUN_MASK;

	return (run << RUN_SHIFT) |
		((clerk_monotonic_microseconds() / 1000) & TIME_MASK);
}

/*
 * Returns the milliseconds between two readings, rounded up, or 0 if they are
 * from different runs of the server.
 */
int64
clerk_server_clock_elapsed(int64 then, int64 now)
{
	if (then >> RUN_SHIFT != now >> RUN_SHIFT)
		return 0;
	/* Both readings are truncated, so up to 1 ms more may have passed. */
	return Max((now & TIME_MASK) - (then & TIME_MASK) + 1, 0);
}
