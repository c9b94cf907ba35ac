/*
 * request_batch.h
 *		Requests for rows of the outbox.
 */
#ifndef CLERK_SHIPMENT_H
#define CLERK_SHIPMENT_H

#include "clerk/operations.h"
#include "outbox/outbox.h"
#include "outbox/packing.h"

/* A request of the batch and the rows that it is for. */
typedef struct ClerkBatchEntry
{
	ClerkEndpoint endpoint;
	int			count;
	ClerkOutboxRow *rows[CLERK_BULK_MAX];
	const		ClerkReservation *reservation;	/* NULL: not counted */
	ClerkHttpRequest *request;	/* NULL: not started */
	ClerkError *error;			/* why it could not be formed; NULL: it could */
	bool		over;
}			ClerkBatchEntry;

extern void clerk_send_batch(ClerkBatchEntry * entries, int count);
extern void clerk_batch_entry_outcomes(ClerkBatchEntry * entry,
									   ClerkOutboxChange *changes, List **adopted);

#endif							/* CLERK_SHIPMENT_H */
