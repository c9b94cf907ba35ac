/*
 * operations.c
 *		Clerk's operations on organization invitations: request out, answer in.
 *
 * Written from Clerk's Backend API documents of version 2026-05-12.
 */
#include "postgres.h"

#include <ctype.h>

#include "clerk/json_reader.h"
#include "clerk/operations.h"
#include "clerk/request_error.h"
#include "common/settings.h"
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

static ClerkHttpRequest *start_request(const char *path, char *body,
									   ClerkReservation *reservation,
									   ClerkError **error);
static size_t base_url_length(void);
static char *endpoint_url(const char *path);
static void settle_reservation(const ClerkHttpRequest *request,
							   ClerkReservation *reservation);
static void heed_refusal(const ClerkHttpRequest *request, uint64 instance,
						 ClerkEndpoint endpoint);
static char *query_value(const char *text);
static char *invitations_path(const char *organization_id, const char *rest,
							  ClerkError **error);
static char *invitation_path(const char *organization_id,
							 const char *invitation_id, const char *rest,
							 ClerkError **error);
static char *list_query(const ClerkListing *listing, ClerkError **error);
static bool append_parameter(StringInfo query, const char *name,
							 const char *value);
static bool was_accepted(const ClerkHttpRequest *request, ClerkEffect effect,
						 ClerkError **error);
static bool finish_one(const ClerkHttpRequest *request, ClerkEffect effect,
					   ClerkInvitation *invitation, ClerkError **error);
static const char *read_one(const ClerkHttpRequest *request,
							ClerkInvitation *invitation,
							ClerkJsonError *json_error);
static const char *check_ids(const ClerkHttpRequest *request,
							 const ClerkInvitationList *list);
static const char *read_listed(const ClerkHttpRequest *request,
							   ClerkInvitationList *list,
							   ClerkJsonError *json_error);
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
	const char *c = text;

	while ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
		   (*c >= '0' && *c <= '9') || *c == '_' || *c == '-')
		c++;
	return *c == '\0' && c > text && c - text <= MAX_IDENTIFIER_LENGTH;
}

/*
 * The instance of Clerk's that a request would go to now: what its budgets are
 * known by.  False and the reason in *error if there is no usable key.
 */
bool
clerk_chosen_instance(uint64 *instance, ClerkError **error)
{
	const char *reason;
	const char *hint;
	const char *key = clerk_secret_key(&reason, &hint);

	if (key == NULL)
	{
		*error = clerk_error_no_key(reason, hint);
		return false;
	}
	*instance = clerk_rate_limit_instance(clerk_api_url, base_url_length(), key);
	return true;
}

/*
 * CreateOrganizationInvitation: POST /organizations/{org}/invitations.
 *
 * Returns the request on its way, whose reservation is started, or NULL and the
 * reason in *error if it could not even be formed.
 */
ClerkHttpRequest *
clerk_start_create_invitation(const ClerkNewInvitation *wanted,
							  ClerkReservation *reservation,
							  ClerkError **error)
{
	char	   *path = invitations_path(wanted->organization_id, "", error);

	return path == NULL ? NULL :
		start_request(path, clerk_new_invitation_json(wanted), reservation,
					  error);
}

/*
 * The answer to it: true and the invitation, or false and the reason in
 * *error.  Settles the reservation.
 */
bool
clerk_finish_create_invitation(const ClerkHttpRequest *request,
							   ClerkReservation *reservation,
							   ClerkInvitation *created, ClerkError **error)
{
	settle_reservation(request, reservation);
	return finish_one(request, CLERK_EFFECT_CREATES, created, error);
}

/*
 * CreateOrganizationInvitationBulk: POST /organizations/{org}/invitations/bulk
 * for up to ten invitations of one organization, no address twice.
 *
 * Returns as clerk_start_create_invitation().
 */
