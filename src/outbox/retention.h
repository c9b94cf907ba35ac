/*
 * retention.h
 *		Removes rows of the outbox that were settled long ago.
 */
#ifndef CLERK_OUTBOX_RETENTION_H
#define CLERK_OUTBOX_RETENTION_H

#include "datatype/timestamp.h"

/* How far a removal has come. */
typedef struct ClerkOutboxRemoval
{
	TimestampTz settled_before; /* what goes */
	TimestampTz settled_at;		/* of the last row that was looked at, */
	int64		id;				/* and its ID */
	int			at_a_time;		/* rows to be removed next */
	int			refused;		/* rows that cannot be removed */
	bool		jumped;			/* over some that cannot */
	bool		over;
} ClerkOutboxRemoval;

extern void clerk_outbox_begin_removal(ClerkOutboxRemoval *removal,
									   TimestampTz settled_before);
extern void clerk_outbox_remove_some(ClerkOutboxRemoval *removal);

#endif							/* CLERK_OUTBOX_RETENTION_H */
