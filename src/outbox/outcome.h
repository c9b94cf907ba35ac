/*
 * outcome.h
 *		What the end of a request means for a row of the outbox.
 *
 * Each clerk_outcome_ function fills in the change of a row; change->row must
 * be set.  Strings are in the current memory context, or are those of the
 * arguments.
 */
#ifndef CLERK_OUTCOME_H
#define CLERK_OUTCOME_H

#include "clerk/error.h"
#include "clerk/invitation_json.h"
#include "outbox/outbox_row.h"

extern void clerk_outcome_created(ClerkOutboxChange *change,
								  const ClerkInvitation *created);
extern void clerk_outcome_error(ClerkOutboxChange *change,
								const ClerkError *error);
extern void clerk_outcome_shared_error(ClerkOutboxChange *change,
									   const ClerkError *error,
									   bool any_named);
extern void clerk_outcome_bulk(ClerkOutboxChange *changes, int count,
							   const ClerkInvitationList *created);
extern void clerk_outcome_unsent(ClerkOutboxChange *change);
extern void clerk_outcome_unsendable(ClerkOutboxChange *change,
									 const ClerkError *error);
extern bool clerk_is_final(const ClerkOutboxChange *change);
extern void clerk_keep_last_failure(ClerkOutboxChange *change);
extern TimestampTz clerk_next_retry_time(int attempts);

#endif							/* CLERK_OUTCOME_H */
