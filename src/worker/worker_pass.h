/*
 * worker_pass.h
 *		One pass of the background worker, and when the next one begins.
 */
#ifndef CLERK_WORKER_PASS_H
#define CLERK_WORKER_PASS_H

#include "worker/slots.h"

/* The result of a pass, and when to begin the next one. */
typedef struct ClerkWorkerPass
{
	bool		nothing_left;	/* no open rows are left, so there is nothing
								 * to wait for */
	bool		prepared;		/* a prepared transaction may add rows */
	bool		library_outdated;	/* a process with a newer library must
									 * take over */
	bool		read_only;		/* settings that took effect when the process
								 * connected make its transactions read-only */
	bool		nothing_soon;	/* no row is due before the next pass, which
								 * only looks whether that has changed */
	ClerkWorkerSchedule schedule;
	ClerkWorkerSchedule handed_over;	/* for a process that waits without a
										 * connection; 0: the next pass is too
										 * near for that */
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* empty if none */
} ClerkWorkerPass;

extern void clerk_worker_expect_error(const char *error);
extern void clerk_worker_run_pass(ClerkWorkerPass *result);

#endif							/* CLERK_WORKER_PASS_H */
