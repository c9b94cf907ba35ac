/*
 * operations.c
 *		Clerk's operations on organization invitations: forms requests and
 *		reads responses.
 *
 * Follows the documentation of Clerk's Backend API, version 2026-05-12.
 *
 * The functions that start a request return NULL and the reason in *error if
 * the request cannot be formed; nothing was sent then.  The reasons are no
 * usable secret key or API URL (55000), an argument that is not a Clerk
 * identifier (22021), and text that cannot be converted to UTF-8 (22021).
 * Otherwise they return a request as clerk_http_start() does, and raise the
 * errors that it raises.
 *
 * The functions that read the response return false and the reason in *error
 * unless Clerk reports success and its response can be read.  The request must
 * be finished.
 */
#include "postgres.h"

#include <ctype.h>

#include "clerk/json_reader.h"
#include "clerk/operations.h"
#include "clerk/rate_limit.h"
#include "clerk/request_error.h"
#include "common/settings.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#define USER_AGENT \
	"clerk_invite/" CLERK_INVITE_VERSION " PostgreSQL/" PG_VERSION

/* Clerk's have at most 34 characters.  The limit only keeps messages short. */
#define MAX_IDENTIFIER_LENGTH 255

/* Header lines of a request, and the terminating NULL. */
#define MAX_HEADERS 5

#define HTTP_TOO_MANY_REQUESTS 429

/*
 * Seconds for which an endpoint is closed after a 429 without a Retry-After
 * header.  If Clerk counts refused requests, this makes only a few of them per
 * hour; and it is short in comparison to the hour that the limit may last.
 */
#define DEFAULT_RETRY_AFTER 60

/*
 * Upper limit for Retry-After, in seconds.  Clerk's longest rate limit window
 * is an hour, so a value above a day is not credible.
 */
#define MAX_RETRY_AFTER SECS_PER_DAY

static ClerkHttpRequest *start_request(const char *path, char *body,
									   ClerkReservation *reservation,
									   ClerkError **error);
static size_t base_url_length(void);
static char *endpoint_url(const char *path);
static void settle_reservation(const ClerkHttpRequest *request,
							   ClerkReservation *reservation);
