/*
 * event_loop.c
 *		Moves all running requests on, and waits for them, the process's latch
 *		and the postmaster's death together.
 *
 * One multi handle a process carries every request and keeps connections for
 * reuse.  libcurl tells through a callback which sockets it waits for; they
 * are waited on together with the process's latch and the postmaster's death.
 * So whatever PostgreSQL wants of the process reaches it at once, in every
 * phase of a request.
 *
 * Rules that hold here and in http/transfer.c:
 *
 * 1. libcurl is entered only between enter_libcurl() and leave_libcurl().
 *	  In between all signals are blocked, so that a thread which libcurl
 *	  starts (its resolver) inherits that and never runs one of PostgreSQL's
 *	  signal handlers.
 * 2. In between nothing may raise an error, since longjmp() must not cross
 *	  libcurl's frames: no palloc(), no elog(), only malloc().
 * 3. libcurl's descriptors are reserved with PostgreSQL, which closes files of
 *	  its own to make room, may write to the log then, and gives at most a third
 *	  of what a process may have to such as these.  So each request's are
 *	  reserved before libcurl is entered for it; the request waits for them
 *	  while others run that will give theirs back, and is not sent if there are
 *	  none.
 */
#include "postgres.h"

#include <curl/curl.h>
#include <signal.h>

#include "common/monotonic_clock.h"
#include "compat.h"
#include "http/event_loop.h"
#include "miscadmin.h"
#include "storage/fd.h"

/*
 * A request has a socket for each of two addresses while it connects, or both
 * ends of one that tells of its look-up, and one socket from then on.
 */
#define DESCRIPTORS_OF_REQUEST 2

/* Both ends of a socket by which another thread could wake it. */
#define DESCRIPTORS_OF_MULTI 2

/*
 * Since 8.22 libcurl looks at a kept connection only once a second, and sends
 * requests on one that was closed within that time.  Its own remedy is to send
 * them again, which is refused for a POST (http/transfer.c).
 */
#define TRUSTING_VERSION 0x081600

/* Everything that lives as long as the process. */
static struct
{
	bool		ready;
	bool		trusting;		/* libcurl is TRUSTING_VERSION or later */
	ClerkSocketSet sockets;
	uint32		wait_event;
	CURLM	   *multi;			/* NULL until needed, and after an abort */
	bool		discard_multi;	/* a transfer has failed: drop it when idle */
	int64		timer_due;		/* libcurl's, or CLERK_NEVER */
	int64		next_deadline;	/* the requests' own, or CLERK_NEVER */
	dlist_head	running;
	dlist_head	waiting;		/* requests that descriptors lack for */
	int			reserved;		/* descriptors, with PostgreSQL */
	int			abandoned;		/* transfers that have no request any more */
}			loop;

static bool begin_waiting(void);
static bool reserve_for_request(void);
static bool reserve(int wanted);
static int	descriptors_needed(void);
static void give_back_descriptors(void);
static void run(ClerkLoopEntry *entry);
static bool prepare_multi(void);
static void drive_libcurl(const WaitEvent *ready, int count);
static void end_late_requests(void);
static void note_next_deadline(void);
static void fail_all(CURLMcode result);
static void settle_finished(void);
static void give_up(ClerkLoopEntry *entry);
static void remove_transfer(ClerkLoopEntry *entry, bool reuse);
static void drop_multi_if_unused(void);
static long wait_milliseconds(long timeout, int64 started);

static int	on_socket_interest(CURL *easy, curl_socket_t socket, int what,
							   void *arg, void *for_socket);
static int	on_timer(CURLM *multi, long milliseconds, void *arg);

