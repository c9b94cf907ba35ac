/*
 * packing.h
 *		Which invitations share a request.
 */
#ifndef CLERK_PACKING_H
#define CLERK_PACKING_H

#include "datatype/timestamp.h"

/* Clerk takes this many invitations in a bulk request. */
#define CLERK_BULK_MAX 10

/* An invitation that is due: a row of the outbox. */
typedef struct ClerkDueInvitation
{
	int64		id;
	char	   *organization_id;
	char	   *email_address;
	const char *normalized_address; /* as it is compared */
	bool		send_alone;		/* must not share a request */
	TimestampTz due_at;
	bool		overdue;		/* has waited so long that packing comes
								 * second */
} ClerkDueInvitation;

/* A request to make: one invitation, or a bulk request of one or more. */
typedef struct ClerkPackedRequest
{
	bool		bulk;
	int			count;
	int			members[CLERK_BULK_MAX];	/* positions among those that are
											 * due */
} ClerkPackedRequest;

/* What may be spent. */
typedef struct ClerkPackingBudget
{
	int			singles;		/* requests for one invitation left now */
	int			bulks;			/* bulk requests left now */
	int			worthwhile;		/* invitations from which on a bulk request is
								 * the better use of the budgets */
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
