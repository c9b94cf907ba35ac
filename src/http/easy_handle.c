/*
 * easy_handle.c
 *		libcurl's easy handles, and the options that are the same for all
 *		requests.
 *
 * An easy handle keeps its options.  So one whose transfer has run to its end
 * is kept for another transfer, which sets only what differs.
 *
 * The rules at the head of http/event_loop.c apply: nothing may raise an
 * error, and memory comes from malloc().
 */
#include "postgres.h"

#include <curl/curl.h>

#include "compat.h"
#include "http/easy_handle.h"

/*
 * Idle easy handles that are kept for reuse.  A session's successive calls
 * need one, and a sender has about ten requests running.
 */
#define MAX_IDLE_HANDLES 16

/* State that is kept from one transfer to the next. */
static struct
{
	bool		waits_for_lookups;	/* libcurl waits for lookups: rule 3 in
									 * http/transfer.c applies */
	ClerkEasyHandle idle[MAX_IDLE_HANDLES];
	int			idle_count;
	char		ca_file[MAXPGPATH]; /* what is set in all handles */
	uint32		generation;		/* number of times that ca_file has changed */
}			cache;

static void free_handle(ClerkEasyHandle *handle);
static bool set_permanent_options(CURL *easy, const char *ca_file);
static bool set_resolver_options(CURL *easy);

/*
 * Takes an idle easy handle, or creates one and sets the options that never
 * change.  Sets "created" to whether it is new, so that the caller has to set
 * those of its own options that never change.
 *
 * Returns false if memory has run out or libcurl lacks an option.  The caller
 * then drops the handle if there is one.
 *
 * The CA file is one of these options, because libcurl's default cannot be
 * restored once it has been replaced.  When the CA file changes, the handles
 * are freed.
 */
bool
clerk_easy_handle_take(ClerkEasyHandle *handle, const char *ca_file,
					   bool *created)
{
	if (strcmp(cache.ca_file, ca_file) != 0)
	{
		while (cache.idle_count > 0)
			free_handle(&cache.idle[--cache.idle_count]);
		strlcpy(cache.ca_file, ca_file, sizeof(cache.ca_file));
		cache.generation++;
	}
	*created = cache.idle_count == 0;
	if (!*created)
	{
		*handle = cache.idle[--cache.idle_count];
		return true;
	}
	memset(handle, 0, sizeof(*handle));
	handle->generation = cache.generation;
	handle->easy = curl_easy_init();
	return handle->easy != NULL &&
		set_permanent_options(handle->easy, ca_file);
}

/*
 * Releases an easy handle: keeps it for another transfer if "reuse" is true and
 * there is room, or else frees it.
 */
void
clerk_easy_handle_drop(ClerkEasyHandle *handle, bool reuse)
{
	if (reuse && handle->generation == cache.generation &&
		cache.idle_count < MAX_IDLE_HANDLES)
	{
		/* The handle may outlive the buffer. */
		curl_easy_setopt(handle->easy, CURLOPT_ERRORBUFFER, NULL);
		cache.idle[cache.idle_count++] = *handle;
		memset(handle, 0, sizeof(*handle));
	}
	else
		free_handle(handle);
}

/*
 * Leaves the easy handle to a multi handle that is using it, and frees the
 * rest.
 */
void
clerk_easy_handle_abandon(ClerkEasyHandle *handle)
{
	curl_easy_setopt(handle->easy, CURLOPT_CURLU, NULL);
	handle->easy = NULL;
	clerk_request_url_free(&handle->url);
}

static void
free_handle(ClerkEasyHandle *handle)
{
	curl_easy_cleanup(handle->easy);
	handle->easy = NULL;
	clerk_request_url_free(&handle->url);
}

/*
 * Whether libcurl waits for name lookups, so that rule 3 in http/transfer.c
 * applies.  It is known once a handle has been taken.
 */
bool
clerk_easy_handle_waits_for_lookups(void)
{
	return cache.waits_for_lookups;
}

/* An option's value is a long or a pointer. */
#define SET(option, value) \
	(curl_easy_setopt(easy, (option), (value)) == CURLE_OK)

/*
 * Sets the options that are the same for all requests.  Some of them are
 * libcurl's defaults, but security depends on them: the certificate and its
 * name are verified, and redirects are not followed.
 *
 * A CA file also replaces the system's CA directory, which not every TLS
 * library supports.  Setting CURLOPT_NOPROXY keeps libcurl from reading the
 * environment variable no_proxy.
 */
static bool
set_permanent_options(CURL *easy, const char *ca_file)
{
	return SET(CURLOPT_SSL_VERIFYPEER, 1L) &&
		SET(CURLOPT_SSL_VERIFYHOST, 2L) &&
		SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2) &&
		(ca_file[0] == '\0' ||
		 (SET(CURLOPT_CAINFO, ca_file) && (SET(CURLOPT_CAPATH, NULL) || true))) &&
		SET(CURLOPT_FOLLOWLOCATION, 0L) &&
		clerk_set_protocols(easy) == CURLE_OK &&
		SET(CURLOPT_NOPROXY, "") &&
		SET(CURLOPT_NOSIGNAL, 1L) &&
		set_resolver_options(easy);
}

/*
 * Rule 3 in http/transfer.c.  The DNS cache is disabled where libcurl waits for
 * lookups: a transfer could use a cached address while its own lookup hangs,
 * and libcurl would wait for that lookup at the end of the transfer.
 */
static bool
set_resolver_options(CURL *easy)
{
	cache.waits_for_lookups = !clerk_set_quick_exit(easy);

	return !cache.waits_for_lookups || SET(CURLOPT_DNS_CACHE_TIMEOUT, 0L);
}
