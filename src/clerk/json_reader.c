/*
 * json_reader.c
 *		JSON's structure, read by the server's own lexer and by jsonb.
 *
 * There are two ways to read.  A text whose fields are known is read in one
 * pass, token by token, and its values are returned where they lie in the text.
 * What is to be searched becomes a jsonb, which takes several times as long: it
 * undoes the escapes of every string, sorts the keys, and copies every value
 * twice.
 *
 * The first way accepts whatever is JSON in a value that nobody asks for; jsonb
 * also refuses numbers that numeric cannot hold, and \u0000.
 */
#include "postgres.h"

#include "clerk/json_reader.h"
#include "common/jsonapi.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"

/* A position between two tokens of a text. */
typedef struct Reader
{
	JsonLexContext *lexer;		/* stands at the next token */
	bool		good;			/* everything up to here was JSON */
} Reader;

/* Where the fields of one object go. */
typedef struct Fields
{
	const char *const *names;	/* that are wanted */
	int			count;			/* of them */
	ClerkJsonValue *values;		/* by name */
	int			next;			/* where the next field's name may be */
} Fields;

/* Where a text goes: an object, one field of which may be a list of objects. */
typedef struct Target
{
	Fields		fields;
	ClerkJsonList *list;		/* NULL: there is no such field */
	int			list_field;		/* its position among the names */
} Target;

static bool read_guarded(const char *text, int length, Target *target,
						 ClerkJsonError *json_error);
static bool read_whole(const char *text, int length, Target *target,
					   ClerkJsonError *json_error);
static void read_fields(Reader *reader, Fields *fields, Target *target);
static int	wanted_field(Reader *reader, Fields *fields);
static void read_list(Reader *reader, ClerkJsonList *list);
static ClerkJsonValue *new_object(ClerkJsonList *list);
static void read_value(Reader *reader, ClerkJsonValue *value);
static void skip_object(Reader *reader);
static void skip_array(Reader *reader);
static void skip_value(Reader *reader);
static bool at(const Reader *reader, JsonTokenType type);
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
	Target		target = {
		.fields = {.names = names,.count = count,.values = values}
	};

	return read_guarded(text, length, &target, json_error);
}

/*
 * Reads an object as above, of which the field at position list_field of the
 * names is an array of objects: their fields that have one of list->name_count
 * names become list->values.  The field's own value is that of the array; it is
 * not an array unless list->is_array, and has other elements than objects
 * unless list->has_objects_only.
 */
