/*
 * header_list.h
 *		The header lines of a request.
 *
 * Only the files of http/ include this header, since it exposes libcurl's
 * types.  Callers of these functions must obey the rules of event_loop.c.
 */
#ifndef CLERK_HEADER_LIST_H
#define CLERK_HEADER_LIST_H

#include <curl/curl.h>

#include "http/http_spec.h"

/*
 * Header lines, which nearly all requests of a process share.  Only
 * header_list.c modifies it.
 */
typedef struct ClerkHeaderList
{
	int			users;			/* requests that use it, and header_list.c */
	struct curl_slist *lines;	/* the first is Authorization */
} ClerkHeaderList;

extern ClerkHeaderList *clerk_header_list_share(const ClerkHttpSpec *spec);
extern void clerk_header_list_release(ClerkHeaderList *headers);
extern const char *clerk_header_list_bearer_token(const ClerkHeaderList *headers);

#endif							/* CLERK_HEADER_LIST_H */
