/*
 * commit_wait.h
 *		What the commits of a sender wait for.
 */
#ifndef CLERK_COMMIT_WAIT_H
#define CLERK_COMMIT_WAIT_H

extern void clerk_commit_waits(void);
extern bool clerk_commit_is_safe(void);
extern void clerk_commit_does_not_wait(void);

#endif							/* CLERK_COMMIT_WAIT_H */
