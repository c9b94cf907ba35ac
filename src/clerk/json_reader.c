/*
 * json_reader.c
 *		JSON's structure, read by the server's own parser.
 *
 * Two ways to read.  An object whose fields are known is read token by token,
 * and its values are handed out where they lie in the text.  What is to be
 * looked through becomes a jsonb, which takes several times as long: it undoes
 * the escapes of every string, sorts the keys, and copies every value twice.
 *
 * The first way is content with what it skips if that is JSON; jsonb also minds
 * numbers that numeric cannot hold and \u0000.
 */
#include "postgres.h"

#include "clerk/json_reader.h"
#include "common/jsonapi.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

/* A position between two tokens of a text. */
typedef struct Reader
{
	JsonLexContext *lexer;		/* stands at the next token */
	bool		good;			/* everything up to here was JSON */
} Reader;

/* What the fields of an object, or the elements of an array, are read into. */
typedef struct Target
{
	const char *const *names;	/* fields that are wanted; NULL: an array */
	ClerkJsonValue *values;		/* by name, or by position */
	int			count;			/* of values */
	int			allocated;		/* room in "values"; only for an array */
	int			next_name;		/* where the next field's name may be */
} Target;

static bool read_guarded(const char *text, int length, Target *target,
						 ClerkJsonError *json_error);
static bool read_whole(const char *text, int length, Target *target,
					   ClerkJsonError *json_error);
static void read_member(Reader *reader, Target *target);
static ClerkJsonValue *wanted_field(Reader *reader, Target *target);
static ClerkJsonValue *new_element(Target *target);
static void read_value(Reader *reader, ClerkJsonValue *value);
static void skip_nested(Reader *reader, const char *begin);
static bool take(Reader *reader, JsonTokenType type);
static void advance(Reader *reader);

/*
 * Reads the fields of an object that have one of "count" names into "values",
 * in the order of the names; of a field that is there twice, the last.  False
 * and the reason in *json_error if the text is no such object.
 */
bool
clerk_json_read_object(const char *text, int length, const char *const *names,
					   int count, ClerkJsonValue *values,
					   ClerkJsonError *json_error)
{
	Target		target = {.names = names,.values = values,.count = count};

	memset(values, 0, count * sizeof(*values));
	return read_guarded(text, length, &target, json_error);
}

/* Reads the elements of an array into a palloc'd one, in the same way. */
bool
clerk_json_read_array(const char *text, int length, ClerkJsonValue **elements,
					  int *count, ClerkJsonError *json_error)
{
	Target		target = {0};
	bool		good = read_guarded(text, length, &target, json_error);

	*elements = target.values;
	*count = target.count;
	return good;
}

/*
 * A string's content.  Returns NULL and says why in *json_error if the database's
 * encoding lacks what an escape stands for.
 */
text *
clerk_json_string(const ClerkJsonValue *value, ClerkJsonError *json_error)
{
	Jsonb	   *parsed;
	JsonbValue	string;

	*json_error = CLERK_JSON_GOOD;
	if (memchr(value->source, '\\', value->length) == NULL)
		return cstring_to_text_with_len(value->source + 1, value->length - 2);
	parsed = clerk_json_parse(value->source, value->length, json_error);
	if (parsed == NULL)
		return NULL;
	JsonbExtractScalar(&parsed->root, &string);
	return cstring_to_text_with_len(string.val.string.val,
									string.val.string.len);
}

/*
 * Parses a text in the database's encoding.  Returns NULL and says why in
 * *json_error if it cannot.
 */
Jsonb *
clerk_json_parse(const char *text, int length, ClerkJsonError *json_error)
{
	MemoryContext caller = CurrentMemoryContext;
	Jsonb	   *volatile parsed = NULL;
	int			sqlstate;

	PG_TRY();
	{
		parsed = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(pnstrdup(text, length))));
		*json_error = CLERK_JSON_GOOD;
	}
	PG_CATCH();
	{
		sqlstate = clerk_swallow_data_error(caller);

		/* Codes for an escape such as \u30e1 where the encoding lacks it. */
		*json_error = (sqlstate == ERRCODE_UNTRANSLATABLE_CHARACTER ||
					   sqlstate == ERRCODE_FEATURE_NOT_SUPPORTED) ?
			CLERK_JSON_UNTRANSLATABLE : CLERK_JSON_MALFORMED;
	}
	PG_END_TRY();
	return parsed;
}

/*
 * Parses an answer for the identifiers and codes in it, which are ASCII even
 * if the rest of it is no UTF-8 or has no form in the database's encoding.
 * NULL if it is not JSON.
 */
Jsonb *
clerk_json_parse_what_is_legible(const char *utf8, size_t length)
{
	ClerkJsonError json_error;
	const char *text = clerk_json_from_wire(utf8, length, &json_error);
	Jsonb	   *parsed = NULL;

	if (text != NULL)
		parsed = clerk_json_parse(text, strlen(text), &json_error);
	if (parsed == NULL && json_error != CLERK_JSON_MALFORMED)
	{
		text = clerk_json_from_wire_lossy(utf8, length);
		parsed = clerk_json_parse(text, strlen(text), &json_error);
	}
	return parsed;
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
char *
clerk_json_text_field(JsonbContainer *object, const char *name)
{
	JsonbValue	value;

	return clerk_json_field(object, name, &value) &&
		value.type == jbvString ?
		pnstrdup(value.val.string.val, value.val.string.len) : NULL;
}

/*
 * The lexer only says that something is wrong; jsonb's way of saying what is
 * serves both ways to read.
 */
static bool
read_guarded(const char *text, int length, Target *target,
			 ClerkJsonError *json_error)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool good = false;

	*json_error = CLERK_JSON_MALFORMED;
	PG_TRY();
	{
		good = read_whole(text, length, target, json_error);
	}
	PG_CATCH();
	{
		clerk_swallow_data_error(caller);
	}
	PG_END_TRY();

	if (!good && *json_error == CLERK_JSON_MALFORMED &&
		clerk_json_parse(text, length, json_error) != NULL)
		*json_error = CLERK_JSON_MALFORMED;
	return good;
}

