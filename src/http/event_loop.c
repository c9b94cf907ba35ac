/*
 * event_loop.c
 *		Drives all running requests, and waits for them together with the
 *		process's latch and the postmaster's death.
 *
 * Each process has one multi handle, which carries every request and keeps
 * connections for reuse.  libcurl reports through a callback which sockets it
 * waits for.  We wait for them together with the latch and the postmaster's
 * death, so cancels, terminations and other interrupts reach the process at
 * once in every phase of a request.
 *
 * Rules that apply here and in http/multi_handle.c, http/transfer.c,
 * http/easy_handle.c and http/header_list.c:
 *
 * 1. libcurl is called only between enter_libcurl() and leave_libcurl().  All
 *	  signals are blocked there, so that a thread that libcurl starts (its
 *	  resolver) inherits the blocked mask and never runs one of PostgreSQL's
 *	  signal handlers.
 * 2. Between these two calls nothing may raise an error, because longjmp()
 *	  must not cross libcurl's stack frames.  That rules out palloc() and
 *	  elog(); use malloc().
 * 3. libcurl's file descriptors are reserved with AcquireExternalFD().  To
 *	  make room, PostgreSQL may close files of its own and write to the log, so
 *	  each request's descriptors are reserved before libcurl is entered for it.
 *	  PostgreSQL grants at most a third of a process's descriptors this way.
 *	  If there are not enough, the request waits until running requests release
 *	  theirs; if no request is running, it is not sent.
 */
#include "postgres.h"

#include <curl/curl.h>
#include <signal.h>

#include "common/monotonic_clock.h"
#include "compat.h"
#include "http/event_loop.h"
#include "http/multi_handle.h"
#include "miscadmin.h"
#include "storage/fd.h"

/*
 * File descriptors that a request needs at most.  While it connects, it may
 * have a socket for each of two addresses, or a socket pair that reports the
 * end of its name lookup; after that it has one socket.
 */
#define DESCRIPTORS_PER_REQUEST 2

/* A multi handle's socket pair, by which another thread can wake it. */
#define DESCRIPTORS_PER_MULTI 2

/* State that lives as long as the process. */
static struct
{
	bool		ready;
	uint32		wait_event;
	ClerkMultiHandle multi;
	bool		discard_multi;	/* a transfer failed or was canceled: discard
								 * "multi" once no transfer uses it */
	int64		next_deadline;	/* earliest deadline that we enforce
								 * ourselves, or CLERK_NEVER */
	dlist_head	running;
	dlist_head	waiting;		/* requests that wait for file descriptors */
	int			reserved;		/* file descriptors reserved with PostgreSQL */
	int			abandoned;		/* transfers that libcurl still has, but no
								 * request */
}			loop;

static bool start_waiting_requests(void);
static bool reserve_for_request(void);
static bool reserve_descriptors(int wanted);
static int	descriptors_needed(void);
static void release_spare_descriptors(void);
static void run_transfer(ClerkLoopEntry *entry);
static void drive_libcurl(const WaitEvent *ready, int count);
static void cancel_overdue_requests(void);
static void update_next_deadline(void);
static void fail_all_running(CURLMcode result);
static void settle_finished(void);
static void cancel_running(ClerkLoopEntry *entry);
static void remove_transfer(ClerkLoopEntry *entry, bool reuse);
static void discard_multi_if_unused(void);
static long wait_milliseconds(long timeout, int64 started);

static inline void
enter_libcurl(sigset_t *saved)
{
	sigset_t	all_signals;

	sigfillset(&all_signals);
	pthread_sigmask(SIG_SETMASK, &all_signals, saved);
}

