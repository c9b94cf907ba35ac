/*
 * json_wire.c
 *		JSON between the database's encoding and the UTF-8 of the wire.
 *
 * The parser and the conversions are the server's own, which report what they
 * dislike by raising an error.  What comes from the network must not end the
 * caller's work, so those errors are caught here and become values.  Catching
 * without a subtransaction is sound because nothing but memory is acquired in
 * between.
 */
#include "postgres.h"

#include "json_wire.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

static bool convert(const char *source, size_t length, bool to_wire,
					char **converted);
static Jsonb *parse(char *text);
static void swallow_data_error(MemoryContext caller);

/*
 * A text of the database as UTF-8: a palloc'd or the same string.  NULL if it
 * has no such form, which can only be if the database is SQL_ASCII, or if its
 * encoding has characters that Unicode lacks.
 */
char	   *
clerk_json_to_wire(char *text, size_t *length)
{
	char	   *utf8;

	if (!convert(text, strlen(text), true, &utf8))
		return NULL;
	*length = strlen(utf8);
	return utf8;
}

/*
 * Parses an answer, which must be followed by a NUL byte that "length" does
 * not count.  Returns NULL and says why in *fault if it cannot.
 */
Jsonb	   *
clerk_json_from_wire(const char *utf8, size_t length, ClerkJsonFault *fault)
{
	char	   *text;
	Jsonb	   *parsed;

	/* Refuses NUL bytes as well. */
	if (!pg_verify_mbstr(PG_UTF8, utf8, length, true))
	{
		*fault = CLERK_JSON_NOT_UTF8;
		return NULL;
	}
	if (!convert(utf8, length, false, &text))
	{
		*fault = CLERK_JSON_UNTRANSLATABLE;
		return NULL;
	}
	parsed = parse(text);
	*fault = parsed == NULL ? CLERK_JSON_MALFORMED : CLERK_JSON_GOOD;
	return parsed;
}

/*
 * Parses an answer that the database's encoding cannot hold, with every
 * character beyond ASCII replaced with "?": enough to learn the identifiers
 * and codes in it.  NULL if that fails too.
 */
Jsonb	   *
clerk_json_from_wire_lossy(const char *utf8, size_t length)
{
	char	   *ascii = palloc(length + 1);
	char	   *end = ascii;

	for (size_t i = 0; i < length; i++)
	{
		bool		continues = (utf8[i] & 0xC0) == 0x80;

		if (!continues)
			*end++ = IS_HIGHBIT_SET(utf8[i]) ? '?' : utf8[i];
	}
	*end = '\0';
	return strlen(ascii) == (size_t) (end - ascii) ? parse(ascii) : NULL;
}

/* What is wrong with an answer, as a phrase. */
const char *
clerk_json_fault_text(ClerkJsonFault fault)
{
	switch (fault)
	{
		case CLERK_JSON_GOOD:
			return NULL;
		case CLERK_JSON_NOT_UTF8:
			return "it is not valid UTF-8, or contains a NUL byte";
		case CLERK_JSON_MALFORMED:
			return "it is not JSON that jsonb can hold";
		case CLERK_JSON_UNTRANSLATABLE:
			return "it contains characters that the encoding of the database lacks";
	}
	pg_unreachable();
}

/*
 * A field of an object, stored in *value; false if it is absent or a JSON
 * null.
 */
bool
clerk_json_field(JsonbContainer *object, const char *name, JsonbValue *value)
{
	return getKeyJsonValueFromContainer(object, name, strlen(name),
										value) != NULL &&
		value->type != jbvNull;
}

/* A field that is a string, palloc'd; NULL if it is anything else. */
char	   *
clerk_json_text_field(JsonbContainer *object, const char *name)
{
	JsonbValue	value;

	return clerk_json_field(object, name, &value) &&
		value.type == jbvString ?
		pnstrdup(value.val.string.val, value.val.string.len) : NULL;
}

/* False if the conversion raised an error. */
static bool
convert(const char *source, size_t length, bool to_wire, char **converted)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = false;

	PG_TRY();
	{
		*converted = to_wire ?
			pg_server_to_any(source, length, PG_UTF8) :
			pg_any_to_server(source, length, PG_UTF8);
		done = true;
	}
	PG_CATCH();
	{
		swallow_data_error(caller);
	}
	PG_END_TRY();
	return done;
}

/* NULL if the parser raised an error. */
static Jsonb *
parse(char *text)
{
	MemoryContext caller = CurrentMemoryContext;
	Jsonb	   *volatile parsed = NULL;

	PG_TRY();
	{
		parsed = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		swallow_data_error(caller);
	}
	PG_END_TRY();
	return parsed;
}

/*
 * Drops the current error if the data is to blame: bad data (class 22), or
 * data that is too much for the parser, such as too deep a nesting (class
 * 54).  Anything else is raised again.
 */
static void
swallow_data_error(MemoryContext caller)
{
	ErrorData  *error;
	int			category;

	MemoryContextSwitchTo(caller);
	error = CopyErrorData();
	category = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	if (category != ERRCODE_DATA_EXCEPTION &&
		category != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
		ReThrowError(error);
	FlushErrorState();
	FreeErrorData(error);
}
