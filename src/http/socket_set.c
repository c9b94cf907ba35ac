/*
 * socket_set.c
 *		A changing set of sockets that can be waited for together with the
 *		process's latch and the postmaster's death.
 *
 * libcurl's sockets come and go.  A WaitEventSet can gain sockets but not lose
 * them, so it is rebuilt when one must leave it.  That happens once per
 * connection rather than once per request: at the end of each transfer libcurl
 * stops watching the connection's socket, and it starts again with the next
 * transfer.  In between, the idle socket stays in the wait set until it is
 * wanted again or is reported as ready, most likely because the server has
 * closed it.
 *
 * Nothing here relies on being told that a socket is closed.  libcurl 7.88 and
 * 8.0 close a socket that is not connected yet without calling
 * CURLOPT_CLOSESOCKETFUNCTION, and other sockets are closed before libcurl
 * reports that it no longer watches them.  By then the number may belong to
 * another socket.  The kernel removes a closed socket from the wait set, so a
 * registration is valid only while the descriptor refers to the same file.
 * fstat() tells that.  We call it before a socket is watched again, which is
 * once per request and takes 0.2 microseconds, and before the wait set is
 * rebuilt.  Only sockets that clerk_socket_set_opened() was called for may
 * become idle.  Others, such as the resolver's, may be of a kind whose files
 * cannot be told apart by fstat().
 *
 * libcurl's callbacks must neither allocate memory with palloc() nor raise an
 * error, so they only record what is wanted.  clerk_socket_set_wait() updates
 * the wait set before it waits.
 */
#include "postgres.h"

#include <poll.h>
#include <sys/stat.h>

#include "compat.h"
#include "http/socket_set.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

/* Sockets that can be added to the wait set before it must be rebuilt. */
#define SPARE_EVENTS 8

/* Without this flag, poll() reports a connection only when it was reset. */
#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

static ClerkSocket *find_socket(ClerkSocketSet *set, int descriptor);
static ClerkSocket *add_socket(ClerkSocketSet *set, int descriptor,
							   bool open_reported);
static void remove_socket(ClerkSocketSet *set, ClerkSocket *socket);
static void update_identity(ClerkSocketSet *set, ClerkSocket *socket);
static bool is_same_file(const ClerkSocket *socket, const struct stat *file);
static void remove_closed_sockets(ClerkSocketSet *set);
static void rebuild_wait_set(ClerkSocketSet *set);
static bool create_wait_set(ClerkSocketSet *set);
static void update_wait_set(ClerkSocketSet *set);

/*
 * Creates the wait set if there is none, so that a later wait cannot fail for
 * lack of a file descriptor.  Returns false if PostgreSQL grants no descriptor
 * for it.  Raises the server's own error if the wait set cannot be created for
 * another reason.
 */
bool
clerk_socket_set_prepare(ClerkSocketSet *set)
{
	return set->wait_set != NULL || create_wait_set(set);
}

/*
 * Records that a socket was opened.  Returns false if the set is full.  Raises
 * no error.
 *
 * If the descriptor number belonged to a socket that is watched, the new
 * socket is watched instead: libcurl identifies sockets by number, and reports
 * nothing if it wants the same events as before.
 */
bool
clerk_socket_set_opened(ClerkSocketSet *set, int descriptor)
{
	ClerkSocket *socket = find_socket(set, descriptor);

	if (socket == NULL)
		return add_socket(set, descriptor, true) != NULL;
	socket->open_reported = false;	/* the socket that had this number is
									 * closed */
	update_identity(set, socket);
	socket->open_reported = true;
	return true;
}

/* Records that a socket is about to be closed.  Raises no error. */
void
clerk_socket_set_closed(ClerkSocketSet *set, int descriptor)
{
	ClerkSocket *socket = find_socket(set, descriptor);

	if (socket != NULL)
		remove_socket(set, socket);
}