static inline void
enter_libcurl(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

static inline void
leave_libcurl(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* What is needed once a process, and stays. */
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
	loop.timer_due = CLERK_NEVER;
	loop.next_deadline = CLERK_NEVER;
	loop.wait_event = clerk_new_wait_event("ClerkInviteHttp");

	dlist_init(&loop.running);
	dlist_init(&loop.waiting);
	loop.trusting = curl_version_info(CURLVERSION_NOW)->version_num >= TRUSTING_VERSION;
	loop.ready = true;
}

/*
 * Begins to run a entry, or has it wait until descriptors are there.  False
 * if memory has run out, or libcurl lacks an option; nothing was sent then.
 */
bool
clerk_event_loop_start(ClerkLoopEntry *entry, const ClerkHttpSpec *spec,
					   bool loopback_only)
{
	bool		prepared;
	bool		fresh_connection = false;
	sigset_t	saved;

	enter_libcurl(&saved);
	if (loop.trusting && clerk_socket_set_any_hung_up(&loop.sockets))
	{
		loop.discard_multi = true;

		drop_multi_if_unused();
		fresh_connection = loop.multi != NULL;
	}
	prepared = clerk_transfer_prepare(&entry->transfer, spec, loopback_only,
									  &loop.sockets, fresh_connection, entry);
	leave_libcurl(&saved);
	if (!prepared)
		return false;

	entry->waiting = true;
	dlist_push_tail(&loop.waiting, &entry->node);
	begin_waiting();
	return true;
}

/* What http/http.h promises of waiting. */
void
clerk_event_loop_wait(long timeout)
{
	WaitEvent	ready[16];
	int			count;
	bool		latch_set;
	sigset_t	saved;

	if (begin_waiting())
		return;
	count = clerk_socket_set_wait(&loop.sockets,
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
	give_back_descriptors();
}

/* Takes a request out of the loop, giving it up if it is still running. */
void
clerk_event_loop_release(ClerkLoopEntry *entry)
{
	sigset_t	saved;

	if (entry->transfer.easy == NULL)
		return;
	enter_libcurl(&saved);
	if (entry->waiting)
	{
		dlist_delete(&entry->node);
		remove_transfer(entry, false);
	}
	else if (entry->transfer.outcome == CLERK_HTTP_RUNNING)
		give_up(entry);
	else
		remove_transfer(entry, false);
	drop_multi_if_unused();
	leave_libcurl(&saved);
	give_back_descriptors();
}

/*
 * Begins to run requests that wait, as far as there are descriptors for them.
 * If nothing runs whose end would give some back, the others are not sent.
 * False if there were none, or those that there are have to wait on.
 */
static bool
begin_waiting(void)
{
	bool		any = false;

	if (dlist_is_empty(&loop.waiting))
		return false;
	while (!dlist_is_empty(&loop.waiting))
	{
		ClerkLoopEntry *entry = dlist_head_element(ClerkLoopEntry, node,
												   &loop.waiting);
		bool		has_room = reserve_for_request();

		if (!has_room && !dlist_is_empty(&loop.running))
			break;
		dlist_delete(&entry->node);
		entry->waiting = false;
		if (has_room)
			run(entry);
		else
			clerk_transfer_refuse(&entry->transfer, CLERK_HTTP_NOT_SENT,
								  "too many file descriptors are in use");
		any = true;
	}
	give_back_descriptors();
	return any;
}

/*
 * Reserves what one more request needs, at the expense of connections that are
 * only kept.  False if there is not enough.
 */
static bool
reserve_for_request(void)
{
	sigset_t	saved;

	if (reserve(DESCRIPTORS_OF_REQUEST))
		return true;
	if (!dlist_is_empty(&loop.running) || loop.multi == NULL)
		return false;
	enter_libcurl(&saved);
	loop.discard_multi = true;

	drop_multi_if_unused();
	leave_libcurl(&saved);
	give_back_descriptors();
	return reserve(DESCRIPTORS_OF_REQUEST);
}

/* Reserves so many more, and what each process needs for its first request. */
static bool
reserve(int wanted)
{
	wanted += descriptors_needed();
	if (loop.multi == NULL)
		wanted += DESCRIPTORS_OF_MULTI;
	while (loop.reserved < wanted)
	{
		if (!AcquireExternalFD())
			return false;
		loop.reserved++;
	}
	return clerk_socket_set_prepare(&loop.sockets);
}

/* For what runs and what is kept. */
static int
descriptors_needed(void)
{
	int			wanted_sockets = clerk_socket_set_count_wanted(&loop.sockets);
	int			kept_sockets = loop.sockets.count - wanted_sockets;
	int			requests = loop.abandoned;
	dlist_iter	iter;

	dlist_foreach(iter, &loop.running)
		requests++;
	return Max(wanted_sockets, requests * DESCRIPTORS_OF_REQUEST) +
		kept_sockets + (loop.multi != NULL ? DESCRIPTORS_OF_MULTI : 0);
}

static void
give_back_descriptors(void)
{
	int			needed = descriptors_needed();

	for (; loop.reserved > needed; loop.reserved--)
		ReleaseExternalFD();
}

/* Gives a request that is prepared to libcurl. */
static void
run(ClerkLoopEntry *entry)
{
	sigset_t	saved;

	enter_libcurl(&saved);
	/* Abandoned transfers keep the multi handle, whose connections are bad. */
	if (loop.abandoned > 0)
		clerk_transfer_refuse_kept(&entry->transfer);
	if (prepare_multi() &&
		curl_multi_add_handle(loop.multi, entry->transfer.easy) == CURLM_OK)
	{
		dlist_push_tail(&loop.running, &entry->node);
		drive_libcurl(NULL, 0);
	}
	else
		clerk_transfer_refuse(&entry->transfer, CLERK_HTTP_NOT_SENT,
							  "memory is exhausted, or libcurl does not support a required option");
	leave_libcurl(&saved);
}

/* The multi handle, if there is none. */
static bool
prepare_multi(void)
{
	if (loop.multi != NULL)
		return true;
	loop.multi = curl_multi_init();

	if (loop.multi == NULL)
		return false;
	return curl_multi_setopt(loop.multi, CURLMOPT_SOCKETFUNCTION,
							 on_socket_interest) == CURLM_OK &&
		curl_multi_setopt(loop.multi, CURLMOPT_TIMERFUNCTION,
						  on_timer) == CURLM_OK &&
		clerk_set_quick_cleanup(loop.multi);
}

/* Lets libcurl work on what is ready and on what is due by its timer. */
static void
drive_libcurl(const WaitEvent *ready, int count)
{
	CURLMcode	result = CURLM_OK;
	int			running;

	end_late_requests();
	for (int i = 0; i < count && result == CURLM_OK; i++)
		result = curl_multi_socket_action(loop.multi, ready[i].fd,
										  (ready[i].events & WL_SOCKET_READABLE ? CURL_CSELECT_IN : 0) |
										  (ready[i].events & WL_SOCKET_WRITEABLE ? CURL_CSELECT_OUT : 0),
										  &running);
	if (result == CURLM_OK && loop.timer_due <= clerk_monotonic_microseconds())
	{
		loop.timer_due = CLERK_NEVER;

		result = curl_multi_socket_action(loop.multi, CURL_SOCKET_TIMEOUT,
										  0, &running);
	}
	settle_finished();
	if (result != CURLM_OK)
		fail_all(result);
	drop_multi_if_unused();
	note_next_deadline();
}

/* Ends the requests whose limits libcurl does not keep, if it is time. */
static void
end_late_requests(void)
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
		give_up(entry);
	}
}

