/*
 * easy_handle.h
 *		libcurl's easy handles, each of which makes one transfer at a time.
 *
 * Only the files of http/ include this header, since it exposes libcurl's
 * types.  Callers of these functions must obey the rules of event_loop.c.
 */
#ifndef CLERK_EASY_HANDLE_H
#define CLERK_EASY_HANDLE_H

#include <curl/curl.h>

#include "http/request_url.h"

/* An easy handle that a transfer has taken. */
typedef struct ClerkEasyHandle
{
	CURL	   *easy;			/* NULL once the transfer has ended */
	ClerkRequestUrl url;
	uint32		generation;		/* changes of the CA file until it was created */
} ClerkEasyHandle;

extern bool clerk_easy_handle_take(ClerkEasyHandle *handle,
								   const char *ca_file, bool *created);
extern void clerk_easy_handle_abandon(ClerkEasyHandle *handle);
extern void clerk_easy_handle_drop(ClerkEasyHandle *handle, bool reuse);
extern bool clerk_easy_handle_waits_for_lookups(void);

#endif							/* CLERK_EASY_HANDLE_H */
