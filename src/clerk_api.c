/*
 * clerk_api.c
 *		Clerk's operations on organization invitations: request out, answer in.
 *
 * Written from Clerk's Backend API documents of version 2026-05-12.  Fields
 * that are NULL are left out of a request, fields that are unknown are left
 * alone in an answer.
 */
#include "postgres.h"

#include <ctype.h>
#include <math.h>

#include "catalog/pg_type_d.h"
#include "clerk_api.h"
#include "guc.h"
#include "json_wire.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#define USER_AGENT \
	"clerk_invite/" CLERK_INVITE_VERSION " PostgreSQL/" PG_VERSION

/* Clerk's have 34 characters at most; this only keeps messages short. */
#define MAX_IDENTIFIER_LENGTH 255

/* Our header lines of a request, and the terminator. */
#define MAX_HEADERS 5

typedef struct FieldDescription
{
	const char *name;			/* in Clerk's JSON and in the SQL type */
	Oid			type;
} FieldDescription;

static const FieldDescription invitation_fields[CLERK_INVITATION_FIELDS] = {
	[CLERK_INVITATION_ID] = {"id", TEXTOID},
	[CLERK_INVITATION_ORGANIZATION_ID] = {"organization_id", TEXTOID},
	[CLERK_INVITATION_EMAIL_ADDRESS] = {"email_address", TEXTOID},
	[CLERK_INVITATION_ROLE] = {"role", TEXTOID},
	[CLERK_INVITATION_ROLE_NAME] = {"role_name", TEXTOID},
	[CLERK_INVITATION_STATUS] = {"status", TEXTOID},
	[CLERK_INVITATION_INVITER_ID] = {"inviter_id", TEXTOID},
	[CLERK_INVITATION_URL] = {"url", TEXTOID},
	[CLERK_INVITATION_PUBLIC_METADATA] = {"public_metadata", JSONBOID},
	[CLERK_INVITATION_PRIVATE_METADATA] = {"private_metadata", JSONBOID},
	[CLERK_INVITATION_PUBLIC_INVITER_DATA] = {"public_inviter_data", JSONBOID},
	[CLERK_INVITATION_PUBLIC_ORGANIZATION_DATA] = {"public_organization_data", JSONBOID},
	[CLERK_INVITATION_CREATED_AT] = {"created_at", TIMESTAMPTZOID},
	[CLERK_INVITATION_UPDATED_AT] = {"updated_at", TIMESTAMPTZOID},
	[CLERK_INVITATION_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID},
};

static ClerkHttpRequest *start_request(const char *path, char *body,
									   ClerkError **error);
static char *endpoint_url(const char *path);
static char *query_value(const char *text);
static const char *read_list(JsonbContainer *object, ClerkInvitationList *list);
static void append_string(StringInfo json, const char *name, const char *value);
static void append_jsonb(StringInfo json, const char *name, Jsonb *value);
static char *new_invitation_json(const ClerkNewInvitation *wanted);
static const char *read_invitation(JsonbContainer *object,
								   ClerkInvitation *invitation);
static bool read_field(JsonbValue *value, Oid type, Datum *datum);
static bool read_milliseconds(Numeric milliseconds, Datum *datum);
static bool is_quotable(const ClerkHttpRequest *request, const char *id);
static const char *id_for_error(const ClerkHttpRequest *request, Jsonb *answer);

/*
 * Whether a text can be one of Clerk's identifiers, which become segments of
 * a URL's path.  All that Clerk gives out are letters, digits and
 * underscores; anything that could end the segment, or be normalized as "..",
 * is not among them.
 */
bool
clerk_is_identifier(const char *text)
{
	size_t		length = strlen(text);

	return length > 0 && length <= MAX_IDENTIFIER_LENGTH &&
		text[strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
					"abcdefghijklmnopqrstuvwxyz0123456789_-")] == '\0';
}

