/*
 * json_reader.c
 *		JSON's structure, read by the server's own parser.
 *
 * Two ways to read.  An object whose fields are known is read in one pass by
 * the parser's callbacks, which hand out its fields where they lie in the
 * text.  What is to be looked through becomes a jsonb, which takes several
 * times as long: it sorts the keys and copies every value twice.
 *
 * Both refuse the same texts, except that only jsonb minds a number that
 * numeric cannot hold.
 */
#include "postgres.h"

#include "common/jsonapi.h"
#include "compat.h"
#include "json_reader.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

/* What the parser's callbacks know and find. */
typedef struct Reader
{
	JsonLexContext *lexer;
	bool		is_object;		/* the outermost value is */
	bool		is_array;
	const char *const *names;	/* fields that are wanted */
	ClerkJsonValue *values;		/* them, or the elements of an array */
	int			count;
	int			allocated;		/* room in "values"; only for an array */
	int			next_name;		/* where the next field's name may be */
	ClerkJsonValue *current;	/* being read; NULL if it is not wanted */
} Reader;

static bool read_with(Reader *reader, JsonSemAction *actions,
					  const char *text, int length, ClerkJsonFault *fault);
static void begin_value(Reader *reader, bool is_null);
static void end_value(Reader *reader);
static ClerkJsonValue *wanted_field(Reader *reader, const char *name);
static ClerkJsonValue *new_element(Reader *reader);

static ClerkJsonAction on_object_start(void *arg);
static ClerkJsonAction on_array_start(void *arg);
static ClerkJsonAction on_field_start(void *arg, char *name, bool is_null);
static ClerkJsonAction on_field_end(void *arg, char *name, bool is_null);
static ClerkJsonAction on_element_start(void *arg, bool is_null);
static ClerkJsonAction on_element_end(void *arg, bool is_null);
static ClerkJsonAction on_scalar(void *arg, char *token, JsonTokenType type);

/*
 * Reads the fields of an object that have one of "count" names into "values",
 * in the order of the names; of a field that is there twice, the last.  False
 * and the reason in *fault if the text is no such object.
 */
bool
clerk_json_read_object(const char *text, int length, const char *const *names,
					   int count, ClerkJsonValue *values,
					   ClerkJsonFault *fault)
{
	Reader		reader = {.names = names,.values = values,.count = count};
	JsonSemAction actions = {
		.object_start = on_object_start,
		.object_field_start = on_field_start,
		.object_field_end = on_field_end,
		.scalar = on_scalar
	};

	memset(values, 0, count * sizeof(*values));
	if (!read_with(&reader, &actions, text, length, fault))
		return false;
	if (!reader.is_object)
		*fault = CLERK_JSON_NOT_OBJECT;
	return reader.is_object;
}

/* Reads the elements of an array into a palloc'd one, in the same way. */
bool
clerk_json_read_array(const char *text, int length, ClerkJsonValue **elements,
					  int *count, ClerkJsonFault *fault)
{
	Reader		reader = {0};
	JsonSemAction actions = {
		.array_start = on_array_start,
		.array_element_start = on_element_start,
		.array_element_end = on_element_end,
		.scalar = on_scalar
	};

	if (!read_with(&reader, &actions, text, length, fault))
		return false;
	if (!reader.is_array)
		*fault = CLERK_JSON_NOT_ARRAY;
	*elements = reader.values;
	*count = reader.count;
	return reader.is_array;
}

/*
 * Parses a text in the database's encoding.  Returns NULL and says why in
 * *fault if it cannot.
 */
