/*
 * monotonic_clock.h
 *		A monotonic clock.
 */
#ifndef CLERK_MONOTONIC_CLOCK_H
#define CLERK_MONOTONIC_CLOCK_H

/* A time that never comes. */
#define CLERK_NEVER PG_INT64_MAX

extern int64 clerk_monotonic_microseconds(void);

#endif							/* CLERK_MONOTONIC_CLOCK_H */