static inline void
leave_libcurl(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/*
 * Initializes libcurl and the event loop.  Does so once per process; later
 * calls return at once.  Raises 38000 if libcurl cannot be initialized.
 */
void
clerk_event_loop_prepare(void)
{
	CURLcode	result;
	sigset_t	saved;

	if (loop.ready)
		return;

	enter_libcurl(&saved);
	result = curl_global_init(CURL_GLOBAL_DEFAULT);
	leave_libcurl(&saved);
	if (result != CURLE_OK)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not initialize libcurl: %s",
						curl_easy_strerror(result))));
	clerk_multi_init(&loop.multi);
	loop.next_deadline = CLERK_NEVER;
	loop.wait_event = clerk_new_wait_event("ClerkInviteHttp");

	dlist_init(&loop.running);
	dlist_init(&loop.waiting);
	loop.ready = true;
}

/*
 * Starts a request, or queues it until file descriptors are available.
 * "loopback_only" refuses every address that is not a loopback address.
 *
 * Returns false if memory has run out or libcurl lacks an option; nothing was
 * sent then.  May raise an error if the wait set cannot be created.
 */
bool
clerk_event_loop_start(ClerkLoopEntry *entry, const ClerkHttpSpec *spec,
					   bool loopback_only)
{
	bool		can_run = dlist_is_empty(&loop.waiting) && reserve_for_request();
	bool		prepared;
	bool		fresh_connection = false;
	sigset_t	saved;

	enter_libcurl(&saved);
	if (clerk_multi_may_use_closed_connection(&loop.multi))
	{
		loop.discard_multi = true;

		discard_multi_if_unused();
		fresh_connection = loop.multi.handle != NULL;
	}
	prepared = clerk_transfer_prepare(&entry->transfer, spec, loopback_only,
									  &loop.multi.sockets, fresh_connection, entry);
	if (prepared && can_run)
		run_transfer(entry);
	leave_libcurl(&saved);
	if (prepared && !can_run)
	{
		entry->waiting = true;
		dlist_push_tail(&loop.waiting, &entry->node);
		start_waiting_requests();
	}
	else
		release_spare_descriptors();
	return prepared;
}

/* See clerk_http_wait() in http/http.c. */
void
clerk_event_loop_wait(long timeout)
{
	WaitEvent	ready[16];
	int			count;
	bool		latch_set;
	sigset_t	saved;

	if (start_waiting_requests())
		return;
	count = clerk_socket_set_wait(&loop.multi.sockets,
								  wait_milliseconds(timeout, clerk_monotonic_microseconds()),
								  loop.wait_event, ready, lengthof(ready),
								  &latch_set);
	if (latch_set)
	{
		ResetLatch(MyLatch);
		if (count == 0)
			return;
	}

	enter_libcurl(&saved);
	drive_libcurl(ready, count);
	leave_libcurl(&saved);
	release_spare_descriptors();
}

/*
 * Removes a request from the event loop, canceling it if it is still running.
 * Raises no error: it is called from a memory context's reset callback.
 */
void
clerk_event_loop_release(ClerkLoopEntry *entry)
{
	sigset_t	saved;

	if (entry->transfer.handle.easy == NULL)
		return;
	enter_libcurl(&saved);
	if (entry->waiting)
	{
		dlist_delete(&entry->node);
		remove_transfer(entry, false);
	}
	else if (entry->transfer.outcome == CLERK_HTTP_RUNNING)
		cancel_running(entry);
	else
		remove_transfer(entry, false);
	discard_multi_if_unused();
	leave_libcurl(&saved);
	release_spare_descriptors();
}

/*
 * Starts queued requests for as long as there are file descriptors.  If there
 * are none, and no running request will release any, the queued requests end
 * with CLERK_HTTP_NOT_SENT.
 *
 * Returns whether a request was started or ended.
 */
static bool
start_waiting_requests(void)
{
	bool		progressed = false;
	sigset_t	saved;

	if (dlist_is_empty(&loop.waiting))
		return false;
	while (!dlist_is_empty(&loop.waiting))
	{
		ClerkLoopEntry *entry = dlist_head_element(ClerkLoopEntry, node,
												   &loop.waiting);
		bool		has_descriptors = reserve_for_request();

		if (!has_descriptors && !dlist_is_empty(&loop.running))
			break;
		dlist_delete(&entry->node);
		entry->waiting = false;
		if (has_descriptors)
		{
			enter_libcurl(&saved);
			run_transfer(entry);
			leave_libcurl(&saved);
		}
		else
			clerk_transfer_refuse(&entry->transfer, CLERK_HTTP_NOT_SENT,
								  "too many file descriptors are in use");
		progressed = true;
	}
	release_spare_descriptors();
	return progressed;
}

