/*
 * socket_set.h
 *		A changing set of sockets that can be waited for together with the
 *		process's latch and the postmaster's death.
 */
#ifndef CLERK_SOCKET_SET_H
#define CLERK_SOCKET_SET_H

#include <sys/types.h>

#include "storage/latch.h"

/*
 * A request has one socket, or two while it tries two addresses, and one for
 * its name lookup.  There are at most 100 requests at a time, and as many kept
 * connections.
 */
#define CLERK_SOCKET_SET_MAX 512

/* A socket.  Events are PostgreSQL's WL_SOCKET_* flags. */
typedef struct ClerkSocket
{
	int			descriptor;
	dev_t		device;			/* with inode, which file the descriptor */
	ino_t		inode;			/* referred to when it was last examined */
	bool		open_reported;	/* by clerk_socket_set_opened() */
	uint32		wanted;			/* events that are wanted now; 0: idle */
	uint32		registered;		/* events in the wait set; 0: not in the wait
								 * set */
	int			position;		/* its position in the wait set */
} ClerkSocket;

typedef struct ClerkSocketSet
{
	ClerkSocket sockets[CLERK_SOCKET_SET_MAX];
	int			count;
	bool		must_update;	/* some sockets are not registered as wanted */
	bool		must_rebuild;	/* the wait set must be rebuilt */
	struct WaitEventSet *wait_set;	/* NULL until needed */
	int			spare_events;	/* events that can still be added to the wait
								 * set */
} ClerkSocketSet;

extern bool clerk_socket_set_prepare(ClerkSocketSet *set);
extern bool clerk_socket_set_opened(ClerkSocketSet *set, int descriptor);
extern void clerk_socket_set_closed(ClerkSocketSet *set, int descriptor);
extern void clerk_socket_set_clear(ClerkSocketSet *set);
extern bool clerk_socket_set_watch(ClerkSocketSet *set, int descriptor,
								   uint32 events);
extern void clerk_socket_set_unwatch(ClerkSocketSet *set, int descriptor);
extern int	clerk_socket_set_count_wanted(const ClerkSocketSet *set);
extern bool clerk_socket_set_any_hung_up(const ClerkSocketSet *set);
extern int	clerk_socket_set_wait(ClerkSocketSet *set, long timeout,
								  uint32 wait_event, WaitEvent *ready, int max,
								  bool *latch_set);

#endif							/* CLERK_SOCKET_SET_H */
