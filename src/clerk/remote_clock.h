/*
 * remote_clock.h
 *		Clerk's clock, as its responses show it.
 */
#ifndef CLERK_REMOTE_CLOCK_H
#define CLERK_REMOTE_CLOCK_H

#include "datatype/timestamp.h"
#include "http/http.h"

extern void clerk_remote_clock_request_memory(void);
extern void clerk_remote_clock_note(const ClerkHttpRequest *request);
extern TimestampTz clerk_remote_clock_now(void);

#endif							/* CLERK_REMOTE_CLOCK_H */
