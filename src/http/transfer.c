/*
 * transfer.c
 *		One transfer: its options, libcurl's callbacks, and what came of it.
 *
 * All of this runs where http/event_loop.c's rules hold: nothing may raise an
 * error, and memory comes from malloc().  Rules of its own:
 *
 * 1. libcurl never sends a body twice.  When a kept connection breaks before
 *	  the answer's first byte, libcurl sends the request again by itself,
 *	  which for a POST may do the work twice.  on_attempt() refuses a second
 *	  attempt.  A libcurl that does not ask gets the body through a callback,
 *	  which costs a packet more, and on_body_rewind() refuses to begin anew.
 * 2. "Not sent" means that no attempt was made to send the request, or that
 *	  libcurl had not begun to fetch its body: then its Content-Length is not
 *	  satisfied, and no server carries it out.
 * 3. Some libcurls wait for the name server when a transfer that is looking up
 *	  a name ends early.  There such a transfer is abandoned instead: it stays
 *	  with libcurl, without a request and unable to connect, until the name
 *	  server has answered or not.  So that libcurl's own limits do not end it
 *	  before, the event loop keeps the limits, and libcurl's are longer.
 */
#include "postgres.h"

#include <curl/curl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/monotonic_clock.h"
#include "common/server_clock.h"
#include "compat.h"
#include "http/transfer.h"
#include "http/url_rules.h"
#include "utils/timestamp.h"

/*
 * Largest answer body.  The largest that Clerk gives is a list page of 500
 * invitations: each is about 1.5 kB and may carry two metadata objects of at
 * most 8 kB, which Clerk's limits make rare enough that half of that on
 * average is generous: 500 x 8 kB = 4 MiB.
 */
#define MAX_BODY_BYTES (4 * 1024 * 1024)

/* Largest header block: Clerk's, with its edge's, is about 2 kB. */
#define MAX_HEADER_BYTES (64 * 1024)

#define AUTHORIZATION "Authorization: Bearer "

/* Longest token; no key that the settings let through is longer. */
#define MAX_TOKEN_LENGTH 255

/* Milliseconds that libcurl's limits are longer than ours: rule 3. */
#define SPARE_TIME 1000

/*
 * Easy handles kept for reuse: one serves a session's calls one by one, and a
 * sender has some ten under way.
 */
#define MAX_IDLE_HANDLES 16

/* Header lines, which are the same for nearly all requests of a process. */
struct ClerkHeaderList
{
	int			users;			/* requests, and kept.headers */
	struct curl_slist *lines;	/* the first one is AUTHORIZATION's */
};

/* What is kept from one transfer to the next. */
static struct
{
	bool		waits_for_names;	/* rule 3 is needed */
	CURL	   *idle[MAX_IDLE_HANDLES];
	int			idle_count;
	char		ca_file[MAXPGPATH]; /* set in all of them */
	uint32		generation;		/* how often it has changed */
	ClerkHeaderList *headers;
}			kept;

static bool take_headers(ClerkTransfer *transfer, const ClerkHttpSpec *spec);
static bool has_lines(const ClerkHeaderList *headers, const ClerkHttpSpec *spec);
static ClerkHeaderList *make_headers(const ClerkHttpSpec *spec);
static void drop_headers(ClerkHeaderList *headers);
static bool take_handle(ClerkTransfer *transfer, const char *ca_file,
						bool fresh_connection);
static bool set_lasting_options(ClerkTransfer *transfer,
								const char *ca_file, bool fresh_connection);
static bool set_resolver_options(CURL *easy);
static bool set_request_options(ClerkTransfer *transfer,
								const ClerkHttpSpec *spec);
static bool set_body_options(ClerkTransfer *transfer);
static bool set_limits(ClerkTransfer *transfer, const ClerkHttpSpec *spec);
static bool is_on_its_way(const ClerkTransfer *transfer);
static const char *explanation(const ClerkTransfer *transfer,
							   CURLcode result);
static bool append(ClerkByteBuffer *buffer, const char *data, size_t length,
				   size_t limit);

static int	on_attempt(void *arg, char *server_address, char *own_address,
					   int server_port, int own_port);
