/*
 * transfer.c
 *		One transfer: its options, libcurl's callbacks, and its result.
 *
 * All of this runs under the rules of http/event_loop.c: nothing may raise an
 * error, and memory comes from malloc().  Further rules:
 *
 * 1. libcurl never sends a body twice.  When a kept connection breaks before
 *	  the first byte of the response has arrived, libcurl sends the request
 *	  again by itself, which for a POST may do the work twice.  on_attempt()
 *	  refuses a second attempt.  Before 7.80 libcurl does not call it; there
 *	  libcurl gets the body through a callback, which costs one more packet,
 *	  and on_body_rewind() refuses to start over.
 * 2. "Not sent" means that no attempt was made to send the request, or that
 *	  libcurl had not started to read its body.  In the latter case the server
 *	  has received fewer bytes than Content-Length announces, and does not
 *	  execute the request.
 * 3. Before 7.87, if a transfer ends early while its name lookup is running,
 *	  libcurl waits until the lookup ends.  There we abandon such a transfer
 *	  instead: libcurl keeps it, without a request and unable to connect, until
 *	  the lookup ends.  To keep libcurl's own time limits from ending the
 *	  transfer first, the event loop enforces the limits, and libcurl's are
 *	  longer.
 */
#include "postgres.h"

#include <curl/curl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/monotonic_clock.h"
#include "common/server_clock.h"
#include "compat.h"
#include "http/transfer.h"
#include "http/url_rules.h"
#include "utils/timestamp.h"

/*
 * Largest response body.  The largest that Clerk sends is a list page of 500
 * invitations.  Each is about 1.5 kB and may carry two metadata objects of up
 * to 8 kB each.  Clerk's limits make such objects rare, so half of that as an
 * average is generous: 500 x 8 kB = 4 MiB.
 */
#define MAX_BODY_BYTES (4 * 1024 * 1024)

/*
 * Largest response header.  Clerk's, including its CDN's lines, is about 2 kB.
 */
#define MAX_HEADER_BYTES (64 * 1024)

/* Milliseconds by which libcurl's time limits exceed ours: rule 3. */
#define SPARE_TIME 1000

static bool take_handle(ClerkTransfer *transfer, const char *ca_file);
static bool set_callbacks(ClerkTransfer *transfer);
static bool set_request_options(ClerkTransfer *transfer,
								const ClerkHttpSpec *spec,
								bool fresh_connection);
static bool set_body_options(ClerkTransfer *transfer);
static bool set_limits(ClerkTransfer *transfer, const ClerkHttpSpec *spec);
static bool sending_has_begun(const ClerkTransfer *transfer);
static const char *failure_text(const ClerkTransfer *transfer,
								CURLcode result);
static bool append_bytes(ClerkByteBuffer *buffer, const char *data,
						 size_t length, size_t limit);

static int	on_attempt(void *arg, char *server_address, char *own_address,
					   int server_port, int own_port);
static size_t on_body_read(char *buffer, size_t size, size_t count, void *arg);
static int	on_body_rewind(void *arg, curl_off_t offset, int origin);
static size_t on_response_header(char *data, size_t size, size_t count,
								 void *arg);
static size_t on_response_body(char *data, size_t size, size_t count, void *arg);
static void limit_retransmission(curl_socket_t socket, int milliseconds);
static curl_socket_t on_socket_open(void *arg, curlsocktype purpose,
									struct curl_sockaddr *address);
static curl_socket_t on_abandoned_socket_open(void *arg, curlsocktype purpose,
											  struct curl_sockaddr *address);
static int	on_socket_close(void *arg, curl_socket_t socket);

/*
 * Prepares a transfer: sets the options of an easy handle, and copies what
 * libcurl reads later but does not copy itself, except the body.  "owner"
 * becomes the handle's private pointer.
 *
 * Returns false if memory has run out or libcurl lacks an option.
 */
