/*
 * socket_set_driver.c
 *		SQL functions that call src/http/socket_set.c directly, with real
 *		sockets that a test opens, closes and uses in any order.
 *
 * This library contains its own copy of that file, and must be linked with
 * -Bsymbolic so that it calls that copy.  The test chooses the descriptor
 * numbers, so it decides which socket gets a number that another one had.  The
 * numbers are above those that the server uses.
 */
#include "postgres.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/memutils.h"

#include "../src/compat.h"
#include "../src/http/socket_set.h"

static int	wait_sets_created = 0;

/* Counts the wait sets created. */
static WaitEventSet *
create_and_count(int events)
{
	wait_sets_created++;
	return clerk_create_wait_event_set(events);
}

#undef clerk_create_wait_event_set
#define clerk_create_wait_event_set(events) create_and_count(events)

/* Fewer than the file descriptors that the test may have. */
#undef CLERK_SOCKET_SET_MAX
#define CLERK_SOCKET_SET_MAX 100

#include "../src/http/socket_set.c"

PG_MODULE_MAGIC;

#define LOWEST 600
#define NUMBERS 200

/*
 * Number of sockets of driver_random(): few, so that numbers are soon reused.
 */
#define SOCKET_COUNT 8

static ClerkSocketSet set;
static int	descriptors_held = 0;
static int	peers[NUMBERS];		/* the other ends; 0: none */

/* What libcurl would know of each socket. */
static struct
{
	bool		open;
	uint32		wanted;
}			libcurl_state[SOCKET_COUNT];

static void open_pair(int number, bool report);
static void close_pair(int number, bool report);
static int	wait_for_ready(WaitEvent *ready, int max);
static void compare_with_poll(int step, int *reports);

PG_FUNCTION_INFO_V1(driver_open);
PG_FUNCTION_INFO_V1(driver_open_file);
PG_FUNCTION_INFO_V1(driver_close);
PG_FUNCTION_INFO_V1(driver_say);
PG_FUNCTION_INFO_V1(driver_hang_up);
PG_FUNCTION_INFO_V1(driver_watch);
PG_FUNCTION_INFO_V1(driver_rest);
PG_FUNCTION_INFO_V1(driver_clear);
PG_FUNCTION_INFO_V1(driver_wait);
PG_FUNCTION_INFO_V1(driver_count);
PG_FUNCTION_INFO_V1(driver_made);
PG_FUNCTION_INFO_V1(driver_hold);
PG_FUNCTION_INFO_V1(driver_room);
PG_FUNCTION_INFO_V1(driver_release);
PG_FUNCTION_INFO_V1(driver_random);

/*
 * (number integer, report boolean): opens a socket with this number, and
 * reports that to the set if "report"; closes what had the number before
 * without a report
 */
Datum
driver_open(PG_FUNCTION_ARGS)
{
	open_pair(PG_GETARG_INT32(0), PG_GETARG_BOOL(1));
	PG_RETURN_VOID();
}

/* (number integer): opens a regular file, which cannot be waited for */
Datum
driver_open_file(PG_FUNCTION_ARGS)
{
	int			file = open("PG_VERSION", O_RDONLY);

	if (file < 0 || dup2(file, PG_GETARG_INT32(0)) < 0)
		elog(ERROR, "could not open a file: %m");
	close(file);
	PG_RETURN_VOID();
}

/*
 * (number integer, report boolean): closes a socket, and reports that to the
 * set if "report"
 */
Datum
driver_close(PG_FUNCTION_ARGS)
{
	close_pair(PG_GETARG_INT32(0), PG_GETARG_BOOL(1));
	PG_RETURN_VOID();
}

/* (number integer): the peer sends a byte */
Datum
driver_say(PG_FUNCTION_ARGS)
{
	if (write(peers[PG_GETARG_INT32(0) - LOWEST], "x", 1) != 1)
		elog(ERROR, "could not write: %m");
	PG_RETURN_VOID();
}