static size_t on_body_wanted(char *buffer, size_t size, size_t count, void *arg);
static int	on_body_rewind(void *arg, curl_off_t offset, int origin);
static size_t on_answer_header(char *data, size_t size, size_t count, void *arg);
static size_t on_response_body(char *data, size_t size, size_t count, void *arg);
static curl_socket_t on_socket_open(void *arg, curlsocktype purpose,
									struct curl_sockaddr *address);
static curl_socket_t on_abandoned_socket_open(void *arg, curlsocktype purpose,
											  struct curl_sockaddr *address);
static int	on_socket_close(void *arg, curl_socket_t socket);

/*
 * Makes a transfer ready to run: copies what libcurl reads later but does not
 * copy, but for the body, and takes a handle for it, whose private pointer
 * becomes the owner.  False if memory has run out, or libcurl lacks an option.
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
	if (!take_headers(transfer, spec) ||
		!take_handle(transfer, spec->ca_file, fresh_connection) ||
		!set_request_options(transfer, spec) ||
		curl_easy_setopt(transfer->easy, CURLOPT_PRIVATE, owner) != CURLE_OK)
		return false;
	transfer->outcome = CLERK_HTTP_RUNNING;
	return true;
}

/* Ends a transfer that libcurl was not given. */
void
clerk_transfer_refuse(ClerkTransfer *transfer, ClerkHttpOutcome outcome,
					  const char *error)
{
	strlcpy(transfer->error, error, sizeof(transfer->error));
	transfer->outcome = outcome;
}

/* Has a request that was not begun yet open a connection of its own. */
void
clerk_transfer_refuse_kept(ClerkTransfer *transfer)
{
	curl_easy_setopt(transfer->easy, CURLOPT_FRESH_CONNECT, 1L);
}

/* When the event loop has to end the request: rule 3. */
int64
clerk_transfer_deadline(const ClerkTransfer *transfer)
{
	if (transfer->deadline == CLERK_NEVER || is_on_its_way(transfer))
		return transfer->deadline;
	return Min(transfer->deadline, transfer->connect_deadline);
}

/* Notes what came of a transfer that libcurl is done with. */
void
clerk_transfer_settle(ClerkTransfer *transfer, CURLcode result)
{
	if (result != CURLE_OK)
	{
		clerk_transfer_fail(transfer, explanation(transfer, result));
		return;
	}
	transfer->outcome = CLERK_HTTP_ANSWERED;
	transfer->answered_at = GetCurrentTimestamp();
	transfer->answered_clock = clerk_server_clock();
	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &transfer->status);
	curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER,
					  &transfer->retry_after);
}

