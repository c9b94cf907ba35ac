/*
 * arguments.c
 *		Checks of the arguments of the SQL functions.
 *
 * Clerk decides what it accepts.  These checks reject only values that cannot
 * be correct, or that could change their meaning on the way to Clerk.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "clerk/api_path.h"
#include "clerk/invitation_json.h"
#include "clerk/white_space.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "sql/arguments.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* Clerk's limits for expires_in_days, in days. */
#define MIN_EXPIRES_IN_DAYS 1
#define MAX_EXPIRES_IN_DAYS 365

/*
 * Most values in a filter of a list.  Clerk's JavaScript library documents the
 * same number.
 */
#define MAX_ARRAY_ELEMENTS 100

/*
 * The statuses that Clerk documents.  It may add others.
 */
static const char *const known_statuses[] = {
	CLERK_INVITATION_PENDING, "accepted", "revoked", "expired"
};

static List *texts_of_array(Datum array, const char *name);
static void check_several_statuses(const List *statuses, const char *name);
static void reject_if_error(const char *error, const char *name);
pg_noreturn static void reject_null(const char *name);

/*
 * Returns the argument, a text of at most max_length characters, as a palloc'd
 * string.  Raises 22004 if the argument is null, and 22023 if
 * clerk_text_error() rejects it.
 */
char *
clerk_required_text(FunctionCallInfo fcinfo, int position, const char *name,
					int max_length)
{
	char	   *value;

	if (PG_ARGISNULL(position))
		reject_null(name);
	value = text_to_cstring(PG_GETARG_TEXT_PP(position));
	reject_if_error(clerk_text_error(value, max_length), name);
	return value;
}

/* Like clerk_required_text(), but returns NULL if the argument is null. */
char *
clerk_optional_text(FunctionCallInfo fcinfo, int position, const char *name,
					int max_length)
{
	return PG_ARGISNULL(position) ? NULL :
		clerk_required_text(fcinfo, position, name, max_length);
}

/*
 * Returns the argument, an e-mail address of at most CLERK_MAX_ADDRESS
 * characters, as a palloc'd string without surrounding white space.  Raises
 * 22004 if the argument is null, and 22023 if clerk_text_error() or
 * clerk_address_error() rejects it.
 */
char *
clerk_required_address(FunctionCallInfo fcinfo, int position,
					   const char *name)
{
	char	   *value;

	if (PG_ARGISNULL(position))
		reject_null(name);
	value = clerk_optional_address(fcinfo, position, name);
	reject_if_error(clerk_address_error(value), name);
	return value;
}

/*
 * Returns the argument, which filters a list by e-mail address, as a palloc'd
 * string without surrounding white space, or NULL if the argument is null.
 * Raises 22023 if clerk_text_error() rejects it.  It need not contain an @.
 */
char *
clerk_optional_address(FunctionCallInfo fcinfo, int position,
					   const char *name)
{
	text	   *given;
	const char *trimmed;
	size_t		length;
	char	   *value;

	if (PG_ARGISNULL(position))
		return NULL;
	given = PG_GETARG_TEXT_PP(position);
	length = VARSIZE_ANY_EXHDR(given);
	trimmed = clerk_trim(VARDATA_ANY(given), &length);
	value = pnstrdup(trimmed, length);
	reject_if_error(clerk_text_error(value, CLERK_MAX_ADDRESS), name);
	return value;
}

/*
 * Returns the argument, one of Clerk's identifiers, as a palloc'd string.  The
 * identifier becomes part of a URL's path, so only the characters that
 * clerk_is_identifier() allows are accepted.  Raises 22004 if the argument is
 * null, and 22023 for any other invalid value.
 */
char *
clerk_required_identifier(FunctionCallInfo fcinfo, int position,
						  const char *name)
{
	char	   *value = clerk_required_text(fcinfo, position, name,
											CLERK_MAX_IDENTIFIER);

	if (!clerk_is_identifier(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is not a Clerk identifier: \"%s\"",
						name, value),
				 errdetail("Clerk's identifiers consist of letters, digits, underscores and hyphens.")));
	return value;
}

/*
 * Returns the argument, a JSON object, or NULL if the argument is null.
 * Raises 22023 if it is not an object.
 */
