/*
 * delivery.h
 *		Sends what is due in the outbox.
 */
#ifndef CLERK_DELIVERY_H
#define CLERK_DELIVERY_H

#include "clerk_error.h"
#include "datatype/timestamp.h"

/* How transactions begin and end where the sender runs. */
typedef struct ClerkTransactions
{
	void		(*begin) (void);
	void		(*commit) (void);
} ClerkTransactions;

typedef struct ClerkDeliveryReport
{
	bool		busy;			/* another session is sending: nothing done */
	int64		sent;
	int64		skipped;
	int64		failed;
	int64		postponed;		/* queued again, or outcome not known yet */
	TimestampTz next_due;		/* when there is more to do, perhaps already;
								 * 0: nothing is open */
	const ClerkError *stopped_by;	/* why it ended early; NULL: it did not */
} ClerkDeliveryReport;

extern void clerk_deliver(Oid schema, int64 max_invitations,
						  const ClerkTransactions *transactions,
						  ClerkDeliveryReport *report);

#endif							/* CLERK_DELIVERY_H */
