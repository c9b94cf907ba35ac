/*
 * invitations_argument.h
 *		Reads an argument that contains many invitations: a jsonb array of
 *		objects with Clerk's field names.
 */
#ifndef CLERK_INVITATIONS_ARGUMENT_H
#define CLERK_INVITATIONS_ARGUMENT_H

#include "clerk/invitation_json.h"
#include "fmgr.h"

extern int	clerk_required_invitations(FunctionCallInfo fcinfo, int position,
									   const char *name,
									   char *organization_id,
									   ClerkNewInvitation **invitations);

#endif							/* CLERK_INVITATIONS_ARGUMENT_H */
