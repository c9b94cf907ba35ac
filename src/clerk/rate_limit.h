/*
 * rate_limit.h
 *		Clerk's rate limits: how many requests may be sent now, and when more
 *		may be sent.  Requests are counted in shared memory.
 *
 * A sender reserves requests with clerk_rate_limit_take().  Each request then
 * owns one reservation, and goes through these calls:
 *
 * - clerk_rate_limit_start(), before any part of the request can have been
 *	 sent;
 * - then clerk_rate_limit_responded() if it was sent or may have been, or
 *	 clerk_rate_limit_not_sent() if it certainly was not sent, or was not even
 *	 started.
 *
 * A request that is sent whether or not there is budget for it has
 * clerk_rate_limit_unreserved() in place of clerk_rate_limit_take().
 *
 * Reservations that the caller leaves unsettled are settled when the process
 * ends, when its transaction fails, when it takes the next reservations for
 * the endpoint, or when it sends a request to another instance.  A request
 * that was started counts as sent then.  Requests that have not been reserved
 * are settled at the latest when their transaction ends.
 *
 * Times passed to and returned from these functions are by the wall clock.
 */
#ifndef CLERK_RATE_LIMIT_H
#define CLERK_RATE_LIMIT_H

#include "datatype/timestamp.h"

/* The endpoints that Clerk limits separately. */
typedef enum ClerkEndpoint
{
	CLERK_ENDPOINT_SINGLE,		/* create one invitation */
	CLERK_ENDPOINT_BULK,		/* create up to ten invitations */
	CLERK_ENDPOINT_LIST			/* list; not counted, but closed after a 429 */
} ClerkEndpoint;

/* The state of a reservation. */
typedef enum ClerkReservationState
{
	CLERK_RESERVATION_SETTLED,	/* or never taken */
	CLERK_RESERVATION_HELD,		/* taken, but not started */
	CLERK_RESERVATION_STARTED
} ClerkReservationState;

/* A request's part of a budget.  Only rate_limit.c modifies it. */
typedef struct ClerkReservation
{
	ClerkReservationState state;
	uint64		instance;
	ClerkEndpoint endpoint;
	bool		reserved;		/* by clerk_rate_limit_take() */
	int64		clock_offset;	/* wall clock minus our time when it was taken
								 * or started */
} ClerkReservation;

/* The state of an endpoint, in requests. */
typedef struct ClerkBudget
{
	int			limit;			/* per window; INT_MAX: not limited */
	int			used;			/* in the window that ends now */
	int			remaining;		/* never negative; see also closed_until */
	TimestampTz available_at;	/* when a request may be sent; 0: now;
								 * infinity: never */
	TimestampTz closed_until;	/* by a 429; 0: not closed */
} ClerkBudget;

extern void clerk_rate_limit_request_memory(void);
extern uint64 clerk_rate_limit_instance(const char *api_url,
										size_t api_url_length,
										const char *secret_key);
extern int	clerk_rate_limit_take(uint64 instance, ClerkEndpoint endpoint,
								  int wanted, ClerkReservation *reservations,
								  TimestampTz *available_at);
extern void clerk_rate_limit_unreserved(uint64 instance, ClerkEndpoint endpoint,
										ClerkReservation *reservation);
extern void clerk_rate_limit_start(ClerkReservation *reservation);
extern void clerk_rate_limit_responded(ClerkReservation *reservation,
									   TimestampTz responded_at);
extern void clerk_rate_limit_not_sent(ClerkReservation *reservation);
extern void clerk_rate_limit_close(uint64 instance, ClerkEndpoint endpoint,
								   int seconds);
extern void clerk_rate_limit_read(uint64 instance, ClerkEndpoint endpoint,
								  ClerkBudget *budget);

#endif							/* CLERK_RATE_LIMIT_H */
