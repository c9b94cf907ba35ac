/*
 * error.h
 *		Why a request to Clerk has failed, as a value.
 */
#ifndef CLERK_ERROR_H
#define CLERK_ERROR_H

/* Hint for the case that Clerk does not accept the key. */
#define CLERK_HINT_KEY \
	"Check \"clerk_invite.secret_key_file\", \"clerk_invite.secret_key\", and the server's environment variable CLERK_SECRET_KEY. The first one that is set is used."

/* Clerk's error codes that decide what becomes of a row. */
#define CLERK_CODE_ALREADY_A_MEMBER "already_a_member_in_organization"
#define CLERK_CODE_PENDING_ALREADY "organization_invitation_not_unique"
#define CLERK_CODE_DUPLICATE_RECORD "duplicate_record"

/* What a failure means for a retry. */
typedef enum ClerkErrorClass
{
	CLERK_ERROR_FINAL,			/* refused; a retry would be refused, too */
	CLERK_ERROR_EXISTS,			/* refused: exists at Clerk already */
	CLERK_ERROR_CONFIGURATION,	/* the key or the API's address must be
								 * changed first */
	CLERK_ERROR_RATE_LIMITED,	/* refused until retry_after has passed */
	CLERK_ERROR_TRY_LATER,		/* refused, but a retry may succeed */
	CLERK_ERROR_NOT_SENT,		/* did not reach Clerk */
	CLERK_ERROR_OUTCOME_UNKNOWN /* Clerk may have executed it */
} ClerkErrorClass;

/* What a request changes at Clerk if it is executed. */
typedef enum ClerkEffect
{
	CLERK_EFFECT_NONE,			/* a read-only request */
	CLERK_EFFECT_CREATES,
	CLERK_EFFECT_CREATES_SEVERAL,	/* a bulk request */
	CLERK_EFFECT_REVOKES
} ClerkEffect;

/*
 * Why a request has failed.  All strings are in the database's encoding.  None
 * of them contains secrets: the secret key, and the query part of every URL,
 * are masked in what Clerk said.  "addresses_text" is not masked and must not
 * be shown.
 */
typedef struct ClerkError
{
	ClerkErrorClass class;
	int			sqlstate;
	int			http_status;	/* 0: no response */
	int			retry_after;	/* seconds; 0: unknown */
	const char *code;			/* Clerk's error code; NULL: none */
	const char *param_name;		/* the request's field that it is about; NULL:
								 * unknown */
	const char *trace_id;		/* Clerk's trace ID; NULL: unknown */
	const char *clerk_message;	/* all that Clerk said; NULL: nothing */
	const char *addresses_text; /* texts that may contain addresses; NULL:
								 * none */
	const char *summary;		/* what has failed, as a phrase */
	const char *detail;			/* complete sentences, or NULL */
	const char *hint;			/* complete sentences, or NULL */
} ClerkError;

extern ClerkError *clerk_error_no_key(const char *reason, const char *hint);
extern ClerkError *clerk_error_unusable_address(const char *reason);
extern ClerkError *clerk_error_unsendable(const char *reason);
extern ClerkError *clerk_error_copy(const ClerkError *error);
extern bool clerk_error_names(const ClerkError *error, const char *address);
extern const char *clerk_error_retry_hint(ClerkEffect effect);

#endif							/* CLERK_ERROR_H */
