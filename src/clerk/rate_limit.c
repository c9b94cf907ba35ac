/*
 * rate_limit.c
 *		Clerk's rate limits: how many requests may be sent to an endpoint now,
 *		and when more may be sent.
 */
#include "postgres.h"

#include "clerk/budget_store.h"
#include "clerk/rate_limit.h"
#include "common/hashfn.h"

/*
 * Returns a number that identifies the Clerk instance of a secret key at an
 * API URL: a hash from which the key cannot be recovered.  Each key has
 * budgets of its own, since a key does not show which instance it belongs to.
 */
uint64
clerk_rate_limit_instance(const char *api_url, size_t api_url_length,
						  const char *secret_key)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) api_url,
										   (int) api_url_length, 0);

	return hash_bytes_extended((const unsigned char *) secret_key,
							   (int) strlen(secret_key), hash);
}

/*
 * Records that Clerk accepts no requests to this endpoint for the next
 * "seconds" seconds.
 */
void
clerk_rate_limit_close(uint64 instance, ClerkEndpoint endpoint, int seconds)
{
	ClerkMoment now = clerk_budget_store_lock();
	ClerkInstanceBudgets *entry = clerk_budget_store_use(instance);
	int64		until = now.time + seconds * USECS_PER_SEC;

	if (until > entry->closed_until[endpoint])
	{
		entry->closed_until[endpoint] = until;
		clerk_budget_store_write(entry, now);
	}
	clerk_budget_store_unlock();
}

/* Returns the state of an endpoint in *budget.  Does not change it. */
void
clerk_rate_limit_read(uint64 instance, ClerkEndpoint endpoint,
					  ClerkBudget *budget)
{
	ClerkMoment now = clerk_budget_store_lock();
	ClerkInstanceBudgets *entry = clerk_budget_store_find(instance);
	ClerkInstanceBudgets unused;

	if (entry == NULL)
	{
		memset(&unused, 0, sizeof(unused));
		entry = &unused;
	}
	clerk_endpoint_budget(entry, endpoint, now, budget);
	clerk_budget_store_unlock();
}