/* Records that all sockets are closed.  Raises no error. */
void
clerk_socket_set_clear(ClerkSocketSet *set)
{
	while (set->count > 0)
		remove_socket(set, &set->sockets[0]);
}

/*
 * Watches a socket for WL_SOCKET_READABLE, WL_SOCKET_WRITEABLE or both.
 * Returns false if the set is full.  Raises no error.
 */
bool
clerk_socket_set_watch(ClerkSocketSet *set, int descriptor, uint32 events)
{
	ClerkSocket *socket = find_socket(set, descriptor);

	if (socket == NULL)
		socket = add_socket(set, descriptor, false);
	else
		update_identity(set, socket);
	if (socket == NULL)
		return false;
	socket->wanted = events;
	if (socket->registered != events)
		set->must_update = true;
	return true;
}

/*
 * Stops watching a socket, which becomes idle.  Raises no error.
 *
 * If the socket is registered as writable, the wait set must be rebuilt, since
 * it would report the socket all the time.
 */
void
clerk_socket_set_unwatch(ClerkSocketSet *set, int descriptor)
{
	ClerkSocket *socket = find_socket(set, descriptor);

	if (socket == NULL)
		return;
	socket->wanted = 0;
	if (!socket->open_reported)
		remove_socket(set, socket);
	else if (socket->registered & WL_SOCKET_WRITEABLE)
		set->must_rebuild = true;
}

/* Number of sockets that are watched, that is, not idle. */
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
 * Whether the peer of an idle socket has closed its side.  Data that may have
 * arrived before does not matter: over TLS, a close_notify alert precedes the
 * end.
 */
bool
clerk_socket_set_any_hung_up(const ClerkSocketSet *set)
{
	struct pollfd idle[CLERK_SOCKET_SET_MAX];
	int			count = 0;

	for (int i = 0; i < set->count; i++)
	{
		if (set->sockets[i].wanted != 0)
			continue;
		idle[count].fd = set->sockets[i].descriptor;
		idle[count++].events = POLLRDHUP;
	}
	return count > 0 && poll(idle, count, 0) > 0;
}

/*
 * Waits until a watched socket is ready, the latch is set, or "timeout"
 * milliseconds have passed (-1 means no limit).  Stores up to "max" sockets
 * that are ready in "ready", and returns their number.  *latch_set reports
 * whether the latch is set; it is not reset.
 *
 * Raises 53000 if no file descriptor is available for the wait set, and the
 * server's own error if the kernel cannot watch a socket.  The next wait
 * leaves out a socket that cannot be watched.
 */
int
clerk_socket_set_wait(ClerkSocketSet *set, long timeout, uint32 wait_event,
					  WaitEvent *ready, int max, bool *latch_set)
{
	int			count;
	int			wanted = 0;

	if (set->wait_set == NULL || set->must_rebuild)
		rebuild_wait_set(set);
	if (set->must_update)
		update_wait_set(set);

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
		socket = find_socket(set, ready[i].fd);
		if (socket != NULL && socket->wanted != 0)
			ready[wanted++] = ready[i];
		else
			set->must_rebuild = true;
	}
	return wanted;
}

static ClerkSocket *
find_socket(ClerkSocketSet *set, int descriptor)
{
	for (int i = 0; i < set->count; i++)
		if (set->sockets[i].descriptor == descriptor)
			return &set->sockets[i];
	return NULL;
}

static ClerkSocket *
add_socket(ClerkSocketSet *set, int descriptor, bool open_reported)
{
	ClerkSocket *socket;

	if (set->count == CLERK_SOCKET_SET_MAX)
		remove_closed_sockets(set);
	if (set->count == CLERK_SOCKET_SET_MAX)
		return NULL;
	socket = &set->sockets[set->count++];
	memset(socket, 0, sizeof(*socket));
	socket->descriptor = descriptor;
	update_identity(set, socket);
	socket->open_reported = open_reported;
	return socket;
}

