/*
 * socket_set.h
 *		A changing set of sockets behind one file descriptor.
 */
#ifndef CLERK_SOCKET_SET_H
#define CLERK_SOCKET_SET_H

/*
 * Sockets above this are never left in the set to rest.  A backend has some
 * dozens of descriptors; the number only bounds the table below.
 */
#define CLERK_SOCKET_SET_MAX 1024

typedef struct ClerkSocketSet
{
	int			descriptor;		/* readable when a socket is ready */
	int			resting;		/* see clerk_socket_set_rest(); -1: none */
	bool		own[CLERK_SOCKET_SET_MAX];	/* opened and not closed */
	bool		only_read[CLERK_SOCKET_SET_MAX];	/* as last watched */
} ClerkSocketSet;

/* A socket of the set that can be read from, written to, or has failed. */
typedef struct ClerkReadySocket
{
	int			socket;
	bool		readable;
	bool		writable;
	bool		failed;
} ClerkReadySocket;

extern bool clerk_socket_set_create(ClerkSocketSet *set);
extern void clerk_socket_set_opened(ClerkSocketSet *set, int socket);
extern void clerk_socket_set_closed(ClerkSocketSet *set, int socket);
extern bool clerk_socket_set_watch(ClerkSocketSet *set, int socket,
								   bool read, bool write, bool known);
extern void clerk_socket_set_rest(ClerkSocketSet *set, int socket);
extern int	clerk_socket_set_ready(ClerkSocketSet *set,
								   ClerkReadySocket *ready, int max);

#endif							/* CLERK_SOCKET_SET_H */
