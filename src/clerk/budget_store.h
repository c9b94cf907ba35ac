/*
 * budget_store.h
 *		The budgets of all Clerk instances, in shared memory and in a file that
 *		survives a restart of the server.
 *
 * Unless a function says otherwise, it must be called between
 * clerk_budget_store_lock() and clerk_budget_store_unlock().  Pointers to an
 * instance's budgets are valid until then.
 *
 * "Our time" is the time that clerk_budget_store_lock() returns besides the
 * wall clock's, in microseconds.  It never goes back and continues over a
 * restart of the server.
 */
#ifndef CLERK_BUDGET_STORE_H
#define CLERK_BUDGET_STORE_H

#include "clerk/instance_budgets.h"

extern void clerk_budget_store_request_memory(void);
extern ClerkMoment clerk_budget_store_lock(void);
extern void clerk_budget_store_unlock(void);
extern ClerkInstanceBudgets *clerk_budget_store_find(uint64 name);
extern ClerkInstanceBudgets *clerk_budget_store_use(uint64 name);
extern void clerk_budget_store_write(const ClerkInstanceBudgets *instance,
									 ClerkMoment now);
extern void clerk_budget_store_write_later(uint64 name);
extern void clerk_budget_store_write_deferred(ClerkMoment now);
extern bool clerk_budget_store_is_stale(void);

#endif							/* CLERK_BUDGET_STORE_H */