ClerkHttpRequest *
clerk_start_create_bulk(const ClerkNewInvitation *const *wanted, int count,
						ClerkReservation *reservation, ClerkError **error)
{
	char	   *path = invitations_path(wanted[0]->organization_id, "/bulk", error);
	StringInfoData json;

	if (path == NULL)
		return NULL;
	initStringInfo(&json);
	for (int i = 0; i < count; i++)
	{
		appendStringInfoChar(&json, i == 0 ? '[' : ',');
		appendStringInfoString(&json, clerk_new_invitation_json(wanted[i]));
	}
	appendStringInfoChar(&json, ']');
	return start_request(path, json.data, reservation, error);
}

/*
 * The answer to it: true and the invitations, in any order, or false and the
 * reason: then none was created, unless it is that the outcome is unknown.
 * Settles the reservation.
 */
bool
clerk_finish_create_bulk(const ClerkHttpRequest *request,
						 ClerkReservation *reservation,
						 ClerkInvitationList *created, ClerkError **error)
{
	ClerkJsonError json_error;
	const char *unreadable;

	settle_reservation(request, reservation);
	if (!was_accepted(request, CLERK_EFFECT_CREATES_SEVERAL, error))
		return false;
	unreadable = read_listed(request, created, &json_error);
	if (unreadable == NULL)
		unreadable = check_ids(request, created);
	if (unreadable == NULL)
		return true;
	*error = clerk_error_unreadable(request, CLERK_EFFECT_CREATES_SEVERAL, unreadable,
									NULL);
	return false;
}

/*
 * GetOrganizationInvitation: GET /organizations/{org}/invitations/{id}.
 *
 * Returns as clerk_start_create_invitation().
 */
ClerkHttpRequest *
clerk_start_get_invitation(const char *organization_id,
						   const char *invitation_id, ClerkError **error)
{
	char	   *path = invitation_path(organization_id, invitation_id, "", error);

	return path == NULL ? NULL : start_request(path, NULL, NULL, error);
}

/* The answer to it: true and the invitation, or false and the reason. */
bool
clerk_finish_get_invitation(const ClerkHttpRequest *request,
							ClerkInvitation *invitation, ClerkError **error)
{
	return finish_one(request, CLERK_EFFECT_NONE, invitation, error);
}

/*
 * RevokeOrganizationInvitation:
 * POST /organizations/{org}/invitations/{id}/revoke; requesting_user may be
 * NULL.
 *
 * Returns as clerk_start_create_invitation().
 */
ClerkHttpRequest *
clerk_start_revoke_invitation(const char *organization_id,
							  const char *invitation_id,
							  const char *requesting_user, ClerkError **error)
{
	char	   *path = invitation_path(organization_id, invitation_id,
									   "/revoke", error);
	StringInfoData json;

	if (path == NULL)
		return NULL;
	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	if (requesting_user != NULL)
	{
		appendStringInfoString(&json, "\"requesting_user_id\":");
		escape_json(&json, requesting_user);
	}
	appendStringInfoChar(&json, '}');
	return start_request(path, json.data, NULL, error);
}

/* The answer to it: true and the invitation, or false and the reason. */
bool
clerk_finish_revoke_invitation(const ClerkHttpRequest *request,
							   ClerkInvitation *revoked, ClerkError **error)
{
	return finish_one(request, CLERK_EFFECT_REVOKES, revoked, error);
}

/*
 * ListOrganizationInvitations: GET /organizations/{org}/invitations, or, if
 * the organization is NULL, ListInstanceOrganizationInvitations:
 * GET /organization_invitations.
 *
 * Returns as clerk_start_create_invitation().
 */
ClerkHttpRequest *
clerk_start_list_invitations(const ClerkListing *listing, ClerkError **error)
{
	char	   *query = list_query(listing, error);
	char	   *path;

	if (query == NULL)
		return NULL;
	if (listing->organization_id == NULL)
		return start_request(psprintf("/organization_invitations%s", query),
							 NULL, NULL, error);
	path = invitations_path(listing->organization_id, query, error);
	return path == NULL ? NULL : start_request(path, NULL, NULL, error);
}