/* Whether a row of this type can hold an invitation's fields as they are. */
bool
clerk_fits_invitation(TupleDesc descriptor)
{
	if (descriptor->natts != CLERK_INVITATION_FIELDS)
		return false;
	for (int i = 0; i < CLERK_INVITATION_FIELDS; i++)
		if (TupleDescAttr(descriptor, i)->attisdropped ||
			TupleDescAttr(descriptor, i)->atttypid != invitation_fields[i].type)
			return false;
	return true;
}

/*
 * CreateOrganizationInvitation: POST /organizations/{org}/invitations.
 *
 * Returns the request on its way, or NULL and the reason in *error if it
 * could not even be formed.
 */
ClerkHttpRequest *
clerk_start_create_invitation(const ClerkNewInvitation *wanted,
							  ClerkError **error)
{
	if (!clerk_is_identifier(wanted->organization_id))
	{
		*error = clerk_error_unsendable("the organization ID is not a Clerk identifier");
		return NULL;
	}
	return start_request(psprintf("/organizations/%s/invitations",
								  wanted->organization_id),
						 new_invitation_json(wanted), error);
}

/*
 * The answer to it: true and the invitation, or false and the reason in
 * *error.
 */
bool
clerk_finish_create_invitation(const ClerkHttpRequest *request,
							   ClerkInvitation *created, ClerkError **error)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	const char *fault;
	Jsonb	   *answer;
	ClerkJsonFault json_fault;

	if (clerk_http_status(request) < 200 || clerk_http_status(request) > 299)
	{
		*error = clerk_error_from_request(request, true);
		return false;
	}

	answer = clerk_json_from_wire(body, length, &json_fault);
	if (answer == NULL)
		fault = clerk_json_fault_text(json_fault);
	else if (!JB_ROOT_IS_OBJECT(answer))
		fault = "it is not a JSON object";
	else
		fault = read_invitation(&answer->root, created);
	if (fault == NULL &&
		!is_quotable(request,
					 TextDatumGetCString(created->values[CLERK_INVITATION_ID])))
		fault = "\"id\" is not an identifier";
	if (fault == NULL)
		return true;

	*error = clerk_error_unreadable(request, true, fault,
									id_for_error(request, answer));
	if (json_fault == CLERK_JSON_UNTRANSLATABLE)
		(*error)->sqlstate = ERRCODE_UNTRANSLATABLE_CHARACTER;
	return false;
}

/*
 * ListOrganizationInvitations: GET /organizations/{org}/invitations, for one
 * address.  A page of Clerk's largest size holds all that an address can have.
 *
 * Returns as clerk_start_create_invitation().
 */
ClerkHttpRequest *
clerk_start_list_invitations(const char *organization_id,
							 const char *email_address, ClerkError **error)
{
	char	   *address = query_value(email_address);

	if (address == NULL || !clerk_is_identifier(organization_id))
	{
		*error = clerk_error_unsendable("the request cannot be expressed in a URL");
		return NULL;
	}
	return start_request(psprintf("/organizations/%s/invitations?limit=500&email_address=%s",
								  organization_id, address),
						 NULL, error);
}

/* The answer to it: true and the invitations, or false and the reason. */
bool
clerk_finish_list_invitations(const ClerkHttpRequest *request,
							  ClerkInvitationList *list, ClerkError **error)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	const char *fault;
	Jsonb	   *answer;
	ClerkJsonFault json_fault;

	if (clerk_http_status(request) < 200 || clerk_http_status(request) > 299)
	{
		*error = clerk_error_from_request(request, false);
		return false;
	}

	/* What the encoding lacks is in texts that nobody looks for here. */
	answer = clerk_json_from_wire(body, length, &json_fault);
	if (answer == NULL && json_fault == CLERK_JSON_UNTRANSLATABLE)
		answer = clerk_json_from_wire_lossy(body, length);
	if (answer == NULL)
		fault = clerk_json_fault_text(json_fault);
	else if (!JB_ROOT_IS_OBJECT(answer))
		fault = "it is not a JSON object";
	else
		fault = read_list(&answer->root, list);
	if (fault == NULL)
		return true;
	*error = clerk_error_unreadable(request, false, fault, NULL);
	return false;
}