bool
clerk_transfer_prepare(ClerkTransfer *transfer, const ClerkHttpSpec *spec,
					   bool loopback_only, ClerkSocketSet *sockets,
					   bool fresh_connection, void *owner)
{
	transfer->loopback_only = loopback_only;
	transfer->sockets = sockets;
	transfer->body = spec->body;
	transfer->body_length = spec->body_length;
	transfer->request_timeout = spec->request_timeout;
	transfer->headers = clerk_header_list_share(spec);
	if (transfer->headers == NULL ||
		!take_handle(transfer, spec->ca_file) ||
		!set_request_options(transfer, spec, fresh_connection) ||
		curl_easy_setopt(transfer->handle.easy, CURLOPT_PRIVATE,
						 owner) != CURLE_OK)
		return false;
	transfer->outcome = CLERK_HTTP_RUNNING;
	return true;
}

/* Ends a transfer that libcurl has not been given.  "error" is a phrase. */
void
clerk_transfer_refuse(ClerkTransfer *transfer, ClerkHttpOutcome outcome,
					  const char *error)
{
	strlcpy(transfer->error, error, sizeof(transfer->error));
	transfer->outcome = outcome;
}

/* Makes a request that has not started open a new connection. */
void
clerk_transfer_require_new_connection(ClerkTransfer *transfer)
{
	curl_easy_setopt(transfer->handle.easy, CURLOPT_FRESH_CONNECT, 1L);
}

/*
 * When the event loop must cancel the request, by
 * clerk_monotonic_microseconds(); CLERK_NEVER if libcurl enforces the limits
 * itself (rule 3).
 */
int64
clerk_transfer_deadline(const ClerkTransfer *transfer)
{
	if (transfer->deadline == CLERK_NEVER || sending_has_begun(transfer))
		return transfer->deadline;
	return Min(transfer->deadline, transfer->connect_deadline);
}

/* Records the result of a transfer that libcurl has finished. */
void
clerk_transfer_settle(ClerkTransfer *transfer, CURLcode result)
{
	if (result != CURLE_OK)
	{
		clerk_transfer_fail(transfer, failure_text(transfer, result));
		return;
	}
	transfer->outcome = CLERK_HTTP_COMPLETED;
	transfer->response_time = GetCurrentTimestamp();
	transfer->response_clock = clerk_server_clock();
	curl_easy_getinfo(transfer->handle.easy, CURLINFO_RESPONSE_CODE,
					  &transfer->status);
	curl_easy_getinfo(transfer->handle.easy, CURLINFO_RETRY_AFTER,
					  &transfer->retry_after);
}

/*
 * Records that a transfer has failed, or is about to be canceled.  "error" is
 * a phrase; characters that are not printable ASCII are replaced with "?".
 */
