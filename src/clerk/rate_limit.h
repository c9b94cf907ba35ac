/*
 * rate_limit.h
 *		Clerk's rate limits: how many requests may be sent to an endpoint now,
 *		and when more may be sent.
 *
 * clerk/reservation.h counts the requests.  Times returned from these
 * functions are by the wall clock.  Closing and reading raise 53200 if the
 * shared memory cannot be allocated when it is first used.
 */
#ifndef CLERK_RATE_LIMIT_H
#define CLERK_RATE_LIMIT_H

#include "clerk/instance_budgets.h"

extern uint64 clerk_rate_limit_instance(const char *api_url,
										size_t api_url_length,
										const char *secret_key);
extern void clerk_rate_limit_close(uint64 instance, ClerkEndpoint endpoint,
								   int seconds);
extern void clerk_rate_limit_read(uint64 instance, ClerkEndpoint endpoint,
								  ClerkBudget *budget);

#endif							/* CLERK_RATE_LIMIT_H */
