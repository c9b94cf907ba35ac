/*
 * delivery_plan.h
 *		Plans the next requests of a delivery pass within Clerk's budgets.
 */
#ifndef CLERK_DELIVERY_PLAN_H
#define CLERK_DELIVERY_PLAN_H

#include "outbox/delivery_pass.h"
#include "outbox/request_batch.h"

typedef struct ClerkDeliveryPlan
{
	MemoryContext memory;		/* reset with each new plan */
	ClerkPackedRequests packed;
	ClerkDueInvitation *due;	/* the rows that were packed */
	int			next;			/* position of the next request */
	int			claimed;		/* claimed rows, counted by the pass */
	TimestampTz made_at;
} ClerkDeliveryPlan;

extern bool clerk_plan_is_usable(const ClerkDeliveryPlan *plan);
extern bool clerk_plan_few(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan);
extern void clerk_plan_discard(ClerkDeliveryPlan *plan);
extern bool clerk_plan_prepare(ClerkDeliveryPass *pass,
							   ClerkDeliveryPlan *plan);
extern int	clerk_plan_take(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan,
							int64 max_invitations, ClerkBatchEntry *entries,
							int max_entries);

#endif							/* CLERK_DELIVERY_PLAN_H */
