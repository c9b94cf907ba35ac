/*
 * error_response.c
 *		What a response that is an error says, without the secrets in it.
 */
#include "postgres.h"

#include "clerk/error_response.h"
#include "clerk/json_reader.h"
#include "lib/stringinfo.h"

/* Most errors of one answer that a message quotes. */
#define MAX_QUOTED_ERRORS 10

static void read_errors(JsonbContainer *errors, const char *key,
						ClerkError *error);
static JsonbContainer *element(JsonbContainer *array, uint32 index);
static void collect_names(StringInfo names, JsonbContainer *object);
static void collect_array(StringInfo names, JsonbContainer *object,
						  const char *field);
static void quote_error(StringInfo said, JsonbContainer *object,
						const char *key);
static char *text_field(JsonbContainer *object, const char *name,
						const char *key);
static void conceal_key(char *text, const char *key);
static void conceal_query_strings(char *text);

/*
 * What the answer itself says about its failure.  Not every body is JSON, and
 * no part of one that is not is quoted.
 */
void
clerk_error_read_response(const ClerkHttpRequest *request, ClerkError *error)
{
	const char *key = clerk_http_bearer_token(request);
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	Jsonb	   *answer = clerk_json_parse_what_is_legible(body, length);
	JsonbValue	errors;

	error->http_status = clerk_http_status(request);
	error->retry_after = clerk_http_retry_after(request);

	if (answer != NULL && JB_ROOT_IS_OBJECT(answer))
	{
		error->trace_id = text_field(&answer->root, "clerk_trace_id", key);
		if (clerk_json_field(&answer->root, "errors", &errors) &&
			errors.type == jbvBinary &&
			JsonContainerIsArray(errors.val.binary.data))
			read_errors(errors.val.binary.data, key, error);
	}
	if (error->trace_id == NULL)
		error->trace_id = clerk_error_trace_id(request);
}

/* Clerk's name for the request, or that of the edge in front of it. */
char *
clerk_error_trace_id(const ClerkHttpRequest *request)
{
	char	   *trace_id = clerk_http_header(request, "x-clerk-trace-id");

	if (trace_id == NULL)
		trace_id = clerk_http_header(request, "cf-ray");
	if (trace_id != NULL)
		conceal_key(trace_id, clerk_http_bearer_token(request));
	return trace_id;
}

/* Several errors are quoted, but the first decides what they mean. */
static void
read_errors(JsonbContainer *errors, const char *key, ClerkError *error)
{
	StringInfoData said;
	StringInfoData names;
	JsonbValue	meta;

	initStringInfo(&said);
	initStringInfo(&names);
	for (uint32 i = 0; i < Min(JsonContainerSize(errors), MAX_QUOTED_ERRORS); i++)
	{
		JsonbContainer *object = element(errors, i);

		if (object == NULL)
			continue;
		quote_error(&said, object, key);
		collect_names(&names, object);
		if (error->code != NULL)
			continue;
		error->code = text_field(object, "code", key);
		if (clerk_json_field(object, "meta", &meta) &&
			meta.type == jbvBinary &&
			JsonContainerIsObject(meta.val.binary.data))
			error->param_name = text_field(meta.val.binary.data,
										   "param_name", key);
	}
	if (said.len > 0)
		error->said = said.data;
	if (names.len > 0)
		error->named = names.data;
}

/*
 * Where Clerk may say which addresses of a bulk request it refuses: sometimes
 * in "meta", sometimes in the message only.
 */
static void
collect_names(StringInfo names, JsonbContainer *object)
{
	const char *text = clerk_json_text_field(object, "long_message");
	JsonbValue	meta;

	if (text != NULL)
		appendStringInfo(names, "%s\n", text);
	if (clerk_json_field(object, "meta", &meta) &&
		meta.type == jbvBinary &&
		JsonContainerIsObject(meta.val.binary.data))
	{
		collect_array(names, meta.val.binary.data, "email_addresses");
		collect_array(names, meta.val.binary.data, "identifiers");
	}
}

static void
collect_array(StringInfo names, JsonbContainer *object, const char *field)
{
	JsonbValue	array;

	if (!clerk_json_field(object, field, &array) || array.type != jbvBinary ||
		!JsonContainerIsArray(array.val.binary.data))
		return;
	for (uint32 i = 0; i < JsonContainerSize(array.val.binary.data); i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(array.val.binary.data, i);

		if (element->type == jbvString)
			appendStringInfo(names, "%.*s\n", element->val.string.len,
							 element->val.string.val);
	}
}

/* An array's element that is an object; NULL if it is anything else. */
static JsonbContainer *
element(JsonbContainer *array, uint32 index)
{
	JsonbValue *value = getIthJsonbValueFromContainer(array, index);

	return value != NULL && value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data) ?
		value->val.binary.data : NULL;
}

/* Appends what one element of "errors" says, and its code in brackets. */
static void
quote_error(StringInfo said, JsonbContainer *object, const char *key)
{
	char	   *text = text_field(object, "long_message", key);
	char	   *code = text_field(object, "code", key);

	if (text == NULL)
		text = text_field(object, "message", key);
	if (text == NULL && code == NULL)
		return;
	/* Clerk's messages end with a period or not. */
	if (text != NULL && text[0] != '\0' && text[strlen(text) - 1] == '.')
		text[strlen(text) - 1] = '\0';
	appendStringInfo(said, "%s%s", said->len > 0 ? "; " : "Clerk says: ",
					 text != NULL ? text : "");
	if (code != NULL)
		appendStringInfo(said, "%s[%s]", text != NULL ? " " : "", code);
}

/*
 * A string of Clerk's without secrets: a key that Clerk quotes, or the ticket
 * in an invitation's URL, must not reach a message or a log.
 */
static char *
text_field(JsonbContainer *object, const char *name, const char *key)
{
	char	   *text = clerk_json_text_field(object, name);

	if (text != NULL)
	{
		conceal_key(text, key);
		conceal_query_strings(text);
	}
	return text;
}

static void
conceal_key(char *text, const char *key)
{
	size_t		length = strlen(key);

	for (char *found = text; (found = strstr(found, key)) != NULL; found += length)
		memset(found, '*', length);
}

/* Replaces what follows the "?" of each URL. */
static void
conceal_query_strings(char *text)
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

/* What Clerk said, HTTP status and trace ID, as sentences. */
char *
clerk_error_describe(const ClerkHttpRequest *request, const ClerkError *error)
{
	StringInfoData detail;
	size_t		length;

	initStringInfo(&detail);
	if (error->said != NULL)
		appendStringInfo(&detail, "%s. ", error->said);
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
