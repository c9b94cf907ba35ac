/*
 * packing.h
 *		Which invitations share a request.
 */
#ifndef CLERK_PLANNER_H
#define CLERK_PLANNER_H

/* Clerk takes this many invitations in a bulk request. */
#define CLERK_BULK_MAX 10

/* An invitation that is due. */
typedef struct ClerkCandidate
{
	const char *organization_id;
	const char *address;		/* as it is compared, normalized */
	bool		alone;			/* must not share a request */
	bool		overdue;		/* has waited so long that packing comes
								 * second */
} ClerkCandidate;

/* A request to make: one invitation, or a bulk request of one or more. */
typedef struct ClerkPackedRequest
{
	bool		bulk;
	int			count;
	int			members[CLERK_BULK_MAX];	/* positions among the candidates */
}			ClerkPackedRequest;

/* What may be spent. */
typedef struct ClerkPackingBudget
{
	int			singles;		/* requests for one invitation left now */
	int			bulks;			/* bulk requests left now */
	int			worthwhile;		/* invitations from which on a bulk request is
								 * the better use of the budgets */
}			ClerkPackingBudget;

typedef struct ClerkPlan
{
	int			count;
	ClerkPackedRequest *requests;
} ClerkPlan;

extern void clerk_pack_requests(const ClerkCandidate *candidates, int count,
								const ClerkPackingBudget * budget,
								ClerkPlan *plan);

#endif							/* CLERK_PLANNER_H */