/* Notes that a transfer has failed or is about to be ended, and why. */
void
clerk_transfer_fail(ClerkTransfer *transfer, const char *error)
{
	long		header_bytes;

	/* An old libcurl does not tell otherwise that it has sent a GET. */
	if (transfer->body == NULL &&
		curl_easy_getinfo(transfer->easy, CURLINFO_REQUEST_SIZE,
						  &header_bytes) == CURLE_OK && header_bytes > 0)
		transfer->sent = true;
	transfer->outcome = transfer->sent ? CLERK_HTTP_LOST : CLERK_HTTP_NOT_SENT;

	/* libcurl is not to add to it. */
	curl_easy_setopt(transfer->easy, CURLOPT_ERRORBUFFER, NULL);
	if (error != transfer->error)
		strlcpy(transfer->error, error, sizeof(transfer->error));
	for (char *c = transfer->error; *c != '\0'; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
}

/* Frees the handle of a request or keeps it for another one. */
void
clerk_transfer_drop_handle(ClerkTransfer *transfer, bool reuse)
{
	if (reuse && transfer->generation == kept.generation &&
		kept.idle_count < MAX_IDLE_HANDLES)
	{
		/* The handle outlives the buffer. */
		curl_easy_setopt(transfer->easy, CURLOPT_ERRORBUFFER, NULL);
		kept.idle[kept.idle_count++] = transfer->easy;
	}
	else
		curl_easy_cleanup(transfer->easy);
	transfer->easy = NULL;
}

/* Frees everything else that belongs to a request. */
void
clerk_transfer_clear(ClerkTransfer *transfer)
{
	if (transfer->headers != NULL)
		drop_headers(transfer->headers);
	free(transfer->response_headers.data);
	free(transfer->response_body.data);
}

const char *
clerk_transfer_bearer_token(const ClerkTransfer *transfer)
{
	return transfer->headers->lines->data + strlen(AUTHORIZATION);
}

/* The header lines of the last request, if they are the same. */
static bool
take_headers(ClerkTransfer *transfer, const ClerkHttpSpec *spec)
{
	if (kept.headers == NULL || !has_lines(kept.headers, spec))
	{
		ClerkHeaderList *made = make_headers(spec);

		if (made == NULL)
			return false;
		if (kept.headers != NULL)
			drop_headers(kept.headers);
		kept.headers = made;
	}
	transfer->headers = kept.headers;

	transfer->headers->users++;
	return true;
}

static bool
has_lines(const ClerkHeaderList *headers, const ClerkHttpSpec *spec)
{
	const struct curl_slist *line = headers->lines;
	const char *const *wanted = spec->headers;

	if (strcmp(line->data + strlen(AUTHORIZATION), spec->bearer_token) != 0)
		return false;
	line = line->next->next;
	while (line != NULL && *wanted != NULL && strcmp(line->data, *wanted) == 0)
	{
		line = line->next;
		wanted++;
	}
	return line == NULL && *wanted == NULL;
}

static ClerkHeaderList *
make_headers(const ClerkHttpSpec *spec)
{
	char		authorization[MAX_TOKEN_LENGTH + sizeof(AUTHORIZATION)];
	ClerkHeaderList *headers;
	bool		complete;

	if (strlen(spec->bearer_token) > MAX_TOKEN_LENGTH)
		return NULL;
	headers = calloc(1, sizeof(*headers));
	if (headers == NULL)
		return NULL;
	headers->users = 1;
	strcpy(authorization, AUTHORIZATION);
	strcat(authorization, spec->bearer_token);
	headers->lines = curl_slist_append(NULL, authorization);

	/* Without an empty Expect, libcurl would ask before a large body. */
	complete = headers->lines != NULL &&
		curl_slist_append(headers->lines, "Expect:") != NULL;
	for (const char *const *line = spec->headers; complete && *line != NULL; line++)
		complete = curl_slist_append(headers->lines, *line) != NULL;
	if (complete)
		return headers;
	drop_headers(headers);
	return NULL;
}

static void
drop_headers(ClerkHeaderList *headers)
{
	if (--headers->users > 0)
		return;
	curl_slist_free_all(headers->lines);
	free(headers);
}

/*
 * A handle for the request: an idle one, or a new one with the options that
 * never change.  The CA file is one of those, since libcurl's own choice
 * cannot be had back once it is set; handles go when it changes.  One that is
 * to open a connection of its own is not kept afterwards.
 */
static bool
take_handle(ClerkTransfer *transfer, const char *ca_file,
			bool fresh_connection)
{
	if (strcmp(kept.ca_file, ca_file) != 0)
	{
		while (kept.idle_count > 0)
			curl_easy_cleanup(kept.idle[--kept.idle_count]);
		strlcpy(kept.ca_file, ca_file, sizeof(kept.ca_file));
		kept.generation++;
	}
	transfer->generation = kept.generation;

	if (kept.idle_count > 0 && !fresh_connection)
	{
		transfer->easy = kept.idle[--kept.idle_count];

		return true;
	}
	transfer->easy = curl_easy_init();
	return transfer->easy != NULL &&
		set_lasting_options(transfer, ca_file, fresh_connection);
}

/* Options are long or a pointer; the shorthand keeps the lists readable. */
#define SET(option, value) \
	(curl_easy_setopt(easy, (option), (value)) == CURLE_OK)

/*
 * Some are the defaults, but everything hangs on them: the certificate and its
 * name are checked, and no redirect is followed.  A CA file replaces the
 * system's folder of authorities, too; not every TLS library has one.  That no
 * host is reached past the proxy is set to keep libcurl from asking the
 * environment.
 */
static bool
set_lasting_options(ClerkTransfer *transfer, const char *ca_file,
					bool fresh_connection)
{
	CURL	   *easy = transfer->easy;

	return SET(CURLOPT_SSL_VERIFYPEER, 1L) &&
		SET(CURLOPT_SSL_VERIFYHOST, 2L) &&
		SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2) &&
		(ca_file[0] == '\0' ||
		 (SET(CURLOPT_CAINFO, ca_file) && (SET(CURLOPT_CAPATH, NULL) || true))) &&
		SET(CURLOPT_FOLLOWLOCATION, 0L) &&
		clerk_set_protocols(easy) == CURLE_OK &&
		SET(CURLOPT_NOPROXY, "") &&
		SET(CURLOPT_NOSIGNAL, 1L) &&
		SET(CURLOPT_FRESH_CONNECT, fresh_connection ? 1L : 0L) &&
		set_resolver_options(easy) &&
		SET(CURLOPT_READFUNCTION, on_body_wanted) &&
		SET(CURLOPT_SEEKFUNCTION, on_body_rewind) &&
		SET(CURLOPT_HEADERFUNCTION, on_answer_header) &&
		SET(CURLOPT_WRITEFUNCTION, on_response_body) &&
		SET(CURLOPT_OPENSOCKETFUNCTION, on_socket_open) &&
		SET(CURLOPT_CLOSESOCKETFUNCTION, on_socket_close) &&
		SET(CURLOPT_CLOSESOCKETDATA, transfer->sockets);
}

