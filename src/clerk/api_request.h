/*
 * api_request.h
 *		Starts requests to Clerk's API: adds its URL, the secret key and the
 *		headers that it expects.
 */
#ifndef CLERK_API_REQUEST_H
#define CLERK_API_REQUEST_H

#include "clerk/error.h"
#include "clerk/reservation.h"
#include "http/http.h"

extern bool clerk_chosen_instance(uint64 *instance, ClerkError **error);
extern uint64 clerk_request_instance(const ClerkHttpRequest *request);
extern ClerkHttpRequest *clerk_start_request(const char *path, char *body,
											 ClerkReservation *reservation,
											 ClerkError **error);

#endif							/* CLERK_API_REQUEST_H */
