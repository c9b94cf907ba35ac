/*
 * error.h
 *		What went wrong with a request to Clerk, as a value.
 */
#ifndef CLERK_ERROR_H
#define CLERK_ERROR_H

/* What to do when Clerk does not accept the key. */
#define CLERK_HINT_KEY \
	"Check \"clerk_invite.secret_key_file\", \"clerk_invite.secret_key\", and the server's environment variable CLERK_SECRET_KEY. The first one that is set is used."

/* What the failure means for whoever wants the request to succeed. */
typedef enum ClerkErrorClass
{
	CLERK_ERROR_FINAL,			/* refused, and will be again */
	CLERK_ERROR_EXISTS,			/* refused: Clerk already has it */
	CLERK_ERROR_CONFIGURATION,	/* key or address must be changed first */
	CLERK_ERROR_RATE_LIMITED,	/* refused until retry_after has passed */
	CLERK_ERROR_TRY_LATER,		/* refused, but may succeed later */
	CLERK_ERROR_NOT_SENT,		/* never reached Clerk */
	CLERK_ERROR_OUTCOME_UNKNOWN /* may have been carried out */
} ClerkErrorClass;

/* What a request changes at Clerk if it is carried out. */
typedef enum ClerkEffect
{
	CLERK_EFFECT_NONE,			/* it only reads */
	CLERK_EFFECT_CREATES,
	CLERK_EFFECT_CREATES_SEVERAL,	/* with a bulk request */
	CLERK_EFFECT_REVOKES
} ClerkEffect;

/*
 * All strings are in the database's encoding and free of secrets: the key and
 * the query part of every URL are left out of what Clerk said.
 */
typedef struct ClerkError
{
	ClerkErrorClass class;
	int			sqlstate;
	int			http_status;	/* 0: there was no answer */
	int			retry_after;	/* seconds; 0: not told */
	const char *code;			/* Clerk's code; NULL: none given */
	const char *param_name;		/* the field it is about; NULL: not told */
	const char *trace_id;		/* Clerk's; NULL: not told */
	const char *said;			/* what Clerk said, all of it; NULL: nothing */
	const char *named;			/* texts that may name addresses; NULL: none */
	const char *summary;		/* what failed: a phrase */
	const char *detail;			/* whole sentences, or NULL */
	const char *hint;			/* whole sentences, or NULL */
} ClerkError;

extern ClerkError *clerk_error_no_key(const char *reason, const char *hint);
extern ClerkError *clerk_error_unusable_address(const char *reason);
extern ClerkError *clerk_error_unsendable(const char *reason);
extern ClerkError *clerk_error_copy(const ClerkError *error);
extern bool clerk_error_names(const ClerkError *error, const char *address);
extern const char *clerk_error_look_first(ClerkEffect effect);

#endif							/* CLERK_ERROR_H */
