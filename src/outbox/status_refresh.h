/*
 * status_refresh.h
 *		Learns what became of the invitations that are pending in the outbox.
 */
#ifndef CLERK_STATUS_REFRESH_H
#define CLERK_STATUS_REFRESH_H

#include "clerk/error.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

typedef struct ClerkRefreshReport
{
	int64		pending;		/* invitations that were, when it began */
	int64		changed;		/* rows of those that are not any more */
	int64		accepted;		/* of these */
	int64		revoked;
	int64		expired;
	int64		untold;			/* invitations of which Clerk said nothing */
	List	   *untold_organizations;	/* whose they are: IDs, as strings */
	const ClerkError *untold_for;	/* the last reason for that; NULL: the
									 * lists lack them */
	TimestampTz limited_until;	/* it ended early: Clerk takes no lists before
								 * this; 0: it did not */
	const ClerkError *stopped_by;	/* why it ended early; NULL: it did not */
} ClerkRefreshReport;

extern void clerk_refresh_statuses(Oid schema, void (*commit) (void),
								   ClerkRefreshReport *report);

#endif							/* CLERK_STATUS_REFRESH_H */
