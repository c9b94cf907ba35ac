/*
 * claim.h
 *		Claims rows for sending.
 */
#ifndef CLERK_CLAIM_H
#define CLERK_CLAIM_H

#include "outbox/outbox_row.h"
#include "outbox/packing.h"

extern List *clerk_outbox_claim(const ClerkDueInvitation *const *due, int count);
extern bool clerk_outbox_claim_is_safe(void);

#endif							/* CLERK_CLAIM_H */
