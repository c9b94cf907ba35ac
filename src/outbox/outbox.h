/*
 * outbox.h
 *		The table clerk_invitation_outbox: the rows that a sender needs.
 */
#ifndef CLERK_OUTBOX_H
#define CLERK_OUTBOX_H

#include "outbox/outbox_row.h"
#include "outbox/packing.h"

/*
 * What there is to do in the outbox.  Times are when the first row of a kind
 * is due; infinity if there is none.
 */
typedef struct ClerkOutboxWork
{
	TimestampTz read_at;		/* rows that are due by then can be processed */
	bool		left_behind;	/* rows that a previous sender left in state
								 * "sending" */
	TimestampTz send_at;
	TimestampTz look_up_at;
} ClerkOutboxWork;

extern void clerk_outbox_read_work(TimestampTz after, ClerkOutboxWork *work);
extern void clerk_outbox_take_over(void);
extern int64 clerk_outbox_correct_future_times(void);
extern int	clerk_outbox_due(int limit, ClerkDueInvitation **due,
							 ClerkOutboxWork *work);
extern List *clerk_outbox_unverified(int limit);
extern bool clerk_outbox_has_invitation(const char *invitation_id);
extern int64 clerk_outbox_count_due(int64 most_unsent);
extern bool clerk_outbox_is_prepared(void);

#endif							/* CLERK_OUTBOX_H */