static void
note_next_deadline(void)
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
 * The multi handle itself has failed, and would never time out: gives up all
 * requests that run on it.
 */
static void
fail_all(CURLMcode result)
{
	while (!dlist_is_empty(&loop.running))
	{
		ClerkLoopEntry *entry = dlist_head_element(ClerkLoopEntry, node,
												   &loop.running);

		clerk_transfer_fail(&entry->transfer, curl_multi_strerror(result));
		give_up(entry);
	}
}

/* Takes note of the transfers that libcurl is done with. */
static void
settle_finished(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(loop.multi, &left)) != NULL)
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
			/* Abandoned; see clerk_transfer_abandon(). */
			curl_multi_remove_handle(loop.multi, easy);
			curl_easy_cleanup(easy);
			loop.abandoned--;

			continue;
		}

		/*
		 * Over HTTP/2 libcurl gives up the stream only, and would send the
		 * next request on the same connection, which may be the reason of the
		 * failure.
		 */
		if (result != CURLE_OK)
			loop.discard_multi = true;

		dlist_delete(&entry->node);
		clerk_transfer_settle(&entry->transfer, result);
		remove_transfer(entry, !loop.discard_multi);
	}
}

/* Ends a running request before libcurl is done with it. */
static void
give_up(ClerkLoopEntry *entry)
{
	dlist_delete(&entry->node);
	loop.discard_multi = true;

	if (clerk_transfer_abandon(&entry->transfer))
		loop.abandoned++;

	else
		remove_transfer(entry, false);
}

/* Takes the handle from a entry; one that ran to its end can be reused. */
static void
remove_transfer(ClerkLoopEntry *entry, bool reuse)
{
	if (loop.multi != NULL)
		curl_multi_remove_handle(loop.multi, entry->transfer.easy);
	clerk_transfer_drop_handle(&entry->transfer, reuse);
}

/*
 * After a transfer that was aborted or failed, the multi handle goes with all
 * its connections once nothing else runs on it.
 */
static void
drop_multi_if_unused(void)
{
	if (loop.discard_multi && dlist_is_empty(&loop.running) &&
		loop.abandoned == 0)
	{
		curl_multi_cleanup(loop.multi);
		clerk_socket_set_clear(&loop.sockets);
		loop.multi = NULL;
		loop.timer_due = CLERK_NEVER;
		loop.discard_multi = false;
	}
}

/* The shorter of a caller's limit and the time until something is due. */
static long
wait_milliseconds(long timeout, int64 started)
{
	int64		due = Min(loop.timer_due, loop.next_deadline);
	int64		left;

	if (due == CLERK_NEVER)
		return timeout;
	/* Rounded up, since waking early would only mean to wait again. */
	left = Max(due - started + 999, 0) / 1000;
	left = Min(left, INT_MAX);
	return timeout < 0 ? (long) left : Min(timeout, (long) left);
}

/* libcurl begins or ceases to care about a socket. */
static int
on_socket_interest(CURL *easy pg_attribute_unused(), curl_socket_t socket,
				   int what, void *arg pg_attribute_unused(),
				   void *for_socket pg_attribute_unused())
{
	uint32		events = 0;

	if (what == CURL_POLL_REMOVE)
	{
		clerk_socket_set_rest(&loop.sockets, socket);
		return 0;
	}
	if (what & CURL_POLL_IN)
		events |= WL_SOCKET_READABLE;
	if (what & CURL_POLL_OUT)
		events |= WL_SOCKET_WRITEABLE;
	return clerk_socket_set_watch(&loop.sockets, socket, events) ? 0 : -1;
}

/* libcurl wants to be called after so many milliseconds; -1 means not. */
static int
on_timer(CURLM *multi pg_attribute_unused(), long milliseconds,
		 void *arg pg_attribute_unused())
{
	loop.timer_due = milliseconds < 0 ? CLERK_NEVER :
		clerk_monotonic_microseconds() + (int64) milliseconds * 1000;

	return 0;
}
