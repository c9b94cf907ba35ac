/*
 * reservation.h
 *		A request's part of a budget, from before it is sent until its response
 *		has arrived.
 *
 * A sender reserves requests with clerk_reservation_take().  Each request then
 * owns one reservation, and goes through these calls:
 *
 * - clerk_reservation_start(), before any part of the request can have been
 *	 sent;
 * - then clerk_reservation_responded() if it was sent or may have been, or
 *	 clerk_reservation_not_sent() if it certainly was not sent, or was not even
 *	 started.
 *
 * A request that is sent whether or not there is budget for it has
 * clerk_reservation_init_unreserved() in place of clerk_reservation_take().
 *
 * Reservations that the caller leaves unsettled are settled when the process
 * ends, when its transaction fails, when it takes the next reservations for
 * the endpoint, or when it sends a request to another instance.  A request
 * that was started counts as sent then.  Requests that have not been reserved
 * are settled at the latest when their transaction ends.
 *
 * Times passed to and returned from these functions are by the wall clock.
 */
#ifndef CLERK_RESERVATION_H
#define CLERK_RESERVATION_H

#include "clerk/instance_budgets.h"

/* The state of a reservation. */
typedef enum ClerkReservationState
{
	CLERK_RESERVATION_SETTLED,	/* or never taken */
	CLERK_RESERVATION_HELD,		/* taken, but not started */
	CLERK_RESERVATION_STARTED
} ClerkReservationState;

/* A request's part of a budget.  Only reservation.c modifies it. */
typedef struct ClerkReservation
{
	ClerkReservationState state;
	uint64		instance;
	ClerkEndpoint endpoint;
	bool		reserved;		/* by clerk_reservation_take() */
	int64		clock_offset;	/* wall clock minus our time when it was taken
								 * or started */
} ClerkReservation;

extern int	clerk_reservation_take(uint64 instance, ClerkEndpoint endpoint,
								   int wanted, ClerkReservation *reservations,
								   TimestampTz *available_at);
extern void clerk_reservation_init_unreserved(uint64 instance,
											  ClerkEndpoint endpoint,
											  ClerkReservation *reservation);
extern void clerk_reservation_start(ClerkReservation *reservation);
extern void clerk_reservation_responded(ClerkReservation *reservation,
										TimestampTz responded_at);
extern void clerk_reservation_not_sent(ClerkReservation *reservation);

#endif							/* CLERK_RESERVATION_H */
