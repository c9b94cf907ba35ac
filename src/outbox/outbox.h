/*
 * outbox.h
 *		The table clerk_invitation_outbox: the rows that a sender needs.
 */
#ifndef CLERK_OUTBOX_H
#define CLERK_OUTBOX_H

#include "outbox/outbox_row.h"
#include "outbox/packing.h"

extern void clerk_outbox_take_over(void);
extern int64 clerk_outbox_correct_future_times(void);
extern int	clerk_outbox_due(int limit, ClerkDueInvitation **due);
extern List *clerk_outbox_unverified(int limit);
extern bool clerk_outbox_has_invitation(const char *invitation_id);
extern TimestampTz clerk_outbox_next_due(TimestampTz after);
extern int64 clerk_outbox_count_due(int64 most_unsent);
extern bool clerk_outbox_is_prepared(void);

#endif							/* CLERK_OUTBOX_H */
