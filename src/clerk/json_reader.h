/*
 * json_reader.h
 *		Reads JSON by the server's own lexer and by jsonb.
 */
#ifndef CLERK_JSON_READER_H
#define CLERK_JSON_READER_H

#include "clerk/json_encoding.h"
#include "utils/jsonb.h"

typedef enum ClerkJsonKind
{
	CLERK_JSON_ABSENT,			/* missing, or a JSON null */
	CLERK_JSON_STRING,
	CLERK_JSON_NUMBER,
	CLERK_JSON_OTHER			/* an object, an array, true or false */
} ClerkJsonKind;

/* A value inside a text that was read. */
typedef struct ClerkJsonValue
{
	ClerkJsonKind kind;
	const char *source;			/* points into the text; not NUL-terminated */
	int			length;			/* of the source, in bytes */
} ClerkJsonValue;

/* The objects of an array. */
typedef struct ClerkJsonList
{
	const char *const *names;	/* fields to read; set by the caller */
	int			name_count;
	int			max_count;		/* number of objects to store at most; set by
								 * the caller */
	bool		is_array;
	bool		has_objects_only;
	bool		is_too_long;	/* there are more than max_count */
	int			count;			/* number of objects stored */
	int			allocated;		/* number of objects that "values" has room
								 * for */
	ClerkJsonValue *values;		/* name_count values for each object */
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
extern Jsonb *clerk_json_parse_lossy(const char *utf8, size_t length);
extern bool clerk_json_field(JsonbContainer *object, const char *name,
							 JsonbValue *value);
extern char *clerk_json_text_field(JsonbContainer *object, const char *name);

#endif							/* CLERK_JSON_READER_H */