/*
 * Rule 3.  The name cache would let a transfer go on while its own look-up
 * hangs, and libcurl would wait for that at the transfer's end.
 */
static bool
set_resolver_options(CURL *easy)
{
	kept.waits_for_names = !clerk_set_quick_exit(easy);

	return !kept.waits_for_names || SET(CURLOPT_DNS_CACHE_TIMEOUT, 0L);
}

/*
 * The options of this request.  The proxy is set even if there is none, which
 * keeps libcurl from asking the environment; plain http is for this machine,
 * where no proxy belongs in between.
 */
static bool
set_request_options(ClerkTransfer *transfer, const ClerkHttpSpec *spec)
{
	CURL	   *easy = transfer->easy;

	return SET(CURLOPT_URL, spec->url) &&
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

/* The body, in the way that keeps it from being sent twice: rule 1. */
static bool
set_body_options(ClerkTransfer *transfer)
{
	CURL	   *easy = transfer->easy;
	bool		asks = clerk_ask_before_attempt(easy, on_attempt, transfer);

	if (transfer->body == NULL)
		return SET(CURLOPT_HTTPGET, 1L);
	return SET(CURLOPT_POST, 1L) &&
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) transfer->body_length) &&
		SET(CURLOPT_POSTFIELDS, asks ? transfer->body : NULL);
}

/* The time limits, kept by libcurl or by the event loop: rule 3. */
static bool
set_limits(ClerkTransfer *transfer, const ClerkHttpSpec *spec)
{
	CURL	   *easy = transfer->easy;
	long		spare_time = 0;

	transfer->connect_deadline = transfer->deadline = CLERK_NEVER;
	if (kept.waits_for_names)
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
 * Takes the handle from a request that is looking up a name, and leaves it in
 * the multi handle: rule 3.  libcurl fails the transfer when the name is known
 * and no socket is opened for it; its private pointer is NULL then.  False if
 * there is no need for that.
 */
bool
clerk_transfer_abandon(ClerkTransfer *transfer)
{
	CURL	   *easy = transfer->easy;

	if (!kept.waits_for_names || transfer->connecting || is_on_its_way(transfer))
		return false;
	if (!SET(CURLOPT_OPENSOCKETFUNCTION, on_abandoned_socket_open) ||
		!SET(CURLOPT_CONNECTTIMEOUT_MS, (long) INT_MAX) ||
		!SET(CURLOPT_TIMEOUT_MS, 0L) ||
		!SET(CURLOPT_PRIVATE, NULL) ||
		!SET(CURLOPT_ERRORBUFFER, NULL) ||
		!SET(CURLOPT_HTTPHEADER, NULL) ||
		!SET(CURLOPT_POSTFIELDS, NULL))
		return false;
	transfer->easy = NULL;
	return true;
}

#undef SET

/* Whether the request has a connection and has begun to be sent. */
static bool
is_on_its_way(const ClerkTransfer *transfer)
{
	curl_off_t	since = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_PRETRANSFER_TIME_T, &since);
	return since > 0;
}