/*
 * Sends a body to a path below the API's address, or asks for what is there if
 * the body is NULL.
 */
static ClerkHttpRequest *
start_request(const char *path, char *body, ClerkError **error)
{
	const char *headers[MAX_HEADERS];
	const char *fault;
	const char *key = clerk_secret_key(&fault);
	ClerkHttpSpec spec;

	if (key == NULL)
	{
		*error = clerk_error_no_key(fault);
		return NULL;
	}
	if (strpbrk(clerk_api_url, "?#") != NULL)
	{
		*error = clerk_error_unusable_address("the URL contains a query or fragment");
		return NULL;
	}
	spec.body = body == NULL ? NULL :
		clerk_json_to_wire(body, &spec.body_length);
	if (spec.body == NULL && body != NULL)
	{
		*error = clerk_error_unsendable("the request cannot be expressed in UTF-8");
		return NULL;
	}
	headers[0] = "Content-Type: application/json";
	headers[1] = "Accept: application/json";
	headers[2] = psprintf("Clerk-API-Version: %s", clerk_api_version);
	headers[3] = "User-Agent: " USER_AGENT;
	headers[4] = NULL;
	spec.url = endpoint_url(path);
	spec.bearer_token = key;
	spec.headers = headers;
	spec.ca_file = clerk_ca_file;
	spec.proxy = clerk_proxy;
	spec.connect_timeout = clerk_connect_timeout;
	spec.request_timeout = clerk_request_timeout;
	return clerk_http_start(&spec);
}

/* The API's address with or without its "/v1", and the path below that. */
static char *
endpoint_url(const char *path)
{
	size_t		length = strlen(clerk_api_url);

	while (length > 0 && clerk_api_url[length - 1] == '/')
		length--;
	if (length >= 3 && memcmp(clerk_api_url + length - 3, "/v1", 3) == 0)
		length -= 3;
	return psprintf("%.*s/v1%s", (int) length, clerk_api_url, path);
}

/* A text as the value of a URL's query; NULL if it has no form in UTF-8. */
static char *
query_value(const char *text)
{
	size_t		length;
	const char *utf8 = clerk_json_to_wire(pstrdup(text), &length);
	StringInfoData value;

	if (utf8 == NULL)
		return NULL;
	initStringInfo(&value);
	for (size_t i = 0; i < length; i++)
	{
		if (isalnum((unsigned char) utf8[i]) && !IS_HIGHBIT_SET(utf8[i]))
			appendStringInfoChar(&value, utf8[i]);
		else
			appendStringInfo(&value, "%%%02X", (unsigned char) utf8[i]);
	}
	return value.data;
}

/* The body of a request for one invitation, in the database's encoding. */
static char *
new_invitation_json(const ClerkNewInvitation *wanted)
{
	StringInfoData json;

	initStringInfo(&json);
	append_string(&json, "email_address", wanted->email_address);
	append_string(&json, "role", wanted->role);
	append_string(&json, "inviter_user_id", wanted->inviter_user_id);
	append_string(&json, "redirect_url", wanted->redirect_url);
	append_jsonb(&json, "public_metadata", wanted->public_metadata);
	append_jsonb(&json, "private_metadata", wanted->private_metadata);
	if (wanted->expires_in_days != 0)
		appendStringInfo(&json, ",\"expires_in_days\":%d",
						 wanted->expires_in_days);
	if (wanted->notify != NULL)
		appendStringInfo(&json, ",\"notify\":%s",
						 *wanted->notify ? "true" : "false");
	/* Every field came with a comma before it. */
	json.data[0] = '{';
	appendStringInfoChar(&json, '}');
	return json.data;
}

static void
append_string(StringInfo json, const char *name, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfo(json, ",\"%s\":", name);
	escape_json(json, value);
}

static void
append_jsonb(StringInfo json, const char *name, Jsonb *value)
{
	if (value == NULL)
		return;
	appendStringInfo(json, ",\"%s\":", name);
	JsonbToCString(json, &value->root, VARSIZE(value));
}

