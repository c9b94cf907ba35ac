/*
 * arguments.c
 *		Checks of what is given to the SQL functions.
 *
 * Whatever Clerk may have an opinion about is left to Clerk: refused is what
 * cannot be meant, or could be taken for something else on its way there.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "clerk/operations.h"
#include "clerk/white_space.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "sql/arguments.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* Clerk's limits for expires_in_days. */
#define MIN_EXPIRES_IN_DAYS 1
#define MAX_EXPIRES_IN_DAYS 365

/* Values of a list's filter; Clerk's JavaScript library documents as many. */
#define MAX_TEXTS 100

static void check(const char *error, const char *name);
pg_noreturn static void refuse_null(const char *name);

/* A text of at most so many characters. */
char *
clerk_required_text(FunctionCallInfo fcinfo, int position, const char *name,
					int max_length)
{
	char	   *value;

	if (PG_ARGISNULL(position))
		refuse_null(name);
	value = text_to_cstring(PG_GETARG_TEXT_PP(position));
	check(clerk_text_error(value, max_length), name);
	return value;
}

/* NULL if the argument is null. */
char *
clerk_optional_text(FunctionCallInfo fcinfo, int position, const char *name,
					int max_length)
{
	return PG_ARGISNULL(position) ? NULL :
		clerk_required_text(fcinfo, position, name, max_length);
}

/* An e-mail address, without white space around it. */
char *
clerk_required_address(FunctionCallInfo fcinfo, int position,
					   const char *name)
{
	char	   *value;

	if (PG_ARGISNULL(position))
		refuse_null(name);
	value = clerk_optional_address(fcinfo, position, name);
	check(clerk_address_error(value), name);
	return value;
}

/*
 * What an address is compared with, without white space around it; NULL if the
 * argument is null.
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
	check(clerk_text_error(value, CLERK_MAX_ADDRESS), name);
	return value;
}

/* One of Clerk's identifiers that becomes a part of a URL's path. */
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

/* NULL if the argument is null. */
Jsonb *
clerk_optional_object(FunctionCallInfo fcinfo, int position, const char *name)
{
	Jsonb	   *value;

	if (PG_ARGISNULL(position))
		return NULL;
	value = PG_GETARG_JSONB_P(position);
	check(JB_ROOT_IS_OBJECT(value) ? NULL : "must be a JSON object", name);
	return value;
}

/*
 * The strings of an array of texts; NIL if the argument is null.  An array
 * without any is refused: it would ask for nothing, and look like everything.
 */
List *
clerk_optional_texts(FunctionCallInfo fcinfo, int position, const char *name)
{
	List	   *values = NIL;
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (PG_ARGISNULL(position))
		return NIL;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(position), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, &nulls, &count);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", name)));
	if (count > MAX_TEXTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not have more than %d elements",
						name, MAX_TEXTS)));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" must not contain nulls", name)));
		values = lappend(values, TextDatumGetCString(elements[i]));
		check(clerk_text_error(llast(values), CLERK_MAX_IDENTIFIER), name);
	}
	return values;
}

void
clerk_check_expires_in_days(int64 days, const char *name)
{
	check(clerk_expires_in_days_error(days), name);
}

/*
 * No identifier, address, role or URL is empty, very long, or has a control
 * character in it.  Line breaks come from careless imports; they are named to
 * help.
 */
const char *
clerk_text_error(const char *value, int max_length)
{
	if (value[0] == '\0')
		return "must not be empty";
	if (pg_mbstrlen(value) > max_length)
		return psprintf("must not be longer than %d characters", max_length);
	for (const char *c = value; *c != '\0'; c++)
		if ((unsigned char) *c < ' ' || *c == 0x7F)
			return "must not contain a line break or another control character";
	return NULL;
}

/* Only Clerk knows which addresses it takes; these it never does. */
const char *
clerk_address_error(const char *address)
{
	return strchr(address, '@') != NULL ? NULL :
		psprintf("is not an e-mail address: \"%s\"", address);
}

const char *
clerk_expires_in_days_error(int64 days)
{
	return days >= MIN_EXPIRES_IN_DAYS && days <= MAX_EXPIRES_IN_DAYS ? NULL :
		psprintf("must be between %d and %d", MIN_EXPIRES_IN_DAYS,
				 MAX_EXPIRES_IN_DAYS);
}

/* Refuses the argument of this name if there is a error about its value. */
static void
check(const char *error, const char *name)
{
	if (error != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" %s", name, error)));
}

static void
refuse_null(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("argument \"%s\" must not be null", name)));
}
