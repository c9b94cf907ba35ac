/*
 * await_request.h
 *		Waits for requests to Clerk within a user's statement.
 */
#ifndef CLERK_AWAIT_REQUEST_H
#define CLERK_AWAIT_REQUEST_H

#include "clerk/error.h"
#include "http/http.h"

extern void clerk_await(ClerkHttpRequest *request, ClerkEffect effect);
extern void clerk_await_any(ClerkHttpRequest *const *requests, int count,
							ClerkEffect effect);

#endif							/* CLERK_AWAIT_REQUEST_H */
