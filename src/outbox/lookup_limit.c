/*
 * lookup_limit.c
 *		How many lookups a process may make.
 */
#include "postgres.h"

#include "common/monotonic_clock.h"
#include "outbox/lookup_limit.h"
#include "utils/timestamp.h"

/*
 * Most lookups that a process makes in a period of so many microseconds.
 * Clerk accepts 100 requests of all kinds in 10 seconds on a development
 * instance, and 1,000 on a production instance; lookups must leave most of
 * that to other requests.
 */
#define MAX_LOOKUPS 40
#define LOOKUP_PERIOD INT64CONST(10000000)

/* The lookups that this process has made since the period began. */
static int	lookups_made = 0;
static int64 period_begun = 0;

/*
 * Returns how many lookups may be made now.  If there are none left,
 * *next_lookup_at is the time when there will be; otherwise it is 0.
 */
int
clerk_lookups_left(TimestampTz *next_lookup_at)
{
	int64		now = clerk_monotonic_microseconds();

	if (now - period_begun >= LOOKUP_PERIOD)
	{
		lookups_made = 0;
		period_begun = now;
	}
	*next_lookup_at = lookups_made < MAX_LOOKUPS ? 0 :
		GetCurrentTimestamp() + period_begun + LOOKUP_PERIOD - now;
	return Max(MAX_LOOKUPS - lookups_made, 0);
}

/* Counts so many lookups that are about to be made. */
void
clerk_lookups_note(int count)
{
	lookups_made += count;
}
