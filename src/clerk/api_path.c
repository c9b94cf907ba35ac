/*
 * api_path.c
 *		Forms the paths of requests to Clerk, below the API's URL.
 *
 * If a path cannot be formed, the result is NULL and the reason is in *error
 * (22021).
 */
#include "postgres.h"

#include <ctype.h>

#include "clerk/api_path.h"
#include "clerk/json_encoding.h"
#include "lib/stringinfo.h"

/* Clerk's have at most 34 characters.  The limit only keeps messages short. */
#define MAX_IDENTIFIER_LENGTH 255

static char *list_query(const ClerkListing *listing, ClerkError **error);
static bool append_parameter(StringInfo query, const char *name,
							 const char *value);
static char *query_value(const char *text);

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
 * Returns the path of an organization's invitations, followed by "rest"; NULL
 * and *error if the ID is not an identifier.
 */
char *
clerk_invitations_path(const char *organization_id, const char *rest,
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
char *
clerk_invitation_path(const char *organization_id, const char *invitation_id,
					  const char *rest, ClerkError **error)
{
	if (clerk_is_identifier(invitation_id))
		return clerk_invitations_path(organization_id,
									  psprintf("/%s%s", invitation_id, rest), error);
	*error = clerk_error_unsendable("the invitation ID is not a Clerk identifier");
	return NULL;
}

/*
 * Returns the path of a list of invitations with its query; NULL and *error if
 * the ID is not an identifier, or a value cannot be converted to UTF-8.
 */
char *
clerk_list_path(const ClerkListing *listing, ClerkError **error)
{
	char	   *query = list_query(listing, error);

	if (query == NULL)
		return NULL;
	if (listing->organization_id == NULL)
		return psprintf("/organization_invitations%s", query);
	return clerk_invitations_path(listing->organization_id, query, error);
}

/*
 * Returns the query part of a list's URL; NULL and *error if a value cannot be
 * converted to UTF-8.
 */
static char *
list_query(const ClerkListing *listing, ClerkError **error)
{
	StringInfoData query;

	initStringInfo(&query);
	appendStringInfo(&query, "?limit=%d", listing->limit);
	if (listing->offset > 0)
		appendStringInfo(&query, "&offset=" INT64_FORMAT, listing->offset);
	if (listing->oldest_first)
		appendStringInfoString(&query, "&order_by=%2Bcreated_at");
	if (append_parameter(&query, "email_address", listing->email_address) &&
		append_parameter(&query, "query", listing->query) &&
		append_parameter(&query, "status", listing->status))
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