/* The answer to it: true and the invitations, or false and the reason. */
bool
clerk_finish_list_invitations(const ClerkHttpRequest *request,
							  const ClerkListing *listing,
							  ClerkInvitationList *list, ClerkError **error)
{
	ClerkJsonError json_error;
	const char *unreadable;
	uint64		instance;

	/*
	 * Nobody asks when the list of the whole instance is open again; and a
	 * request that never was one has no key.
	 */
	if (listing->organization_id != NULL &&
		clerk_http_status(request) == HTTP_TOO_MANY_REQUESTS)
	{
		instance = clerk_rate_limit_instance(clerk_api_url, base_url_length(),
											 clerk_http_bearer_token(request));
		heed_refusal(request, instance, CLERK_ENDPOINT_LIST);
	}
	if (!was_accepted(request, CLERK_EFFECT_NONE, error))
		return false;
	unreadable = read_listed(request, list, &json_error);
	if (unreadable == NULL)
		return true;
	*error = clerk_error_unreadable(request, CLERK_EFFECT_NONE, unreadable, NULL);
	return false;
}

/* The path of an organization's invitations; NULL if there can be none. */
static char *
invitations_path(const char *organization_id, const char *rest,
				 ClerkError **error)
{
	if (clerk_is_identifier(organization_id))
		return psprintf("/organizations/%s/invitations%s", organization_id, rest);
	*error = clerk_error_unsendable("the organization ID is not a Clerk identifier");
	return NULL;
}

/* The path of one of them; NULL if there can be none. */
static char *
invitation_path(const char *organization_id, const char *invitation_id,
				const char *rest, ClerkError **error)
{
	if (clerk_is_identifier(invitation_id))
		return invitations_path(organization_id,
								psprintf("/%s%s", invitation_id, rest), error);
	*error = clerk_error_unsendable("the invitation ID is not a Clerk identifier");
	return NULL;
}

/* What follows the path of a list; NULL if it cannot be expressed. */
static char *
list_query(const ClerkListing *listing, ClerkError **error)
{
	StringInfoData query;
	ListCell   *cell;
	bool		good;

	initStringInfo(&query);
	appendStringInfo(&query, "?limit=%d", listing->limit);
	if (listing->offset > 0)
		appendStringInfo(&query, "&offset=" INT64_FORMAT, listing->offset);
	if (listing->oldest_first)
		appendStringInfoString(&query, "&order_by=%2Bcreated_at");
	good = append_parameter(&query, "email_address", listing->email_address) &&
		append_parameter(&query, "query", listing->query);
	foreach(cell, listing->statuses)
		good = good && append_parameter(&query, "status", lfirst(cell));
	if (good)
		return query.data;
	*error = clerk_error_unsendable("the request cannot be encoded in a URL");
	return NULL;
}

/* False if the value has no form in UTF-8; NULL is left out. */
static bool
append_parameter(StringInfo query, const char *name, const char *value)
{
	char	   *encoded = value == NULL ? NULL : query_value(value);

	if (encoded != NULL)
		appendStringInfo(query, "&%s=%s", name, encoded);
	return value == NULL || encoded != NULL;
}

/* Whether Clerk has done what it was asked for; if not, why, in *error. */
static bool
was_accepted(const ClerkHttpRequest *request, ClerkEffect effect,
			 ClerkError **error)
{
	if (clerk_http_status(request) >= 200 && clerk_http_status(request) <= 299)
		return true;
	*error = clerk_error_from_request(request, effect);
	return false;
}

/*
 * Sends a body to a path below the API's address, or asks for what is there if
 * the body is NULL.  The reservation is NULL where Clerk counts nothing.
 */