void
clerk_transfer_fail(ClerkTransfer *transfer, const char *error)
{
	long		request_bytes;

	/* Before 7.80 nothing else shows that libcurl has sent a GET. */
	if (transfer->body == NULL &&
		curl_easy_getinfo(transfer->handle.easy, CURLINFO_REQUEST_SIZE,
						  &request_bytes) == CURLE_OK && request_bytes > 0)
		transfer->sent = true;
	transfer->outcome = transfer->sent ? CLERK_HTTP_LOST : CLERK_HTTP_NOT_SENT;

	/* Keep libcurl from writing to the buffer again. */
	curl_easy_setopt(transfer->handle.easy, CURLOPT_ERRORBUFFER, NULL);
	if (error != transfer->error)
		strlcpy(transfer->error, error, sizeof(transfer->error));
	for (char *c = transfer->error; *c != '\0'; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
}

/*
 * Releases a transfer's easy handle, for reuse by another transfer if "reuse"
 * is true.
 */
void
clerk_transfer_drop_handle(ClerkTransfer *transfer, bool reuse)
{
	clerk_easy_handle_drop(&transfer->handle, reuse);
}

/* Frees a transfer's memory except the easy handle. */
void
clerk_transfer_clear(ClerkTransfer *transfer)
{
	if (transfer->headers != NULL)
		clerk_header_list_release(transfer->headers);
	free(transfer->response_headers.data);
	free(transfer->response_body.data);
}

/* The bearer token that a prepared transfer is sent with. */
const char *
clerk_transfer_bearer_token(const ClerkTransfer *transfer)
{
	return clerk_header_list_bearer_token(transfer->headers);
}

/*
 * Takes an easy handle, and sets the callbacks if it is new.  Returns false if
 * memory has run out or libcurl lacks an option.
 */
static bool
take_handle(ClerkTransfer *transfer, const char *ca_file)
{
	bool		created;

	return clerk_easy_handle_take(&transfer->handle, ca_file, &created) &&
		(!created || set_callbacks(transfer));
}

/* An option's value is a long or a pointer. */
#define SET(option, value) \
	(curl_easy_setopt(easy, (option), (value)) == CURLE_OK)

/*
 * Sets the callbacks, which are the same for all requests.  Those that get the
 * transfer as their argument get it from set_request_options().
 */
static bool
set_callbacks(ClerkTransfer *transfer)
{
	CURL	   *easy = transfer->handle.easy;

	return SET(CURLOPT_READFUNCTION, on_body_read) &&
		SET(CURLOPT_SEEKFUNCTION, on_body_rewind) &&
		SET(CURLOPT_HEADERFUNCTION, on_response_header) &&
		SET(CURLOPT_WRITEFUNCTION, on_response_body) &&
		SET(CURLOPT_OPENSOCKETFUNCTION, on_socket_open) &&
		SET(CURLOPT_CLOSESOCKETFUNCTION, on_socket_close) &&
		SET(CURLOPT_CLOSESOCKETDATA, transfer->sockets);
}

/*
 * Sets the options of this request.  The proxy is set even if there is none,
 * which keeps libcurl from reading the environment.  Plain http is for this
 * machine, which is never reached through a proxy.
 */
static bool
set_request_options(ClerkTransfer *transfer, const ClerkHttpSpec *spec,
					bool fresh_connection)
{
	CURL	   *easy = transfer->handle.easy;

	return clerk_request_url_set(&transfer->handle.url, easy, spec->url) &&
		SET(CURLOPT_FRESH_CONNECT, fresh_connection ? 1L : 0L) &&
		SET(CURLOPT_HTTPHEADER, transfer->headers->lines) &&
		set_body_options(transfer) &&
		SET(CURLOPT_PROXY, transfer->loopback_only ? "" : spec->proxy) &&
		set_limits(transfer, spec) &&
		SET(CURLOPT_ERRORBUFFER, transfer->error) &&
		SET(CURLOPT_READDATA, transfer) &&
		SET(CURLOPT_SEEKDATA, transfer) &&
		SET(CURLOPT_HEADERDATA, transfer) &&
		SET(CURLOPT_WRITEDATA, transfer) &&
		SET(CURLOPT_OPENSOCKETDATA, transfer);
}

/* Sets the body in a way that keeps it from being sent twice: rule 1. */
static bool
set_body_options(ClerkTransfer *transfer)
{
	CURL	   *easy = transfer->handle.easy;
	bool		prereq = clerk_ask_before_attempt(easy, on_attempt, transfer);

	if (transfer->body == NULL)
		return SET(CURLOPT_HTTPGET, 1L);
	return SET(CURLOPT_POST, 1L) &&
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) transfer->body_length) &&
		SET(CURLOPT_POSTFIELDS, prereq ? transfer->body : NULL);
}

/* Sets the time limits, which libcurl or the event loop enforces: rule 3. */
static bool
set_limits(ClerkTransfer *transfer, const ClerkHttpSpec *spec)
{
	CURL	   *easy = transfer->handle.easy;
	long		spare_time = 0;

	transfer->connect_deadline = transfer->deadline = CLERK_NEVER;
	if (clerk_easy_handle_waits_for_lookups())
	{
		int64		now = clerk_monotonic_microseconds();

		transfer->connect_deadline = now + (int64) spec->connect_timeout * 1000;
		transfer->deadline = now + (int64) spec->request_timeout * 1000;
		spare_time = SPARE_TIME;
	}
	return SET(CURLOPT_CONNECTTIMEOUT_MS, spec->connect_timeout + spare_time) &&
		SET(CURLOPT_TIMEOUT_MS, spec->request_timeout + spare_time);
}

