/*
 * slots.h
 *		Which databases have a background worker, in shared memory.
 *
 * A worker's life: whoever wants one calls clerk_worker_wake(), and starts it
 * if that says so.  The worker enters, then looks and rests in turn until
 * clerk_worker_leave() lets it go.  One that ends in another way keeps the slot
 * for the process that the postmaster starts in its place.
 */
#ifndef CLERK_WORKER_SLOTS_H
#define CLERK_WORKER_SLOTS_H

#include "datatype/timestamp.h"

/* Longest text that tells why a worker does not send, with its NUL. */
#define CLERK_WORKER_ERROR_SIZE 96

typedef enum ClerkWorkerState
{
	CLERK_WORKER_NONE,
	CLERK_WORKER_WANTED,		/* the server had no room; see the launcher */
	CLERK_WORKER_STARTING,		/* asked for, has not entered yet */
	CLERK_WORKER_RESTARTING,	/* has ended; the next process is to enter */
	CLERK_WORKER_SENDING,		/* looks, and sends what is due */
	CLERK_WORKER_WAITING		/* rests until next_run_at, or until woken */
} ClerkWorkerState;

typedef enum ClerkWakeResult
{
	CLERK_WAKE_DONE,			/* woken, or starting, or not wanted */
	CLERK_WAKE_START,			/* the caller must start a worker */
	CLERK_WAKE_NO_SLOT			/* too many databases have a worker */
} ClerkWakeResult;

/*
 * When a worker looks at its outbox again, as clerk_monotonic_microseconds()
 * has it: the clock on the wall may be set while it waits.
 */
typedef struct ClerkWorkerRest
{
	int64		earliest;		/* not before then, even if woken */
	int64		latest;			/* then in any case */
} ClerkWorkerRest;

/* What can be told of a worker. */
typedef struct ClerkWorkerStatus
{
	Oid			database;
	int			pid;			/* 0: not known yet */
	ClerkWorkerState state;
	TimestampTz started_at;
	TimestampTz next_run_at;	/* 0: not waiting */
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* ASCII; empty: none */
} ClerkWorkerStatus;

extern void clerk_worker_slots_request_memory(void);
extern bool clerk_worker_slots_attach(void);
extern ClerkWakeResult clerk_worker_wake(Oid database, bool start);
extern void clerk_worker_not_started(Oid database);
extern void clerk_worker_register_launcher(void);
extern Oid	clerk_worker_wanted(void);
extern int	clerk_worker_list(ClerkWorkerStatus **list);

extern bool clerk_is_worker(void);
extern bool clerk_worker_enter(Oid database, ClerkWorkerRest *before,
							   char *last_error);
extern void clerk_worker_begin_look(void);
extern void clerk_worker_end_look(void);
extern void clerk_worker_begin_rest(TimestampTz next_run_at, const char *last_error);
extern bool clerk_worker_is_woken(void);
extern bool clerk_worker_leave(void);
extern void clerk_worker_give_up(void);
extern void clerk_worker_hand_over(const ClerkWorkerRest *before);
extern void clerk_worker_expect_restart(void);

#endif							/* CLERK_WORKER_SLOTS_H */
