/*
 * error.c
 *		Why a request to Clerk has failed, as a value.
 */
#include "postgres.h"

#include <ctype.h>

#include "clerk/email_address.h"
#include "clerk/error.h"

/* Hints for the case that it is unknown whether an invitation was created. */
#define HINT_CHECK_FIRST \
	"Before you try again, check whether the invitation exists: in Clerk's Dashboard, or with clerk_list_organization_invitations()."

#define HINT_CHECK_FIRST_FOR_SEVERAL \
	"Before you try again, check which of the invitations exist: in Clerk's Dashboard, or with clerk_list_organization_invitations()."

static bool contains_address(const char *text, const char *wanted);
static bool contains_similar(const char *text, const char *address);
static bool is_address_character(char c);

/*
 * Returns the error that there is no usable secret key (55000).  "reason" is a
 * sentence that says why.  "hint" says what to do; NULL means CLERK_HINT_KEY.
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

/*
 * Returns the error that clerk_invite.api_url cannot be used (55000).
 * "reason" is a phrase that says why.
 */
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

/*
 * Returns the error that a request cannot be formed (22021), for example
 * because a text cannot be converted to UTF-8.  "reason" is a phrase.
 */
ClerkError *
clerk_error_unsendable(const char *reason)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->class = CLERK_ERROR_FINAL;
	error->sqlstate = ERRCODE_CHARACTER_NOT_IN_REPERTOIRE;
	error->summary = pstrdup(reason);
	return error;
}

/* Returns a hint about retrying a request that Clerk may have executed. */
const char *
clerk_error_retry_hint(ClerkEffect effect)
{
	switch (effect)
	{
		case CLERK_EFFECT_NONE:
			return "It is safe to try again.";
		case CLERK_EFFECT_CREATES:
			return HINT_CHECK_FIRST;
		case CLERK_EFFECT_CREATES_SEVERAL:
			return HINT_CHECK_FIRST_FOR_SEVERAL;
		case CLERK_EFFECT_REVOKES:
			return "It is safe to try again: Clerk refuses to revoke an invitation that is no longer pending.";
	}
	pg_unreachable();
}

/* Copies an error into the current memory context. */
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
	COPY(clerk_message);
	COPY(addresses_text);
	COPY(summary);
	COPY(detail);
	COPY(hint);
	return copy;

#undef COPY
}

/*
 * Whether a refusal mentions this address, in any of the forms that
 * clerk_address_likeness() treats as similar.  It must be mentioned as a whole
 * rather than as part of a longer address.  Must be called in a transaction.
 */
bool
clerk_error_names(const ClerkError *error, const char *address)
{
	const char *folded;

	if (error->addresses_text == NULL)
		return false;
	folded = clerk_fold_address(error->addresses_text);
	return contains_address(folded, clerk_fold_address(address)) ||
		contains_address(folded, clerk_normalize_address(address)) ||
		contains_similar(error->addresses_text, address);
}

/* Whether a text contains an address in exactly this form. */
static bool
contains_address(const char *text, const char *wanted)
{
	size_t		length = strlen(wanted);

	for (const char *found = text; (found = strstr(found, wanted)) != NULL;
		 found++)
	{
		const char *next = found + length;

		if (found > text && is_address_character(found[-1]))
			continue;
		/* A period may end the sentence or be part of the address. */
		if (*next == '.')
			next++;
		if (!is_address_character(*next))
			return true;
	}
	return false;
}

/* Whether a word of the text is an address that is similar to this one. */
static bool
contains_similar(const char *text, const char *address)
{
	char	   *rest = pstrdup(text);
	char	   *word;

	while ((word = strsep(&rest, " \t\r\n\"'`<>()[],;:")) != NULL)
	{
		size_t		length = strlen(word);

		/* Remove a period that ends the sentence. */
		if (length > 0 && word[length - 1] == '.')
			word[length - 1] = '\0';
		if (strchr(word, '@') != NULL &&
			clerk_address_likeness(word, address) != CLERK_ADDRESS_OTHER)
			return true;
	}
	return false;
}

/* Whether a character may be part of an address. */
static bool
is_address_character(char c)
{
	return IS_HIGHBIT_SET(c) || isalnum((unsigned char) c) ||
		(c != '\0' && strchr("._%+-@", c) != NULL);
}
