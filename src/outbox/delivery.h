/*
 * delivery.h
 *		Delivers the rows of the outbox that are due.
 */
#ifndef CLERK_DELIVERY_H
#define CLERK_DELIVERY_H

#include "outbox/delivery_report.h"

/* No pass of this process has read the clocks yet. */
#define CLERK_CLOCK_DIFFERENCE_UNKNOWN PG_INT64_MAX

extern void clerk_deliver(Oid schema, int64 max_invitations,
						  const ClerkDeliveryHost *host,
						  ClerkDeliveryReport *report);
extern int64 clerk_delivery_clock_difference(void);
extern void clerk_delivery_expect_clock_difference(int64 difference);

#endif							/* CLERK_DELIVERY_H */