static ClerkHttpRequest *
start_request(const char *path, char *body, ClerkReservation *reservation,
			  ClerkError **error)
{
	const char *headers[MAX_HEADERS];
	const char *reason;
	const char *hint;
	const char *key = clerk_secret_key(&reason, &hint);
	ClerkHttpSpec spec;

	if (key == NULL)
	{
		*error = clerk_error_no_key(reason, hint);
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
		*error = clerk_error_unsendable("the request cannot be converted to UTF-8");
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
	if (reservation != NULL)
		clerk_rate_limit_start(reservation);
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
settle_reservation(const ClerkHttpRequest *request, ClerkReservation *reservation)
{
	switch (clerk_http_outcome(request))
	{
		case CLERK_HTTP_RUNNING:
			return;
		case CLERK_HTTP_ANSWERED:
			clerk_rate_limit_answered(reservation, clerk_http_answered_at(request));
			heed_refusal(request, reservation->instance, reservation->endpoint);
			return;
		case CLERK_HTTP_LOST:
			clerk_rate_limit_answered(reservation, GetCurrentTimestamp());
			return;
		case CLERK_HTTP_UNUSABLE:
		case CLERK_HTTP_NOT_SENT:
			clerk_rate_limit_not_sent(reservation);
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
	clerk_rate_limit_close(instance, endpoint, seconds);
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

/* Reads an answer that consists of an invitation. */
static bool
finish_one(const ClerkHttpRequest *request, ClerkEffect effect,
		   ClerkInvitation *invitation, ClerkError **error)
{
	ClerkJsonError json_error;
	const char *unreadable;

	if (!was_accepted(request, effect, error))
		return false;
	unreadable = read_one(request, invitation, &json_error);
	if (unreadable == NULL)
		return true;
	*error = clerk_error_unreadable(request, effect, unreadable,
									id_for_error(request));
	if (json_error == CLERK_JSON_UNTRANSLATABLE)
		(*error)->sqlstate = ERRCODE_UNTRANSLATABLE_CHARACTER;
	return false;
}

/*
 * Reads the invitation that an answer consists of.  Returns what is wrong with
 * it, NULL if nothing.
 */
static const char *
read_one(const ClerkHttpRequest *request, ClerkInvitation *invitation,
		 ClerkJsonError *json_error)
{
	ClerkInvitationList list = {.count = 1,.invitations = invitation};
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	const char *json = clerk_json_from_wire(body, length, json_error);
	const char *unreadable;

	if (json == NULL)
		return clerk_json_error_text(*json_error);
	unreadable = clerk_read_invitation(json, strlen(json), invitation, json_error);
	return unreadable != NULL ? unreadable : check_ids(request, &list);
}

/* Whether the IDs of what was created can be quoted; if not, says so. */
static const char *
check_ids(const ClerkHttpRequest *request, const ClerkInvitationList *list)
{
	for (int i = 0; i < list->count; i++)
		if (!is_quotable(request, clerk_invitation_text(&list->invitations[i],
														CLERK_INVITATION_ID)))
			return "\"id\" is not an identifier";
	return NULL;
}

/*
 * Reads the invitations that an answer lists.  Returns what is wrong with it,
 * NULL if nothing.
 */
static const char *
read_listed(const ClerkHttpRequest *request, ClerkInvitationList *list,
			ClerkJsonError *json_error)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	const char *text = clerk_json_from_wire(body, length, json_error);
	const char *unreadable = NULL;

	list->legible = true;
	if (text != NULL)
		unreadable = clerk_read_invitation_list(text, list, json_error);
	if (*json_error == CLERK_JSON_UNTRANSLATABLE)
	{
		list->legible = false;
		text = clerk_json_from_wire_lossy(body, length);
		unreadable = clerk_read_invitation_list(text, list, json_error);
	}
	return text == NULL ? clerk_json_error_text(*json_error) : unreadable;
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

/* Whether an invitation's id may appear in messages: see sql/rollback_warning.c. */
static bool
is_quotable(const ClerkHttpRequest *request, const char *id)
{
	return clerk_is_identifier(id) &&
		strstr(id, clerk_http_bearer_token(request)) == NULL;
}