/*
 * Takes the easy handle from a request whose name lookup is running, and
 * leaves the handle in the multi handle: rule 3.  libcurl fails the transfer
 * after the lookup, when no socket is opened for it; the private pointer is
 * NULL by then.
 *
 * Returns false if that is not necessary or failed.  Then the caller removes
 * the handle itself.
 */
bool
clerk_transfer_abandon(ClerkTransfer *transfer)
{
	CURL	   *easy = transfer->handle.easy;

	if (!clerk_easy_handle_waits_for_lookups() || transfer->connecting ||
		sending_has_begun(transfer))
		return false;
	if (!SET(CURLOPT_OPENSOCKETFUNCTION, on_abandoned_socket_open) ||
		!SET(CURLOPT_CONNECTTIMEOUT_MS, (long) INT_MAX) ||
		!SET(CURLOPT_TIMEOUT_MS, 0L) ||
		!SET(CURLOPT_PRIVATE, NULL) ||
		!SET(CURLOPT_ERRORBUFFER, NULL) ||
		!SET(CURLOPT_HTTPHEADER, NULL) ||
		!SET(CURLOPT_POSTFIELDS, NULL))
		return false;
	clerk_easy_handle_abandon(&transfer->handle);
	return true;
}

#undef SET

/*
 * Whether the request has a connection, so that libcurl has started to send
 * it.
 */
static bool
sending_has_begun(const ClerkTransfer *transfer)
{
	curl_off_t	since = 0;

	curl_easy_getinfo(transfer->handle.easy, CURLINFO_PRETRANSFER_TIME_T,
					  &since);
	return since > 0;
}

/*
 * Why the transfer has failed, as a phrase.  libcurl's own message may quote
 * the proxy's URL with its password, or text from the server's certificate.
 */
static const char *
failure_text(const ClerkTransfer *transfer, CURLcode result)
{
	if (transfer->too_large)
		return "the response is too large";
	if (transfer->resend_refused)
		return "the server closed the connection without a response";
	if (transfer->error[0] == '\0' ||
		strstr(transfer->error, "://") != NULL ||
		result == CURLE_COULDNT_RESOLVE_PROXY ||
		result == CURLE_UNSUPPORTED_PROTOCOL ||
		result == CURLE_URL_MALFORMAT)
		return curl_easy_strerror(result);
	return transfer->error;
}

/*
 * Returns false if the buffer would exceed "limit" bytes, or if memory has run
 * out.
 */
static bool
append_bytes(ClerkByteBuffer *buffer, const char *data, size_t length,
			 size_t limit)
{
	if (length > limit - buffer->length)
		return false;
	if (buffer->length + length + 1 > buffer->capacity)
	{
		/* Start with room for nearly every response, then double. */
		size_t		capacity = Max(buffer->capacity * 2, 2048);
		char	   *grown;

		capacity = Max(capacity, buffer->length + length + 1);
		grown = realloc(buffer->data, capacity);
		if (grown == NULL)
			return false;
		buffer->data = grown;
		buffer->capacity = capacity;
	}
	memcpy(buffer->data + buffer->length, data, length);
	buffer->length += length;
	buffer->data[buffer->length] = '\0';
	return true;
}

/*
 * CURLOPT_PREREQFUNCTION: libcurl is connected and about to send the request.
 * Rule 1.
 */
static int
on_attempt(void *arg, char *server_address pg_attribute_unused(),
		   char *own_address pg_attribute_unused(),
		   int server_port pg_attribute_unused(),
		   int own_port pg_attribute_unused())
{
	ClerkTransfer *transfer = arg;

	if (transfer->sent && transfer->body != NULL)
	{
		transfer->resend_refused = true;
		return CURL_PREREQFUNC_ABORT;
	}
	transfer->sent = true;
	return CURL_PREREQFUNC_OK;
}

