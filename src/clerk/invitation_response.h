/*
 * invitation_response.h
 *		Reads responses that consist of invitations.
 */
#ifndef CLERK_INVITATION_RESPONSE_H
#define CLERK_INVITATION_RESPONSE_H

#include "clerk/error.h"
#include "clerk/invitation_json.h"
#include "http/http.h"

extern bool clerk_read_single_response(const ClerkHttpRequest *request,
									   ClerkEffect effect,
									   ClerkInvitation *invitation,
									   ClerkError **error);
extern bool clerk_read_list_response(const ClerkHttpRequest *request,
									 ClerkEffect effect,
									 ClerkInvitationList *list,
									 ClerkError **error);

#endif							/* CLERK_INVITATION_RESPONSE_H */
