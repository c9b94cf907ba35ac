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
#include "json_reader.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#define USER_AGENT \
	"clerk_invite/" CLERK_INVITE_VERSION " PostgreSQL/" PG_VERSION

/* Clerk's have 34 characters at most; this only keeps messages short. */
#define MAX_IDENTIFIER_LENGTH 255

/* Our header lines of a request, and the terminator. */
#define MAX_HEADERS 5

#define HTTP_TOO_MANY_REQUESTS 429

/*
 * Seconds that an endpoint stays closed after a 429 which does not say how
 * long: a few of them in Clerk's hour, if it counts refused requests, and
 * little beside the hour that it may take.
 */
#define UNTOLD_RETRY_AFTER 60

/* Clerk's longest are an hour: what is over a day is no answer of Clerk's. */
#define MAX_RETRY_AFTER SECS_PER_DAY

/* Names of an invitation's fields, in Clerk's JSON and in the SQL type. */
static const char *const field_names[CLERK_INVITATION_FIELDS] = {
	[CLERK_INVITATION_ID] = "id",
	[CLERK_INVITATION_ORGANIZATION_ID] = "organization_id",
	[CLERK_INVITATION_EMAIL_ADDRESS] = "email_address",
	[CLERK_INVITATION_ROLE] = "role",
	[CLERK_INVITATION_ROLE_NAME] = "role_name",
	[CLERK_INVITATION_STATUS] = "status",
	[CLERK_INVITATION_INVITER_ID] = "inviter_id",
	[CLERK_INVITATION_URL] = "url",
	[CLERK_INVITATION_PUBLIC_METADATA] = "public_metadata",
	[CLERK_INVITATION_PRIVATE_METADATA] = "private_metadata",
	[CLERK_INVITATION_PUBLIC_INVITER_DATA] = "public_inviter_data",
	[CLERK_INVITATION_PUBLIC_ORGANIZATION_DATA] = "public_organization_data",
	[CLERK_INVITATION_CREATED_AT] = "created_at",
	[CLERK_INVITATION_UPDATED_AT] = "updated_at",
	[CLERK_INVITATION_EXPIRES_AT] = "expires_at",
};

/* Their types in the SQL type. */
static const Oid field_types[CLERK_INVITATION_FIELDS] = {
	[CLERK_INVITATION_ID] = TEXTOID,
	[CLERK_INVITATION_ORGANIZATION_ID] = TEXTOID,
	[CLERK_INVITATION_EMAIL_ADDRESS] = TEXTOID,
	[CLERK_INVITATION_ROLE] = TEXTOID,
	[CLERK_INVITATION_ROLE_NAME] = TEXTOID,
	[CLERK_INVITATION_STATUS] = TEXTOID,
	[CLERK_INVITATION_INVITER_ID] = TEXTOID,
	[CLERK_INVITATION_URL] = TEXTOID,
	[CLERK_INVITATION_PUBLIC_METADATA] = JSONBOID,
	[CLERK_INVITATION_PRIVATE_METADATA] = JSONBOID,
	[CLERK_INVITATION_PUBLIC_INVITER_DATA] = JSONBOID,
	[CLERK_INVITATION_PUBLIC_ORGANIZATION_DATA] = JSONBOID,
	[CLERK_INVITATION_CREATED_AT] = TIMESTAMPTZOID,
	[CLERK_INVITATION_UPDATED_AT] = TIMESTAMPTZOID,
	[CLERK_INVITATION_EXPIRES_AT] = TIMESTAMPTZOID,
};

static ClerkHttpRequest *start_request(const char *path, char *body,
									   ClerkError **error);
static size_t base_url_length(void);
static char *endpoint_url(const char *path);
static void settle_ticket(const ClerkHttpRequest *request,
						  const ClerkTicket *ticket);
static void heed_refusal(const ClerkHttpRequest *request, uint64 instance,
						 ClerkEndpoint endpoint);
static char *query_value(const char *text);
static bool was_accepted(const ClerkHttpRequest *request, bool writes,
						 ClerkError **error);
static const char *read_created(const ClerkHttpRequest *request,
								ClerkInvitation *created,
								ClerkJsonFault *fault);
static const char *read_listed(const ClerkHttpRequest *request,
							   ClerkInvitationList *list,
							   ClerkJsonFault *fault);
static const char *read_list(const char *text, ClerkInvitationList *list,
							 ClerkJsonFault *fault);
