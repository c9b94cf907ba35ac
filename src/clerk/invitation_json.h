/*
 * invitation_json.h
 *		Invitations between Clerk's JSON and the SQL type.
 */
#ifndef CLERK_INVITATION_JSON_H
#define CLERK_INVITATION_JSON_H

#include "access/tupdesc.h"
#include "clerk/json_encoding.h"
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

/* The status of an invitation that can be accepted. */
#define CLERK_INVITATION_PENDING "pending"

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
	int64		total_count;	/* what Clerk counts in all; -1: not told */
	bool		legible;		/* else "?" stands for what is not ASCII,
								 * since the database's encoding lacks some of
								 * it */
} ClerkInvitationList;

extern bool clerk_fits_invitation(TupleDesc descriptor);
extern char *clerk_invitation_text(const ClerkInvitation *invitation,
								   ClerkInvitationField field);
extern char *clerk_new_invitation_json(const ClerkNewInvitation *wanted);
extern const char *clerk_read_invitation(const char *text, int length,
										 ClerkInvitation *invitation,
										 ClerkJsonError *json_error);
extern const char *clerk_read_invitation_list(const char *text,
											  ClerkInvitationList *list,
											  ClerkJsonError *json_error);

#endif							/* CLERK_INVITATION_JSON_H */
