/*
 * json_reader.h
 *		JSON's structure, read by the server's own lexer and by jsonb.
 */
#ifndef CLERK_JSON_READER_H
#define CLERK_JSON_READER_H

#include "clerk/json_encoding.h"
#include "utils/jsonb.h"

typedef enum ClerkJsonKind
{
	CLERK_JSON_ABSENT,			/* not there, or a JSON null */
	CLERK_JSON_STRING,
	CLERK_JSON_NUMBER,
	CLERK_JSON_OTHER			/* an object, an array, true or false */
} ClerkJsonKind;

/* A value inside a text that was read. */
typedef struct ClerkJsonValue
{
	ClerkJsonKind kind;
	const char *source;			/* where it is in the text; not NUL-terminated */
	int			length;			/* of the source, in bytes */
} ClerkJsonValue;

/* Objects of an array. */
typedef struct ClerkJsonList
{
	const char *const *names;	/* fields that are wanted, given by the caller */
	int			name_count;
	bool		is_array;
	bool		has_objects_only;
	int			count;			/* of objects */
	int			allocated;		/* room for so many */
	ClerkJsonValue *values;		/* name_count for each object */
} ClerkJsonList;

extern bool clerk_json_read_object(const char *text, int length,
								   const char *const *names, int count,
								   ClerkJsonValue *values,
								   ClerkJsonError *json_error);
extern bool clerk_json_read_list(const char *text, int length,
								 const char *const *names, int count,
								 ClerkJsonValue *values, int list_field,
								 ClerkJsonList *list,
								 ClerkJsonError *json_error);
extern text * clerk_json_string(const ClerkJsonValue *value,
								ClerkJsonError *json_error);
extern Jsonb *clerk_json_parse(const char *text, int length,
							   ClerkJsonError *json_error);
extern Jsonb *clerk_json_parse_what_is_legible(const char *utf8, size_t length);
extern bool clerk_json_field(JsonbContainer *object, const char *name,
							 JsonbValue *value);
extern char *clerk_json_text_field(JsonbContainer *object, const char *name);

#endif							/* CLERK_JSON_READER_H */
