/*
 * multi_handle.c
 *		libcurl's multi handle, with the connections of a process: its options,
 *		and the callbacks by which it says which sockets and which time it
 *		waits for.
 *
 * The rules at the head of http/event_loop.c apply: libcurl has been entered,
 * and nothing here may raise an error or use palloc().
 */
#include "postgres.h"

#include <curl/curl.h>

#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "compat.h"
#include "http/multi_handle.h"

/*
 * Connections that are kept however few requests a sender may have in flight:
 * what libcurl keeps for a single request.
 */
#define MIN_KEPT_CONNECTIONS 4

/*
 * Since 8.22 libcurl checks at most once a second whether the server has
 * closed a kept connection, and may send a request on a connection closed
 * within that second.  Its own remedy is to send the request again, which
 * http/transfer.c refuses for a POST.  So we check kept connections ourselves
 * before each request.
 */
#define LIVENESS_CACHING_VERSION 0x081600

static bool create(ClerkMultiHandle *multi);
static bool keep_connections(CURLM *handle);
static int	on_socket_interest(CURL *easy, curl_socket_t socket, int what,
							   void *arg, void *for_socket);
static int	on_timer(CURLM *handle, long milliseconds, void *arg);

/* Must be called once.  Does not call libcurl. */
void
clerk_multi_init(ClerkMultiHandle *multi)
{
	memset(multi, 0, sizeof(*multi));
	multi->timer_due = CLERK_NEVER;
}

/*
 * Hands a transfer to libcurl, which begins it at the next call of
 * clerk_multi_drive().  Creates the handle if there is none.  Returns false if
 * memory has run out or libcurl lacks an option.
 */
bool
clerk_multi_add(ClerkMultiHandle *multi, CURL *easy)
{
	return (multi->handle != NULL || create(multi)) &&
		keep_connections(multi->handle) &&
		curl_multi_add_handle(multi->handle, easy) == CURLM_OK;
}

static bool
create(ClerkMultiHandle *multi)
{
	CURLM	   *handle = curl_multi_init();

	if (handle == NULL)
		return false;
	if (curl_multi_setopt(handle, CURLMOPT_SOCKETFUNCTION,
						  on_socket_interest) != CURLM_OK ||
		curl_multi_setopt(handle, CURLMOPT_SOCKETDATA, multi) != CURLM_OK ||
		curl_multi_setopt(handle, CURLMOPT_TIMERFUNCTION, on_timer) != CURLM_OK ||
		curl_multi_setopt(handle, CURLMOPT_TIMERDATA, multi) != CURLM_OK ||
		!clerk_set_quick_cleanup(handle))
	{
		curl_multi_cleanup(handle);
		return false;
	}
	multi->handle = handle;
	return true;
}

/*
 * Lets libcurl keep as many connections as a sender uses.  By default it keeps
 * four for each request that is running, and so closes most of them when only
 * the last request of a batch is left, for the next batch to open new ones.
 * Returns false on failure.
 */
static bool
keep_connections(CURLM *handle)
{
	return curl_multi_setopt(handle, CURLMOPT_MAXCONNECTS,
							 (long) Max(clerk_max_concurrent_requests,
										MIN_KEPT_CONNECTIONS)) == CURLM_OK;
}

/*
 * Lets libcurl process the sockets that are ready, and its timer if that has
 * expired.
 */
CURLMcode
clerk_multi_drive(ClerkMultiHandle *multi, const WaitEvent *ready, int count)
{
	CURLMcode	result = CURLM_OK;
	int			running;

	for (int i = 0; i < count && result == CURLM_OK; i++)
		result = curl_multi_socket_action(multi->handle, ready[i].fd,
										  (ready[i].events & WL_SOCKET_READABLE ? CURL_CSELECT_IN : 0) |
										  (ready[i].events & WL_SOCKET_WRITEABLE ? CURL_CSELECT_OUT : 0),
										  &running);
	if (result == CURLM_OK && multi->timer_due <= clerk_monotonic_microseconds())
	{
		multi->timer_due = CLERK_NEVER;
		result = curl_multi_socket_action(multi->handle, CURL_SOCKET_TIMEOUT,
										  0, &running);
	}
	return result;
}

/*
 * Whether libcurl might send a request on a connection that the server has
 * closed; see LIVENESS_CACHING_VERSION.
 */
bool
clerk_multi_may_use_closed_connection(const ClerkMultiHandle *multi)
{
	static int	caches_liveness = -1;	/* not known yet */

	if (caches_liveness < 0)
		caches_liveness = curl_version_info(CURLVERSION_NOW)->version_num >=
			LIVENESS_CACHING_VERSION;
	return caches_liveness && clerk_socket_set_any_hung_up(&multi->sockets);
}

/*
 * Discards the handle with all its connections.  No transfer may be left in
 * it.
 */
void
clerk_multi_discard(ClerkMultiHandle *multi)
{
	curl_multi_cleanup(multi->handle);
	clerk_socket_set_clear(&multi->sockets);
	multi->handle = NULL;
	multi->timer_due = CLERK_NEVER;
}

/* CURLMOPT_SOCKETFUNCTION: libcurl starts or stops waiting for a socket. */
static int
on_socket_interest(CURL *easy pg_attribute_unused(), curl_socket_t socket,
				   int what, void *arg,
				   void *for_socket pg_attribute_unused())
{
	ClerkMultiHandle *multi = arg;
	uint32		events = 0;

	if (what == CURL_POLL_REMOVE)
	{
		clerk_socket_set_unwatch(&multi->sockets, socket);
		return 0;
	}
	if (what & CURL_POLL_IN)
		events |= WL_SOCKET_READABLE;
	if (what & CURL_POLL_OUT)
		events |= WL_SOCKET_WRITEABLE;
	return clerk_socket_set_watch(&multi->sockets, socket, events) ? 0 : -1;
}

/*
 * CURLMOPT_TIMERFUNCTION: libcurl wants to be called after this time; -1
 * cancels the timer.
 */
static int
on_timer(CURLM *handle pg_attribute_unused(), long milliseconds, void *arg)
{
	ClerkMultiHandle *multi = arg;

	multi->timer_due = milliseconds < 0 ? CLERK_NEVER :
		clerk_monotonic_microseconds() + (int64) milliseconds * 1000;

	return 0;
}
