/*
 * claim.h
 *		Claims rows for sending.
 */
#ifndef CLERK_CLAIM_H
#define CLERK_CLAIM_H

#include "outbox/outbox_row.h"
#include "outbox/packing.h"

extern List *clerk_outbox_claim(const ClerkDueInvitation *const *due, int count);

#endif							/* CLERK_CLAIM_H */
