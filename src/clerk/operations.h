/*
 * operations.h
 *		Clerk's operations on organization invitations: request out, answer in.
 *
 * Each operation has a function that starts it and one that reads its answer,
 * so that any number can be under way at a time; see http/http.h for what happens
 * between them.
 *
 * A request that Clerk limits owns a reservation (clerk/rate_limit.h) at the
 * instance that clerk_chosen_instance() reports.  Starting the request starts
 * the reservation, and reading its response settles it.
 */
#ifndef CLERK_OPERATIONS_H
#define CLERK_OPERATIONS_H

#include "clerk/error.h"
#include "clerk/invitation_json.h"
#include "clerk/rate_limit.h"
#include "http/http.h"

/* Most invitations that a page of a list can have. */
#define CLERK_LIST_MAX 500

/* Which invitations to list; NULL and NIL: any. */
typedef struct ClerkListing
{
	const char *organization_id;	/* NULL: all of the instance's */
	List	   *statuses;		/* of strings */
	const char *email_address;	/* not in a list of the instance's */
	const char *query;			/* only in a list of the instance's */
	bool		oldest_first;	/* else newest first */
	int			limit;			/* 1 to CLERK_LIST_MAX */
	int64		offset;
} ClerkListing;

extern bool clerk_is_identifier(const char *text);
extern bool clerk_chosen_instance(uint64 *instance, ClerkError **error);
extern ClerkHttpRequest *clerk_start_create_invitation(const ClerkNewInvitation *wanted,
													   ClerkReservation *reservation,
													   ClerkError **error);
extern bool clerk_finish_create_invitation(const ClerkHttpRequest *request,
										   ClerkReservation *reservation,
										   ClerkInvitation *created,
										   ClerkError **error);

extern ClerkHttpRequest *clerk_start_create_bulk(const ClerkNewInvitation *const *wanted,
												 int count,
												 ClerkReservation *reservation,
												 ClerkError **error);
extern bool clerk_finish_create_bulk(const ClerkHttpRequest *request,
									 ClerkReservation *reservation,
									 ClerkInvitationList *created,
									 ClerkError **error);

extern ClerkHttpRequest *clerk_start_get_invitation(const char *organization_id,
													const char *invitation_id,
													ClerkError **error);
extern bool clerk_finish_get_invitation(const ClerkHttpRequest *request,
										ClerkInvitation *invitation,
										ClerkError **error);

extern ClerkHttpRequest *clerk_start_revoke_invitation(const char *organization_id,
													   const char *invitation_id,
													   const char *requesting_user,
													   ClerkError **error);
extern bool clerk_finish_revoke_invitation(const ClerkHttpRequest *request,
										   ClerkInvitation *revoked,
										   ClerkError **error);

extern ClerkHttpRequest *clerk_start_list_invitations(const ClerkListing *listing,
													  ClerkError **error);
extern bool clerk_finish_list_invitations(const ClerkHttpRequest *request,
										  const ClerkListing *listing,
										  ClerkInvitationList *list,
										  ClerkError **error);

#endif							/* CLERK_OPERATIONS_H */