Jsonb *
clerk_optional_object(FunctionCallInfo fcinfo, int position, const char *name)
{
	Jsonb	   *value;

	if (PG_ARGISNULL(position))
		return NULL;
	value = PG_GETARG_JSONB_P(position);
	reject_if_error(JB_ROOT_IS_OBJECT(value) ? NULL : "must be a JSON object",
					name);
	return value;
}

/*
 * Returns the elements of the argument, a text[] of statuses of invitations,
 * as a list of palloc'd strings, or NIL if the argument is null.  Raises 22004
 * for a null element.  Raises 22023 for more than MAX_ARRAY_ELEMENTS elements,
 * for an element that clerk_text_error() rejects, for several statuses of
 * which one is unknown, and for an array without elements: Clerk would receive
 * no filter and return everything, although the caller asked for nothing.
 */
List *
clerk_optional_statuses(FunctionCallInfo fcinfo, int position,
						const char *name)
{
	List	   *statuses;

	if (PG_ARGISNULL(position))
		return NIL;
	statuses = texts_of_array(PG_GETARG_DATUM(position), name);
	check_several_statuses(statuses, name);
	return statuses;
}

/* The elements of a text[] that has at least one. */
static List *
texts_of_array(Datum array, const char *name)
{
	List	   *values = NIL;
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, &nulls, &count);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", name)));
	if (count > MAX_ARRAY_ELEMENTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not have more than %d elements",
						name, MAX_ARRAY_ELEMENTS)));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" must not contain nulls", name)));
		values = lappend(values, TextDatumGetCString(elements[i]));
		reject_if_error(clerk_text_error(llast(values), CLERK_MAX_IDENTIFIER), name);
	}
	return values;
}

/*
 * Clerk refuses a status that it does not know, but only a request with a
 * single status tells it which one is wanted (clerk/invitation_pages.c).  So
 * among several, one that is misspelled is refused here.
 */
static void
check_several_statuses(const List *statuses, const char *name)
{
	const ListCell *cell;

	if (list_length(statuses) < 2)
		return;
	foreach(cell, statuses)
	{
		const char *status = lfirst(cell);
		int			i = 0;

		while (i < (int) lengthof(known_statuses) &&
			   strcmp(status, known_statuses[i]) != 0)
			i++;
		if (i == (int) lengthof(known_statuses))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" contains an unknown status: \"%s\"",
							name, status),
					 errdetail("The statuses are pending, accepted, revoked and expired."),
					 errhint("Another status can be requested only by itself.")));
	}
}

/*
 * Raises 22023, naming the argument, if the number of days until an invitation
 * expires is outside the range that Clerk accepts.
 */
void
clerk_check_expires_in_days(int64 days, const char *name)
{
	reject_if_error(clerk_expires_in_days_error(days), name);
}

/*
 * Returns what is wrong with an identifier, address, role or URL of at most
 * max_length characters, or NULL if nothing is.  None of them is ever empty,
 * longer than that, or contains a control character.  The message mentions
 * line breaks because they are common in imported data.
 */
const char *
clerk_text_error(const char *value, int max_length)
{
	if (value[0] == '\0')
		return "must not be empty";
	if (strlen(value) > (size_t) max_length && pg_mbstrlen(value) > max_length)
		return psprintf("must not be longer than %d characters", max_length);
	for (const char *c = value; *c != '\0'; c++)
		if ((unsigned char) *c < ' ' || *c == 0x7F)
			return "must not contain a line break or another control character";
	return NULL;
}

/*
 * Returns what is wrong with an e-mail address, or NULL if nothing is.  Only
 * Clerk knows which addresses it accepts; one without an @ is always refused.
 */
const char *
clerk_address_error(const char *address)
{
	return strchr(address, '@') != NULL ? NULL :
		psprintf("is not an e-mail address: \"%s\"", address);
}

/*
 * Returns what is wrong with a number of days until an invitation expires, or
 * NULL if nothing is.
 */
const char *
clerk_expires_in_days_error(int64 days)
{
	return days >= MIN_EXPIRES_IN_DAYS && days <= MAX_EXPIRES_IN_DAYS ? NULL :
		psprintf("must be between %d and %d", MIN_EXPIRES_IN_DAYS,
				 MAX_EXPIRES_IN_DAYS);
}

/* Raises 22023 for the argument of this name, unless error is NULL. */
static void
reject_if_error(const char *error, const char *name)
{
	if (error != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" %s", name, error)));
}

/* Raises 22004 for the argument of this name. */
static void
reject_null(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("argument \"%s\" must not be null", name)));
}
