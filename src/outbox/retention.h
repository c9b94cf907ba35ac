/*
 * retention.h
 *		Removes rows of the outbox that were settled long ago.
 */
#ifndef CLERK_RETENTION_H
#define CLERK_RETENTION_H

#include "datatype/timestamp.h"

/* The progress of a removal. */
typedef struct ClerkOutboxRemoval
{
	TimestampTz settled_before; /* rows settled before this are removed */
	TimestampTz settled_at;		/* position of the last row examined: */
	int64		id;				/* when it was settled, and its id */
	int			batch_size;		/* rows in the next batch */
	int			refused;		/* rows that could not be removed */
	bool		skipped_ahead;	/* whether it has skipped ahead over some */
	bool		finished;
} ClerkOutboxRemoval;

extern void clerk_outbox_begin_removal(ClerkOutboxRemoval *removal,
									   TimestampTz settled_before);
extern void clerk_outbox_remove_batch(ClerkOutboxRemoval *removal);

#endif							/* CLERK_RETENTION_H */
