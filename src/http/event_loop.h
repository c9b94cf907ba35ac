/*
 * event_loop.h
 *		Drives all running transfers and waits for them.
 *
 * Only the files of http/ include this header.
 */
#ifndef CLERK_EVENT_LOOP_H
#define CLERK_EVENT_LOOP_H

#include "http/transfer.h"
#include "lib/ilist.h"

/* A transfer in the event loop.  Only event_loop.c modifies it. */
typedef struct ClerkLoopEntry
{
	dlist_node	node;			/* in loop.running or loop.waiting */
	bool		waiting;		/* in loop.waiting, until file descriptors are
								 * free */
	ClerkTransfer transfer;
} ClerkLoopEntry;

extern void clerk_event_loop_prepare(void);
extern bool clerk_event_loop_start(ClerkLoopEntry *entry,
								   const ClerkHttpSpec *spec,
								   bool loopback_only);
extern void clerk_event_loop_wait(long timeout);
extern void clerk_event_loop_release(ClerkLoopEntry *entry);

#endif							/* CLERK_EVENT_LOOP_H */
