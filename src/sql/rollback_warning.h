/*
 * rollback_warning.h
 *		Tells which invitations stay at Clerk when their transaction goes.
 */
#ifndef CLERK_ROLLBACK_WARNING_H
#define CLERK_ROLLBACK_WARNING_H

extern void clerk_warn_on_rollback(const char *invitation_id);

#endif							/* CLERK_ROLLBACK_WARNING_H */
