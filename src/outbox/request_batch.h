/*
 * request_batch.h
 *		Requests for rows of the outbox, several at a time.
 */
#ifndef CLERK_REQUEST_BATCH_H
#define CLERK_REQUEST_BATCH_H

#include "clerk/operations.h"
#include "outbox/outbox.h"
#include "outbox/packing.h"

/* A request of the batch and the rows that it is for. */
typedef struct ClerkBatchEntry
{
	ClerkEndpoint endpoint;
	ClerkReservation reservation;	/* settled at first: not counted */
	ClerkPackedRequest packed;	/* what it was planned for; not of a lookup */
	int			count;
	ClerkOutboxRow *rows[CLERK_BULK_MAX];
	ClerkHttpRequest *request;	/* NULL: not started */
	ClerkError *error;			/* why it could not be formed; NULL: it could */
	bool		over;
} ClerkBatchEntry;

extern void clerk_send_batch(ClerkBatchEntry *entries, int count);
extern void clerk_batch_entry_outcomes(ClerkBatchEntry *entry,
									   ClerkOutboxChange *changes,
									   List **adopted);

#endif							/* CLERK_REQUEST_BATCH_H */
