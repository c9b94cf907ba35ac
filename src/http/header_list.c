/*
 * header_list.c
 *		The header lines of a request, shared by requests that have the same.
 *
 * The rules at the head of http/event_loop.c apply: nothing may raise an
 * error, and memory comes from malloc().
 */
#include "postgres.h"

#include <curl/curl.h>

#include "http/header_list.h"

#define AUTHORIZATION "Authorization: Bearer "

/* Longest bearer token; the settings accept no longer key. */
#define MAX_TOKEN_LENGTH 255

/* The last request's header lines; NULL before the first request. */
static ClerkHeaderList *last_headers;

static bool headers_match(const ClerkHeaderList *headers,
						  const ClerkHttpSpec *spec);
static ClerkHeaderList *build_headers(const ClerkHttpSpec *spec);

/*
 * Shares the last request's header lines if they are the same, or else builds
 * new ones.  Returns NULL if memory has run out.
 */
ClerkHeaderList *
clerk_header_list_share(const ClerkHttpSpec *spec)
{
	if (last_headers == NULL || !headers_match(last_headers, spec))
	{
		ClerkHeaderList *built = build_headers(spec);

		if (built == NULL)
			return NULL;
		if (last_headers != NULL)
			clerk_header_list_release(last_headers);
		last_headers = built;
	}
	last_headers->users++;
	return last_headers;
}

/* Ends one use of the header lines, and frees them after the last. */
void
clerk_header_list_release(ClerkHeaderList *headers)
{
	if (--headers->users > 0)
		return;
	curl_slist_free_all(headers->lines);
	free(headers);
}

/* The bearer token in the header lines. */
const char *
clerk_header_list_bearer_token(const ClerkHeaderList *headers)
{
	return headers->lines->data + strlen(AUTHORIZATION);
}

static bool
headers_match(const ClerkHeaderList *headers, const ClerkHttpSpec *spec)
{
	const struct curl_slist *line = headers->lines;
	const char *const *wanted = spec->headers;

	if (strcmp(line->data + strlen(AUTHORIZATION), spec->bearer_token) != 0)
		return false;
	line = line->next->next;
	while (line != NULL && *wanted != NULL && strcmp(line->data, *wanted) == 0)
	{
		line = line->next;
		wanted++;
	}
	return line == NULL && *wanted == NULL;
}

static ClerkHeaderList *
build_headers(const ClerkHttpSpec *spec)
{
	char		authorization[MAX_TOKEN_LENGTH + sizeof(AUTHORIZATION)];
	ClerkHeaderList *headers;
	bool		complete;

	if (strlen(spec->bearer_token) > MAX_TOKEN_LENGTH)
		return NULL;
	headers = calloc(1, sizeof(*headers));
	if (headers == NULL)
		return NULL;
	headers->users = 1;
	strcpy(authorization, AUTHORIZATION);
	strcat(authorization, spec->bearer_token);
	headers->lines = curl_slist_append(NULL, authorization);

	/*
	 * An empty Expect header keeps libcurl from sending "Expect:
	 * 100-continue" and waiting for the response to it before a large body.
	 */
	complete = headers->lines != NULL &&
		curl_slist_append(headers->lines, "Expect:") != NULL;
	for (const char *const *line = spec->headers; complete && *line != NULL; line++)
		complete = curl_slist_append(headers->lines, *line) != NULL;
	if (complete)
		return headers;
	clerk_header_list_release(headers);
	return NULL;
}
