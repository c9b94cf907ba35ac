/*
 * slots.h
 *		Which databases have a background worker, in shared memory.
 *
 * A session that needs a worker calls clerk_worker_wake(), and starts the
 * worker if the result says so.  The worker enters a slot, then alternates
 * between passes and waits until clerk_worker_leave() returns true.  If it
 * exits in any other way, the slot remains reserved for the replacement that
 * the postmaster starts.
 */
#ifndef CLERK_SLOTS_H
#define CLERK_SLOTS_H

#include "datatype/timestamp.h"

/*
 * Size of the text, including its NUL, that says why a worker does not send.
 */
#define CLERK_WORKER_ERROR_SIZE 96

typedef enum ClerkWorkerState
{
	CLERK_WORKER_NONE,
	CLERK_WORKER_WANTED,		/* the server had no room: see launcher.c */
	CLERK_WORKER_STARTING,		/* requested, has not entered yet */
	CLERK_WORKER_RESTARTING,	/* has exited, replacement is expected */
	CLERK_WORKER_SENDING,		/* in a pass, sending rows that are due */
	CLERK_WORKER_WAITING		/* until next_run_at, or until woken */
} ClerkWorkerState;

typedef enum ClerkWakeResult
{
	CLERK_WAKE_DONE,			/* woken, or starting, or none and not to be
								 * started */
	CLERK_WAKE_START,			/* the caller must start a worker */
	CLERK_WAKE_NO_SLOT			/* too many databases have a worker */
} ClerkWakeResult;

/*
 * When a worker begins its next pass, by clerk_monotonic_microseconds(),
 * because the wall clock may be set in the meantime.
 */
typedef struct ClerkWorkerSchedule
{
	int64		earliest;		/* not before this, even if woken */
	int64		latest;			/* at this time in any case */
} ClerkWorkerSchedule;

/* What a worker leaves to the process that it starts as its replacement. */
typedef struct ClerkWorkerHandover
{
	ClerkWorkerSchedule schedule;	/* of the first pass; latest is 0 if there
									 * is nothing to hand over */
	int64		clock_difference;	/* clerk_clock_difference() */
} ClerkWorkerHandover;

/* The status of a worker, for monitoring. */
typedef struct ClerkWorkerStatus
{
	Oid			database;
	int			pid;			/* 0: not known yet */
	ClerkWorkerState state;
	TimestampTz started_at;
	TimestampTz next_run_at;	/* 0: not waiting */
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* ASCII; empty if none */
} ClerkWorkerStatus;

/* What a process finds in the slot that it enters. */
typedef struct ClerkWorkerEntry
{
	ClerkWorkerSchedule schedule;	/* of its first pass */
	bool		handed_over;	/* its predecessor has started it ... */
	int64		clock_difference;	/* ... and left this */
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* of its predecessor;
														 * empty if none */
} ClerkWorkerEntry;

extern void clerk_worker_slots_request_memory(void);
extern bool clerk_worker_slots_attach(void);
extern ClerkWakeResult clerk_worker_wake(Oid database, bool start);
extern void clerk_worker_not_started(Oid database);
extern void clerk_worker_register_launcher(void);
extern Oid	clerk_worker_wanted(void);
extern int	clerk_worker_list(ClerkWorkerStatus **list);

extern bool clerk_is_worker(void);
extern bool clerk_worker_enter(Oid database, ClerkWorkerEntry *entry);
extern void clerk_worker_begin_pass(void);
extern void clerk_worker_end_pass(void);
extern void clerk_worker_begin_wait(TimestampTz next_run_at,
									const char *last_error);
extern bool clerk_worker_is_woken(void);
extern bool clerk_worker_leave(void);
extern void clerk_worker_release_slot(void);
extern void clerk_worker_hand_over(const ClerkWorkerHandover *handover);
extern void clerk_worker_expect_restart(void);

#endif							/* CLERK_SLOTS_H */
