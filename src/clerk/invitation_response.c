/*
 * invitation_response.c
 *		Reads responses that consist of invitations.
 *
 * The functions return false and the reason in *error unless Clerk reports
 * success and its response can be read.  "effect" is what the request changes
 * at Clerk.  The request must be finished.
 */
#include "postgres.h"

#include "clerk/api_path.h"
#include "clerk/invitation_response.h"
#include "clerk/json_reader.h"
#include "clerk/request_error.h"

static bool was_accepted(const ClerkHttpRequest *request, ClerkEffect effect,
						 ClerkError **error);
static const char *read_single(const ClerkHttpRequest *request,
							   ClerkInvitation *invitation,
							   ClerkJsonError *json_error);
static const char *read_list(const ClerkHttpRequest *request,
							 ClerkInvitationList *list,
							 ClerkJsonError *json_error);
static const char *check_ids(const ClerkHttpRequest *request,
							 const ClerkInvitationList *list);
static const char *find_quotable_id(const ClerkHttpRequest *request);
static bool is_quotable(const ClerkHttpRequest *request, const char *id);

/* Reads the response to an operation on one invitation. */
bool
clerk_read_single_response(const ClerkHttpRequest *request, ClerkEffect effect,
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
 * Reads the response to an operation on several invitations.  If it has
 * created them, their IDs must be quotable.
 */
bool
clerk_read_list_response(const ClerkHttpRequest *request, ClerkEffect effect,
						 ClerkInvitationList *list, ClerkError **error)
{
	ClerkJsonError json_error;
	const char *unreadable;

	if (!was_accepted(request, effect, error))
		return false;
	unreadable = read_list(request, list, &json_error);
	if (unreadable == NULL && effect != CLERK_EFFECT_NONE)
		unreadable = check_ids(request, list);
	if (unreadable == NULL)
		return true;
	*error = clerk_error_unreadable(request, effect, unreadable, NULL);
	return false;
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
