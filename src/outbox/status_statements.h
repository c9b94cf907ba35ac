/*
 * status_statements.h
 *		The SQL statements that refreshing statuses needs.
 */
#ifndef CLERK_STATUS_STATEMENTS_H
#define CLERK_STATUS_STATEMENTS_H

#include "nodes/pg_list.h"

/* A row whose invitation is pending as far as the outbox knows. */
typedef struct ClerkOutboxPending
{
	const char *organization_id;	/* one pointer for all rows of the same
									 * organization */
	const char *invitation_id;
	const char *email_address;
	bool		status_known;	/* Clerk reported it as pending; else it
								 * reported no status */
} ClerkOutboxPending;

extern int64 clerk_outbox_pending(ClerkOutboxPending **pending);
extern List *clerk_outbox_set_statuses(const char *const *invitation_ids,
									   const char *const *statuses, int count);
extern bool clerk_outbox_set_status(const char *invitation_id,
									const char *status);

#endif							/* CLERK_STATUS_STATEMENTS_H */
