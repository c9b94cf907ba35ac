/*
 * rate_limit.h
 *		Clerk's budgets of requests, counted in shared memory: "now, or when?"
 *
 * A sender reserves requests with clerk_rate_limit_take().  Each request owns
 * its reservation: clerk_rate_limit_start() before it can have been sent, and
 * afterward clerk_rate_limit_answered() if it was sent, or may have been, or
 * clerk_rate_limit_not_sent() if it certainly was not, or was not even started.
 * A request that does not ask for leave has clerk_rate_limit_unreserved()
 * instead of the first one.  What is not settled counts as sent if it was
 * started, when the process ends or its transaction fails, or the next requests
 * are taken.
 *
 * Times are by our clock of day, as it is when they are given or returned.
 */
#ifndef CLERK_RATE_LIMIT_H
#define CLERK_RATE_LIMIT_H

#include "datatype/timestamp.h"

/* What Clerk limits, and closes after too many requests, by itself. */
typedef enum ClerkEndpoint
{
	CLERK_ENDPOINT_SINGLE,		/* creates one invitation */
	CLERK_ENDPOINT_BULK,		/* creates up to ten */
	CLERK_ENDPOINT_LIST			/* not counted, but it can be closed */
} ClerkEndpoint;

/* How far a request with a reservation has come. */
typedef enum ClerkReservationState
{
	CLERK_RESERVATION_SETTLED,	/* or never made */
	CLERK_RESERVATION_HELD,		/* taken, and not started */
	CLERK_RESERVATION_STARTED
} ClerkReservationState;

/* A request's share of a budget; only rate_limit.c changes it. */
typedef struct ClerkReservation
{
	ClerkReservationState state;
	uint64		instance;
	ClerkEndpoint endpoint;
	bool		reserved;		/* taken, not only counted */
	int64		clock_offset;	/* of the clock of day when it was */
} ClerkReservation;

/* An endpoint's state, in requests. */
typedef struct ClerkBudget
{
	int			limit;			/* in a window; INT_MAX: not counted */
	int			used;			/* in the window that ends now */
	int			remaining;		/* never negative; see also closed_until */
	TimestampTz available_at;	/* when one can go out; 0: now; infinity:
								 * never */
	TimestampTz closed_until;	/* by Clerk; 0: it is not */
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
extern void clerk_rate_limit_answered(ClerkReservation *reservation,
									  TimestampTz answered_at);
extern void clerk_rate_limit_not_sent(ClerkReservation *reservation);
extern void clerk_rate_limit_close(uint64 instance, ClerkEndpoint endpoint,
								   int seconds);
extern void clerk_rate_limit_read(uint64 instance, ClerkEndpoint endpoint,
								  ClerkBudget *budget);

#endif							/* CLERK_RATE_LIMIT_H */