static void
remove_socket(ClerkSocketSet *set, ClerkSocket *socket)
{
	if (socket->registered != 0)
		set->must_rebuild = true;
	*socket = set->sockets[--set->count];
}

/*
 * Determines which file the descriptor refers to now.  If that is not the same
 * file as before, or cannot be known, the socket's registration is void.
 */
static void
update_identity(ClerkSocketSet *set, ClerkSocket *socket)
{
	struct stat file;

	if (fstat(socket->descriptor, &file) != 0)
		memset(&file, 0, sizeof(file));
	if (socket->open_reported && is_same_file(socket, &file))
		return;
	socket->open_reported = false;
	socket->device = file.st_dev;
	socket->inode = file.st_ino;
	if (socket->registered != 0)
	{
		socket->registered = 0;
		set->must_rebuild = true;
	}
}

static bool
is_same_file(const ClerkSocket *socket, const struct stat *file)
{
	return socket->device == file->st_dev && socket->inode == file->st_ino;
}

/* Removes idle sockets that have been closed in the meantime. */
static void
remove_closed_sockets(ClerkSocketSet *set)
{
	struct stat file;

	for (int i = set->count - 1; i >= 0; i--)
	{
		ClerkSocket *socket = &set->sockets[i];

		if (socket->wanted == 0 &&
			(fstat(socket->descriptor, &file) != 0 ||
			 !is_same_file(socket, &file)))
			remove_socket(set, socket);
	}
}

static void
rebuild_wait_set(ClerkSocketSet *set)
{
	if (!create_wait_set(set))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("too many file descriptors are in use")));
}

/*
 * Creates a wait set without sockets, to which all of them must be added.  If
 * an error ends this or the adding, the next wait starts over.
 *
 * Returns false if PostgreSQL grants no file descriptor.  We ask for one
 * beforehand because CreateWaitEventSet() would raise an error and leak
 * memory.
 */
static bool
create_wait_set(ClerkSocketSet *set)
{
	set->must_rebuild = true;
	if (set->wait_set != NULL)
		FreeWaitEventSet(set->wait_set);
	set->wait_set = NULL;
	remove_closed_sockets(set);
	if (!AcquireExternalFD())
		return false;
	ReleaseExternalFD();
	set->wait_set = clerk_create_wait_event_set(2 + set->count + SPARE_EVENTS);
	set->spare_events = set->count + SPARE_EVENTS;
	AddWaitEventToSet(set->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch,
					  NULL);

	/* A standalone backend has no postmaster. */
	if (IsUnderPostmaster)
		AddWaitEventToSet(set->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
						  NULL, NULL);
	for (int i = 0; i < set->count; i++)
		set->sockets[i].registered = 0;
	set->must_rebuild = false;
	set->must_update = true;
	return true;
}

/*
 * Registers the wanted events in the wait set.  While a socket is being
 * registered it is marked as not wanted: if that raises an error, later waits
 * leave the socket out instead of failing, too.
 */
static void
update_wait_set(ClerkSocketSet *set)
{
	for (int i = 0; i < set->count; i++)
	{
		ClerkSocket *socket = &set->sockets[i];
		uint32		wanted = socket->wanted;

		if (wanted == 0 || wanted == socket->registered)
			continue;
		if (socket->registered == 0 && set->spare_events == 0)
		{
			rebuild_wait_set(set);
			i = -1;				/* start over: all sockets must be added */
			continue;
		}
		set->must_rebuild = true;
		socket->wanted = 0;
		if (socket->registered != 0)
			ModifyWaitEvent(set->wait_set, socket->position, wanted, NULL);
		else
		{
			socket->position = AddWaitEventToSet(set->wait_set, wanted,
												 socket->descriptor, NULL, NULL);
			set->spare_events--;
		}
		set->must_rebuild = false;
		socket->wanted = socket->registered = wanted;
	}
	set->must_update = false;
}
