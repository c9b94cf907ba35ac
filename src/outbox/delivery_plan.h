/*
 * delivery_plan.h
 *		What a delivery pass sends next: plans requests within Clerk's budgets.
 */
#ifndef CLERK_DELIVERY_PLAN_H
#define CLERK_DELIVERY_PLAN_H

#include "outbox/delivery_pass.h"
#include "outbox/request_batch.h"

typedef struct ClerkDeliveryPlan
{
	MemoryContext memory;		/* emptied with each new plan */
	ClerkPackedRequests packed;
	ClerkDueInvitation *due;	/* what was packed */
	int			next;			/* the first request that was not taken yet */
	int			claimed;		/* rows, for the pass to count */
	TimestampTz made_at;
} ClerkDeliveryPlan;

extern bool clerk_plan_prepare(ClerkDeliveryPass *pass,
							   ClerkDeliveryPlan *plan);
extern int	clerk_plan_take(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan,
							int64 max_invitations, ClerkBatchEntry *entries,
							int max_entries);

#endif							/* CLERK_DELIVERY_PLAN_H */
