/*
 * outcome.h
 *		What the end of a request means for a row of the outbox.
 *
 * Each function fills in the change; its row must be set.  Those that look
 * into the outbox need a transaction.
 */
#ifndef CLERK_VERDICT_H
#define CLERK_VERDICT_H

#include "clerk/operations.h"
#include "outbox/outbox.h"

extern void clerk_outcome_created(ClerkOutboxChange *change,
								  const ClerkInvitation *created);
extern void clerk_outcome_error(ClerkOutboxChange *change,
								const ClerkError *error);
extern void clerk_outcome_shared_error(ClerkOutboxChange *change,
									   const ClerkError *error,
									   bool others_named);
extern void clerk_outcome_bulk(ClerkOutboxChange *changes, int count,
							   const ClerkInvitationList *created);
extern void clerk_outcome_unsent(ClerkOutboxChange *change);
extern void clerk_outcome_lookup(ClerkOutboxChange *change,
								 const ClerkHttpRequest *request,
								 const ClerkInvitationList *found,
								 List **adopted);
extern void clerk_outcome_unsendable(ClerkOutboxChange *change,
									 const ClerkError *error);
extern bool clerk_pending_was_said(const ClerkOutboxRow *row);
extern bool clerk_is_final(const ClerkOutboxChange *change);

#endif							/* CLERK_VERDICT_H */
