/*
 * json_reader.c
 *		Reads JSON by the server's own lexer and by jsonb.
 *
 * There are two methods.  A text whose fields are known is read in one pass,
 * token by token; the resulting values point into the text.  A text that must
 * be searched is converted to jsonb, which takes several times as long,
 * because jsonb decodes every string, sorts the keys and copies every value
 * twice.
 *
 * The first method accepts any JSON in a value that nobody asks for.  jsonb
 * also rejects numbers that do not fit into numeric, and \u0000.
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
	JsonLexContext *lexer;		/* its current token is the next to be read */
	bool		valid;			/* false after a syntax error */
} Reader;

/* Where to store the fields of an object. */
typedef struct Fields
{
	const char *const *names;	/* fields to read */
	int			count;			/* number of names */
	ClerkJsonValue *values;		/* in the order of the names */
	int			next;			/* where the search for the next name begins */
} Fields;

/*
 * Where to store a text: an object, one field of which may be a list of
 * objects.
 */
typedef struct Target
{
	Fields		fields;
	ClerkJsonList *list;		/* NULL: there is no such field */
	int			list_field;		/* position of its name in fields.names */
} Target;

static bool read_catching_errors(const char *text, int length, Target *target,
								 ClerkJsonError *json_error);
static bool read_document(const char *text, int length, Target *target,
						  ClerkJsonError *json_error);
static void read_fields(Reader *reader, Fields *fields, Target *target);
static int	read_field_name(Reader *reader, Fields *fields);
static void read_list(Reader *reader, ClerkJsonList *list);
static ClerkJsonValue *add_object(ClerkJsonList *list);
static void read_value(Reader *reader, ClerkJsonValue *value);
static void skip_object(Reader *reader);
static void skip_array(Reader *reader);
static void skip_value(Reader *reader);
static bool peek(const Reader *reader, JsonTokenType type);
static bool consume(Reader *reader, JsonTokenType type);
static bool consume_if(Reader *reader, JsonTokenType type);
static void advance(Reader *reader);

/*
 * Reads the fields named in "names" from an object.  "text" has "length" bytes
 * in the database's encoding.  Stores "count" values in the order of the
 * names; if a field occurs twice, the last one counts.
 *
 * Returns false and sets *json_error if the text is not a JSON object.
 */
bool
clerk_json_read_object(const char *text, int length, const char *const *names,
					   int count, ClerkJsonValue *values,
					   ClerkJsonError *json_error)
{
	Target		target = {
		.fields = {.names = names,.count = count,.values = values}
	};

	return read_catching_errors(text, length, &target, json_error);
}

/*
 * Like clerk_json_read_object(), but the field whose name is at position
 * list_field is an array of objects.  The fields of these objects that
 * list->names asks for are stored in list->values.
 *
 * If the field is not an array, list->is_array is false.  If the array has
 * elements other than objects, list->has_objects_only is false; those elements
 * are skipped.  If it has more than list->max_count objects,
 * list->is_too_long is true, and the others are skipped.
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
	return read_catching_errors(text, length, &target, json_error);
}

/*
 * Returns the content of a value of kind CLERK_JSON_STRING as a palloc'd text.
 * Returns NULL and sets *json_error if the string is invalid or the database's
 * encoding lacks a character that an escape represents.
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
 * Converts "length" bytes of JSON in the database's encoding to jsonb.
 * Returns NULL and sets *json_error if that fails.
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

		/* SQLSTATEs for an escape such as \u30e1 that the encoding lacks. */
		*json_error = (sqlstate == ERRCODE_UNTRANSLATABLE_CHARACTER ||
					   sqlstate == ERRCODE_FEATURE_NOT_SUPPORTED) ?
			CLERK_JSON_UNTRANSLATABLE : CLERK_JSON_MALFORMED;
	}
	PG_END_TRY();
	return parsed;
}

/*
 * Converts a response to jsonb in order to read its identifiers and error
 * codes.  They are ASCII even if other parts of the response are not valid
 * UTF-8 or cannot be represented in the database's encoding;
 * clerk_json_from_wire_lossy() replaces such characters.  Returns NULL if the
 * response is not JSON.
 */
Jsonb *
clerk_json_parse_lossy(const char *utf8, size_t length)
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
 * Stores a field of an object in *value.  Returns false if it is missing or a
 * JSON null.
 */
bool
clerk_json_field(JsonbContainer *object, const char *name, JsonbValue *value)
{
	return getKeyJsonValueFromContainer(object, name, strlen(name),
										value) != NULL &&
		value->type != jbvNull;
}

/*
 * Returns a string field of an object, palloc'd; NULL if it is not a string.
 */
char *
clerk_json_text_field(JsonbContainer *object, const char *name)
{
	JsonbValue	value;

	return clerk_json_field(object, name, &value) &&
		value.type == jbvString ?
		pnstrdup(value.val.string.val, value.val.string.len) : NULL;
}

/*
 * Calls read_document() and catches errors about the data.  The lexer reports
 * only that something is wrong.  So if it fails, the text is also converted to
 * jsonb, which sets *json_error to the same value for both methods.
 */
static bool
read_catching_errors(const char *text, int length, Target *target,
					 ClerkJsonError *json_error)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool valid = false;

	*json_error = CLERK_JSON_MALFORMED;
	PG_TRY();
	{
		valid = read_document(text, length, target, json_error);
	}
	PG_CATCH();
	{
		clerk_swallow_data_error(caller);
	}
	PG_END_TRY();

	if (!valid && *json_error == CLERK_JSON_MALFORMED &&
		clerk_json_parse(text, length, json_error) != NULL)
		*json_error = CLERK_JSON_MALFORMED;
	return valid;
}

