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
								 * only checks whether that has changed */
	ClerkWorkerSchedule schedule;
	ClerkWorkerHandover handover;	/* to a process that waits without a
									 * connection; latest is 0 if this one
									 * must stay */
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* empty if none */
} ClerkWorkerPass;

extern void clerk_worker_continue(const ClerkWorkerEntry *entry);
extern void clerk_worker_run_pass(ClerkWorkerPass *result);

#endif							/* CLERK_WORKER_PASS_H */
