/*
 * error.c
 *		What went wrong with a request to Clerk, as a value.
 */
#include "postgres.h"

#include <ctype.h>

#include "clerk/email_address.h"
#include "clerk/error.h"

/* What to do when it is unknown whether an invitation was created. */
#define HINT_LOOK_FIRST \
	"Before you try again, check whether the invitation exists: in Clerk's Dashboard, or with clerk_list_organization_invitations()."

#define HINT_LOOK_FIRST_FOR_SEVERAL \
	"Before you try again, check which of the invitations exist: in Clerk's Dashboard, or with clerk_list_organization_invitations()."

static bool contains(const char *named, const char *wanted);
static bool has_word_for(const char *named, const char *address);
static bool continues_address(char c);

/*
 * There is no usable key; "reason" says why, and "hint" what to do, unless it is
 * NULL.
 */
ClerkError *
clerk_error_no_key(const char *reason, const char *hint)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->class = CLERK_ERROR_CONFIGURATION;
	error->sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error->summary = "there is no usable secret key";
	error->detail = pstrdup(reason);
	error->hint = hint != NULL ? hint : CLERK_HINT_KEY;
	return error;
}

/* The API's address cannot be used; "reason" says why, as a phrase. */
ClerkError *
clerk_error_unusable_address(const char *reason)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->class = CLERK_ERROR_CONFIGURATION;
	error->sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error->summary = "the configured API URL cannot be used";
	error->detail = psprintf("The value of \"clerk_invite.api_url\" is invalid: %s.", reason);
	error->hint = "Nothing was sent.";
	return error;
}

/* The request cannot be expressed; "reason" says why, as a phrase. */
ClerkError *
clerk_error_unsendable(const char *reason)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->class = CLERK_ERROR_FINAL;
	error->sqlstate = ERRCODE_CHARACTER_NOT_IN_REPERTOIRE;
	error->summary = pstrdup(reason);
	return error;
}

/* What to do about a request that may have been carried out or not. */
const char *
clerk_error_look_first(ClerkEffect effect)
{
	switch (effect)
	{
		case CLERK_EFFECT_NONE:
			return "It is safe to try again.";
		case CLERK_EFFECT_CREATES:
			return HINT_LOOK_FIRST;
		case CLERK_EFFECT_CREATES_SEVERAL:
			return HINT_LOOK_FIRST_FOR_SEVERAL;
		case CLERK_EFFECT_REVOKES:
			return "It is safe to try again: Clerk refuses to revoke an invitation that is no longer pending.";
	}
	pg_unreachable();
}

/* A copy in the current memory context. */
ClerkError *
clerk_error_copy(const ClerkError *error)
{
	ClerkError *copy = palloc(sizeof(ClerkError));

#define COPY(field) \
	(copy->field = error->field != NULL ? pstrdup(error->field) : NULL)

	*copy = *error;
	COPY(code);
	COPY(param_name);
	COPY(trace_id);
	COPY(said);
	COPY(named);
	COPY(summary);
	COPY(detail);
	COPY(hint);
	return copy;

#undef COPY
}

/*
 * Whether a refusal names this address, in any case and normalized or not, as a
 * whole and not as part of a longer one.
 */
bool
clerk_error_names(const ClerkError *error, const char *address)
{
	const char *folded;

	if (error->named == NULL)
		return false;
	folded = clerk_fold_address(error->named);
	return contains(folded, clerk_fold_address(address)) ||
		contains(folded, clerk_normalize_address(address)) ||
		has_word_for(error->named, address);
}

/* Whether a text has an address in this very form. */
static bool
contains(const char *named, const char *wanted)
{
	size_t		length = strlen(wanted);

	for (const char *text = named; (text = strstr(text, wanted)) != NULL; text++)
	{
		const char *next = text + length;

		if (text > named && continues_address(text[-1]))
			continue;
		/* A full stop may end the sentence, or go on with the address. */
		if (*next == '.')
			next++;
		if (!continues_address(*next))
			return true;
	}
	return false;
}

/* Whether a word of the text is an address that is the same when normalized. */
static bool
has_word_for(const char *named, const char *address)
{
	char	   *rest = pstrdup(named);
	char	   *word;

	while ((word = strsep(&rest, " \t\r\n\"'`<>()[],;:")) != NULL)
	{
		size_t		length = strlen(word);

		/* A full stop that ends the sentence. */
		if (length > 0 && word[length - 1] == '.')
			word[length - 1] = '\0';
		if (strchr(word, '@') != NULL &&
			clerk_address_likeness(word, address) != CLERK_ADDRESS_OTHER)
			return true;
	}
	return false;
}

static bool
continues_address(char c)
{
	return IS_HIGHBIT_SET(c) || isalnum((unsigned char) c) ||
		(c != '\0' && strchr("._%+-@", c) != NULL);
}
