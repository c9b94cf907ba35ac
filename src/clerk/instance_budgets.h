/*
 * instance_budgets.h
 *		The budgets of a Clerk instance: how many requests may still be sent to
 *		each endpoint, and when more may be sent.
 */
#ifndef CLERK_INSTANCE_BUDGETS_H
#define CLERK_INSTANCE_BUDGETS_H

#include "clerk/request_window.h"
#include "datatype/timestamp.h"

/* The endpoints that Clerk limits separately. */
typedef enum ClerkEndpoint
{
	CLERK_ENDPOINT_SINGLE,		/* create one invitation */
	CLERK_ENDPOINT_BULK,		/* create up to ten invitations */
	CLERK_ENDPOINT_LIST			/* list; not counted, but closed after a 429 */
} ClerkEndpoint;

#define CLERK_COUNTED_ENDPOINTS (CLERK_ENDPOINT_BULK + 1)
#define CLERK_ENDPOINTS (CLERK_ENDPOINT_LIST + 1)

/* A moment by our time (clerk/budget_store.h) and by the wall clock. */
typedef struct ClerkMoment
{
	int64		time;
	TimestampTz clock;
} ClerkMoment;

/* The budgets of a Clerk instance. */
typedef struct ClerkInstanceBudgets
{
	uint64		name;			/* from clerk_rate_limit_instance() */
	uint64		last_use;		/* number of its last use among the uses of
								 * all instances; 0: this element is free */
	ClerkRequestWindow windows[CLERK_COUNTED_ENDPOINTS];
	int64		closed_until[CLERK_ENDPOINTS];	/* by our time, after a 429 */
} ClerkInstanceBudgets;

/* The state of an endpoint, in requests. */
typedef struct ClerkBudget
{
	int			limit;			/* per window; INT_MAX: not limited */
	int			used;			/* in the window that ends now */
	int			remaining;		/* never negative; see also closed_until */
	TimestampTz available_at;	/* when a request may be sent; 0: now;
								 * infinity: never */
	TimestampTz closed_until;	/* by a 429; 0: not closed */
} ClerkBudget;

extern bool clerk_endpoint_is_counted(ClerkEndpoint endpoint);
extern ClerkRequestWindow *clerk_endpoint_window(ClerkInstanceBudgets *instance,
												 ClerkEndpoint endpoint,
												 int64 now);
extern void clerk_endpoint_budget(ClerkInstanceBudgets *instance,
								  ClerkEndpoint endpoint, ClerkMoment now,
								  ClerkBudget *budget);

#endif							/* CLERK_INSTANCE_BUDGETS_H */
