/*
 * request_url.c
 *		The URL of a request, as libcurl has parsed it.
 *
 * If a transfer has its URL as text, libcurl parses it and composes it again,
 * which takes a sixth of the instructions of a whole request.  The requests of
 * a process differ in the path only, so the rest is parsed once.
 *
 * The rules at the head of http/event_loop.c apply: nothing may raise an
 * error, and memory comes from malloc().
 */
#include "postgres.h"

#include "http/request_url.h"

/* Characters of a path that libcurl does not normalize. */
#define PLAIN_CHARACTERS \
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-/"

static bool set_all(ClerkRequestUrl *url, const char *text, size_t origin_length);
static bool is_plain(const char *path);

/*
 * Sets the URL of an easy handle's next transfer to "text", which must be a
 * URL that clerk_url_error() accepts.  The handle must not be used after *url
 * has been freed.
 *
 * Returns false if memory has run out or libcurl does not accept the URL.
 */
bool
clerk_request_url_set(ClerkRequestUrl *url, CURL *easy, const char *text)
{
	const char *host = strstr(text, "://") + 3;
	size_t		origin_length = host - text + strcspn(host, "/?#");
	const char *path = text + origin_length;

	if (url->origin != NULL && strlen(url->origin) == origin_length &&
		memcmp(url->origin, text, origin_length) == 0 && is_plain(path))
	{
		if (curl_url_set(url->parsed, CURLUPART_PATH, path, 0) != CURLUE_OK)
			return false;
	}
	else if (!set_all(url, text, origin_length))
		return false;

	/*
	 * CURLOPT_CURLU takes precedence, but without CURLOPT_URL some versions
	 * of libcurl compose the text.
	 */
	return curl_easy_setopt(easy, CURLOPT_URL, text) == CURLE_OK &&
		curl_easy_setopt(easy, CURLOPT_CURLU, url->parsed) == CURLE_OK;
}

/* Frees what *url contains. */
void
clerk_request_url_free(ClerkRequestUrl *url)
{
	curl_url_cleanup(url->parsed);
	free(url->origin);
	url->parsed = NULL;
	url->origin = NULL;
}

/*
 * Parses the whole URL.  The origin is remembered if the rest is only a path,
 * so that another path can replace it.
 */
static bool
set_all(ClerkRequestUrl *url, const char *text, size_t origin_length)
{
	free(url->origin);
	url->origin = NULL;
	if (url->parsed == NULL)
		url->parsed = curl_url();
	if (url->parsed == NULL ||
		curl_url_set(url->parsed, CURLUPART_URL, text, 0) != CURLUE_OK)
		return false;
	if (is_plain(text + origin_length))
		url->origin = strndup(text, origin_length);
	return true;
}

static bool
is_plain(const char *path)
{
	return path[0] == '/' && path[strspn(path, PLAIN_CHARACTERS)] == '\0';
}
