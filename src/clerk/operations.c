/*
 * operations.c
 *		Clerk's operations on organization invitations.
 *
 * Follows the documentation of Clerk's Backend API, version 2026-05-12.
 *
 * The functions that start a request return NULL and the reason in *error if
 * the request cannot be formed; nothing was sent then.  The reasons are no
 * usable secret key or API URL (55000), an argument that is not a Clerk
 * identifier (22021), and text that cannot be converted to UTF-8 (22021).
 * Otherwise they return a request as clerk_http_start() does, and raise the
 * errors that it raises.
 *
 * The functions that read the response return false and the reason in *error
 * unless Clerk reports success and its response can be read.  The request must
 * be finished.
 */
#include "postgres.h"

#include "clerk/api_request.h"
#include "clerk/invitation_response.h"
#include "clerk/operations.h"
#include "clerk/request_accounting.h"
#include "lib/stringinfo.h"
#include "utils/json.h"

/*
 * Starts CreateOrganizationInvitation: POST /organizations/{org}/invitations.
 *
 * Starts the reservation.  See the head of this file for the result and
 * errors.  Raises 53200 if the rate limit's shared memory is not available.
 */
ClerkHttpRequest *
clerk_start_create_invitation(const ClerkNewInvitation *wanted,
							  ClerkReservation *reservation,
							  ClerkError **error)
{
	char	   *path = clerk_invitations_path(wanted->organization_id, "", error);

	return path == NULL ? NULL :
		clerk_start_request(path, clerk_new_invitation_json(wanted), reservation,
							error);
}

/*
 * Reads the response to CreateOrganizationInvitation into "created", and
 * settles the reservation.  See the head of this file for the result and
 * errors.
 */
bool
clerk_finish_create_invitation(const ClerkHttpRequest *request,
							   ClerkReservation *reservation,
							   ClerkInvitation *created, ClerkError **error)
{
	clerk_settle_reservation(request, reservation);
	return clerk_read_single_response(request, CLERK_EFFECT_CREATES, created, error);
}

/*
 * Starts CreateOrganizationInvitationBulk: POST
 * /organizations/{org}/invitations/bulk.
 *
 * The "count" invitations, 1 to 10, must be for the same organization and must
 * not have an address in common.  Starts the reservation.  See the head of
 * this file for the result and errors.  Raises 53200 if the rate limit's
 * shared memory is not available.
 */
ClerkHttpRequest *
clerk_start_create_bulk(const ClerkNewInvitation *const *wanted, int count,
						ClerkReservation *reservation, ClerkError **error)
{
	char	   *path = clerk_invitations_path(wanted[0]->organization_id, "/bulk", error);
	StringInfoData json;

	if (path == NULL)
		return NULL;
	initStringInfo(&json);
	for (int i = 0; i < count; i++)
	{
		appendStringInfoChar(&json, i == 0 ? '[' : ',');
		appendStringInfoString(&json, clerk_new_invitation_json(wanted[i]));
	}
	appendStringInfoChar(&json, ']');
	return clerk_start_request(path, json.data, reservation, error);
}

/*
 * Reads the response to CreateOrganizationInvitationBulk into "created", and
 * settles the reservation.  The invitations may be in any order.  If the
 * result is false, none was created, unless the error's class is
 * CLERK_ERROR_OUTCOME_UNKNOWN.
 */
bool
clerk_finish_create_bulk(const ClerkHttpRequest *request,
						 ClerkReservation *reservation,
						 ClerkInvitationList *created, ClerkError **error)
{
	clerk_settle_reservation(request, reservation);
	return clerk_read_list_response(request, CLERK_EFFECT_CREATES_SEVERAL,
									created, error);
}

/*
 * Starts GetOrganizationInvitation: GET /organizations/{org}/invitations/{id}.
 * See the head of this file for the result and errors.
 */
ClerkHttpRequest *
clerk_start_get_invitation(const char *organization_id,
						   const char *invitation_id, ClerkError **error)
{
	char	   *path = clerk_invitation_path(organization_id, invitation_id, "", error);

	return path == NULL ? NULL : clerk_start_request(path, NULL, NULL, error);
}

/*
 * Reads the response to GetOrganizationInvitation into "invitation".  See the
 * head of this file for the result and errors.
 */
bool
clerk_finish_get_invitation(const ClerkHttpRequest *request,
							ClerkInvitation *invitation, ClerkError **error)
{
	return clerk_read_single_response(request, CLERK_EFFECT_NONE, invitation, error);
}

/*
 * Starts RevokeOrganizationInvitation: POST
 * /organizations/{org}/invitations/{id}/revoke.  "requesting_user" is a Clerk
 * user ID, or NULL.  See the head of this file for the result and errors.
 */
ClerkHttpRequest *
clerk_start_revoke_invitation(const char *organization_id,
							  const char *invitation_id,
							  const char *requesting_user, ClerkError **error)
{
	char	   *path = clerk_invitation_path(organization_id, invitation_id,
											 "/revoke", error);
	StringInfoData json;

	if (path == NULL)
		return NULL;
	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	if (requesting_user != NULL)
	{
		appendStringInfoString(&json, "\"requesting_user_id\":");
		escape_json(&json, requesting_user);
	}
	appendStringInfoChar(&json, '}');
	return clerk_start_request(path, json.data, NULL, error);
}

/*
 * Reads the response to RevokeOrganizationInvitation into "revoked".  See the
 * head of this file for the result and errors.
 */
bool
clerk_finish_revoke_invitation(const ClerkHttpRequest *request,
							   ClerkInvitation *revoked, ClerkError **error)
{
	return clerk_read_single_response(request, CLERK_EFFECT_REVOKES, revoked, error);
}

/*
 * Starts ListOrganizationInvitations: GET /organizations/{org}/invitations.
 * If listing->organization_id is NULL, starts
 * ListInstanceOrganizationInvitations instead: GET /organization_invitations.
 * See the head of this file for the result and errors.
 */
ClerkHttpRequest *
clerk_start_list_invitations(const ClerkListing *listing, ClerkError **error)
{
	char	   *path = clerk_list_path(listing, error);

	return path == NULL ? NULL : clerk_start_request(path, NULL, NULL, error);
}

/*
 * Reads the response to clerk_start_list_invitations() into "list".  See the
 * head of this file for the result and errors.  A 429 closes the endpoint
 * CLERK_ENDPOINT_LIST for lists of an organization.
 */
bool
clerk_finish_list_invitations(const ClerkHttpRequest *request,
							  const ClerkListing *listing,
							  ClerkInvitationList *list, ClerkError **error)
{
	/*
	 * A 429 to the list of the whole instance is not recorded, since nobody
	 * asks when that list is available again.
	 */
	if (listing->organization_id != NULL)
		clerk_note_list_limit(request);
	return clerk_read_list_response(request, CLERK_EFFECT_NONE, list, error);
}
