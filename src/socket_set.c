/*
 * socket_set.c
 *		A changing set of sockets behind one file descriptor.
 *
 * PostgreSQL's WaitEventSet can gain sockets but not lose them, and libcurl's
 * come and go.  An epoll or kqueue descriptor is itself readable when one of
 * its sockets is ready, so it can stand for all of them in a WaitEventSet.
 *
 * libcurl loses interest in a connection's socket at the end of each transfer
 * and regains it with the next.  So that this costs nothing, one socket may
 * rest: it stays in the kernel's set until it is wanted again, is reported
 * ready, or makes room for another.  The kernel drops a socket that is closed,
 * and its number may come back as another socket; therefore only a socket
 * whose closing the set is told of may rest.
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

static bool kernel_watch(int descriptor, int socket, bool read, bool write,
						 bool known);
static void kernel_forget(int descriptor, int socket);
static int	kernel_ready(int descriptor, ClerkReadySocket *ready, int max);

/* Makes an empty set; false with errno set if the kernel has no room. */
bool
clerk_socket_set_create(ClerkSocketSet *set)
{
	memset(set, 0, sizeof(*set));
	set->resting = -1;
#ifdef __linux__
	set->descriptor = epoll_create1(EPOLL_CLOEXEC);
#else
	set->descriptor = kqueue();
#endif
	return set->descriptor >= 0;
}

/* Tells that this socket exists, and that its closing will be told, too. */
void
clerk_socket_set_opened(ClerkSocketSet *set, int socket)
{
	if (socket >= 0 && socket < CLERK_SOCKET_SET_MAX)
		set->own[socket] = true;
}

/* Tells that this socket is about to be closed. */
void
clerk_socket_set_closed(ClerkSocketSet *set, int socket)
{
	if (socket >= 0 && socket < CLERK_SOCKET_SET_MAX)
		set->own[socket] = false;
	if (set->resting == socket)
		set->resting = -1;
}

/*
 * Watches a socket for being readable, writable or both.  "known" tells
 * whether it is being watched already.  False with errno set on failure.
 */
bool
clerk_socket_set_watch(ClerkSocketSet *set, int socket, bool read, bool write,
					   bool known)
{
	bool		only_read = read && !write;

	if (socket < CLERK_SOCKET_SET_MAX)
		set->only_read[socket] = only_read;
	if (socket == set->resting)
	{
		set->resting = -1;
		known = true;
		if (only_read)
			return true;
	}
	return kernel_watch(set->descriptor, socket, read, write, known);
}

/* Nobody wants to know of this socket any more; it may be closed already. */
void
clerk_socket_set_rest(ClerkSocketSet *set, int socket)
{
	if (socket >= CLERK_SOCKET_SET_MAX ||
		!set->own[socket] || !set->only_read[socket])
	{
		kernel_forget(set->descriptor, socket);
		return;
	}
	if (set->resting >= 0)
		kernel_forget(set->descriptor, set->resting);
	set->resting = socket;
}

/* Stores up to "max" sockets that are ready now; returns how many. */
int
clerk_socket_set_ready(ClerkSocketSet *set, ClerkReadySocket *ready, int max)
{
	int			count = kernel_ready(set->descriptor, ready, max);
	int			wanted = 0;

	for (int i = 0; i < count; i++)
	{
		if (ready[i].socket == set->resting)
		{
			/* The server has closed it, most likely. */
			kernel_forget(set->descriptor, set->resting);
			set->resting = -1;
		}
		else
			ready[wanted++] = ready[i];
	}
	return wanted;
}

#ifdef __linux__

static bool
kernel_watch(int descriptor, int socket, bool read, bool write, bool known)
{
	struct epoll_event event = {
		.events = (read ? EPOLLIN : 0) | (write ? EPOLLOUT : 0),
		.data.fd = socket
	};

	if (epoll_ctl(descriptor, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD,
				  socket, &event) == 0)
		return true;

	/* A number that was closed and given out again may be known or not. */
	if (errno == ENOENT)
		return epoll_ctl(descriptor, EPOLL_CTL_ADD, socket, &event) == 0;
	if (errno == EEXIST)
		return epoll_ctl(descriptor, EPOLL_CTL_MOD, socket, &event) == 0;
	return false;
}

static void
kernel_forget(int descriptor, int socket)
{
	struct epoll_event unused;

	(void) epoll_ctl(descriptor, EPOLL_CTL_DEL, socket, &unused);
}

static int
kernel_ready(int descriptor, ClerkReadySocket *ready, int max)
{
	struct epoll_event events[READY_MAX];
	int			count;

	count = epoll_wait(descriptor, events, Min(max, READY_MAX), 0);
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

static bool
kernel_watch(int descriptor, int socket, bool read, bool write,
			 bool known pg_attribute_unused())
{
	struct kevent change;

	/* Reading and writing are two entries; the absent one is no failure. */
	EV_SET(&change, socket, EVFILT_READ, read ? EV_ADD : EV_DELETE, 0, 0, NULL);
	if (kevent(descriptor, &change, 1, NULL, 0, NULL) < 0 && read)
		return false;
	EV_SET(&change, socket, EVFILT_WRITE, write ? EV_ADD : EV_DELETE, 0, 0, NULL);
	if (kevent(descriptor, &change, 1, NULL, 0, NULL) < 0 && write)
		return false;
	return true;
}

static void
kernel_forget(int descriptor, int socket)
{
	(void) kernel_watch(descriptor, socket, false, false, true);
}

static int
kernel_ready(int descriptor, ClerkReadySocket *ready, int max)
{
	struct kevent events[READY_MAX];
	struct timespec at_once = {0, 0};
	int			count;

	count = kevent(descriptor, NULL, 0, events, Min(max, READY_MAX), &at_once);
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
