/*
 * status_statements.h
 *		What clerk_invitation_outbox knows of invitations' statuses.
 */
#ifndef CLERK_OUTBOX_STATUS_H
#define CLERK_OUTBOX_STATUS_H

#include "nodes/pg_list.h"

/* An invitation that was pending when last seen. */
typedef struct ClerkOutboxPending
{
	const char *organization_id;	/* the same pointer for all of one */
	const char *invitation_id;
	const char *email_address;
	bool		status_known;	/* as pending; else Clerk told none */
} ClerkOutboxPending;

extern int64 clerk_outbox_pending(ClerkOutboxPending **pending);
extern List *clerk_outbox_set_statuses(const char *const *invitation_ids,
									   const char *const *statuses, int count);

#endif							/* CLERK_OUTBOX_STATUS_H */
