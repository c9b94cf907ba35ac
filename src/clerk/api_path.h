/*
 * api_path.h
 *		Forms the paths of requests to Clerk, below the API's URL.
 */
#ifndef CLERK_API_PATH_H
#define CLERK_API_PATH_H

#include "clerk/error.h"

/* Maximum number of invitations on a page of a list, by Clerk's API. */
#define CLERK_LIST_MAX 500

/*
 * Which invitations to list.  NULL means no restriction.  There is one status
 * at most, since Clerk documents repeated ones in contradictory ways;
 * clerk/invitation_pages.h reads lists with several.
 */
typedef struct ClerkListing
{
	const char *organization_id;	/* NULL: all the instance's */
	const char *status;
	const char *email_address;	/* only with an organization_id */
	const char *query;			/* only without an organization_id */
	bool		oldest_first;	/* otherwise the newest first */
	int			limit;			/* 1 to CLERK_LIST_MAX */
	int64		offset;
} ClerkListing;

extern bool clerk_is_identifier(const char *text);
extern char *clerk_invitations_path(const char *organization_id,
									const char *rest, ClerkError **error);
extern char *clerk_invitation_path(const char *organization_id,
								   const char *invitation_id,
								   const char *rest, ClerkError **error);
extern char *clerk_list_path(const ClerkListing *listing, ClerkError **error);

#endif							/* CLERK_API_PATH_H */