/* Reads the "data" of a list; returns what is wrong with it, NULL if nothing. */
static const char *
read_list(JsonbContainer *object, ClerkInvitationList *list)
{
	JsonbValue	data;

	if (!clerk_json_field(object, "data", &data) || data.type != jbvBinary ||
		!JsonContainerIsArray(data.val.binary.data))
		return "\"data\" is not an array";

	list->count = JsonContainerSize(data.val.binary.data);
	list->invitations = palloc(Max(list->count, 1) * sizeof(ClerkInvitation));
	for (int i = 0; i < list->count; i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(data.val.binary.data, i);
		const char *fault = "an element of \"data\" is not an object";

		if (element->type == jbvBinary &&
			JsonContainerIsObject(element->val.binary.data))
			fault = read_invitation(element->val.binary.data,
									&list->invitations[i]);
		if (fault != NULL)
			return fault;
	}
	return NULL;
}

/* Reads an invitation; returns what is wrong with it, NULL if nothing. */
static const char *
read_invitation(JsonbContainer *object, ClerkInvitation *invitation)
{
	for (int i = 0; i < CLERK_INVITATION_FIELDS; i++)
	{
		JsonbValue	value;

		invitation->nulls[i] = !clerk_json_field(object,
												 invitation_fields[i].name,
												 &value);
		invitation->values[i] = (Datum) 0;
		if (!invitation->nulls[i] &&
			!read_field(&value, invitation_fields[i].type,
						&invitation->values[i]))
			return psprintf("\"%s\" is not of the documented type, or out of range",
							invitation_fields[i].name);
	}
	if (invitation->nulls[CLERK_INVITATION_ID])
		return "\"id\" is missing";
	return NULL;
}

/* False if the value does not fit the type. */
static bool
read_field(JsonbValue *value, Oid type, Datum *datum)
{
	switch (type)
	{
		case TEXTOID:
			if (value->type != jbvString)
				return false;
			*datum = PointerGetDatum(cstring_to_text_with_len(value->val.string.val,
															  value->val.string.len));
			return true;
		case JSONBOID:
			*datum = JsonbPGetDatum(JsonbValueToJsonb(value));
			return true;
		case TIMESTAMPTZOID:
			return value->type == jbvNumeric &&
				read_milliseconds(value->val.numeric, datum);
		default:
			elog(ERROR, "unexpected type %u of an invitation's field", type);
	}
}

/* From Clerk's milliseconds since 1970 to a timestamptz. */
static bool
read_milliseconds(Numeric milliseconds, Datum *datum)
{
	const int	epoch_days = POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE;
	const double epoch = epoch_days * (double) SECS_PER_DAY * 1000;
	char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out,
														   NumericGetDatum(milliseconds)));

	/* A double is exact up to 2^53 milliseconds, far past year 200,000. */
	const double number = rint(strtod(text, NULL)) - epoch;
	const double limit = (double) (PG_INT64_MAX / 2000);
	Timestamp	timestamp;

	if (!(number > -limit && number < limit))
		return false;
	timestamp = (Timestamp) number * 1000;
	*datum = TimestampTzGetDatum(timestamp);
	return IS_VALID_TIMESTAMP(timestamp);
}

/*
 * The id in an answer that is of no use otherwise, or NULL.  "answer" is NULL
 * if it could not be parsed, which may be for its encoding alone.  What is not
 * of an identifier's form could be anything, even a secret.
 */
static const char *
id_for_error(const ClerkHttpRequest *request, Jsonb *answer)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	const char *id;

	if (answer == NULL)
		answer = clerk_json_from_wire_lossy(body, length);
	if (answer == NULL || !JB_ROOT_IS_OBJECT(answer))
		return NULL;
	id = clerk_json_text_field(&answer->root, "id");
	return id != NULL && is_quotable(request, id) ? id : NULL;
}

/* Whether an invitation's id may appear in messages: see rollback_warning.c. */
static bool
is_quotable(const ClerkHttpRequest *request, const char *id)
{
	return clerk_is_identifier(id) &&
		strstr(id, clerk_http_bearer_token(request)) == NULL;
}
