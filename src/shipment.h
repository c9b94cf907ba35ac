/*
 * shipment.h
 *		Requests for rows of the outbox.
 */
#ifndef CLERK_SHIPMENT_H
#define CLERK_SHIPMENT_H

#include "clerk_api.h"
#include "outbox.h"
#include "planner.h"

/* A request of the wave and the rows that it is for. */
typedef struct ClerkShipment
{
	ClerkEndpoint endpoint;
	int			count;
	ClerkOutboxRow *rows[CLERK_BULK_MAX];
	const ClerkTicket *ticket;	/* NULL: not counted */
	ClerkHttpRequest *request;	/* NULL: not started */
	ClerkError *error;			/* why it could not be formed; NULL: it could */
	bool		over;
} ClerkShipment;

extern void clerk_ship(ClerkShipment *shipments, int count);
extern void clerk_judge_shipment(ClerkShipment *shipment,
								 ClerkOutboxChange *changes, List **adopted);

#endif							/* CLERK_SHIPMENT_H */
