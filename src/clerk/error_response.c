/*
 * error_response.c
 *		Reads an error response, and masks the secrets in it.
 */
#include "postgres.h"

#include "clerk/error_response.h"
#include "clerk/json_reader.h"
#include "lib/stringinfo.h"

/* Maximum number of errors of one response that a message quotes. */
#define MAX_QUOTED_ERRORS 10

static void read_errors(JsonbContainer *errors, const char *key,
						ClerkError *error);
static JsonbContainer *object_element(JsonbContainer *array, uint32 index);
static void collect_address_texts(StringInfo texts, JsonbContainer *object);
static void collect_array(StringInfo texts, JsonbContainer *object,
						  const char *field);
static void append_error(StringInfo message, JsonbContainer *object,
						 const char *key);
static char *text_field(JsonbContainer *object, const char *name,
						const char *key);
static void mask_key(char *text, const char *key);
static void mask_query_strings(char *text);

/*
 * Sets the fields of "error" that come from the response: HTTP status,
 * Retry-After, trace ID, Clerk's code, its field name and its messages.  The
 * response's body may be something other than JSON; such a body is never
 * quoted.
 */
void
clerk_error_read_response(const ClerkHttpRequest *request, ClerkError *error)
{
	const char *key = clerk_http_bearer_token(request);
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	Jsonb	   *response = clerk_json_parse_lossy(body, length);
	JsonbValue	errors;

	error->http_status = clerk_http_status(request);
	error->retry_after = clerk_http_retry_after(request);

	if (response != NULL && JB_ROOT_IS_OBJECT(response))
	{
		error->trace_id = text_field(&response->root, "clerk_trace_id", key);
		if (clerk_json_field(&response->root, "errors", &errors) &&
			errors.type == jbvBinary &&
			JsonContainerIsArray(errors.val.binary.data))
			read_errors(errors.val.binary.data, key, error);
	}
	if (error->trace_id == NULL)
		error->trace_id = clerk_error_trace_id(request);
}

/*
 * Returns the trace ID that Clerk, or the CDN in front of it (Cloudflare), has
 * given the request, as a palloc'd string; NULL if there is none.
 */
char *
clerk_error_trace_id(const ClerkHttpRequest *request)
{
	char	   *trace_id = clerk_http_header(request, "x-clerk-trace-id");

	if (trace_id == NULL)
		trace_id = clerk_http_header(request, "cf-ray");
	if (trace_id != NULL)
		mask_key(trace_id, clerk_http_bearer_token(request));
	return trace_id;
}

/*
 * All errors up to MAX_QUOTED_ERRORS are quoted.  The first one that has a
 * code determines the meaning.
 */
static void
read_errors(JsonbContainer *errors, const char *key, ClerkError *error)
{
	StringInfoData message;
	StringInfoData texts;
	JsonbValue	meta;

	initStringInfo(&message);
	initStringInfo(&texts);
	for (uint32 i = 0; i < Min(JsonContainerSize(errors), MAX_QUOTED_ERRORS); i++)
	{
		JsonbContainer *object = object_element(errors, i);

		if (object == NULL)
			continue;
		append_error(&message, object, key);
		collect_address_texts(&texts, object);
		if (error->code != NULL)
			continue;
		error->code = text_field(object, "code", key);
		if (clerk_json_field(object, "meta", &meta) &&
			meta.type == jbvBinary &&
			JsonContainerIsObject(meta.val.binary.data))
			error->param_name = text_field(meta.val.binary.data,
										   "param_name", key);
	}
	if (message.len > 0)
		error->clerk_message = message.data;
	if (texts.len > 0)
		error->addresses_text = texts.data;
}

/*
 * Collects the texts in which Clerk may name the addresses that it refuses in
 * a bulk request.  Sometimes they are in "meta", sometimes only in the
 * message.
 */
