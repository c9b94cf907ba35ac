/*
 * instance_budgets.c
 *		The budgets of a Clerk instance: how many requests may still be sent to
 *		each endpoint, and when more may be sent.
 *
 * Clerk limits the requests of an instance to each endpoint within a time
 * window.  Its documentation does not say whether the window is fixed or
 * slides, nor whether refused requests count.  Here the window slides, which
 * no fixed window can be stricter than, and every request counts that was sent
 * or may have been.
 */
#include "postgres.h"

#include <limits.h>

#include "clerk/instance_budgets.h"
#include "common/settings.h"

static int	limit_of(ClerkEndpoint endpoint);

/* Returns whether requests to an endpoint are counted in a window. */
bool
clerk_endpoint_is_counted(ClerkEndpoint endpoint)
{
	return endpoint < CLERK_COUNTED_ENDPOINTS;
}

/* Returns the window of a counted endpoint, advanced to "now". */
ClerkRequestWindow *
clerk_endpoint_window(ClerkInstanceBudgets *instance, ClerkEndpoint endpoint,
					  int64 now)
{
	ClerkRequestWindow *window = &instance->windows[endpoint];

	clerk_window_configure(window, now);
	return window;
}

/* Computes the state of an endpoint at "now". */
void
clerk_endpoint_budget(ClerkInstanceBudgets *instance, ClerkEndpoint endpoint,
					  ClerkMoment now, ClerkBudget *budget)
{
	int64		until = instance->closed_until[endpoint];
	int64		used = 0;
	ClerkRequestWindow *window = NULL;

	if (clerk_endpoint_is_counted(endpoint))
	{
		window = clerk_endpoint_window(instance, endpoint, now.time);
		used = clerk_window_sum(window) + window->under_way + window->held;
	}
	budget->limit = limit_of(endpoint);
	budget->used = (int) Min(used, INT_MAX);
	budget->remaining = Max(budget->limit - budget->used, 0);
	budget->closed_until = until > now.time ? now.clock + (until - now.time) : 0;
	budget->available_at = budget->closed_until;
	if (budget->limit == 0)
		budget->available_at = DT_NOEND;
	else if (budget->remaining == 0)
	{
		int64		free_at = clerk_window_expiry_time(window,
													   used - budget->limit + 1);

		until = Max(until, free_at);
		budget->available_at = now.clock + (until - now.time);
	}
}

static int
limit_of(ClerkEndpoint endpoint)
{
	switch (endpoint)
	{
		case CLERK_ENDPOINT_SINGLE:
			return clerk_single_requests_per_hour;
		case CLERK_ENDPOINT_BULK:
			return clerk_bulk_requests_per_hour;
		case CLERK_ENDPOINT_LIST:
			break;
	}
	return INT_MAX;
}
