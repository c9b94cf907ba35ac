/*
 * server_clock.c
 *		A clock that nobody can set, for times that are kept in a table.
 *
 * A reading tells how long the machine has run, in milliseconds, and which run
 * of the server it is from: one of another run, which may be on another
 * machine, tells nothing here.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "common/monotonic_clock.h"
#include "common/server_clock.h"
#include "utils/timestamp.h"

/* 48 bits hold milliseconds for 8,900 years, and leave 15 without the sign. */
#define RUN_SHIFT 48
#define RUN_MASK INT64CONST(0x7FFF)
#define TIME_MASK ((INT64CONST(1) << RUN_SHIFT) - 1)

/* The time now; never negative. */
int64
clerk_server_clock(void)
{
	int64		run = hash_bytes((const unsigned char *) &PgStartTime,
								 sizeof(PgStartTime)) & RUN_MASK;

	return (run << RUN_SHIFT) |
		((clerk_monotonic_microseconds() / 1000) & TIME_MASK);
}

/*
 * Milliseconds between two readings, not less than there were; 0 if they are
 * from different runs of the server.
 */
int64
clerk_server_clock_elapsed(int64 then, int64 now)
{
	if (then >> RUN_SHIFT != now >> RUN_SHIFT)
		return 0;
	/* Both are cut off. */
	return Max((now & TIME_MASK) - (then & TIME_MASK) + 1, 0);
}
