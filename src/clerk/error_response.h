/*
 * error_response.h
 *		Reads an error response.
 */
#ifndef CLERK_ERROR_RESPONSE_H
#define CLERK_ERROR_RESPONSE_H

#include "clerk/error.h"
#include "http/http.h"

extern void clerk_error_read_response(const ClerkHttpRequest *request,
									  ClerkError *error);
extern char *clerk_error_trace_id(const ClerkHttpRequest *request);
extern char *clerk_error_describe(const ClerkHttpRequest *request,
								  const ClerkError *error);

#endif							/* CLERK_ERROR_RESPONSE_H */
