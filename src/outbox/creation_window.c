/*
 * creation_window.c
 *		When an invitation that is a row's can have been created, by Clerk's
 *		clock.
 *
 * The time that has elapsed since the row was claimed is subtracted from the
 * time in Clerk's response.  If Clerk's clock was set since the claim, times
 * before and after that cannot be compared; the claim then counts as early as
 * any of the clock's settings has it.
 */
#include "postgres.h"

#include "clerk/remote_clock.h"
#include "common/server_clock.h"
#include "outbox/creation_window.h"
#include "utils/timestamp.h"

/*
 * How much clocks at Clerk may differ, such as the one that invitations are
 * created by and that of its responses, in microseconds.  A minute is far more
 * than clocks of a data center differ.
 */
#define CLOCK_TOLERANCE (60 * USECS_PER_SEC)

static int64 elapsed_since_claim(const ClerkOutboxRow *row,
								 const ClerkHttpRequest *request);
static void widen_window(ClerkCreationWindow *window, TimestampTz claim);

/*
 * Returns the window for what "request", a lookup of the row's address, found.
 * It begins at the first claim: the time in the response's Date header, minus
 * the time that has elapsed since the claim.  The header is truncated to the
 * second and has aged on its way here, so the result is early by that, never
 * late: an invitation created after the claim is never taken for an older one.
 *
 * This assumes that Clerk's clock was not set since the claim.  The last claim
 * has the time as it was known then, and clerk/remote_clock.c knows what
 * responses have shown in the meantime, for an invitation that was created
 * before the clock was set.
 */
ClerkCreationWindow
clerk_creation_window(const ClerkOutboxRow *row, const ClerkHttpRequest *request)
{
	ClerkCreationWindow window;
	int64		elapsed = elapsed_since_claim(row, request);
	pg_time_t	date = clerk_http_date(request);
	int64		age = clerk_server_clock_elapsed(clerk_http_response_clock(request),
												 clerk_server_clock()) * 1000;
	TimestampTz now[CLERK_CLOCK_SETTINGS];
	int			settings;

	window.latest = date != 0 ? time_t_to_timestamptz(date) :
		clerk_http_response_time(request);
	window.earliest = window.latest - elapsed;
	window.clock_was_set = row->claimed_clerk_clock == 0 ||
		row->claimed_clerk_clock < window.earliest - CLOCK_TOLERANCE ||
		row->claimed_clerk_clock > window.latest + CLOCK_TOLERANCE;
	window.latest += CLOCK_TOLERANCE;
	settings = clerk_remote_clock_settings(elapsed + age, now);
	for (int i = 0; i < settings; i++)
		widen_window(&window, now[i] - elapsed - age);
	if (row->claimed_clerk_clock != 0)
		window.earliest = Min(window.earliest, row->claimed_clerk_clock);
	return window;
}

/*
 * Returns the time from the row's first claim to the response, in microseconds.
 *
 * It is measured by two clocks.  The wall clock can be set; if it was set back,
 * it shows too little.  The monotonic clock (common/server_clock.h) cannot be
 * set, but may stop while the machine sleeps, and does not know times from
 * before a server restart.  Neither shows too much unless the wall clock was
 * set ahead.  Therefore the larger value counts.
 */
static int64
elapsed_since_claim(const ClerkOutboxRow *row, const ClerkHttpRequest *request)
{
	int64		elapsed = clerk_http_response_time(request) - row->first_claimed_at;

	if (row->first_claimed_clock != 0)
		elapsed = Max(elapsed,
					  clerk_server_clock_elapsed(row->first_claimed_clock,
												 clerk_http_response_clock(request)) * 1000);
	return elapsed;
}

/* The first claim by another setting that Clerk's clock may have had. */
static void
widen_window(ClerkCreationWindow *window, TimestampTz claim)
{
	if (claim < window->earliest - CLOCK_TOLERANCE ||
		claim > window->earliest + CLOCK_TOLERANCE)
		window->clock_was_set = true;
	window->earliest = Min(window->earliest, claim);
}

/*
 * Whether the invitation was created between the row's claim and the lookup,
 * by any setting that Clerk's clock may have had since.
 *
 * An invitation from the future was created before the clock was set back.  If
 * that may have been since the claim, it counts, since a row that misses its
 * own invitation would be sent twice.
 */
bool
clerk_is_created_within(const ClerkInvitation *invitation,
						const ClerkCreationWindow *window)
{
	TimestampTz created_at;

	if (invitation->nulls[CLERK_INVITATION_CREATED_AT])
		return false;
	created_at = DatumGetTimestampTz(invitation->values[CLERK_INVITATION_CREATED_AT]);
	return created_at >= window->earliest &&
		(window->clock_was_set || created_at <= window->latest);
}