Jsonb *
clerk_json_parse(const char *text, int length, ClerkJsonFault *fault)
{
	MemoryContext caller = CurrentMemoryContext;
	Jsonb	   *volatile parsed = NULL;
	int			sqlstate;

	PG_TRY();
	{
		parsed = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(pnstrdup(text, length))));
		*fault = CLERK_JSON_GOOD;
	}
	PG_CATCH();
	{
		sqlstate = clerk_swallow_data_error(caller);

		/* Codes for an escape such as \u30e1 where the encoding lacks it. */
		*fault = (sqlstate == ERRCODE_UNTRANSLATABLE_CHARACTER ||
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
	ClerkJsonFault fault;
	const char *text = clerk_json_from_wire(utf8, length, &fault);
	Jsonb	   *parsed = NULL;

	if (text != NULL)
		parsed = clerk_json_parse(text, strlen(text), &fault);
	if (parsed == NULL && fault != CLERK_JSON_MALFORMED)
	{
		text = clerk_json_from_wire_lossy(utf8, length);
		parsed = clerk_json_parse(text, strlen(text), &fault);
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
 * Parses with callbacks.  The parser only says that something is wrong;
 * jsonb's way of saying what is serves both ways to read.
 */
static bool
read_with(Reader *reader, JsonSemAction *actions, const char *text, int length,
		  ClerkJsonFault *fault)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = false;

	PG_TRY();
	{
		reader->lexer = clerk_make_json_lexer(text, length,
											  GetDatabaseEncoding());
		actions->semstate = reader;
		done = (pg_parse_json(reader->lexer, actions) == JSON_SUCCESS);
	}
	PG_CATCH();
	{
		clerk_swallow_data_error(caller);
	}
	PG_END_TRY();

	*fault = CLERK_JSON_GOOD;
	if (!done && clerk_json_parse(text, length, fault) != NULL)
		*fault = CLERK_JSON_MALFORMED;
	return done;
}

/* The lexer stands at the first token of reader->current, if that is wanted. */
static void
begin_value(Reader *reader, bool is_null)
{
	ClerkJsonValue *value = reader->current;

	if (value == NULL)
		return;
	value->kind = is_null ? CLERK_JSON_ABSENT : CLERK_JSON_OTHER;
	value->source = reader->lexer->token_start;
	value->scalar = NULL;
}

/* The lexer stands behind the last token of reader->current. */
static void
end_value(Reader *reader)
{
	ClerkJsonValue *value = reader->current;

	if (value != NULL)
		value->length = reader->lexer->prev_token_terminator - value->source;
	reader->current = NULL;
}

/*
 * Where a field goes; NULL if it is not wanted.  Clerk sends the fields mostly
 * in the order of its documents, which is near to that of the names: the
 * search begins behind the last one found.
 */
static ClerkJsonValue *
wanted_field(Reader *reader, const char *name)
{
	for (int i = 0; i < reader->count; i++)
	{
		int			candidate = (reader->next_name + i) % reader->count;

		if (strcmp(reader->names[candidate], name) == 0)
		{
			reader->next_name = candidate + 1;
			return &reader->values[candidate];
		}
	}
	return NULL;
}

static ClerkJsonValue *
new_element(Reader *reader)
{
	if (reader->count == reader->allocated)
	{
		reader->allocated = Max(reader->allocated * 2, 16);
		reader->values = reader->values == NULL ?
			palloc(reader->allocated * sizeof(ClerkJsonValue)) :
			repalloc(reader->values,
					 reader->allocated * sizeof(ClerkJsonValue));
	}
	return &reader->values[reader->count++];
}

static ClerkJsonAction
on_object_start(void *arg)
{
	Reader	   *reader = arg;

	if (reader->lexer->lex_level == 0)
		reader->is_object = true;
	CLERK_JSON_ACTION_DONE;
}

static ClerkJsonAction
on_array_start(void *arg)
{
	Reader	   *reader = arg;

	if (reader->lexer->lex_level == 0)
		reader->is_array = true;
	CLERK_JSON_ACTION_DONE;
}

/* Level 1 is the inside of the outermost value. */
static ClerkJsonAction
on_field_start(void *arg, char *name, bool is_null)
{
	Reader	   *reader = arg;

	if (reader->lexer->lex_level == 1 && reader->is_object)
	{
		reader->current = wanted_field(reader, name);
		begin_value(reader, is_null);
	}
	CLERK_JSON_ACTION_DONE;
}

static ClerkJsonAction
on_field_end(void *arg, char *name pg_attribute_unused(),
			 bool is_null pg_attribute_unused())
{
	Reader	   *reader = arg;

	if (reader->lexer->lex_level == 1 && reader->is_object)
		end_value(reader);
	CLERK_JSON_ACTION_DONE;
}

static ClerkJsonAction
on_element_start(void *arg, bool is_null)
{
	Reader	   *reader = arg;

	if (reader->lexer->lex_level == 1 && reader->is_array)
	{
		reader->current = new_element(reader);
		begin_value(reader, is_null);
	}
	CLERK_JSON_ACTION_DONE;
}

static ClerkJsonAction
on_element_end(void *arg, bool is_null pg_attribute_unused())
{
	Reader	   *reader = arg;

	if (reader->lexer->lex_level == 1 && reader->is_array)
		end_value(reader);
	CLERK_JSON_ACTION_DONE;
}

static ClerkJsonAction
on_scalar(void *arg, char *token, JsonTokenType type)
{
	Reader	   *reader = arg;

	if (reader->lexer->lex_level == 1 && reader->current != NULL)
	{
		if (type == JSON_TOKEN_STRING)
			reader->current->kind = CLERK_JSON_STRING;
		else if (type == JSON_TOKEN_NUMBER)
			reader->current->kind = CLERK_JSON_NUMBER;
		reader->current->scalar = token;
	}
	CLERK_JSON_ACTION_DONE;
}