/*
 * Reserves the file descriptors of one more request.  Closes kept connections
 * for that if need be, but only if no request is running.  Returns false if
 * there are not enough.
 */
static bool
reserve_for_request(void)
{
	sigset_t	saved;

	if (reserve_descriptors(DESCRIPTORS_PER_REQUEST))
		return true;
	if (!dlist_is_empty(&loop.running) || loop.multi.handle == NULL)
		return false;
	enter_libcurl(&saved);
	loop.discard_multi = true;

	discard_multi_if_unused();
	leave_libcurl(&saved);
	release_spare_descriptors();
	return reserve_descriptors(DESCRIPTORS_PER_REQUEST);
}

/*
 * Reserves "wanted" file descriptors beyond those in use, and what the multi
 * handle and the wait set need if they do not exist yet.  Returns false if
 * there are not enough; the caller then releases those that were reserved, by
 * release_spare_descriptors().
 */
static bool
reserve_descriptors(int wanted)
{
	wanted += descriptors_needed();
	if (loop.multi.handle == NULL)
		wanted += DESCRIPTORS_PER_MULTI;
	while (loop.reserved < wanted)
	{
		if (!AcquireExternalFD())
			return false;
		loop.reserved++;
	}
	return clerk_socket_set_prepare(&loop.multi.sockets);
}

/*
 * File descriptors that running requests, abandoned transfers and kept
 * connections need.
 */
static int
descriptors_needed(void)
{
	int			wanted_sockets = clerk_socket_set_count_wanted(&loop.multi.sockets);
	int			kept_sockets = loop.multi.sockets.count - wanted_sockets;
	int			requests = loop.abandoned;
	dlist_iter	iter;

	dlist_foreach(iter, &loop.running)
		requests++;
	return Max(wanted_sockets, requests * DESCRIPTORS_PER_REQUEST) +
		kept_sockets + (loop.multi.handle != NULL ? DESCRIPTORS_PER_MULTI : 0);
}

static void
release_spare_descriptors(void)
{
	int			needed = descriptors_needed();

	for (; loop.reserved > needed; loop.reserved--)
		ReleaseExternalFD();
}

/* Hands a prepared request to libcurl, which the caller has entered. */
static void
run_transfer(ClerkLoopEntry *entry)
{
	/*
	 * The multi handle's connections are bad, but abandoned transfers keep it
	 * from being discarded.
	 */
	if (loop.abandoned > 0)
		clerk_transfer_require_new_connection(&entry->transfer);
	if (clerk_multi_add(&loop.multi, entry->transfer.handle.easy))
	{
		dlist_push_tail(&loop.running, &entry->node);
		drive_libcurl(NULL, 0);
	}
	else
		clerk_transfer_refuse(&entry->transfer, CLERK_HTTP_NOT_SENT,
							  "memory is exhausted, or libcurl does not support a required option");
}

/*
 * Lets libcurl process the sockets that are ready and its timer if that has
 * expired, then settles all transfers that have ended.
 */
static void
drive_libcurl(const WaitEvent *ready, int count)
{
	CURLMcode	result;

	cancel_overdue_requests();
	result = clerk_multi_drive(&loop.multi, ready, count);
	settle_finished();
	if (result != CURLM_OK)
		fail_all_running(result);
	discard_multi_if_unused();
	update_next_deadline();
}

/*
 * Cancels the requests whose deadlines have passed.  Only deadlines that
 * libcurl does not enforce itself count; see rule 3 in http/transfer.c.
 */
