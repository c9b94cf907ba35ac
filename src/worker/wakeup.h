/*
 * wakeup.h
 *		Leaves rows to the background worker.
 */
#ifndef CLERK_WAKEUP_H
#define CLERK_WAKEUP_H

extern void clerk_wakeup_begin_call(void);
extern void clerk_wakeup_end_call(bool rows_are_left);

#endif							/* CLERK_WAKEUP_H */
