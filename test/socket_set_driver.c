/*
 * socket_set_driver.c
 *		SQL functions for src/http/socket_set.c itself, with real sockets that a test
 *		opens, closes and uses in the order it likes.
 *
 * It contains that file once more and is to be linked with -Bsymbolic to use
 * its own copy.  A test chooses the descriptors' numbers, so that it decides
 * which socket gets the number of which: above those that the server uses.
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

static int	made = 0;

/* Counts the wait sets that are made. */
static WaitEventSet *
make_and_count(int events)
{
	made++;
	return clerk_create_wait_event_set(events);
}

#undef clerk_create_wait_event_set
#define clerk_create_wait_event_set(events) make_and_count(events)

/* Fewer than the test may have descriptors. */
#undef CLERK_SOCKET_SET_MAX
#define CLERK_SOCKET_SET_MAX 100

#include "../src/http/socket_set.c"

PG_MODULE_MAGIC;

#define LOWEST 600
#define NUMBERS 200

/* Sockets of driver_random(): few, so that numbers come back soon. */
#define FEW 8

static ClerkSocketSet set;
static int	held = 0;
static int	peers[NUMBERS];		/* by number - LOWEST; 0: none */

/* What libcurl would know of a socket. */
static struct
{
	bool		open;
	uint32		wanted;
}			known[FEW];

static void open_pair(int number, bool told);
static void close_pair(int number, bool told);
static int	wait_for_ready(WaitEvent *ready, int max);
static void compare(int step, int *reports);

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

/* (number integer, told boolean): closes whatever has the number, untold */
Datum
driver_open(PG_FUNCTION_ARGS)
{
	open_pair(PG_GETARG_INT32(0), PG_GETARG_BOOL(1));
	PG_RETURN_VOID();
}

/* (number integer): a file, which nobody can wait for */
Datum
driver_open_file(PG_FUNCTION_ARGS)
{
	int			file = open("PG_VERSION", O_RDONLY);

	if (file < 0 || dup2(file, PG_GETARG_INT32(0)) < 0)
		elog(ERROR, "could not open a file: %m");
	close(file);
	PG_RETURN_VOID();
}

/* (number integer, told boolean) */
Datum
driver_close(PG_FUNCTION_ARGS)
{
	close_pair(PG_GETARG_INT32(0), PG_GETARG_BOOL(1));
	PG_RETURN_VOID();
}

/* (number integer): the other side sends a byte */
Datum
driver_say(PG_FUNCTION_ARGS)
{
	if (write(peers[PG_GETARG_INT32(0) - LOWEST], "x", 1) != 1)
		elog(ERROR, "could not write: %m");
	PG_RETURN_VOID();
}

/* (number integer): the other side closes */
Datum
driver_hang_up(PG_FUNCTION_ARGS)
{
	int		   *peer = &peers[PG_GETARG_INT32(0) - LOWEST];

	close(*peer);
	*peer = 0;
	PG_RETURN_VOID();
}

/* (number integer, readable boolean, writable boolean) RETURNS boolean */
Datum
driver_watch(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(clerk_socket_set_watch(&set, PG_GETARG_INT32(0),
										  (PG_GETARG_BOOL(1) ? WL_SOCKET_READABLE : 0) |
										  (PG_GETARG_BOOL(2) ? WL_SOCKET_WRITEABLE : 0)));
}

/* (number integer) */
Datum
driver_rest(PG_FUNCTION_ARGS)
{
	clerk_socket_set_rest(&set, PG_GETARG_INT32(0));
	PG_RETURN_VOID();
}

/* () */
Datum
driver_clear(PG_FUNCTION_ARGS)
{
	clerk_socket_set_clear(&set);
	PG_RETURN_VOID();
}

/* () RETURNS integer[]: numbers of those that are ready now */
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

/* () RETURNS integer: sockets in the set */
Datum
driver_count(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(set.count);
}

/* () RETURNS integer: how many wait sets were made so far */
Datum
driver_made(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(made);
}