static void
cancel_overdue_requests(void)
{
	int64		now;
	dlist_mutable_iter iter;

	if (loop.next_deadline == CLERK_NEVER)
		return;
	now = clerk_monotonic_microseconds();
	dlist_foreach_modify(iter, &loop.running)
	{
		ClerkLoopEntry *entry = dlist_container(ClerkLoopEntry, node,
												iter.cur);

		if (clerk_transfer_deadline(&entry->transfer) > now)
			continue;
		clerk_transfer_fail(&entry->transfer,
							curl_easy_strerror(CURLE_OPERATION_TIMEDOUT));
		cancel_running(entry);
	}
}

static void
update_next_deadline(void)
{
	dlist_iter	iter;

	loop.next_deadline = CLERK_NEVER;

	dlist_foreach(iter, &loop.running)
	{
		ClerkLoopEntry *entry = dlist_container(ClerkLoopEntry, node,
												iter.cur);

		loop.next_deadline = Min(loop.next_deadline,
								 clerk_transfer_deadline(&entry->transfer));
	}
}

/*
 * Fails all running requests.  If an operation on the multi handle itself has
 * failed, libcurl would never time them out.
 */
static void
fail_all_running(CURLMcode result)
{
	while (!dlist_is_empty(&loop.running))
	{
		ClerkLoopEntry *entry = dlist_head_element(ClerkLoopEntry, node,
												   &loop.running);

		clerk_transfer_fail(&entry->transfer, curl_multi_strerror(result));
		cancel_running(entry);
	}
}

/* Settles the transfers that libcurl reports as done. */
static void
settle_finished(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(loop.multi.handle, &left)) != NULL)
	{
		CURL	   *easy = message->easy_handle;
		CURLcode	result = message->data.result;
		ClerkLoopEntry *entry;

		if (message->msg != CURLMSG_DONE ||
			curl_easy_getinfo(easy, CURLINFO_PRIVATE,
							  (char **) &entry) != CURLE_OK)
			continue;
		if (entry == NULL)
		{
			/* Abandoned: see clerk_transfer_abandon(). */
			curl_multi_remove_handle(loop.multi.handle, easy);
			curl_easy_cleanup(easy);
			loop.abandoned--;

			continue;
		}

		/*
		 * Over HTTP/2 libcurl closes only the stream, and would send the next
		 * request on the same connection, which may be the cause of the
		 * failure.
		 */
		if (result != CURLE_OK)
			loop.discard_multi = true;

		dlist_delete(&entry->node);
		clerk_transfer_settle(&entry->transfer, result);
		remove_transfer(entry, !loop.discard_multi);
	}
}

/* Cancels a running request. */
static void
cancel_running(ClerkLoopEntry *entry)
{
	dlist_delete(&entry->node);
	loop.discard_multi = true;

	if (clerk_transfer_abandon(&entry->transfer))
		loop.abandoned++;

	else
		remove_transfer(entry, false);
}

/*
 * Takes the easy handle from an entry.  "reuse" keeps the handle for another
 * request, which is allowed only if the transfer has run to its end.
 */
static void
remove_transfer(ClerkLoopEntry *entry, bool reuse)
{
	if (loop.multi.handle != NULL)
		curl_multi_remove_handle(loop.multi.handle, entry->transfer.handle.easy);
	clerk_transfer_drop_handle(&entry->transfer, reuse);
}

/*
 * Discards the multi handle with all its connections if a transfer on it has
 * failed or was canceled, as soon as no transfer uses it.
 */
static void
discard_multi_if_unused(void)
{
	if (loop.discard_multi && dlist_is_empty(&loop.running) &&
		loop.abandoned == 0)
	{
		clerk_multi_discard(&loop.multi);
		loop.discard_multi = false;
	}
}

/*
 * The caller's time limit or the time until something is due, whichever is
 * shorter, in milliseconds; -1 means no limit.
 */
static long
wait_milliseconds(long timeout, int64 started)
{
	int64		due = Min(loop.multi.timer_due, loop.next_deadline);
	int64		left;

	if (due == CLERK_NEVER)
		return timeout;
	/* Round up: a wait that ends too early would only be repeated. */
	left = Max(due - started + 999, 0) / 1000;
	left = Min(left, INT_MAX);
	return timeout < 0 ? (long) left : Min(timeout, (long) left);
}
