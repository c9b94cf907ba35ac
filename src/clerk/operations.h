/*
 * operations.h
 *		Clerk's operations on organization invitations.
 *
 * For each operation one function starts the request and another reads its
 * response, so that several requests can run at the same time.  See
 * http/http.h for what happens in between.
 *
 * Every operation that Clerk's rate limits count needs a reservation
 * (clerk/reservation.h) for the instance that clerk_chosen_instance()
 * (clerk/api_request.h) returns.  The function that starts the request starts
 * the reservation, and the function that reads the response settles it.
 */
#ifndef CLERK_OPERATIONS_H
#define CLERK_OPERATIONS_H

#include "clerk/api_path.h"
#include "clerk/error.h"
#include "clerk/invitation_json.h"
#include "clerk/reservation.h"
#include "http/http.h"

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