/*
 * What has failed, as a phrase.  libcurl's own text may quote the proxy's URL
 * with its password, or what a server's certificate says.
 */
static const char *
explanation(const ClerkTransfer *transfer, CURLcode result)
{
	if (transfer->too_large)
		return "the response is too large";
	if (transfer->repetition_refused)
		return "the server closed the connection without a response";
	if (transfer->error[0] == '\0' ||
		strstr(transfer->error, "://") != NULL ||
		result == CURLE_COULDNT_RESOLVE_PROXY ||
		result == CURLE_UNSUPPORTED_PROTOCOL ||
		result == CURLE_URL_MALFORMAT)
		return curl_easy_strerror(result);
	return transfer->error;
}

/* False if the buffer would exceed the limit or memory has run out. */
static bool
append(ClerkByteBuffer *buffer, const char *data, size_t length, size_t limit)
{
	if (length > limit - buffer->length)
		return false;
	if (buffer->length + length + 1 > buffer->capacity)
	{
		/* Room for nearly every answer at once, doubling after that. */
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

/* libcurl is connected and about to send the request: rule 1. */
static int
on_attempt(void *arg, char *server_address pg_attribute_unused(),
		   char *own_address pg_attribute_unused(),
		   int server_port pg_attribute_unused(),
		   int own_port pg_attribute_unused())
{
	ClerkTransfer *transfer = arg;

	if (transfer->sent && transfer->body != NULL)
	{
		transfer->repetition_refused = true;
		return CURL_PREREQFUNC_ABORT;
	}
	transfer->sent = true;
	return CURL_PREREQFUNC_OK;
}

/* libcurl wants bytes of the body. */
static size_t
on_body_wanted(char *buffer, size_t size, size_t count, void *arg)
{
	ClerkTransfer *transfer = arg;
	size_t		length = Min(size * count,
							 transfer->body_length - transfer->body_handed_over);

	memcpy(buffer, transfer->body + transfer->body_handed_over, length);
	transfer->body_handed_over += length;
	transfer->sent = true;
	return length;
}

/* libcurl wants to send the body again: rule 1. */
static int
on_body_rewind(void *arg, curl_off_t offset, int origin pg_attribute_unused())
{
	ClerkTransfer *transfer = arg;

	if (offset == 0 && transfer->body_handed_over == 0)
		return CURL_SEEKFUNC_OK;
	transfer->repetition_refused = true;
	return CURL_SEEKFUNC_FAIL;
}

/* A line of the answer's header.  A proxy's answer comes before Clerk's. */
static size_t
on_answer_header(char *data, size_t size, size_t count, void *arg)
{
	ClerkTransfer *transfer = arg;
	size_t		length = size * count;

	if (length >= 5 && memcmp(data, "HTTP/", 5) == 0)
		transfer->response_headers.length = 0;
	if (append(&transfer->response_headers, data, length, MAX_HEADER_BYTES))
		return length;
	transfer->too_large = true;
	return 0;
}

/* A piece of the answer's body; a short count ends the transfer. */
static size_t
on_response_body(char *data, size_t size, size_t count, void *arg)
{
	ClerkTransfer *transfer = arg;
	size_t		length = size * count;

	if (append(&transfer->response_body, data, length, MAX_BODY_BYTES))
		return length;
	transfer->too_large = true;
	return 0;
}

/* As libcurl's own, but closed in programs that the server starts. */
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
	return opened;
}

/* No socket for a transfer that is abandoned: rule 3. */
static curl_socket_t
on_abandoned_socket_open(void *arg pg_attribute_unused(),
						 curlsocktype purpose pg_attribute_unused(),
						 struct curl_sockaddr *address pg_attribute_unused())
{
	return CURL_SOCKET_BAD;
}

/* A connection may outlive the request that opened it. */
static int
on_socket_close(void *arg, curl_socket_t socket)
{
	clerk_socket_set_closed(arg, socket);
	return close(socket);
}
