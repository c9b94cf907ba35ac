/*
 * monotonic_clock.h
 *		A monotonic clock.
 */
#ifndef CLERK_MONOTONIC_CLOCK_H
#define CLERK_MONOTONIC_CLOCK_H

extern int64 clerk_monotonic_microseconds(void);

#endif							/* CLERK_MONOTONIC_CLOCK_H */
