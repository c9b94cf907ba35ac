/*
 * webhook_receipts.h
 *		The table clerk_webhook_receipt: which webhooks have been received.
 */
#ifndef CLERK_WEBHOOK_RECEIPTS_H
#define CLERK_WEBHOOK_RECEIPTS_H

#include "datatype/timestamp.h"

typedef enum ClerkReceipt
{
	CLERK_RECEIPT_FIRST,		/* was not received before */
	CLERK_RECEIPT_AGAIN,		/* its sender has sent it once more */
	CLERK_RECEIPT_COPY			/* the same, sent at the same time or before */
} ClerkReceipt;

extern ClerkReceipt clerk_note_webhook(Oid schema, const char *id,
									   TimestampTz sent_at);

#endif							/* CLERK_WEBHOOK_RECEIPTS_H */
