/*
 * json_encoding.c
 *		JSON's text between the database's encoding and the UTF-8 of the wire.
 *
 * The conversions are the server's own, which report what they dislike by
 * raising an error.  What comes from the network must not end the caller's
 * work, so those errors are caught here and become values.  Catching without a
 * subtransaction is sound because nothing but memory is acquired in between.
 */
#include "postgres.h"

#include "clerk/json_encoding.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

static bool convert(const char *source, size_t length, bool to_wire,
					char **converted);
static size_t escape_length(const char *backslash, const char *end);

/* As in \u30e1, which may stand for a character beyond ASCII. */
#define ESCAPED_CODE_LENGTH 6

/*
 * A text of the database as UTF-8: a palloc'd or the same string.  NULL if it
 * has no such form, which can only be if the database is SQL_ASCII, or if its
 * encoding has characters that Unicode lacks.
 */
char *
clerk_json_to_wire(char *text, size_t *length)
{
	char	   *utf8;

	if (!convert(text, strlen(text), true, &utf8))
		return NULL;
	*length = strlen(utf8);
	return utf8;
}

/*
 * The text of an answer, which must be followed by a NUL byte that "length"
 * does not count, in the database's encoding.  Returns NULL and says why in
 * *json_error if it has no such form.
 */
const char *
clerk_json_from_wire(const char *utf8, size_t length, ClerkJsonError *json_error)
{
	char	   *text;

	/* Refuses NUL bytes as well. */
	if (!pg_verify_mbstr(PG_UTF8, utf8, length, true))
	{
		*json_error = CLERK_JSON_NOT_UTF8;
		return NULL;
	}
	if (!convert(utf8, length, false, &text))
	{
		*json_error = CLERK_JSON_UNTRANSLATABLE;
		return NULL;
	}
	*json_error = CLERK_JSON_GOOD;
	return text;
}

/*
 * The text of an answer that the database's encoding cannot hold, with every
 * character beyond ASCII replaced with "?": enough to learn the identifiers
 * and codes in it.
 */
const char *
clerk_json_from_wire_lossy(const char *utf8, size_t length)
{
	char	   *ascii = palloc(length + 1);
	char	   *to = ascii;
	const char *end = utf8 + length;

	while (utf8 < end)
	{
		size_t		step = 1;

		if (*utf8 == '\\')
			step = escape_length(utf8, end);
		if (step == ESCAPED_CODE_LENGTH)
			*to++ = '?';
		else if (!IS_HIGHBIT_SET(*utf8))
		{
			memcpy(to, utf8, step);
			to += step;
		}
		else if ((*utf8 & 0xC0) != 0x80)	/* a character's first byte */
			*to++ = '?';
		utf8 += step;
	}
	*to = '\0';
	return ascii;
}

/* Bytes of the escape sequence that begins here. */
static size_t
escape_length(const char *backslash, const char *end)
{
	size_t		length = end - backslash;

	return Min(length, length >= 2 && backslash[1] == 'u' ?
			   ESCAPED_CODE_LENGTH : 2);
}

/* What is wrong with an answer, as a phrase. */
const char *
clerk_json_error_text(ClerkJsonError json_error)
{
	switch (json_error)
	{
		case CLERK_JSON_GOOD:
			return NULL;
		case CLERK_JSON_NOT_UTF8:
			return "it is not valid UTF-8, or contains a NUL byte";
		case CLERK_JSON_MALFORMED:
			return "it is not JSON that can be stored as jsonb";
		case CLERK_JSON_NOT_OBJECT:
			return "it is not a JSON object";
		case CLERK_JSON_UNTRANSLATABLE:
			return "it contains characters that have no equivalent in the database encoding";
	}
	pg_unreachable();
}

/* False if the conversion raised an error. */
static bool
convert(const char *source, size_t length, bool to_wire, char **converted)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = false;

	/* The caller has verified what comes from the wire. */
	if (GetDatabaseEncoding() == PG_UTF8)
	{
		*converted = unconstify(char *, source);
		return true;
	}
	PG_TRY();
	{
		*converted = to_wire ?
			pg_server_to_any(source, length, PG_UTF8) :
			pg_any_to_server(source, length, PG_UTF8);
		done = true;
	}
	PG_CATCH();
	{
		clerk_swallow_data_error(caller);
	}
	PG_END_TRY();
	return done;
}

/*
 * Drops the current error if the data is to blame, and returns its SQLSTATE:
 * bad data (class 22), data that is too much for the parser, such as too deep
 * a nesting (class 54), or escapes that it does not support in this encoding.
 * Anything else is raised again.
 */
int
clerk_swallow_data_error(MemoryContext caller)
{
	ErrorData  *error;
	int			sqlstate;
	int			category;

	MemoryContextSwitchTo(caller);
	error = CopyErrorData();
	sqlstate = error->sqlerrcode;
	category = ERRCODE_TO_CATEGORY(sqlstate);
	if (category != ERRCODE_DATA_EXCEPTION &&
		category != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
		sqlstate != ERRCODE_FEATURE_NOT_SUPPORTED)
		ReThrowError(error);
	FlushErrorState();
	FreeErrorData(error);
	return sqlstate;
}