static void append_name(StringInfo json, const char *name);
static void append_string(StringInfo json, const char *name, const char *value);
static void append_jsonb(StringInfo json, const char *name, Jsonb *value);
static char *new_invitation_json(const ClerkNewInvitation *wanted);
static const char *read_invitation(const char *text, int length,
								   ClerkInvitation *invitation,
								   ClerkJsonFault *fault);
static const char *read_field(const ClerkJsonValue *value, Oid type,
							  Datum *datum, ClerkJsonFault *fault);
static bool read_milliseconds(const char *milliseconds, Datum *datum);
static bool is_quotable(const ClerkHttpRequest *request, const char *id);
static const char *id_for_error(const ClerkHttpRequest *request);

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
			TupleDescAttr(descriptor, i)->atttypid != field_types[i])
			return false;
	return true;
}

/*
 * The instance of Clerk's that a request would go to now: what its budgets are
 * known by.  False and the reason in *error if there is no usable key.
 */
bool
clerk_chosen_instance(uint64 *instance, ClerkError **error)
{
	const char *fault;
	const char *key = clerk_secret_key(&fault);

	if (key == NULL)
	{
		*error = clerk_error_no_key(fault);
		return false;
	}
	*instance = clerk_rate_limit_instance(clerk_api_url, base_url_length(), key);
	return true;
}

/*
 * CreateOrganizationInvitation: POST /organizations/{org}/invitations.
 *
 * Returns the request on its way, or NULL and the reason in *error if it
 * could not even be formed: then its reservation is the caller's to give back.
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
 * *error.  Settles one request of the ticket.
 */
bool
clerk_finish_create_invitation(const ClerkHttpRequest *request,
							   const ClerkTicket *ticket,
							   ClerkInvitation *created, ClerkError **error)
{
	ClerkJsonFault fault;
	const char *complaint;

	settle_ticket(request, ticket);
	if (!was_accepted(request, true, error))
		return false;
	complaint = read_created(request, created, &fault);
	if (complaint == NULL)
		return true;
	*error = clerk_error_unreadable(request, true, complaint,
									id_for_error(request));
	if (fault == CLERK_JSON_UNTRANSLATABLE)
		(*error)->sqlstate = ERRCODE_UNTRANSLATABLE_CHARACTER;
	return false;
}

/*
 * CreateOrganizationInvitationBulk: POST /organizations/{org}/invitations/bulk
 * for up to ten invitations of one organization, no address twice.
 *
 * Returns as clerk_start_create_invitation().
 */
ClerkHttpRequest *
clerk_start_create_bulk(const ClerkNewInvitation *wanted, int count,
						ClerkError **error)
{
	StringInfoData json;

	if (!clerk_is_identifier(wanted[0].organization_id))
	{
		*error = clerk_error_unsendable("the organization ID is not a Clerk identifier");
		return NULL;
	}
	initStringInfo(&json);
	for (int i = 0; i < count; i++)
	{
		appendStringInfoChar(&json, i == 0 ? '[' : ',');
		appendStringInfoString(&json, new_invitation_json(&wanted[i]));
	}
	appendStringInfoChar(&json, ']');
	return start_request(psprintf("/organizations/%s/invitations/bulk",
								  wanted[0].organization_id),
						 json.data, error);
}

/*
 * The answer to it: true and the invitations, in any order, or false and the
 * reason: then none was created, unless it is that the outcome is unknown.
 * Settles one request of the ticket.
 */
bool
clerk_finish_create_bulk(const ClerkHttpRequest *request,
						 const ClerkTicket *ticket,
						 ClerkInvitationList *created, ClerkError **error)
{
	ClerkJsonFault fault;
	const char *complaint;

	settle_ticket(request, ticket);
	if (!was_accepted(request, true, error))
		return false;
	complaint = read_listed(request, created, &fault);
	if (complaint == NULL)
		return true;
	*error = clerk_error_unreadable(request, true, complaint, NULL);
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
	ClerkJsonFault fault;
	const char *complaint;
	uint64		instance;

	instance = clerk_rate_limit_instance(clerk_api_url, base_url_length(),
										 clerk_http_bearer_token(request));
	heed_refusal(request, instance, CLERK_ENDPOINT_LIST);
	if (!was_accepted(request, false, error))
		return false;
	complaint = read_listed(request, list, &fault);
	if (complaint == NULL)
		return true;
	*error = clerk_error_unreadable(request, false, complaint, NULL);
	return false;
}