/* (integer): takes all descriptors that PostgreSQL gives, but for so many */
Datum
driver_hold(PG_FUNCTION_ARGS)
{
	while (AcquireExternalFD())
		held++;
	for (int i = 0; i < PG_GETARG_INT32(0); i++, held--)
		ReleaseExternalFD();
	PG_RETURN_VOID();
}

/* () RETURNS integer: how many descriptors PostgreSQL would still give */
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

/* (): gives them back */
Datum
driver_release(PG_FUNCTION_ARGS)
{
	for (; held > 0; held--)
		ReleaseExternalFD();
	PG_RETURN_VOID();
}

/*
 * (seed integer, steps integer) RETURNS integer: does what libcurl may do, in
 * an order at random, and raises an error when what a wait reports differs
 * from what poll() says of those that are wanted; returns how many sockets were
 * reported.
 */
Datum
driver_random(PG_FUNCTION_ARGS)
{
	int			steps = PG_GETARG_INT32(1);
	int			reports = 0;

	srandom(PG_GETARG_INT32(0));
	for (int step = 0; step < steps; step++)
	{
		int			which = random() % FEW;
		int			number = LOWEST + which;
		uint32		events = 1 + random() % 3;

		events = (events & 1 ? WL_SOCKET_READABLE : 0) |
			(events & 2 ? WL_SOCKET_WRITEABLE : 0);
		switch (random() % 8)
		{
			case 0:
				/* Whatever had the number was closed without a word. */
				open_pair(number, true);
				known[which].open = true;
				break;
			case 1:
				/* Of sockets that others open libcurl tells when it begins. */
				open_pair(number, false);
				known[which].open = true;
				known[which].wanted = events;
				clerk_socket_set_watch(&set, number, events);
				break;
			case 2:
				if (!known[which].open)
					break;
				close_pair(number, false);
				known[which].open = false;
				break;
			case 3:
				if (!known[which].open)
					break;
				close_pair(number, true);
				known[which].open = false;
				known[which].wanted = 0;
				break;
			case 4:
				if (!known[which].open)
					break;
				known[which].wanted = events;
				clerk_socket_set_watch(&set, number, events);
				break;
			case 5:
				known[which].wanted = 0;
				clerk_socket_set_rest(&set, number);
				break;
			case 6:
				if (known[which].open && write(peers[which], "x", 1) != 1)
					elog(ERROR, "could not write: %m");
				break;
			case 7:
				if (random() % 50 == 0)
				{
					/* The end of a multi handle. */
					for (int i = 0; i < FEW; i++)
					{
						if (known[i].open)
							close_pair(LOWEST + i, random() % 2 == 0);
						known[i].open = false;
						known[i].wanted = 0;
					}
					clerk_socket_set_clear(&set);
				}
				else
					compare(step, &reports);
				break;
		}
	}
	PG_RETURN_INT32(reports);
}

static void
open_pair(int number, bool told)
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
	if (told && !clerk_socket_set_opened(&set, number))
		elog(ERROR, "the set has no room for a socket");
}

static void
close_pair(int number, bool told)
{
	int		   *peer = &peers[number - LOWEST];

	if (told)
		clerk_socket_set_closed(&set, number);
	close(number);
	if (*peer != 0)
		close(*peer);
	*peer = 0;
}

/* Without waiting; somebody may have set the latch for another reason. */
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
compare(int step, int *reports)
{
	WaitEvent	ready[64];
	int			count;

	/* By then libcurl has said that it no longer wants what it has closed. */
	for (int i = 0; i < FEW; i++)
	{
		if (known[i].open || known[i].wanted == 0)
			continue;
		known[i].wanted = 0;
		clerk_socket_set_rest(&set, LOWEST + i);
	}
	count = wait_for_ready(ready, lengthof(ready));
	*reports += count;
	for (int i = 0; i < FEW; i++)
	{
		struct pollfd truth = {.fd = LOWEST + i};
		uint32		expected = 0;
		uint32		reported = 0;

		if (known[i].wanted & WL_SOCKET_READABLE)
			truth.events |= POLLIN;
		if (known[i].wanted & WL_SOCKET_WRITEABLE)
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
