/*
 * json_encoding.c
 *		Conversion of JSON text between the database's encoding and UTF-8,
 *		which is JSON's encoding on the network.
 *
 * The conversions are the server's own.  They raise an error if they fail, but
 * data from the network must not end the caller's work.  So these errors are
 * caught here and returned as values.  Catching them without a subtransaction
 * is safe because nothing but memory is acquired in between.
 */
#include "postgres.h"

#include "clerk/json_encoding.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

static bool convert(const char *source, size_t length, bool to_wire,
					char **converted);
static size_t escape_length(const char *backslash, const char *end);

/* Length of an escape such as \u30e1, which may represent any character. */
#define UNICODE_ESCAPE_LENGTH 6

/*
 * Converts a text from the database's encoding to UTF-8.  Returns a palloc'd
 * string, or "text" itself if there is nothing to convert, and its length in
 * bytes in *length.  Returns NULL if it cannot be converted, which happens
 * only if the encoding is SQL_ASCII or has characters that Unicode lacks.
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
 * Converts "length" bytes of a response from UTF-8 to the database's encoding.
 * A NUL byte must follow that the length does not count.  Returns a palloc'd
 * string or "utf8" itself.  If it cannot be converted, returns NULL and sets
 * *json_error to CLERK_JSON_NOT_UTF8 or CLERK_JSON_UNTRANSLATABLE.
 */
const char *
clerk_json_from_wire(const char *utf8, size_t length, ClerkJsonError *json_error)
{
	char	   *text;

	/* Also rejects NUL bytes. */
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
 * Converts "length" bytes of a response that the database's encoding cannot
 * represent.  Every character that is not ASCII, and every \u escape, is
 * replaced with "?".  The identifiers and error codes in the response stay
 * legible.  Returns a palloc'd string; never fails.
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
		if (step == UNICODE_ESCAPE_LENGTH)
			*to++ = '?';
		else if (!IS_HIGHBIT_SET(*utf8))
		{
			memcpy(to, utf8, step);
			to += step;
		}
		else if ((*utf8 & 0xC0) != 0x80)	/* the first byte of a character */
			*to++ = '?';
		utf8 += step;
	}
	*to = '\0';
	return ascii;
}

/* Length in bytes of the escape sequence that begins at "backslash". */
static size_t
escape_length(const char *backslash, const char *end)
{
	size_t		length = end - backslash;

	return Min(length, length >= 2 && backslash[1] == 'u' ?
			   UNICODE_ESCAPE_LENGTH : 2);
}

/*
 * Returns what is wrong with a response, as a phrase; NULL for
 * CLERK_JSON_GOOD.
 */
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

/* Returns false if the conversion raised an error because of the data. */
static bool
convert(const char *source, size_t length, bool to_wire, char **converted)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool converted_ok = false;

	/* The caller has verified what comes from the network. */
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
		converted_ok = true;
	}
	PG_CATCH();
	{
		clerk_swallow_data_error(caller);
	}
	PG_END_TRY();
	return converted_ok;
}

/*
 * For PG_CATCH blocks: discards the current error if the data caused it, and
 * returns its SQLSTATE.  "caller" becomes the current memory context.
 *
 * The data is the cause if the SQLSTATE is of class 22 (data exception) or 54
 * (program limit exceeded, such as JSON that is nested too deeply), or is
 * 0A000 (an escape sequence that is not supported in this encoding).  Any
 * other error is rethrown.
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
