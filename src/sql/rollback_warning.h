/*
 * rollback_warning.h
 *		Warns about invitations that remain at Clerk when the transaction
 *		that created them is rolled back.
 */
#ifndef CLERK_ROLLBACK_WARNING_H
#define CLERK_ROLLBACK_WARNING_H

extern void clerk_warn_on_rollback(const char *invitation_id);

#endif							/* CLERK_ROLLBACK_WARNING_H */
