/*
 * delivery.h
 *		Delivers the rows of the outbox that are due.
 */
#ifndef CLERK_DELIVERY_H
#define CLERK_DELIVERY_H

#include "outbox/delivery_report.h"

extern void clerk_deliver(Oid schema, int64 max_invitations,
						  const ClerkDeliveryHost *host,
						  ClerkDeliveryReport *report);

#endif							/* CLERK_DELIVERY_H */