/* Reads a text that consists of exactly one object. */
static bool
read_document(const char *text, int length, Target *target,
			  ClerkJsonError *json_error)
{
	Reader		reader;

	reader.lexer = clerk_make_json_lexer(text, length, GetDatabaseEncoding());
	reader.valid = true;
	advance(&reader);
	if (!peek(&reader, JSON_TOKEN_OBJECT_START))
	{
		if (clerk_json_parse(text, length, json_error) != NULL)
			*json_error = CLERK_JSON_NOT_OBJECT;
		return false;
	}
	read_fields(&reader, &target->fields, target);
	if (!peek(&reader, JSON_TOKEN_END))
		return false;
	*json_error = CLERK_JSON_GOOD;
	return true;
}

/* Reads an object.  "target" is NULL unless this is the outermost object. */
static void
read_fields(Reader *reader, Fields *fields, Target *target)
{
	ClerkJsonValue unwanted = {0};

	for (int i = 0; i < fields->count; i++)
		fields->values[i].kind = CLERK_JSON_ABSENT;
	if (!consume(reader, JSON_TOKEN_OBJECT_START) ||
		peek(reader, JSON_TOKEN_OBJECT_END))
	{
		consume(reader, JSON_TOKEN_OBJECT_END);
		return;
	}
	do
	{
		int			field = read_field_name(reader, fields);
		ClerkJsonValue *value = field < 0 ? &unwanted : &fields->values[field];

		if (field >= 0 && target != NULL && target->list != NULL &&
			field == target->list_field &&
			peek(reader, JSON_TOKEN_ARRAY_START))
		{
			value->kind = CLERK_JSON_OTHER;
			value->source = reader->lexer->token_start;
			read_list(reader, target->list);
			value->length = reader->lexer->prev_token_terminator - value->source;
		}
		else
			read_value(reader, value);
	} while (consume_if(reader, JSON_TOKEN_COMMA));
	consume(reader, JSON_TOKEN_OBJECT_END);
}

/*
 * Reads a field's name.  Returns its position in fields->names, or -1 if it is
 * not among them.  Clerk usually sends fields in the documented order, which
 * is close to that of the names, so the search begins after the last name
 * found.
 */
static int
read_field_name(Reader *reader, Fields *fields)
{
	const char *name = reader->lexer->token_start + 1;
	size_t		length = reader->lexer->token_terminator - name - 1;

	if (!consume(reader, JSON_TOKEN_STRING) ||
		!consume(reader, JSON_TOKEN_COLON))
		return -1;
	for (int i = 0; i < fields->count; i++)
	{
		int			candidate = (fields->next + i) % fields->count;

		/* Most names differ in the first letter. */
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

/*
 * Reads an array of objects.  If the field occurs twice, the last one counts.
 */
static void
read_list(Reader *reader, ClerkJsonList *list)
{
	list->is_array = true;
	list->has_objects_only = true;
	list->is_too_long = false;
	list->count = 0;
	consume(reader, JSON_TOKEN_ARRAY_START);
	if (peek(reader, JSON_TOKEN_ARRAY_END))
	{
		consume(reader, JSON_TOKEN_ARRAY_END);
		return;
	}
	do
	{
		if (peek(reader, JSON_TOKEN_OBJECT_START) &&
			list->count < list->max_count)
		{
			Fields		fields = {
				.names = list->names,
				.count = list->name_count,
				.values = add_object(list)
			};

			read_fields(reader, &fields, NULL);
		}
		else
		{
			if (peek(reader, JSON_TOKEN_OBJECT_START))
				list->is_too_long = true;
			else
				list->has_objects_only = false;
			skip_value(reader);
		}
	} while (consume_if(reader, JSON_TOKEN_COMMA));
	consume(reader, JSON_TOKEN_ARRAY_END);
}

/* Returns room for the values of one more object. */
static ClerkJsonValue *
add_object(ClerkJsonList *list)
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

/* Skips a value, which must be valid JSON. */
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
			reader->valid = false;
			break;
	}
}

static void
skip_object(Reader *reader)
{
	consume(reader, JSON_TOKEN_OBJECT_START);
	if (!peek(reader, JSON_TOKEN_OBJECT_END))
		do
		{
			if (consume(reader, JSON_TOKEN_STRING) &&
				consume(reader, JSON_TOKEN_COLON))
				skip_value(reader);
		} while (consume_if(reader, JSON_TOKEN_COMMA));
	consume(reader, JSON_TOKEN_OBJECT_END);
}

static void
skip_array(Reader *reader)
{
	consume(reader, JSON_TOKEN_ARRAY_START);
	if (!peek(reader, JSON_TOKEN_ARRAY_END))
		do
			skip_value(reader);
		while (consume_if(reader, JSON_TOKEN_COMMA));
	consume(reader, JSON_TOKEN_ARRAY_END);
}

/* Whether the next token is of this type; false after a syntax error. */
static bool
peek(const Reader *reader, JsonTokenType type)
{
	return reader->valid && reader->lexer->token_type == type;
}

/*
 * Consumes the next token, which must be of this type: anything else is a
 * syntax error.  Returns false after a syntax error.
 */
static bool
consume(Reader *reader, JsonTokenType type)
{
	if (!peek(reader, type))
		reader->valid = false;
	else
		advance(reader);
	return reader->valid;
}

/* Consumes the next token if it is of this type; returns whether it did. */
static bool
consume_if(Reader *reader, JsonTokenType type)
{
	return peek(reader, type) && consume(reader, type);
}

static void
advance(Reader *reader)
{
	if (json_lex(reader->lexer) != JSON_SUCCESS)
		reader->valid = false;
}
