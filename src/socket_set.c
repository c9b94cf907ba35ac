/*
 * socket_set.c
 *		A changing set of sockets, waited on together with the process's latch
 *		and the postmaster's death.
 *
 * libcurl's sockets come and go.  A WaitEventSet can gain them but not lose
 * them, so it is made anew when it has one that has to go.  That happens with
 * connections, not with requests: libcurl loses interest in a connection's
 * socket at the end of each transfer and regains it with the next, and
 * meanwhile the socket rests in the wait set, until it is wanted again or is
 * reported, most likely because the server has closed it.  Only a socket whose
 * closing the set is told of may rest, since its number may come back as
 * another socket.
 *
 * libcurl's callbacks may neither allocate nor raise an error, so they only
 * note what is wanted.  The wait set follows right before it is waited on.
 */
#include "postgres.h"

#include <poll.h>

#include "compat.h"
#include "miscadmin.h"
#include "socket_set.h"
#include "utils/memutils.h"

/* Sockets that the wait set can gain before it has to be made anew. */
#define SPARE_ROOM 8

/* Without it, only a connection that was broken off is seen. */
#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

static ClerkSocket *find(ClerkSocketSet *set, int descriptor);
static ClerkSocket *add(ClerkSocketSet *set, int descriptor, bool told_of);
static void drop(ClerkSocketSet *set, ClerkSocket *socket);
static void make_wait_set(ClerkSocketSet *set);
static void bring_up_to_date(ClerkSocketSet *set);

/*
 * Tells that this socket exists, and that its closing will be told, too.  False
 * if there is no room for it.
 */
bool
clerk_socket_set_opened(ClerkSocketSet *set, int descriptor)
{
	return add(set, descriptor, true) != NULL;
}

/* Tells that this socket is about to be closed. */
void
clerk_socket_set_closed(ClerkSocketSet *set, int descriptor)
{
	ClerkSocket *socket = find(set, descriptor);

	if (socket != NULL)
		drop(set, socket);
}

/*
 * Watches a socket for WL_SOCKET_READABLE, WL_SOCKET_WRITEABLE or both.  False
 * if there is no room for it.
 */
bool
clerk_socket_set_watch(ClerkSocketSet *set, int descriptor, uint32 events)
{
	ClerkSocket *socket = find(set, descriptor);

	if (socket == NULL)
		socket = add(set, descriptor, false);
	if (socket == NULL)
		return false;
	socket->wanted = events;
	if (socket->registered != events)
		set->changed = true;
	return true;
}

/*
 * Nobody wants to know of this socket for now.  One that could be written to
 * would be reported all the time.
 */
void
clerk_socket_set_rest(ClerkSocketSet *set, int descriptor)
{
	ClerkSocket *socket = find(set, descriptor);

	if (socket == NULL)
		return;
	socket->wanted = 0;
	if (!socket->told_of)
		drop(set, socket);
	else if (socket->registered & WL_SOCKET_WRITEABLE)
		set->outdated = true;
}

/*
 * Whether the other side has hung up on a socket that rests.  What it may have
 * sent before does not matter: over TLS a farewell comes before the end.
 */
bool
clerk_socket_set_any_hung_up(const ClerkSocketSet *set)
{
	struct pollfd resting[CLERK_SOCKET_SET_MAX];
	int			count = 0;

	for (int i = 0; i < set->count; i++)
	{
		if (set->sockets[i].wanted != 0)
			continue;
		resting[count].fd = set->sockets[i].descriptor;
		resting[count++].events = POLLRDHUP;
	}
	return count > 0 && poll(resting, count, 0) > 0;
}

/*
 * Waits until a socket is ready, the latch is set or "timeout" milliseconds
 * have passed; -1 means no limit.  Stores up to "max" sockets that are ready,
 * and returns how many; *latch_set tells whether the latch is set.
 *
 * Raises an error if the kernel has no room for what is watched.
 */
int
clerk_socket_set_wait(ClerkSocketSet *set, long timeout, uint32 wait_event,
					  WaitEvent *ready, int max, bool *latch_set)
{
	int			count;
	int			wanted = 0;

	if (set->wait_set == NULL || set->outdated)
		make_wait_set(set);
	if (set->changed)
		bring_up_to_date(set);

	*latch_set = false;
	count = WaitEventSetWait(set->wait_set, timeout, ready, max, wait_event);
	for (int i = 0; i < count; i++)
	{
		ClerkSocket *socket;

		if (ready[i].events & WL_LATCH_SET)
		{
			*latch_set = true;
			continue;
		}
		socket = find(set, ready[i].fd);
		if (socket != NULL && socket->wanted != 0)
			ready[wanted++] = ready[i];
		else
			set->outdated = true;
	}
	return wanted;
}

static ClerkSocket *
find(ClerkSocketSet *set, int descriptor)
{
	for (int i = 0; i < set->count; i++)
		if (set->sockets[i].descriptor == descriptor)
			return &set->sockets[i];
	return NULL;
}

static ClerkSocket *
add(ClerkSocketSet *set, int descriptor, bool told_of)
{
	ClerkSocket *socket;

	if (set->count == CLERK_SOCKET_SET_MAX)
		return NULL;
	socket = &set->sockets[set->count++];
	memset(socket, 0, sizeof(*socket));
	socket->descriptor = descriptor;
	socket->told_of = told_of;
	return socket;
}

static void
drop(ClerkSocketSet *set, ClerkSocket *socket)
{
	if (socket->registered != 0)
		set->outdated = true;
	*socket = set->sockets[--set->count];
}

/*
 * A wait set without sockets, for all of them to be added.  If an error ends
 * this, or the adding, the next wait begins anew.
 */
static void
make_wait_set(ClerkSocketSet *set)
{
	set->outdated = true;
	if (set->wait_set != NULL)
		FreeWaitEventSet(set->wait_set);
	set->wait_set = NULL;
	set->wait_set = clerk_create_wait_event_set(2 + set->count + SPARE_ROOM);
	set->room = set->count + SPARE_ROOM;
	AddWaitEventToSet(set->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch,
					  NULL);

	/* A standalone backend has no postmaster that could die. */
	if (IsUnderPostmaster)
		AddWaitEventToSet(set->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
						  NULL, NULL);
	for (int i = 0; i < set->count; i++)
		set->sockets[i].registered = 0;
	set->outdated = false;
	set->changed = true;
}

/* Registers in the wait set what is wanted. */
static void
bring_up_to_date(ClerkSocketSet *set)
{
	for (int i = 0; i < set->count; i++)
	{
		ClerkSocket *socket = &set->sockets[i];

		if (socket->wanted == 0 || socket->wanted == socket->registered)
			continue;
		if (socket->registered == 0 && set->room == 0)
		{
			make_wait_set(set);
			i = -1;				/* all of them are to be added now */
			continue;
		}
		set->outdated = true;
		if (socket->registered != 0)
			ModifyWaitEvent(set->wait_set, socket->position, socket->wanted,
							NULL);
		else
		{
			socket->position = AddWaitEventToSet(set->wait_set, socket->wanted,
												 socket->descriptor, NULL, NULL);
			set->room--;
		}
		set->outdated = false;
		socket->registered = socket->wanted;
	}
	set->changed = false;
}