static void note_rate_limit(const ClerkHttpRequest *request, uint64 instance,
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
static bool finish_single(const ClerkHttpRequest *request, ClerkEffect effect,
						  ClerkInvitation *invitation, ClerkError **error);
static const char *read_single(const ClerkHttpRequest *request,
							   ClerkInvitation *invitation,
							   ClerkJsonError *json_error);
static const char *check_ids(const ClerkHttpRequest *request,
							 const ClerkInvitationList *list);
static const char *read_list(const ClerkHttpRequest *request,
							 ClerkInvitationList *list,
							 ClerkJsonError *json_error);
static bool is_quotable(const ClerkHttpRequest *request, const char *id);
static const char *find_quotable_id(const ClerkHttpRequest *request);

/*
 * Whether a text has the form of a Clerk identifier, and so can be a segment
 * of a URL's path.  Clerk's own identifiers consist of letters, digits and
 * underscores.  Hyphens are allowed, too, but no character that could end the
 * segment or form "..".
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
 * Stores in *instance the Clerk instance that requests currently go to, by
 * which the rate limit's budgets are identified.  Returns false and the reason
 * in *error if there is no usable secret key (55000).
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
 * Starts CreateOrganizationInvitation: POST /organizations/{org}/invitations.
 *
 * Starts the reservation.  See the head of this file for the result and
 * errors.  Raises 53200 if the rate limit's shared memory is not available.
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
 * Reads the response to CreateOrganizationInvitation into "created", and
 * settles the reservation.  See the head of this file for the result and
 * errors.
 */
bool
clerk_finish_create_invitation(const ClerkHttpRequest *request,
							   ClerkReservation *reservation,
							   ClerkInvitation *created, ClerkError **error)
{
	settle_reservation(request, reservation);
	return finish_single(request, CLERK_EFFECT_CREATES, created, error);
}

/*
 * Starts CreateOrganizationInvitationBulk: POST
 * /organizations/{org}/invitations/bulk.
 *
 * The "count" invitations, 1 to 10, must be for the same organization and must
 * not have an address in common.  Starts the reservation.  See the head of
 * this file for the result and errors.  Raises 53200 if the rate limit's
 * shared memory is not available.
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
 * Reads the response to CreateOrganizationInvitationBulk into "created", and
 * settles the reservation.  The invitations may be in any order.  If the
 * result is false, none was created, unless the error's class is
 * CLERK_ERROR_OUTCOME_UNKNOWN.
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
	unreadable = read_list(request, created, &json_error);
	if (unreadable == NULL)
		unreadable = check_ids(request, created);
	if (unreadable == NULL)
		return true;
	*error = clerk_error_unreadable(request, CLERK_EFFECT_CREATES_SEVERAL, unreadable,
									NULL);
	return false;
}

/*
 * Starts GetOrganizationInvitation: GET /organizations/{org}/invitations/{id}.
 * See the head of this file for the result and errors.
 */
ClerkHttpRequest *
clerk_start_get_invitation(const char *organization_id,
						   const char *invitation_id, ClerkError **error)
{
	char	   *path = invitation_path(organization_id, invitation_id, "", error);

	return path == NULL ? NULL : start_request(path, NULL, NULL, error);
}

/*
 * Reads the response to GetOrganizationInvitation into "invitation".  See the
 * head of this file for the result and errors.
 */
bool
clerk_finish_get_invitation(const ClerkHttpRequest *request,
							ClerkInvitation *invitation, ClerkError **error)
{
	return finish_single(request, CLERK_EFFECT_NONE, invitation, error);
}

/*
 * Starts RevokeOrganizationInvitation: POST
 * /organizations/{org}/invitations/{id}/revoke.  "requesting_user" is a Clerk
 * user ID, or NULL.  See the head of this file for the result and errors.
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

/*
 * Reads the response to RevokeOrganizationInvitation into "revoked".  See the
 * head of this file for the result and errors.
 */
bool
clerk_finish_revoke_invitation(const ClerkHttpRequest *request,
							   ClerkInvitation *revoked, ClerkError **error)
{
	return finish_single(request, CLERK_EFFECT_REVOKES, revoked, error);
}

/*
 * Starts ListOrganizationInvitations: GET /organizations/{org}/invitations.
 * If listing->organization_id is NULL, starts
 * ListInstanceOrganizationInvitations instead: GET /organization_invitations.
 * See the head of this file for the result and errors.
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

/*
 * Reads the response to clerk_start_list_invitations() into "list".  See the
 * head of this file for the result and errors.  A 429 closes the endpoint
 * CLERK_ENDPOINT_LIST for lists of an organization.
 */
bool
clerk_finish_list_invitations(const ClerkHttpRequest *request,
							  const ClerkListing *listing,
							  ClerkInvitationList *list, ClerkError **error)
{
	ClerkJsonError json_error;
	const char *unreadable;
	uint64		instance;

	/*
	 * A 429 to the list of the whole instance is not recorded, since nobody
	 * asks when that list is available again.  A request that was never sent
	 * has no key, but it has no HTTP status either.
	 */
	if (listing->organization_id != NULL &&
		clerk_http_status(request) == HTTP_TOO_MANY_REQUESTS)
	{
		instance = clerk_rate_limit_instance(clerk_api_url, base_url_length(),
											 clerk_http_bearer_token(request));
		note_rate_limit(request, instance, CLERK_ENDPOINT_LIST);
	}
	if (!was_accepted(request, CLERK_EFFECT_NONE, error))
		return false;
	unreadable = read_list(request, list, &json_error);
	if (unreadable == NULL)
		return true;
	*error = clerk_error_unreadable(request, CLERK_EFFECT_NONE, unreadable, NULL);
	return false;
}

/*
 * Returns the path of an organization's invitations, followed by "rest"; NULL
 * and *error if the ID is not an identifier.
 */
static char *
invitations_path(const char *organization_id, const char *rest,
				 ClerkError **error)
{
	if (clerk_is_identifier(organization_id))
		return psprintf("/organizations/%s/invitations%s", organization_id, rest);
	*error = clerk_error_unsendable("the organization ID is not a Clerk identifier");
	return NULL;
}

/*
 * Returns the path of an invitation, followed by "rest"; NULL and *error if an
 * ID is not an identifier.
 */
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

/*
 * Returns the query part of a list's URL; NULL and *error if a value cannot be
 * converted to UTF-8.
 */
static char *
list_query(const ClerkListing *listing, ClerkError **error)
{
	StringInfoData query;
	ListCell   *cell;
	bool		valid;

	initStringInfo(&query);
	appendStringInfo(&query, "?limit=%d", listing->limit);
	if (listing->offset > 0)
		appendStringInfo(&query, "&offset=" INT64_FORMAT, listing->offset);
	if (listing->oldest_first)
		appendStringInfoString(&query, "&order_by=%2Bcreated_at");
	valid = append_parameter(&query, "email_address",
							 listing->email_address) &&
		append_parameter(&query, "query", listing->query);
	foreach(cell, listing->statuses)
		valid = valid && append_parameter(&query, "status", lfirst(cell));
	if (valid)
		return query.data;
	*error = clerk_error_unsendable("the request cannot be encoded in a URL");
	return NULL;
}

/*
 * Appends a parameter unless the value is NULL.  Returns false if the value
 * cannot be converted to UTF-8.
 */
static bool
append_parameter(StringInfo query, const char *name, const char *value)
{
	char	   *encoded = value == NULL ? NULL : query_value(value);

	if (encoded != NULL)
		appendStringInfo(query, "&%s=%s", name, encoded);
	return value == NULL || encoded != NULL;
}

/* Whether Clerk reports success.  If not, *error is the reason. */
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
 * Starts a request to a path below the API's URL: a POST with "body", or a GET
 * if that is NULL.  "reservation" is NULL for requests that no budget counts.
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
		clerk_reservation_start(reservation);
	return clerk_http_start(&spec);
}

