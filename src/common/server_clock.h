/*
 * server_clock.h
 *		A monotonic clock for times that are stored in a table.
 */
#ifndef CLERK_SERVER_CLOCK_H
#define CLERK_SERVER_CLOCK_H

extern int64 clerk_server_clock(void);
extern int64 clerk_server_clock_elapsed(int64 then, int64 now);

#endif							/* CLERK_SERVER_CLOCK_H */
