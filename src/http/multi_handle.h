/*
 * multi_handle.h
 *		libcurl's multi handle, with the connections of a process.
 */
#ifndef CLERK_MULTI_HANDLE_H
#define CLERK_MULTI_HANDLE_H

#include <curl/curl.h>

#include "http/socket_set.h"

/* A multi handle, and what libcurl wants to be called for. */
typedef struct ClerkMultiHandle
{
	CURLM	   *handle;			/* NULL until needed, and after it was
								 * discarded */
	ClerkSocketSet sockets;
	int64		timer_due;		/* when libcurl's timer expires, or
								 * CLERK_NEVER */
} ClerkMultiHandle;

extern void clerk_multi_init(ClerkMultiHandle *multi);
extern bool clerk_multi_add(ClerkMultiHandle *multi, CURL *easy);
extern CURLMcode clerk_multi_drive(ClerkMultiHandle *multi,
								   const WaitEvent *ready, int count);
extern bool clerk_multi_may_use_closed_connection(const ClerkMultiHandle *multi);
extern void clerk_multi_discard(ClerkMultiHandle *multi);

#endif							/* CLERK_MULTI_HANDLE_H */