static void
collect_address_texts(StringInfo texts, JsonbContainer *object)
{
	const char *text = clerk_json_text_field(object, "long_message");
	JsonbValue	meta;

	if (text != NULL)
		appendStringInfo(texts, "%s\n", text);
	if (clerk_json_field(object, "meta", &meta) &&
		meta.type == jbvBinary &&
		JsonContainerIsObject(meta.val.binary.data))
	{
		collect_array(texts, meta.val.binary.data, "email_addresses");
		collect_array(texts, meta.val.binary.data, "identifiers");
	}
}

static void
collect_array(StringInfo texts, JsonbContainer *object, const char *field)
{
	JsonbValue	array;

	if (!clerk_json_field(object, field, &array) || array.type != jbvBinary ||
		!JsonContainerIsArray(array.val.binary.data))
		return;
	for (uint32 i = 0; i < JsonContainerSize(array.val.binary.data); i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(array.val.binary.data, i);

		if (element->type == jbvString)
			appendStringInfo(texts, "%.*s\n", element->val.string.len,
							 element->val.string.val);
	}
}

/*
 * Returns an element of an array if it is an object; NULL if it is anything
 * else.
 */
static JsonbContainer *
object_element(JsonbContainer *array, uint32 index)
{
	JsonbValue *value = getIthJsonbValueFromContainer(array, index);

	return value != NULL && value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data) ?
		value->val.binary.data : NULL;
}

/* Appends the message of one element of "errors", and its code in brackets. */
static void
append_error(StringInfo message, JsonbContainer *object, const char *key)
{
	char	   *text = text_field(object, "long_message", key);
	char	   *code = text_field(object, "code", key);

	if (text == NULL)
		text = text_field(object, "message", key);
	if (text == NULL && code == NULL)
		return;
	/* Some of Clerk's messages end with a period and some do not. */
	if (text != NULL && text[0] != '\0' && text[strlen(text) - 1] == '.')
		text[strlen(text) - 1] = '\0';
	appendStringInfo(message, "%s%s", message->len > 0 ? "; " : "Clerk says: ",
					 text != NULL ? text : "");
	if (code != NULL)
		appendStringInfo(message, "%s[%s]", text != NULL ? " " : "", code);
}

/*
 * Returns a string field without secrets, palloc'd; NULL if it is not a
 * string.  Neither a key that Clerk quotes nor the token in an invitation's
 * URL may get into a message or the log.
 */
static char *
text_field(JsonbContainer *object, const char *name, const char *key)
{
	char	   *text = clerk_json_text_field(object, name);

	if (text != NULL)
	{
		mask_key(text, key);
		mask_query_strings(text);
	}
	return text;
}

static void
mask_key(char *text, const char *key)
{
	size_t		length = strlen(key);

	for (char *found = text; (found = strstr(found, key)) != NULL; found += length)
		memset(found, '*', length);
}

/* Masks the query part of each URL. */
static void
mask_query_strings(char *text)
{
	for (char *url = text; (url = strstr(url, "://")) != NULL;)
	{
		char	   *end = url + strcspn(url, " \t\r\n\"'<>");

		url += strcspn(url, "?");
		for (url++; url < end; url++)
			*url = '*';
		url = end;
	}
}

/*
 * Returns what Clerk said, the HTTP status and the trace ID, as sentences for
 * a DETAIL; palloc'd.
 */
char *
clerk_error_describe(const ClerkHttpRequest *request, const ClerkError *error)
{
	StringInfoData detail;
	size_t		length;

	initStringInfo(&detail);
	if (error->clerk_message != NULL)
		appendStringInfo(&detail, "%s. ", error->clerk_message);
	else
	{
		(void) clerk_http_body(request, &length);
		appendStringInfo(&detail,
						 "The response gives no reason (%zu bytes). ", length);
	}
	appendStringInfo(&detail, "HTTP status %d", error->http_status);
	if (error->trace_id != NULL)
		appendStringInfo(&detail, ", trace ID %s", error->trace_id);
	appendStringInfoChar(&detail, '.');
	return detail.data;
}
