/*
 * event_loop.h
 *		Moves all running transfers on, and waits for them.
 *
 * For the files of this room only.
 */
#ifndef CLERK_EVENT_LOOP_H
#define CLERK_EVENT_LOOP_H

#include "http/transfer.h"
#include "lib/ilist.h"

/* A transfer in the loop; only event_loop.c changes it. */
typedef struct ClerkLoopEntry
{
	dlist_node	node;			/* in loop.running or loop.waiting */
	bool		waiting;		/* for descriptors, in loop.waiting */
	ClerkTransfer transfer;
} ClerkLoopEntry;

extern void clerk_event_loop_prepare(void);
extern bool clerk_event_loop_start(ClerkLoopEntry *entry,
								   const ClerkHttpSpec *spec,
								   bool loopback_only);
extern void clerk_event_loop_wait(long timeout);
extern void clerk_event_loop_release(ClerkLoopEntry *entry);

#endif							/* CLERK_EVENT_LOOP_H */
