/*
 * invitations_argument.h
 *		Reads the argument that has many invitations: a jsonb array of Clerk's
 *		own objects.
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
