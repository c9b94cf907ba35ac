/*
 * request_accounting.h
 *		What a finished request means for Clerk's rate limits.
 */
#ifndef CLERK_REQUEST_ACCOUNTING_H
#define CLERK_REQUEST_ACCOUNTING_H

#include "clerk/reservation.h"
#include "http/http.h"

extern void clerk_settle_reservation(const ClerkHttpRequest *request,
									 ClerkReservation *reservation);
extern void clerk_note_list_limit(const ClerkHttpRequest *request);

#endif							/* CLERK_REQUEST_ACCOUNTING_H */