/* (number integer): the peer closes its socket */
Datum
driver_hang_up(PG_FUNCTION_ARGS)
{
	int		   *peer = &peers[PG_GETARG_INT32(0) - LOWEST];

	close(*peer);
	*peer = 0;
	PG_RETURN_VOID();
}

/*
 * (number integer, readable boolean, writable boolean) RETURNS boolean: false
 * if the set is full
 */
Datum
driver_watch(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(clerk_socket_set_watch(&set, PG_GETARG_INT32(0),
										  (PG_GETARG_BOOL(1) ? WL_SOCKET_READABLE : 0) |
										  (PG_GETARG_BOOL(2) ? WL_SOCKET_WRITEABLE : 0)));
}

/* (number integer): stops watching a socket */
Datum
driver_rest(PG_FUNCTION_ARGS)
{
	clerk_socket_set_unwatch(&set, PG_GETARG_INT32(0));
	PG_RETURN_VOID();
}

/* (): closes all sockets as far as the set is concerned */
Datum
driver_clear(PG_FUNCTION_ARGS)
{
	clerk_socket_set_clear(&set);
	PG_RETURN_VOID();
}

/* () RETURNS integer[]: the sockets that are ready now */
Datum
driver_wait(PG_FUNCTION_ARGS)
{
	WaitEvent	ready[64];
	Datum		numbers[64];
	int			count = wait_for_ready(ready, lengthof(ready));

	for (int i = 0; i < count; i++)
		numbers[i] = Int32GetDatum(ready[i].fd);
	PG_RETURN_ARRAYTYPE_P(construct_array(numbers, count, INT4OID,
										  sizeof(int32), true, 'i'));
}

/* () RETURNS integer: number of sockets in the set */
Datum
driver_count(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(set.count);
}

/* () RETURNS integer: number of wait sets created so far */
Datum
driver_made(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(wait_sets_created);
}

/*
 * (integer): acquires all external file descriptors that PostgreSQL grants,
 * except so many
 */
Datum
driver_hold(PG_FUNCTION_ARGS)
{
	while (AcquireExternalFD())
		descriptors_held++;
	for (int i = 0; i < PG_GETARG_INT32(0); i++, descriptors_held--)
		ReleaseExternalFD();
	PG_RETURN_VOID();
}

/*
 * () RETURNS integer: number of external file descriptors that PostgreSQL
 * would still grant
 */
Datum
driver_room(PG_FUNCTION_ARGS)
{
	int			room = 0;

	while (AcquireExternalFD())
		room++;
	for (int i = 0; i < room; i++)
		ReleaseExternalFD();
	PG_RETURN_INT32(room);
}

/* (): releases the file descriptors that driver_hold() has acquired */
Datum
driver_release(PG_FUNCTION_ARGS)
{
	for (; descriptors_held > 0; descriptors_held--)
		ReleaseExternalFD();
	PG_RETURN_VOID();
}

/*
 * (seed integer, steps integer) RETURNS integer: does what libcurl may do, in
 * random order.  Raises an error if a wait reports something else than poll()
 * does for the watched sockets.  Returns the number of sockets reported.
 */
