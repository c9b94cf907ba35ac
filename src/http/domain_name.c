/*
 * domain_name.c
 *		Names of Internet domains.
 *
 * The form of an internationalized name in the DNS, IDNA's, is left to libcurl,
 * which needs it for the hosts of URLs.  Only its functions for URLs are called
 * here, which open nothing, start nothing, and need no preparation.
 */
#include "postgres.h"

#include <curl/curl.h>
#include <signal.h>

#include "compat.h"
#include "http/domain_name.h"

static bool convert(const char *domain, char *ascii);

/*
 * Stores the form in ASCII of a name in UTF-8, "xn--bcher-kva.example" for
 * that of the bookshop, in a buffer of CLERK_DOMAIN_MAX + 1 bytes.  False if it
 * has none, or if libcurl was built without this ability.
 *
 * libcurl takes the name to be in the encoding of the locale, whatever that of
 * the database is: "unicode" is one of UTF-8, or 0 if there is none.
 *
 * The rules of http/event_loop.c for entering libcurl hold.
 */
bool
clerk_domain_to_ascii(const char *domain, locale_t unicode, char *ascii)
{
	locale_t	caller = (locale_t) 0;
	sigset_t	all;
	sigset_t	saved;
	bool		converted;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved);
	if (unicode != (locale_t) 0)
		caller = uselocale(unicode);
	converted = convert(domain, ascii);
	if (unicode != (locale_t) 0)
		uselocale(caller);
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	return converted;
}

/* No palloc(), no elog(). */
static bool
convert(const char *domain, char *ascii)
{
	CURLU	   *url = curl_url();
	char	   *host = NULL;
	bool		converted = false;

	if (url == NULL)
		return false;
	if (curl_url_set(url, CURLUPART_HOST, domain, 0) == CURLUE_OK &&
		curl_url_get(url, CURLUPART_HOST, &host, CURLU_PUNYCODE) == CURLUE_OK)
	{
		/* A library that does not know the flag leaves the name as it is. */
		converted = strlen(host) <= CLERK_DOMAIN_MAX;
		for (const char *c = host; *c != '\0'; c++)
			if (IS_HIGHBIT_SET(*c))
				converted = false;
		if (converted)
			strcpy(ascii, host);
	}
	curl_free(host);
	curl_url_cleanup(url);
	return converted;
}
