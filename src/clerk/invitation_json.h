/*
 * invitation_json.h
 *		Conversion of invitations between Clerk's JSON and the SQL type.
 */
#ifndef CLERK_INVITATION_JSON_H
#define CLERK_INVITATION_JSON_H

#include "access/tupdesc.h"
#include "clerk/json_encoding.h"
#include "utils/jsonb.h"

/* The fields of an invitation, in the order of the SQL type's columns. */
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
 * The status of an invitation that has not been accepted, revoked or expired.
 */
#define CLERK_INVITATION_PENDING "pending"

/*
 * An invitation as Clerk describes it.  Depending on the field, a value is
 * text, jsonb or timestamptz.  All fields except the ID may be null.
 */
typedef struct ClerkInvitation
{
	Datum		values[CLERK_INVITATION_FIELDS];
	bool		nulls[CLERK_INVITATION_FIELDS];
} ClerkInvitation;

/* An invitation to be created.  Strings are in the database's encoding. */
typedef struct ClerkNewInvitation
{
	char	   *organization_id;	/* clerk_is_identifier() must accept it */
	char	   *email_address;
	char	   *role;
	char	   *inviter_user_id;	/* NULL: no inviter */
	char	   *redirect_url;	/* NULL: no redirect URL */
	Jsonb	   *public_metadata;	/* an object; NULL: none */
	Jsonb	   *private_metadata;	/* an object; NULL: none */
	int			expires_in_days;	/* 0: Clerk's default */
	bool	   *notify;			/* NULL: Clerk's default */
} ClerkNewInvitation;

/* The invitations in the response to a bulk or list operation. */
typedef struct ClerkInvitationList
{
	int			count;
	ClerkInvitation *invitations;
	int64		total_count;	/* how many there are in the whole list, by
								 * Clerk's count; -1: unknown */
	bool		lossless;		/* false: the database's encoding cannot
								 * represent the response, so "?" replaces
								 * every character that is not ASCII */
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
