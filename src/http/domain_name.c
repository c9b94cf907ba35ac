/*
 * domain_name.c
 *		Conversion of internationalized domain names.
 *
 * libcurl converts a name to its ASCII form (IDNA), as it does for the host of
 * a URL.  This file calls only libcurl's URL functions, which open no socket,
 * start no thread and need no curl_global_init().
 */
#include "postgres.h"

#include <curl/curl.h>
#include <signal.h>

#include "compat.h"
#include "http/domain_name.h"

static bool convert(const char *domain, char *ascii);

/*
 * Converts a domain name from UTF-8 to the ASCII form that the DNS uses, such
 * as "xn--bcher-kva.example".
 *
 * Stores the result in "ascii", a buffer of CLERK_DOMAIN_MAX + 1 bytes.
 * Returns false if the name has no such form, or if this libcurl was built
 * without IDN support.  Raises no error.
 *
 * libcurl takes the name to be in the encoding of the current locale, whatever
 * the encoding of the database is.  "utf8_locale" is therefore a locale with
 * the encoding UTF-8, or 0 if the system has none.
 *
 * The rules for entering libcurl are those of http/event_loop.c.
 */
bool
clerk_domain_to_ascii(const char *domain, locale_t utf8_locale, char *ascii)
{
	locale_t	caller_locale = (locale_t) 0;
	sigset_t	all_signals;
	sigset_t	saved_signals;
	bool		converted;

	sigfillset(&all_signals);
	pthread_sigmask(SIG_SETMASK, &all_signals, &saved_signals);
	if (utf8_locale != (locale_t) 0)
		caller_locale = uselocale(utf8_locale);
	converted = convert(domain, ascii);
	if (utf8_locale != (locale_t) 0)
		uselocale(caller_locale);
	pthread_sigmask(SIG_SETMASK, &saved_signals, NULL);
	return converted;
}

/* Runs inside libcurl's rules: no palloc(), no elog(). */
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
		/*
		 * libcurl before 7.88 ignores the flag and returns the name
		 * unchanged.
		 */
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
