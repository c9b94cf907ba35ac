/*
 * status_refresh.h
 *		Updates the statuses of the pending invitations in the outbox.
 */
#ifndef CLERK_STATUS_REFRESH_H
#define CLERK_STATUS_REFRESH_H

#include "clerk/error.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* The result of a refresh. */
typedef struct ClerkRefreshReport
{
	int64		pending;		/* invitations that were pending before */
	int64		changed;		/* rows that are no longer pending */
	int64		accepted;		/* number of those now in this state */
	int64		revoked;
	int64		expired;
	int64		unreported;		/* invitations for which Clerk reported
								 * nothing */
	List	   *unreported_organizations;	/* their organizations' IDs, as
											 * strings */
	const ClerkError *unreported_reason;	/* the last error that may be why;
											 * NULL: they are not in Clerk's
											 * lists */
	TimestampTz limited_until;	/* it ended early: Clerk accepts no list
								 * requests before this; 0: it did not */
	const ClerkError *stopped_by;	/* why it ended early; NULL: it did not */
} ClerkRefreshReport;

extern void clerk_refresh_statuses(Oid schema, void (*commit) (void),
								   ClerkRefreshReport *report);

#endif							/* CLERK_STATUS_REFRESH_H */
