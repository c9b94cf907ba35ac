/*
 * clock_setback.h
 *		Whether the wall clock was set back between two passes.
 */
#ifndef CLERK_CLOCK_SETBACK_H
#define CLERK_CLOCK_SETBACK_H

extern bool clerk_clock_was_set_back(void);
extern int64 clerk_clock_difference(void);
extern void clerk_clock_expect_difference(int64 difference);

#endif							/* CLERK_CLOCK_SETBACK_H */
