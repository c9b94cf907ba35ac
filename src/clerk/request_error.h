/*
 * request_error.h
 *		Why a finished request has failed.
 */
#ifndef CLERK_REQUEST_ERROR_H
#define CLERK_REQUEST_ERROR_H

#include "clerk/error.h"
#include "http/http.h"

extern ClerkError *clerk_error_from_request(const ClerkHttpRequest *request,
											ClerkEffect effect);
extern ClerkError *clerk_error_unreadable(const ClerkHttpRequest *request,
										  ClerkEffect effect,
										  const char *reason, const char *id);

#endif							/* CLERK_REQUEST_ERROR_H */
