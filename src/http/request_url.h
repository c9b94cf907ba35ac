/*
 * request_url.h
 *		The URL of a request, as libcurl has parsed it.
 *
 * Only the files of http/ include this header, since it exposes libcurl's
 * types.  Callers of these functions must obey the rules of event_loop.c.
 */
#ifndef CLERK_REQUEST_URL_H
#define CLERK_REQUEST_URL_H

#include <curl/curl.h>

/* Zeroed before its first use.  Only request_url.c modifies it. */
typedef struct ClerkRequestUrl
{
	CURLU	   *parsed;
	char	   *origin;			/* its scheme, host and port; malloc'd */
} ClerkRequestUrl;

extern bool clerk_request_url_set(ClerkRequestUrl *url, CURL *easy,
								  const char *text);
extern void clerk_request_url_free(ClerkRequestUrl *url);

#endif							/* CLERK_REQUEST_URL_H */