/* Reads a text that is one object or array, and nothing else. */
static bool
read_whole(const char *text, int length, Target *target, ClerkJsonError *json_error)
{
	bool		is_object = (target->names != NULL);
	JsonTokenType end = is_object ? JSON_TOKEN_OBJECT_END : JSON_TOKEN_ARRAY_END;
	Reader		reader;
	JsonTokenType type;

	reader.lexer = clerk_make_json_lexer(text, length, GetDatabaseEncoding());
	reader.good = true;
	advance(&reader);
	type = reader.lexer->token_type;
	if (!take(&reader, is_object ? JSON_TOKEN_OBJECT_START : JSON_TOKEN_ARRAY_START))
	{
		if (clerk_json_parse(text, length, json_error) != NULL)
			*json_error = is_object ? CLERK_JSON_NOT_OBJECT : CLERK_JSON_NOT_ARRAY;
		return false;
	}
	type = reader.lexer->token_type;
	if (type != end)
	{
		read_member(&reader, target);
		while (reader.good && reader.lexer->token_type == JSON_TOKEN_COMMA)
		{
			advance(&reader);
			read_member(&reader, target);
		}
	}
	if (!take(&reader, end) || reader.lexer->token_type != JSON_TOKEN_END)
		return false;
	*json_error = CLERK_JSON_GOOD;
	return true;
}

/* A field with its name, or an element. */
static void
read_member(Reader *reader, Target *target)
{
	ClerkJsonValue unwanted;
	ClerkJsonValue *value;

	value = target->names != NULL ?
		wanted_field(reader, target) : new_element(target);
	if (reader->good)
		read_value(reader, value != NULL ? value : &unwanted);
}

/*
 * Reads a field's name; returns where its value goes, NULL if it is not
 * wanted.  Clerk sends the fields mostly in the order of its documents, which
 * is near to that of the names: the search begins behind the last one found.
 */
static ClerkJsonValue *
wanted_field(Reader *reader, Target *target)
{
	const char *name = reader->lexer->token_start + 1;
	size_t		length = reader->lexer->token_terminator - name - 1;

	if (!take(reader, JSON_TOKEN_STRING) || !take(reader, JSON_TOKEN_COLON))
		return NULL;
	for (int i = 0; i < target->count; i++)
	{
		int			candidate = (target->next_name + i) % target->count;

		/* Most names differ in their first letter already. */
		if (target->names[candidate][0] == name[0] &&
			strncmp(target->names[candidate], name, length) == 0 &&
			target->names[candidate][length] == '\0')
		{
			target->next_name = candidate + 1;
			return &target->values[candidate];
		}
	}
	return NULL;
}

static ClerkJsonValue *
new_element(Target *target)
{
	if (target->count == target->allocated)
	{
		target->allocated = Max(target->allocated * 2, 16);
		target->values = target->values == NULL ?
			palloc(target->allocated * sizeof(ClerkJsonValue)) :
			repalloc(target->values,
					 target->allocated * sizeof(ClerkJsonValue));
	}
	return &target->values[target->count++];
}

static void
read_value(Reader *reader, ClerkJsonValue *value)
{
	value->source = reader->lexer->token_start;
	value->kind = CLERK_JSON_OTHER;
	switch (reader->lexer->token_type)
	{
		case JSON_TOKEN_OBJECT_START:
		case JSON_TOKEN_ARRAY_START:
			skip_nested(reader, value->source);
			break;
		case JSON_TOKEN_STRING:
			value->kind = CLERK_JSON_STRING;
			advance(reader);
			break;
		case JSON_TOKEN_NUMBER:
			value->kind = CLERK_JSON_NUMBER;
			advance(reader);
			break;
		case JSON_TOKEN_NULL:
			value->kind = CLERK_JSON_ABSENT;
			advance(reader);
			break;
		case JSON_TOKEN_TRUE:
		case JSON_TOKEN_FALSE:
			advance(reader);
			break;
		default:
			reader->good = false;
			break;
	}
	value->length = reader->lexer->prev_token_terminator - value->source;
}

/* To behind the end of an object or array, which must be JSON in itself. */
static void
skip_nested(Reader *reader, const char *begin)
{
	int			depth = 0;

	do
	{
		JsonTokenType type = reader->lexer->token_type;

		if (type == JSON_TOKEN_OBJECT_START || type == JSON_TOKEN_ARRAY_START)
			depth++;
		else if (type == JSON_TOKEN_OBJECT_END || type == JSON_TOKEN_ARRAY_END)
			depth--;
		else if (type == JSON_TOKEN_END)
			reader->good = false;
		advance(reader);
	} while (reader->good && depth > 0);

	if (reader->good)
	{
		int			length = reader->lexer->prev_token_terminator - begin;
		JsonLexContext *nested = clerk_make_json_lexer(begin, length,
													   GetDatabaseEncoding());

		reader->good = (pg_parse_json(nested, &nullSemAction) == JSON_SUCCESS);
	}
}

/* Steps over the next token if it is of this type. */
static bool
take(Reader *reader, JsonTokenType type)
{
	if (!reader->good || reader->lexer->token_type != type)
		reader->good = false;
	else
		advance(reader);
	return reader->good;
}

static void
advance(Reader *reader)
{
	if (json_lex(reader->lexer) != JSON_SUCCESS)
		reader->good = false;
}
