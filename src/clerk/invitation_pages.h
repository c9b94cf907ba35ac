/*
 * invitation_pages.h
 *		Reads a list of invitations page by page while the list may change.
 *
 *		pages = clerk_pages_begin(&listing, statuses);
 *		while ((wanted = clerk_pages_wanted(pages)) != NULL)
 *		{
 *			... request that page, and read the response into "page" ...
 *			reason = clerk_pages_take(pages, &page);
 *			while ((invitation = clerk_pages_next(pages)) != NULL)
 *				...
 *		}
 *
 * These functions make no requests and raise no errors of their own: the
 * caller decides how to wait and what a failure means.
 */
#ifndef CLERK_INVITATION_PAGES_H
#define CLERK_INVITATION_PAGES_H

#include "clerk/api_path.h"
#include "clerk/invitation_json.h"

typedef struct ClerkInvitationPages ClerkInvitationPages;

extern ClerkInvitationPages *clerk_pages_begin(const ClerkListing *listing,
											   const List *statuses);
extern bool clerk_pages_are_of(const ClerkInvitationPages *pages,
							   const ClerkListing *listing,
							   const List *statuses);
extern void clerk_pages_set_size(ClerkInvitationPages *pages, int size);
extern const ClerkListing *clerk_pages_wanted(ClerkInvitationPages *pages);
extern const char *clerk_pages_take(ClerkInvitationPages *pages,
									const ClerkInvitationList *page);
extern ClerkInvitation *clerk_pages_next(ClerkInvitationPages *pages);
extern int64 clerk_pages_left(const ClerkInvitationPages *pages);

#endif							/* CLERK_INVITATION_PAGES_H */
