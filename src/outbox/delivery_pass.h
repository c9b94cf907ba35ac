/*
 * delivery_pass.h
 *		State and checks that the parts of a delivery pass share.
 */
#ifndef CLERK_DELIVERY_PASS_H
#define CLERK_DELIVERY_PASS_H

#include "clerk/instance_budgets.h"
#include "outbox/delivery_report.h"
#include "outbox/outbox.h"

typedef struct ClerkDeliveryPass
{
	const ClerkDeliveryHost *host;
	ClerkDeliveryReport *report;
	MemoryContext memory;		/* lives as long as the report */
	uint64		instance;		/* Clerk instance; see clerk/rate_limit.h */
	ClerkOutboxWork work;
	bool		work_is_current;	/* nothing was done since it was read */
} ClerkDeliveryPass;

extern bool clerk_pass_fits(ClerkDeliveryPass *pass);
extern bool clerk_pass_has_lock(ClerkDeliveryPass *pass);
extern void clerk_pass_read_work(ClerkDeliveryPass *pass);
extern bool clerk_pass_may_send(ClerkDeliveryPass *pass, ClerkEndpoint endpoint,
								ClerkBudget *budget);
extern void clerk_pass_note_limit(ClerkDeliveryPass *pass, TimestampTz until);
extern void clerk_pass_stop(ClerkDeliveryPass *pass, const ClerkError *error);

#endif							/* CLERK_DELIVERY_PASS_H */
