/*
 * request_batch.h
 *		Makes requests for rows of the outbox, several at a time.
 */
#ifndef CLERK_REQUEST_BATCH_H
#define CLERK_REQUEST_BATCH_H

#include "clerk/error.h"
#include "clerk/reservation.h"
#include "http/http.h"
#include "outbox/outbox_row.h"
#include "outbox/packing.h"

/* A request of a batch, and the rows that it is for. */
typedef struct ClerkBatchEntry
{
	ClerkEndpoint endpoint;
	ClerkReservation reservation;	/* initially settled: not counted */
	ClerkPackedRequest packed;	/* as planned; not for a lookup */
	int			count;
	ClerkOutboxRow *rows[CLERK_BULK_MAX];
	TimestampTz started_at;
	ClerkHttpRequest *request;	/* NULL: not started */
	ClerkError *error;			/* why it could not be started, or failed;
								 * NULL: it could, or did not */
	bool		finished;
} ClerkBatchEntry;

/* When the rows of a batch were claimed, by two clocks. */
typedef struct ClerkClaimTime
{
	TimestampTz wall;
	int64		monotonic;		/* common/monotonic_clock.h */
} ClerkClaimTime;

extern ClerkClaimTime clerk_claim_time_now(void);
extern void clerk_send_batch(ClerkBatchEntry *entries, int count,
							 const ClerkClaimTime *claimed);
extern void clerk_batch_entry_outcomes(ClerkBatchEntry *entry,
									   ClerkOutboxChange *changes,
									   List **adopted);

#endif							/* CLERK_REQUEST_BATCH_H */
