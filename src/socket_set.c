/*
 * socket_set.c
 *		A changing set of sockets behind one file descriptor.
 *
 * PostgreSQL's WaitEventSet can gain sockets but not lose them, and libcurl's
 * come and go.  An epoll or kqueue descriptor is itself readable when one of
 * its sockets is ready, so it can stand for all of them in a WaitEventSet.
 *
 * Nothing here raises an error or allocates: libcurl's callbacks call it.
 */
#include "postgres.h"

#include <unistd.h>

#ifdef __linux__
#include <sys/epoll.h>
#else
#include <sys/types.h>
#include <sys/event.h>
#endif

#include "socket_set.h"

/* Sockets taken from the kernel at a time; what is left comes next time. */
#define READY_MAX 64

#ifdef __linux__

/* A new, empty set: its descriptor, or -1 with errno set. */
int
clerk_socket_set_create(void)
{
	return epoll_create1(EPOLL_CLOEXEC);
}

/*
 * Watches a socket for being readable, writable or both.  "known" tells
 * whether it is in the set already.  False with errno set on failure.
 */
bool
clerk_socket_set_watch(int set, int socket, bool read, bool write, bool known)
{
	struct epoll_event event = {
		.events = (read ? EPOLLIN : 0) | (write ? EPOLLOUT : 0),
		.data.fd = socket
	};

	return epoll_ctl(set, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD,
					 socket, &event) == 0;
}

/* Takes a socket out; it may be closed already. */
void
clerk_socket_set_forget(int set, int socket)
{
	struct epoll_event unused;

	(void) epoll_ctl(set, EPOLL_CTL_DEL, socket, &unused);
}

/* Stores up to "max" sockets that are ready now; returns how many. */
int
clerk_socket_set_ready(int set, ClerkReadySocket *ready, int max)
{
	struct epoll_event events[READY_MAX];
	int			count;

	count = epoll_wait(set, events, Min(max, READY_MAX), 0);
	for (int i = 0; i < count; i++)
	{
		ready[i].socket = events[i].data.fd;
		ready[i].readable = (events[i].events & (EPOLLIN | EPOLLHUP)) != 0;
		ready[i].writable = (events[i].events & EPOLLOUT) != 0;
		ready[i].failed = (events[i].events & EPOLLERR) != 0;
	}
	return Max(count, 0);
}

#else							/* kqueue */

int
clerk_socket_set_create(void)
{
	return kqueue();
}

bool
clerk_socket_set_watch(int set, int socket, bool read, bool write, bool known)
{
	struct kevent change;

	/* Reading and writing are two entries; the absent one is no failure. */
	EV_SET(&change, socket, EVFILT_READ, read ? EV_ADD : EV_DELETE, 0, 0, NULL);
	if (kevent(set, &change, 1, NULL, 0, NULL) < 0 && read)
		return false;
	EV_SET(&change, socket, EVFILT_WRITE, write ? EV_ADD : EV_DELETE, 0, 0, NULL);
	if (kevent(set, &change, 1, NULL, 0, NULL) < 0 && write)
		return false;
	return true;
}

void
clerk_socket_set_forget(int set, int socket)
{
	(void) clerk_socket_set_watch(set, socket, false, false, true);
}

int
clerk_socket_set_ready(int set, ClerkReadySocket *ready, int max)
{
	struct kevent events[READY_MAX];
	struct timespec at_once = {0, 0};
	int			count;

	count = kevent(set, NULL, 0, events, Min(max, READY_MAX), &at_once);
	for (int i = 0; i < count; i++)
	{
		ready[i].socket = (int) events[i].ident;
		ready[i].readable = (events[i].filter == EVFILT_READ);
		ready[i].writable = (events[i].filter == EVFILT_WRITE);
		ready[i].failed = (events[i].flags & EV_ERROR) != 0;
	}
	return Max(count, 0);
}

#endif
