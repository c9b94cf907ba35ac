/*
 * remote_clock.h
 *		Clerk's clock, as its responses show it.
 */
#ifndef CLERK_REMOTE_CLOCK_H
#define CLERK_REMOTE_CLOCK_H

#include "datatype/timestamp.h"
#include "http/http.h"

/*
 * Settings of a clock that are remembered.  Clocks of servers are hardly ever
 * set; more would not fit into the file.
 */
#define CLERK_CLOCK_SETTINGS 6

extern void clerk_remote_clock_request_memory(void);
extern void clerk_remote_clock_note(const ClerkHttpRequest *request);
extern TimestampTz clerk_remote_clock_now(void);
extern int	clerk_remote_clock_settings(int64 elapsed, TimestampTz *times);

#endif							/* CLERK_REMOTE_CLOCK_H */
