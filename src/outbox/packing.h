/*
 * packing.h
 *		Which invitations share a request.
 */
#ifndef CLERK_PACKING_H
#define CLERK_PACKING_H

#include "datatype/timestamp.h"

/*
 * Most invitations that Clerk accepts in a bulk request (operation
 * CreateOrganizationInvitationBulk).
 */
#define CLERK_BULK_MAX 10

/* A row of the outbox that is due to be sent. */
typedef struct ClerkDueInvitation
{
	int64		id;
	char	   *organization_id;
	char	   *email_address;
	const char *normalized_address; /* for comparisons */
	bool		send_alone;		/* must not share a request */
	TimestampTz due_at;
	bool		overdue;		/* has waited for a rate limit window: packing
								 * comes second */
} ClerkDueInvitation;

/*
 * A request to make: a single one, or a bulk request with one or more
 * invitations.
 */
typedef struct ClerkPackedRequest
{
	bool		bulk;
	int			count;
	int			members[CLERK_BULK_MAX];	/* positions in the array of due
											 * invitations */
} ClerkPackedRequest;

/* Requests that can be made now. */
typedef struct ClerkPackingBudget
{
	int			singles;		/* requests with one invitation */
	int			bulks;			/* bulk requests */
	int			min_bulk_size;	/* invitations from which a bulk request makes
								 * better use of the budgets than single
								 * requests */
} ClerkPackingBudget;

typedef struct ClerkPackedRequests
{
	int			count;
	ClerkPackedRequest *requests;
} ClerkPackedRequests;

extern void clerk_pack_requests(const ClerkDueInvitation *due, int count,
								const ClerkPackingBudget *budget,
								ClerkPackedRequests *packed);

#endif							/* CLERK_PACKING_H */
