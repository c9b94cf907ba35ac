/*
 * creation_window.h
 *		When an invitation that is a row's can have been created, by Clerk's
 *		clock.
 */
#ifndef CLERK_CREATION_WINDOW_H
#define CLERK_CREATION_WINDOW_H

#include "clerk/invitation_json.h"
#include "http/http.h"
#include "outbox/outbox_row.h"

/*
 * From the row's first claim to the lookup that found the invitation.  If
 * Clerk's clock was set since the claim, the earliest claim and the latest
 * lookup count.
 */
typedef struct ClerkCreationWindow
{
	TimestampTz earliest;
	TimestampTz latest;
	bool		clock_was_set;	/* perhaps; then an invitation from the future
								 * may be one from before that */
} ClerkCreationWindow;

extern ClerkCreationWindow clerk_creation_window(const ClerkOutboxRow *row,
												 const ClerkHttpRequest *request);
extern bool clerk_is_created_within(const ClerkInvitation *invitation,
									const ClerkCreationWindow *window);

#endif							/* CLERK_CREATION_WINDOW_H */
