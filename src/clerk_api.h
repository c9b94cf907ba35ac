/*
 * clerk_api.h
 *		Clerk's operations on organization invitations: request out, answer in.
 *
 * Each operation has a function that starts it and one that reads its answer,
 * so that any number can be under way at a time; see http.h for what happens
 * in between.
 *
 * Who starts a request that Clerk limits has reserved it (see rate_limit.h) at
 * the instance that clerk_chosen_instance() tells; reading its answer settles
 * that.
 */
#ifndef CLERK_API_H
#define CLERK_API_H

#include "access/tupdesc.h"
#include "clerk_error.h"
#include "rate_limit.h"
#include "utils/jsonb.h"

/* Fields of an invitation, in the order of the SQL type's columns. */
typedef enum ClerkInvitationField
{
	CLERK_INVITATION_ID,
	CLERK_INVITATION_ORGANIZATION_ID,
	CLERK_INVITATION_EMAIL_ADDRESS,
	CLERK_INVITATION_ROLE,
	CLERK_INVITATION_ROLE_NAME,
	CLERK_INVITATION_STATUS,
	CLERK_INVITATION_INVITER_ID,
	CLERK_INVITATION_URL,
	CLERK_INVITATION_PUBLIC_METADATA,
	CLERK_INVITATION_PRIVATE_METADATA,
	CLERK_INVITATION_PUBLIC_INVITER_DATA,
	CLERK_INVITATION_PUBLIC_ORGANIZATION_DATA,
	CLERK_INVITATION_CREATED_AT,
	CLERK_INVITATION_UPDATED_AT,
	CLERK_INVITATION_EXPIRES_AT
} ClerkInvitationField;

#define CLERK_INVITATION_FIELDS (CLERK_INVITATION_EXPIRES_AT + 1)

/*
 * An invitation as Clerk describes it: text, jsonb or timestamptz by field.
 * All but the id may be null.
 */
typedef struct ClerkInvitation
{
	Datum		values[CLERK_INVITATION_FIELDS];
	bool		nulls[CLERK_INVITATION_FIELDS];
} ClerkInvitation;

/* What to ask for.  Strings are in the database's encoding. */
typedef struct ClerkNewInvitation
{
	char	   *organization_id;	/* must pass clerk_is_identifier() */
	char	   *email_address;
	char	   *role;
	char	   *inviter_user_id;	/* NULL: none */
	char	   *redirect_url;	/* NULL: none */
	Jsonb	   *public_metadata;	/* an object; NULL: none */
	Jsonb	   *private_metadata;	/* an object; NULL: none */
	int			expires_in_days;	/* 0: Clerk's default */
	bool	   *notify;			/* NULL: Clerk's default */
} ClerkNewInvitation;

/* Invitations of an answer to a bulk or list operation. */
typedef struct ClerkInvitationList
{
	int			count;
	ClerkInvitation *invitations;
} ClerkInvitationList;

extern bool clerk_is_identifier(const char *text);
extern bool clerk_fits_invitation(TupleDesc descriptor);
extern bool clerk_chosen_instance(uint64 *instance, ClerkError **error);
extern ClerkHttpRequest *clerk_start_create_invitation(const ClerkNewInvitation *wanted,
													   ClerkError **error);
extern bool clerk_finish_create_invitation(const ClerkHttpRequest *request,
										   const ClerkTicket *ticket,
										   ClerkInvitation *created,
										   ClerkError **error);

extern ClerkHttpRequest *clerk_start_create_bulk(const ClerkNewInvitation *wanted,
												 int count,
												 ClerkError **error);
extern bool clerk_finish_create_bulk(const ClerkHttpRequest *request,
									 const ClerkTicket *ticket,
									 ClerkInvitationList *created,
									 ClerkError **error);

extern ClerkHttpRequest *clerk_start_list_invitations(const char *organization_id,
													  const char *email_address,
													  ClerkError **error);
extern bool clerk_finish_list_invitations(const ClerkHttpRequest *request,
										  ClerkInvitationList *list,
										  ClerkError **error);

#endif							/* CLERK_API_H */