/* CURLOPT_READFUNCTION: libcurl reads the body. */
static size_t
on_body_read(char *buffer, size_t size, size_t count, void *arg)
{
	ClerkTransfer *transfer = arg;
	size_t		left = transfer->body_length - transfer->body_bytes_read;
	size_t		length = Min(size * count, left);

	memcpy(buffer, transfer->body + transfer->body_bytes_read, length);
	transfer->body_bytes_read += length;
	transfer->sent = true;
	return length;
}

/* CURLOPT_SEEKFUNCTION: libcurl wants to send the body again.  Rule 1. */
static int
on_body_rewind(void *arg, curl_off_t offset, int origin pg_attribute_unused())
{
	ClerkTransfer *transfer = arg;

	if (offset == 0 && transfer->body_bytes_read == 0)
		return CURL_SEEKFUNC_OK;
	transfer->resend_refused = true;
	return CURL_SEEKFUNC_FAIL;
}

/*
 * CURLOPT_HEADERFUNCTION: a line of the response header.  A proxy's response
 * to CONNECT precedes Clerk's, so a status line discards what came before.
 */
static size_t
on_response_header(char *data, size_t size, size_t count, void *arg)
{
	ClerkTransfer *transfer = arg;
	size_t		length = size * count;

	if (length >= 5 && memcmp(data, "HTTP/", 5) == 0)
		transfer->response_headers.length = 0;
	if (append_bytes(&transfer->response_headers, data, length,
					 MAX_HEADER_BYTES))
		return length;
	transfer->too_large = true;
	return 0;
}

/*
 * CURLOPT_WRITEFUNCTION: a piece of the response body.  Returning fewer bytes
 * ends the transfer.
 */
static size_t
on_response_body(char *data, size_t size, size_t count, void *arg)
{
	ClerkTransfer *transfer = arg;
	size_t		length = size * count;

	if (append_bytes(&transfer->response_body, data, length, MAX_BODY_BYTES))
		return length;
	transfer->too_large = true;
	return 0;
}

/*
 * CURLOPT_OPENSOCKETFUNCTION: like libcurl's default, but programs that the
 * server starts do not inherit the socket.
 */
static curl_socket_t
on_socket_open(void *arg, curlsocktype purpose pg_attribute_unused(),
			   struct curl_sockaddr *address)
{
	ClerkTransfer *transfer = arg;
	curl_socket_t opened;

	transfer->connecting = true;
	if (transfer->loopback_only && !clerk_is_loopback_address(&address->addr))
		return CURL_SOCKET_BAD;
	opened = socket(address->family, address->socktype | SOCK_CLOEXEC,
					address->protocol);
	if (opened >= 0 && !clerk_socket_set_opened(transfer->sockets, opened))
	{
		close(opened);
		return CURL_SOCKET_BAD;
	}
	if (opened >= 0)
		limit_retransmission(opened, transfer->request_timeout);
	return opened;
}

/*
 * Lets the kernel give up data that the peer does not acknowledge for that
 * many milliseconds.  Otherwise, it keeps retransmitting it after the request
 * has timed out and even after the process has ended, and delivers the request
 * once the network works again, which may be minutes later.  By then, a lookup
 * may have found nothing, and the invitation may have been sent once more.
 *
 * Where there is no such option, or it fails, the request is sent all the
 * same.
 */
static void
limit_retransmission(curl_socket_t socket, int milliseconds)
{
#ifdef TCP_USER_TIMEOUT
	unsigned int limit = milliseconds;

	(void) setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof(limit));
#endif
}

/* Refuses a socket to an abandoned transfer: rule 3. */
static curl_socket_t
on_abandoned_socket_open(void *arg pg_attribute_unused(),
						 curlsocktype purpose pg_attribute_unused(),
						 struct curl_sockaddr *address pg_attribute_unused())
{
	return CURL_SOCKET_BAD;
}

/*
 * CURLOPT_CLOSESOCKETFUNCTION.  Its argument is the socket set rather than the
 * transfer, since a connection may outlive the request that opened it.
 */
static int
on_socket_close(void *arg, curl_socket_t socket)
{
	clerk_socket_set_closed(arg, socket);
	return close(socket);
}