/* Length of the API's URL without "/v1" at its end, which is optional. */
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

/* Returns the URL of a path below the API's URL. */
static char *
endpoint_url(const char *path)
{
	return psprintf("%.*s/v1%s", (int) base_url_length(), clerk_api_url, path);
}

/* Settles the reservation according to how the request ended. */
static void
settle_reservation(const ClerkHttpRequest *request, ClerkReservation *reservation)
{
	switch (clerk_http_outcome(request))
	{
		case CLERK_HTTP_RUNNING:
			return;
		case CLERK_HTTP_COMPLETED:
			clerk_reservation_responded(reservation,
										clerk_http_response_time(request));
			note_rate_limit(request, reservation->instance,
							reservation->endpoint);
			return;
		case CLERK_HTTP_LOST:
			clerk_reservation_responded(reservation, GetCurrentTimestamp());
			return;
		case CLERK_HTTP_UNUSABLE:
		case CLERK_HTTP_NOT_SENT:
			clerk_reservation_not_sent(reservation);
			return;
	}
}

/*
 * After a 429, closes the endpoint for as long as Clerk's Retry-After header
 * says.
 */
static void
note_rate_limit(const ClerkHttpRequest *request, uint64 instance,
				ClerkEndpoint endpoint)
{
	int			seconds = clerk_http_retry_after(request);

	if (clerk_http_status(request) != HTTP_TOO_MANY_REQUESTS)
		return;
	if (seconds == 0)
		seconds = DEFAULT_RETRY_AFTER;
	seconds = Min(seconds, MAX_RETRY_AFTER);
	clerk_rate_limit_close(instance, endpoint, seconds);
}

/*
 * Returns a text as a percent-encoded value of a URL's query; NULL if it
 * cannot be converted to UTF-8.
 */
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

/* Reads the response to an operation on one invitation. */
static bool
finish_single(const ClerkHttpRequest *request, ClerkEffect effect,
			  ClerkInvitation *invitation, ClerkError **error)
{
	ClerkJsonError json_error;
	const char *unreadable;

	if (!was_accepted(request, effect, error))
		return false;
	unreadable = read_single(request, invitation, &json_error);
	if (unreadable == NULL)
		return true;
	*error = clerk_error_unreadable(request, effect, unreadable,
									find_quotable_id(request));
	if (json_error == CLERK_JSON_UNTRANSLATABLE)
		(*error)->sqlstate = ERRCODE_UNTRANSLATABLE_CHARACTER;
	return false;
}

/*
 * Reads the invitation that a response consists of.  Returns what is wrong as
 * a phrase, or NULL.
 */
static const char *
read_single(const ClerkHttpRequest *request, ClerkInvitation *invitation,
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

/*
 * Returns NULL if the IDs of all invitations may appear in messages, or else
 * what is wrong as a phrase.
 */
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
 * Reads the list of invitations in a response.  Returns what is wrong as a
 * phrase, or NULL.
 */
static const char *
read_list(const ClerkHttpRequest *request, ClerkInvitationList *list,
		  ClerkJsonError *json_error)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	const char *text = clerk_json_from_wire(body, length, json_error);
	const char *unreadable = NULL;

	list->lossless = true;
	if (text != NULL)
		unreadable = clerk_read_invitation_list(text, list, json_error);
	if (*json_error == CLERK_JSON_UNTRANSLATABLE)
	{
		list->lossless = false;
		text = clerk_json_from_wire_lossy(body, length);
		unreadable = clerk_read_invitation_list(text, list, json_error);
	}
	return text == NULL ? clerk_json_error_text(*json_error) : unreadable;
}

/*
 * Returns the ID in a response that cannot be read otherwise; NULL if there is
 * none.  A text that does not have the form of an identifier might be
 * anything, even a secret.
 */
static const char *
find_quotable_id(const ClerkHttpRequest *request)
{
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	Jsonb	   *response = clerk_json_parse_lossy(body, length);
	const char *id;

	if (response == NULL || !JB_ROOT_IS_OBJECT(response))
		return NULL;
	id = clerk_json_text_field(&response->root, "id");
	return id != NULL && is_quotable(request, id) ? id : NULL;
}

/*
 * Whether an invitation's ID may appear in messages (see
 * sql/rollback_warning.c): it must be an identifier, and must not contain the
 * secret key.
 */
static bool
is_quotable(const ClerkHttpRequest *request, const char *id)
{
	return clerk_is_identifier(id) &&
		strstr(id, clerk_http_bearer_token(request)) == NULL;
}