Datum
driver_random(PG_FUNCTION_ARGS)
{
	int			steps = PG_GETARG_INT32(1);
	int			reports = 0;

	srandom(PG_GETARG_INT32(0));
	for (int step = 0; step < steps; step++)
	{
		int			which = random() % SOCKET_COUNT;
		int			number = LOWEST + which;
		uint32		events = 1 + random() % 3;

		events = (events & 1 ? WL_SOCKET_READABLE : 0) |
			(events & 2 ? WL_SOCKET_WRITEABLE : 0);
		switch (random() % 8)
		{
			case 0:
				/* What had the number before is closed without a report. */
				open_pair(number, true);
				libcurl_state[which].open = true;
				break;
			case 1:
				/* libcurl starts to watch a socket that others have opened. */
				open_pair(number, false);
				libcurl_state[which].open = true;
				libcurl_state[which].wanted = events;
				clerk_socket_set_watch(&set, number, events);
				break;
			case 2:
				if (!libcurl_state[which].open)
					break;
				close_pair(number, false);
				libcurl_state[which].open = false;
				break;
			case 3:
				if (!libcurl_state[which].open)
					break;
				close_pair(number, true);
				libcurl_state[which].open = false;
				libcurl_state[which].wanted = 0;
				break;
			case 4:
				if (!libcurl_state[which].open)
					break;
				libcurl_state[which].wanted = events;
				clerk_socket_set_watch(&set, number, events);
				break;
			case 5:
				libcurl_state[which].wanted = 0;
				clerk_socket_set_unwatch(&set, number);
				break;
			case 6:
				if (libcurl_state[which].open &&
					write(peers[which], "x", 1) != 1)
					elog(ERROR, "could not write: %m");
				break;
			case 7:
				if (random() % 50 == 0)
				{
					/* As at the end of a multi handle. */
					for (int i = 0; i < SOCKET_COUNT; i++)
					{
						if (libcurl_state[i].open)
							close_pair(LOWEST + i, random() % 2 == 0);
						libcurl_state[i].open = false;
						libcurl_state[i].wanted = 0;
					}
					clerk_socket_set_clear(&set);
				}
				else
					compare_with_poll(step, &reports);
				break;
		}
	}
	PG_RETURN_INT32(reports);
}

static void
open_pair(int number, bool report)
{
	int			pair[2];
	int		   *peer = &peers[number - LOWEST];

	if (*peer != 0)
		close(*peer);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0 ||
		dup2(pair[0], number) < 0 ||
		(*peer = fcntl(pair[1], F_DUPFD, LOWEST + NUMBERS)) < 0)
		elog(ERROR, "could not open a socket: %m");
	close(pair[0]);
	close(pair[1]);
	if (report && !clerk_socket_set_opened(&set, number))
		elog(ERROR, "the set has no room for a socket");
}

static void
close_pair(int number, bool report)
{
	int		   *peer = &peers[number - LOWEST];

	if (report)
		clerk_socket_set_closed(&set, number);
	close(number);
	if (*peer != 0)
		close(*peer);
	*peer = 0;
}

/*
 * Returns the sockets that are ready without waiting for any.  Tries again if
 * the latch was set for some other reason.
 */
static int
wait_for_ready(WaitEvent *ready, int max)
{
	bool		latch_set;
	int			count;

	do
	{
		ResetLatch(MyLatch);
		count = clerk_socket_set_wait(&set, 0, PG_WAIT_EXTENSION, ready, max,
									  &latch_set);
	} while (latch_set);
	return count;
}

static void
compare_with_poll(int step, int *reports)
{
	WaitEvent	ready[64];
	int			count;

	/*
	 * By now libcurl would have stopped watching the sockets that it has
	 * closed.
	 */
	for (int i = 0; i < SOCKET_COUNT; i++)
	{
		if (libcurl_state[i].open || libcurl_state[i].wanted == 0)
			continue;
		libcurl_state[i].wanted = 0;
		clerk_socket_set_unwatch(&set, LOWEST + i);
	}
	count = wait_for_ready(ready, lengthof(ready));
	*reports += count;
	for (int i = 0; i < SOCKET_COUNT; i++)
	{
		struct pollfd truth = {.fd = LOWEST + i};
		uint32		expected = 0;
		uint32		reported = 0;

		if (libcurl_state[i].wanted & WL_SOCKET_READABLE)
			truth.events |= POLLIN;
		if (libcurl_state[i].wanted & WL_SOCKET_WRITEABLE)
			truth.events |= POLLOUT;
		if (truth.events != 0 && poll(&truth, 1, 0) > 0)
			expected = (truth.revents & POLLIN ? WL_SOCKET_READABLE : 0) |
				(truth.revents & POLLOUT ? WL_SOCKET_WRITEABLE : 0);
		for (int j = 0; j < count; j++)
			if (ready[j].fd == truth.fd)
				reported |= ready[j].events;
		if (reported != expected)
			elog(ERROR, "step %d, socket %d: 0x%x was reported, not 0x%x",
				 step, truth.fd, reported, expected);
	}
}
