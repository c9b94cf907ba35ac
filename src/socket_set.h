/*
 * socket_set.h
 *		A changing set of sockets behind one file descriptor.
 */
#ifndef CLERK_SOCKET_SET_H
#define CLERK_SOCKET_SET_H

/* A socket of the set that can be read from, written to, or has failed. */
typedef struct ClerkReadySocket
{
	int			socket;
	bool		readable;
	bool		writable;
	bool		failed;
} ClerkReadySocket;

extern int	clerk_socket_set_create(void);
extern bool clerk_socket_set_watch(int set, int socket, bool read, bool write,
								   bool known);
extern void clerk_socket_set_forget(int set, int socket);
extern int	clerk_socket_set_ready(int set, ClerkReadySocket *ready, int max);

#endif							/* CLERK_SOCKET_SET_H */