bool
clerk_json_read_list(const char *text, int length, const char *const *names,
					 int count, ClerkJsonValue *values, int list_field,
					 ClerkJsonList *list, ClerkJsonError *json_error)
{
	Target		target = {
		.fields = {.names = names,.count = count,.values = values},
		.list = list,
		.list_field = list_field
	};

	list->is_array = false;
	list->values = NULL;
	list->allocated = 0;
	return read_guarded(text, length, &target, json_error);
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

/* Reads a text that is one object, and nothing else. */
static bool
read_whole(const char *text, int length, Target *target,
		   ClerkJsonError *json_error)
{
	Reader		reader;

	reader.lexer = clerk_make_json_lexer(text, length, GetDatabaseEncoding());
	reader.good = true;
	advance(&reader);
	if (!at(&reader, JSON_TOKEN_OBJECT_START))
	{
		if (clerk_json_parse(text, length, json_error) != NULL)
			*json_error = CLERK_JSON_NOT_OBJECT;
		return false;
	}
	read_fields(&reader, &target->fields, target);
	if (!at(&reader, JSON_TOKEN_END))
		return false;
	*json_error = CLERK_JSON_GOOD;
	return true;
}

/* Reads an object; "target" is NULL unless it is the outermost one. */
static void
read_fields(Reader *reader, Fields *fields, Target *target)
{
	ClerkJsonValue unwanted = {0};

	for (int i = 0; i < fields->count; i++)
		fields->values[i].kind = CLERK_JSON_ABSENT;
	if (!take(reader, JSON_TOKEN_OBJECT_START) ||
		at(reader, JSON_TOKEN_OBJECT_END))
	{
		take(reader, JSON_TOKEN_OBJECT_END);
		return;
	}
	do
	{
		int			field = wanted_field(reader, fields);
		ClerkJsonValue *value = field < 0 ? &unwanted : &fields->values[field];

		if (field >= 0 && target != NULL && target->list != NULL &&
			field == target->list_field && at(reader, JSON_TOKEN_ARRAY_START))
		{
			value->kind = CLERK_JSON_OTHER;
			value->source = reader->lexer->token_start;
			read_list(reader, target->list);
			value->length = reader->lexer->prev_token_terminator - value->source;
		}
		else
			read_value(reader, value);
	} while (at(reader, JSON_TOKEN_COMMA) && take(reader, JSON_TOKEN_COMMA));
	take(reader, JSON_TOKEN_OBJECT_END);
}

/*
 * Reads a field's name; returns its position among the names, or -1 if it is
 * not wanted.  Clerk sends the fields mostly in the order of its documents,
 * which is near to that of the names: the search begins behind the last one
 * found.
 */
static int
wanted_field(Reader *reader, Fields *fields)
{
	const char *name = reader->lexer->token_start + 1;
	size_t		length = reader->lexer->token_terminator - name - 1;

	if (!take(reader, JSON_TOKEN_STRING) || !take(reader, JSON_TOKEN_COLON))
		return -1;
	for (int i = 0; i < fields->count; i++)
	{
		int			candidate = (fields->next + i) % fields->count;

		/* Most names differ in their first letter already. */
		if (fields->names[candidate][0] == name[0] &&
			strncmp(fields->names[candidate], name, length) == 0 &&
			fields->names[candidate][length] == '\0')
		{
			fields->next = candidate + 1;
			return candidate;
		}
	}
	return -1;
}

/* An array of objects; if the field is there twice, the last one counts. */
static void
read_list(Reader *reader, ClerkJsonList *list)
{
	list->is_array = true;
	list->has_objects_only = true;
	list->count = 0;
	take(reader, JSON_TOKEN_ARRAY_START);
	if (at(reader, JSON_TOKEN_ARRAY_END))
	{
		take(reader, JSON_TOKEN_ARRAY_END);
		return;
	}
	do
	{
		if (at(reader, JSON_TOKEN_OBJECT_START))
		{
			Fields		fields = {
				.names = list->names,
				.count = list->name_count,
				.values = new_object(list)
			};

			read_fields(reader, &fields, NULL);
		}
		else
		{
			list->has_objects_only = false;
			skip_value(reader);
		}
	} while (at(reader, JSON_TOKEN_COMMA) && take(reader, JSON_TOKEN_COMMA));
	take(reader, JSON_TOKEN_ARRAY_END);
}

/* Room for the values of one more object. */
static ClerkJsonValue *
new_object(ClerkJsonList *list)
{
	if (list->count == list->allocated)
	{
		Size		size;

		list->allocated = Max(list->allocated * 2, 16);
		size = (Size) list->allocated * list->name_count * sizeof(ClerkJsonValue);
		list->values = list->values == NULL ?
			palloc_extended(size, MCXT_ALLOC_HUGE) :
			repalloc_huge(list->values, size);
	}
	return &list->values[list->count++ * list->name_count];
}

static void
read_value(Reader *reader, ClerkJsonValue *value)
{
	value->source = reader->lexer->token_start;
	switch (reader->lexer->token_type)
	{
		case JSON_TOKEN_STRING:
			value->kind = CLERK_JSON_STRING;
			break;
		case JSON_TOKEN_NUMBER:
			value->kind = CLERK_JSON_NUMBER;
			break;
		case JSON_TOKEN_NULL:
			value->kind = CLERK_JSON_ABSENT;
			break;
		default:
			value->kind = CLERK_JSON_OTHER;
			break;
	}
	skip_value(reader);
	value->length = reader->lexer->prev_token_terminator - value->source;
}

/* To behind the end of a value, which must be JSON in itself. */
static void
skip_value(Reader *reader)
{
	check_stack_depth();
	switch (reader->lexer->token_type)
	{
		case JSON_TOKEN_OBJECT_START:
			skip_object(reader);
			break;
		case JSON_TOKEN_ARRAY_START:
			skip_array(reader);
			break;
		case JSON_TOKEN_STRING:
		case JSON_TOKEN_NUMBER:
		case JSON_TOKEN_NULL:
		case JSON_TOKEN_TRUE:
		case JSON_TOKEN_FALSE:
			advance(reader);
			break;
		default:
			reader->good = false;
			break;
	}
}

static void
skip_object(Reader *reader)
{
	take(reader, JSON_TOKEN_OBJECT_START);
	if (!at(reader, JSON_TOKEN_OBJECT_END))
		do
		{
			if (take(reader, JSON_TOKEN_STRING) && take(reader, JSON_TOKEN_COLON))
				skip_value(reader);
		} while (at(reader, JSON_TOKEN_COMMA) && take(reader, JSON_TOKEN_COMMA));
	take(reader, JSON_TOKEN_OBJECT_END);
}

static void
skip_array(Reader *reader)
{
	take(reader, JSON_TOKEN_ARRAY_START);
	if (!at(reader, JSON_TOKEN_ARRAY_END))
		do
			skip_value(reader);
		while (at(reader, JSON_TOKEN_COMMA) && take(reader, JSON_TOKEN_COMMA));
	take(reader, JSON_TOKEN_ARRAY_END);
}

/* Whether the next token is of this type; false if this is no JSON. */
static bool
at(const Reader *reader, JsonTokenType type)
{
	return reader->good && reader->lexer->token_type == type;
}

/* Steps over the next token, which must be of this type. */
static bool
take(Reader *reader, JsonTokenType type)
{
	if (!at(reader, type))
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
