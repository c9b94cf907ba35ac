/*
 * request_accounting.c
 *		What a finished request means for Clerk's rate limits.
 */
#include "postgres.h"

#include "clerk/api_request.h"
#include "clerk/rate_limit.h"
#include "clerk/request_accounting.h"
#include "utils/timestamp.h"

#define HTTP_TOO_MANY_REQUESTS 429

/*
 * Seconds for which an endpoint is closed after a 429 without a Retry-After
 * header.  If Clerk counts refused requests, this makes only a few of them per
 * hour; and it is short in comparison to the hour that the limit may last.
 */
#define DEFAULT_RETRY_AFTER 60

/*
 * Upper limit for Retry-After, in seconds.  Clerk's longest rate limit window
 * is an hour, so a value above a day is not credible.
 */
#define MAX_RETRY_AFTER SECS_PER_DAY

static void note_rate_limit(const ClerkHttpRequest *request, uint64 instance,
							ClerkEndpoint endpoint);

/* Settles the reservation according to how the request ended. */
void
clerk_settle_reservation(const ClerkHttpRequest *request,
						 ClerkReservation *reservation)
{
	switch (clerk_http_outcome(request))
	{
		case CLERK_HTTP_RUNNING:
			return;
		case CLERK_HTTP_COMPLETED:
			clerk_reservation_responded(reservation,
										clerk_http_response_time(request));
			note_rate_limit(request, reservation->instance,
							reservation->endpoint);
			return;
		case CLERK_HTTP_LOST:
			clerk_reservation_responded(reservation, GetCurrentTimestamp());
			return;
		case CLERK_HTTP_UNUSABLE:
		case CLERK_HTTP_NOT_SENT:
			clerk_reservation_not_sent(reservation);
			return;
	}
}

/*
 * After a 429 to the list of an organization's invitations, closes the
 * endpoint CLERK_ENDPOINT_LIST.
 */
void
clerk_note_list_limit(const ClerkHttpRequest *request)
{
	/*
	 * A request that was never sent has no key, but it has no HTTP status
	 * either.
	 */
	if (clerk_http_status(request) == HTTP_TOO_MANY_REQUESTS)
		note_rate_limit(request, clerk_request_instance(request),
						CLERK_ENDPOINT_LIST);
}

/*
 * After a 429, closes the endpoint for as long as Clerk's Retry-After header
 * says.
 */
static void
note_rate_limit(const ClerkHttpRequest *request, uint64 instance,
				ClerkEndpoint endpoint)
{
	int			seconds = clerk_http_retry_after(request);

	if (clerk_http_status(request) != HTTP_TOO_MANY_REQUESTS)
		return;
	if (seconds == 0)
		seconds = DEFAULT_RETRY_AFTER;
	seconds = Min(seconds, MAX_RETRY_AFTER);
	clerk_rate_limit_close(instance, endpoint, seconds);
}
