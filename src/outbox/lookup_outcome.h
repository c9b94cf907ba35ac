/*
 * lookup_outcome.h
 *		What the invitations that a lookup found mean for a row of the outbox.
 */
#ifndef CLERK_LOOKUP_OUTCOME_H
#define CLERK_LOOKUP_OUTCOME_H

#include "clerk/invitation_json.h"
#include "http/http.h"
#include "outbox/outbox_row.h"

extern const char *clerk_lookup_address(const ClerkOutboxRow *row);
extern void clerk_outcome_lookup(ClerkOutboxChange *change,
								 const ClerkHttpRequest *request,
								 TimestampTz asked_at,
								 const ClerkInvitationList *found,
								 List **adopted);

#endif							/* CLERK_LOOKUP_OUTCOME_H */
