/*
 * socket_set.h
 *		A changing set of sockets, waited on together with the process's latch
 *		and the postmaster's death.
 */
#ifndef CLERK_SOCKET_SET_H
#define CLERK_SOCKET_SET_H

#include <sys/types.h>

#include "storage/latch.h"

/*
 * A request has one socket, two while it tries two addresses, and one for its
 * look-up of the name; there are at most 100 at a time, and as many
 * connections that are kept.
 */
#define CLERK_SOCKET_SET_MAX 512

/* What PostgreSQL's WL_SOCKET_* say of a socket. */
typedef struct ClerkSocket
{
	int			descriptor;
	dev_t		device;			/* which file it was, so that another one */
	ino_t		inode;			/* is recognized that has got its number */
	bool		told_of;		/* its opening was told */
	uint32		wanted;			/* events that matter now; 0: none */
	uint32		registered;		/* events in the wait set; 0: not there */
	int			position;		/* there */
} ClerkSocket;

typedef struct ClerkSocketSet
{
	ClerkSocket sockets[CLERK_SOCKET_SET_MAX];
	int			count;
	bool		changed;		/* some are not registered as wanted */
	bool		outdated;		/* the wait set has one that has to go */
	struct WaitEventSet *wait_set;	/* NULL until needed */
	int			room;			/* events that can still be added to it */
} ClerkSocketSet;

extern bool clerk_socket_set_prepare(ClerkSocketSet *set);
extern bool clerk_socket_set_opened(ClerkSocketSet *set, int descriptor);
extern void clerk_socket_set_closed(ClerkSocketSet *set, int descriptor);
extern void clerk_socket_set_clear(ClerkSocketSet *set);
extern bool clerk_socket_set_watch(ClerkSocketSet *set, int descriptor,
								   uint32 events);
extern void clerk_socket_set_rest(ClerkSocketSet *set, int descriptor);
extern int	clerk_socket_set_count_wanted(const ClerkSocketSet *set);
extern bool clerk_socket_set_any_hung_up(const ClerkSocketSet *set);
extern int	clerk_socket_set_wait(ClerkSocketSet *set, long timeout,
								  uint32 wait_event, WaitEvent *ready, int max,
								  bool *latch_set);

#endif							/* CLERK_SOCKET_SET_H */