/* Whether Clerk has done what it was asked for; if not, why, in *error. */
static bool
was_accepted(const ClerkHttpRequest *request, bool writes, ClerkError **error)
{
	if (clerk_http_status(request) >= 200 && clerk_http_status(request) <= 299)
		return true;
	*error = clerk_error_from_request(request, writes);
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

/* How much of the API's address comes before its "/v1", which may be missing. */
static size_t
base_url_length(void)
{
	size_t		length = strlen(clerk_api_url);

	while (length > 0 && clerk_api_url[length - 1] == '/')
		length--;
	if (length >= 3 && memcmp(clerk_api_url + length - 3, "/v1", 3) == 0)
		length -= 3;
	return length;
}

/* The address of a path below the API's. */
static char *
endpoint_url(const char *path)
{
	return psprintf("%.*s/v1%s", (int) base_url_length(), clerk_api_url, path);
}

/* What a request that is over means for the budget it was taken from. */
static void
settle_ticket(const ClerkHttpRequest *request, const ClerkTicket *ticket)
{
	switch (clerk_http_outcome(request))
	{
		case CLERK_HTTP_RUNNING:
			return;
		case CLERK_HTTP_ANSWERED:
			clerk_rate_limit_answered(ticket, clerk_http_answered_at(request));
			heed_refusal(request, ticket->instance, ticket->endpoint);
			return;
		case CLERK_HTTP_LOST:
			clerk_rate_limit_answered(ticket, GetCurrentTimestamp());
			return;
		case CLERK_HTTP_UNUSABLE:
		case CLERK_HTTP_NOT_SENT:
			clerk_rate_limit_give_back(ticket, 1);
			return;
	}
}

/* After "too many requests" the endpoint is closed for as long as Clerk says. */
static void
heed_refusal(const ClerkHttpRequest *request, uint64 instance,
			 ClerkEndpoint endpoint)
{
	int			seconds = clerk_http_retry_after(request);

	if (clerk_http_status(request) != HTTP_TOO_MANY_REQUESTS)
		return;
	if (seconds == 0)
		seconds = UNTOLD_RETRY_AFTER;
	seconds = Min(seconds, MAX_RETRY_AFTER);
	clerk_rate_limit_close(instance, endpoint,
						   TimestampTzPlusMilliseconds(clerk_http_answered_at(request),
													   seconds * INT64CONST(1000)));
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
append_name(StringInfo json, const char *name)
{
	appendStringInfoString(json, ",\"");
	appendStringInfoString(json, name);
	appendStringInfoString(json, "\":");
}

static void
append_string(StringInfo json, const char *name, const char *value)
{
	if (value == NULL)
		return;
	append_name(json, name);
	escape_json(json, value);
}

static void
append_jsonb(StringInfo json, const char *name, Jsonb *value)
{
	if (value == NULL)
		return;
	append_name(json, name);
	JsonbToCString(json, &value->root, VARSIZE(value));
}

/*
 * Reads the invitation that an answer consists of.  Returns what is wrong with
 * it, NULL if nothing.
 */
static const char *
read_created(const ClerkHttpRequest *request, ClerkInvitation *created,
			 ClerkJsonFault *fault)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	const char *json = clerk_json_from_wire(body, length, fault);
	const char *complaint;

	if (json == NULL)
		return clerk_json_fault_text(*fault);
	complaint = read_invitation(json, strlen(json), created, fault);
	if (complaint == NULL &&
		!is_quotable(request,
					 TextDatumGetCString(created->values[CLERK_INVITATION_ID])))
		complaint = "\"id\" is not an identifier";
	return complaint;
}

/*
 * Reads the invitations that an answer lists.  Returns what is wrong with it,
 * NULL if nothing.
 */
static const char *
read_listed(const ClerkHttpRequest *request, ClerkInvitationList *list,
			ClerkJsonFault *fault)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	const char *text = clerk_json_from_wire(body, length, fault);
	const char *complaint = NULL;

	if (text != NULL)
		complaint = read_list(text, list, fault);

	/* What the encoding lacks is in texts that nobody looks for here. */
	if (*fault == CLERK_JSON_UNTRANSLATABLE)
	{
		text = clerk_json_from_wire_lossy(body, length);
		complaint = read_list(text, list, fault);
	}
	return text == NULL ? clerk_json_fault_text(*fault) : complaint;
}

