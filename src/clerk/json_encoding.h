/*
 * json_encoding.h
 *		Conversion of JSON text between the database's encoding and UTF-8.
 */
#ifndef CLERK_JSON_ENCODING_H
#define CLERK_JSON_ENCODING_H

typedef enum ClerkJsonError
{
	CLERK_JSON_GOOD,
	CLERK_JSON_NOT_UTF8,		/* not UTF-8, or contains a NUL byte */
	CLERK_JSON_MALFORMED,		/* not JSON, or not JSON that jsonb can
								 * represent */
	CLERK_JSON_NOT_OBJECT,
	CLERK_JSON_UNTRANSLATABLE	/* not representable in the database's
								 * encoding */
} ClerkJsonError;

extern char *clerk_json_to_wire(char *text, size_t *length);
extern const char *clerk_json_from_wire(const char *utf8, size_t length,
										ClerkJsonError *json_error);
extern const char *clerk_json_from_wire_lossy(const char *utf8, size_t length);
extern const char *clerk_json_error_text(ClerkJsonError json_error);
extern int	clerk_swallow_data_error(MemoryContext caller);

#endif							/* CLERK_JSON_ENCODING_H */
