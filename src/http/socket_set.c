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
 * reported, most likely because the server has closed it.
 *
 * Nothing hangs on being told that a socket is closed.  libcurl 7.88 and 8.0
 * close one that is not connected yet without a word, and others are closed
 * before libcurl says that it lost interest; the number may be another
 * socket's by then.  The kernel removes what is closed from the wait set, so
 * what is registered counts only as long as the number stands for the same
 * file, which fstat() tells: before a socket is wanted again, which is once a
 * request and takes a fifth of a microsecond, and before the wait set is made
 * anew.  Only one whose opening was told may rest; others, such as the
 * resolver's, may be of a kind whose files all look the same.
 *
 * libcurl's callbacks may neither allocate nor raise an error, so they only
 * note what is wanted.  The wait set follows right before it is waited on.
 */
#include "postgres.h"

#include <poll.h>
#include <sys/stat.h>

#include "compat.h"
#include "http/socket_set.h"
#include "miscadmin.h"
#include "storage/fd.h"
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
static void recognize(ClerkSocketSet *set, ClerkSocket *socket);
static bool is_same_file(const ClerkSocket *socket, const struct stat *file);
static void drop_those_gone(ClerkSocketSet *set);
static void remake_wait_set(ClerkSocketSet *set);
static bool make_wait_set(ClerkSocketSet *set);
static void bring_up_to_date(ClerkSocketSet *set);

/*
 * Makes the wait set, so that a wait does not fail for want of a descriptor.
 * False if PostgreSQL has none for it.
 */
bool
clerk_socket_set_prepare(ClerkSocketSet *set)
{
	return set->wait_set != NULL || make_wait_set(set);
}

/*
 * Tells that this socket was opened.  False if there is no room for it.
 *
 * If it has the number of a socket that is wanted, it is wanted itself: libcurl
 * knows sockets by number, and says nothing of one for which it wants the same
 * as before.
 */
bool
clerk_socket_set_opened(ClerkSocketSet *set, int descriptor)
{
	ClerkSocket *socket = find(set, descriptor);

	if (socket == NULL)
		return add(set, descriptor, true) != NULL;
	socket->told_of = false;	/* the one that had the number is gone */
	recognize(set, socket);
	socket->told_of = true;
	return true;
}

/* Tells that this socket is about to be closed. */
void
clerk_socket_set_closed(ClerkSocketSet *set, int descriptor)
{
	ClerkSocket *socket = find(set, descriptor);

	if (socket != NULL)
		drop(set, socket);
}

/* Tells that all sockets are closed. */
void
clerk_socket_set_clear(ClerkSocketSet *set)
{
	while (set->count > 0)
		drop(set, &set->sockets[0]);
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
	else
		recognize(set, socket);
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

/* How many sockets do not rest. */
int
clerk_socket_set_count_wanted(const ClerkSocketSet *set)
{
	int			count = 0;

	for (int i = 0; i < set->count; i++)
		if (set->sockets[i].wanted != 0)
			count++;
	return count;
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
 * Raises an error if the kernel has no room for what is watched, or cannot
 * watch it.  The next wait does without a socket that cannot be watched.
 */
int
clerk_socket_set_wait(ClerkSocketSet *set, long timeout, uint32 wait_event,
					  WaitEvent *ready, int max, bool *latch_set)
{
	int			count;
	int			wanted = 0;

	if (set->wait_set == NULL || set->outdated)
		remake_wait_set(set);
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
		drop_those_gone(set);
	if (set->count == CLERK_SOCKET_SET_MAX)
		return NULL;
	socket = &set->sockets[set->count++];
	memset(socket, 0, sizeof(*socket));
	socket->descriptor = descriptor;
	recognize(set, socket);
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
 * Finds out which file has the socket's number now.  If that is another one
 * than before, or nobody can tell, what was registered is worth nothing.
 */
static void
recognize(ClerkSocketSet *set, ClerkSocket *socket)
{
	struct stat file;

	if (fstat(socket->descriptor, &file) != 0)
		memset(&file, 0, sizeof(file));
	if (socket->told_of && is_same_file(socket, &file))
		return;
	socket->told_of = false;
	socket->device = file.st_dev;
	socket->inode = file.st_ino;
	if (socket->registered != 0)
	{
		socket->registered = 0;
		set->outdated = true;
	}
}

static bool
is_same_file(const ClerkSocket *socket, const struct stat *file)
{
	return socket->device == file->st_dev && socket->inode == file->st_ino;
}

/* Drops sockets that rest and were closed meanwhile. */
static void
drop_those_gone(ClerkSocketSet *set)
{
	struct stat file;

	for (int i = set->count - 1; i >= 0; i--)
	{
		ClerkSocket *socket = &set->sockets[i];

		if (socket->wanted == 0 &&
			(fstat(socket->descriptor, &file) != 0 ||
			 !is_same_file(socket, &file)))
			drop(set, socket);
	}
}

static void
remake_wait_set(ClerkSocketSet *set)
{
	if (!make_wait_set(set))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("too many file descriptors are in use")));
}

/*
 * A wait set without sockets, for all of them to be added.  If an error ends
 * this, or the adding, the next wait begins anew.  False if PostgreSQL has no
 * descriptor for it, which is asked for beforehand since CreateWaitEventSet()
 * would raise an error and leave memory behind.
 */
static bool
make_wait_set(ClerkSocketSet *set)
{
	set->outdated = true;
	if (set->wait_set != NULL)
		FreeWaitEventSet(set->wait_set);
	set->wait_set = NULL;
	drop_those_gone(set);
	if (!AcquireExternalFD())
		return false;
	ReleaseExternalFD();
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
	return true;
}

/*
 * Registers in the wait set what is wanted.  A socket is not wanted while an
 * error may end its registering: it would end each wait from then on.
 */
static void
bring_up_to_date(ClerkSocketSet *set)
{
	for (int i = 0; i < set->count; i++)
	{
		ClerkSocket *socket = &set->sockets[i];
		uint32		wanted = socket->wanted;

		if (wanted == 0 || wanted == socket->registered)
			continue;
		if (socket->registered == 0 && set->room == 0)
		{
			remake_wait_set(set);
			i = -1;				/* all of them are to be added now */
			continue;
		}
		set->outdated = true;
		socket->wanted = 0;
		if (socket->registered != 0)
			ModifyWaitEvent(set->wait_set, socket->position, wanted, NULL);
		else
		{
			socket->position = AddWaitEventToSet(set->wait_set, wanted,
												 socket->descriptor, NULL, NULL);
			set->room--;
		}
		set->outdated = false;
		socket->wanted = socket->registered = wanted;
	}
	set->changed = false;
}