/* Reads the "data" of a list; returns what is wrong with it, NULL if nothing. */
static const char *
read_list(const char *text, ClerkInvitationList *list, ClerkJsonFault *fault)
{
	static const char *const data_name[] = {"data"};
	ClerkJsonValue data;
	ClerkJsonValue *elements;

	if (!clerk_json_read_object(text, strlen(text), data_name, 1, &data, fault))
		return clerk_json_fault_text(*fault);
	if (data.kind != CLERK_JSON_OTHER ||
		!clerk_json_read_array(data.source, data.length, &elements,
							   &list->count, fault))
		return "\"data\" is not an array";

	list->invitations = palloc(Max(list->count, 1) * sizeof(ClerkInvitation));
	for (int i = 0; i < list->count; i++)
	{
		const char *complaint = read_invitation(elements[i].source,
												elements[i].length,
												&list->invitations[i], fault);

		if (*fault == CLERK_JSON_NOT_OBJECT)
			return "an element of \"data\" is not an object";
		if (complaint != NULL)
			return complaint;
	}
	return NULL;
}

/* Reads an invitation; returns what is wrong with it, NULL if nothing. */
static const char *
read_invitation(const char *text, int length, ClerkInvitation *invitation,
				ClerkJsonFault *fault)
{
	ClerkJsonValue fields[CLERK_INVITATION_FIELDS];

	if (!clerk_json_read_object(text, length, field_names,
								CLERK_INVITATION_FIELDS, fields, fault))
		return clerk_json_fault_text(*fault);
	for (int i = 0; i < CLERK_INVITATION_FIELDS; i++)
	{
		const char *complaint;

		invitation->nulls[i] = (fields[i].kind == CLERK_JSON_ABSENT);
		invitation->values[i] = (Datum) 0;
		if (invitation->nulls[i])
			continue;
		complaint = read_field(&fields[i], field_types[i],
							   &invitation->values[i], fault);
		if (*fault != CLERK_JSON_GOOD)
			return complaint;
		if (complaint != NULL)
			return psprintf("\"%s\" %s", field_names[i], complaint);
	}
	if (invitation->nulls[CLERK_INVITATION_ID])
		return "\"id\" is missing";
	return NULL;
}

/* Reads a field; returns what is wrong with it, NULL if nothing. */
static const char *
read_field(const ClerkJsonValue *value, Oid type, Datum *datum,
		   ClerkJsonFault *fault)
{
	bool		good = false;

	switch (type)
	{
		case TEXTOID:
			if (value->kind != CLERK_JSON_STRING)
				break;
			*datum = PointerGetDatum(clerk_json_string(value, fault));
			return *fault == CLERK_JSON_GOOD ?
				NULL : clerk_json_fault_text(*fault);
		case JSONBOID:
			*datum = JsonbPGetDatum(clerk_json_parse(value->source,
													 value->length, fault));
			return *fault == CLERK_JSON_GOOD ?
				NULL : clerk_json_fault_text(*fault);
		case TIMESTAMPTZOID:
			good = (value->kind == CLERK_JSON_NUMBER &&
					read_milliseconds(value->source, datum));
			break;
		default:
			elog(ERROR, "unexpected type %u of an invitation's field", type);
	}
	return good ? NULL : "is not of the documented type, or out of range";
}

/*
 * From Clerk's milliseconds since 1970, a JSON number with more of the text
 * behind it, to a timestamptz.
 */
static bool
read_milliseconds(const char *milliseconds, Datum *datum)
{
	const int	epoch_days = POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE;
	const double epoch = epoch_days * (double) SECS_PER_DAY * 1000;

	/* A double is exact up to 2^53 milliseconds, far past year 200,000. */
	const double number = rint(strtod(milliseconds, NULL)) - epoch;
	const double limit = (double) (PG_INT64_MAX / 2000);
	Timestamp	timestamp;

	if (!(number > -limit && number < limit))
		return false;
	timestamp = (Timestamp) number * 1000;
	*datum = TimestampTzGetDatum(timestamp);
	return IS_VALID_TIMESTAMP(timestamp);
}

/*
 * The id in an answer that is of no use otherwise, or NULL.  What is not of an
 * identifier's form could be anything, even a secret.
 */
static const char *
id_for_error(const ClerkHttpRequest *request)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	Jsonb	   *answer = clerk_json_parse_what_is_legible(body, length);
	const char *id;

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
