/*
 * http.c
 *		HTTPS requests: several at a time, interruptible, bounded in time and
 *		size.  The only file that knows libcurl.
 *
 * One multi handle a process carries every request and keeps connections for
 * reuse.  libcurl tells through a callback which sockets it waits for; they
 * go into a socket set, and that one descriptor is waited on together with
 * the process's latch and the postmaster's death.  So whatever PostgreSQL
 * wants of the process reaches it at once, in every phase of a request.
 *
 * Rules that hold throughout:
 *
 * 1. libcurl is entered only between enter_libcurl() and leave_libcurl().
 *	  In between all signals are blocked, so that a thread which libcurl
 *	  starts (its resolver) inherits that and never runs one of PostgreSQL's
 *	  signal handlers.
 * 2. In between nothing may raise an error, since longjmp() must not cross
 *	  libcurl's frames: no palloc(), no elog(), only malloc().
 * 3. A request is one calloc()ed struct, freed by the reset callback of a
 *	  memory context of its own.
 * 4. libcurl never sends a body twice.  When a kept connection breaks before
 *	  the answer's first byte, libcurl sends the request again by itself,
 *	  which for a POST may do the work twice.  on_attempt() refuses a second
 *	  attempt.  A libcurl that does not ask gets the body through a callback,
 *	  which costs a packet more, and on_body_rewind() refuses to begin anew.
 * 5. "Not sent" means that no attempt was made to send the request, or that
 *	  libcurl had not begun to fetch its body: then its Content-Length is not
 *	  satisfied, and no server carries it out.
 * 6. Some libcurls wait for the name server when a transfer that is looking up
 *	  a name ends early.  There such a transfer is abandoned instead: it stays
 *	  with libcurl, without a request and unable to connect, until the name
 *	  server has answered or not.  So that libcurl's own limits do not end it
 *	  before, the limits are kept here, and libcurl's are longer.
 */
#include "postgres.h"

#include <curl/curl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "compat.h"
#include "http.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "socket_set.h"
#include "storage/fd.h"
#include "url_rules.h"
#include "utils/memutils.h"
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

/* A time that does not come. */
#define NEVER PG_INT64_MAX

/* Milliseconds that libcurl's limits are longer than ours: rule 6. */
#define SPARE_TIME 1000

/* Easy handles kept for reuse: one serves a session's calls one by one. */
#define MAX_IDLE_HANDLES 4

/* Bytes that libcurl's callbacks may append to, followed by a NUL. */
typedef struct ByteBuffer
{
	char	   *data;
	size_t		length;
	size_t		capacity;
} ByteBuffer;

struct ClerkHttpRequest
{
	dlist_node	node;			/* in engine.running while running */
	MemoryContext context;		/* its reset frees the request */
	ClerkHttpOutcome outcome;
	CURL	   *easy;			/* while running */
	uint32		generation;		/* of the handle; see take_easy() */
	struct curl_slist *headers; /* the first one is AUTHORIZATION's */
	char	   *body;
	size_t		body_length;
	size_t		body_handed_over;	/* bytes that libcurl has fetched */
	bool		sent;			/* may have reached the server: rule 5 */
	bool		loopback_only;
	int64		connect_deadline;	/* by now_microseconds(): rule 6 */
	int64		deadline;
	ByteBuffer	answer_headers;
	ByteBuffer	answer_body;
	bool		connecting;		/* its name is known */
	bool		repetition_refused; /* rule 4 came into play */
	bool		too_large;
	long		status;
	TimestampTz answered_at;
	curl_off_t	retry_after;
	char		fault[CURL_ERROR_SIZE];
};

/* Everything that lives as long as the process. */
static struct
{
	bool		ready;
	ClerkSocketSet sockets;
	WaitEventSet *wait_set;
	uint32		wait_event;
	CURLM	   *multi;			/* NULL until needed, and after an abort */
	bool		discard_multi;	/* a transfer has failed: drop it when idle */
	int64		timer_due;		/* by now_microseconds(), or NEVER */
	bool		waits_for_names;	/* rule 6 is needed */
	int64		next_deadline;	/* of rule 6's, or NEVER */
	int			abandoned;		/* transfers that are */
	CURL	   *idle[MAX_IDLE_HANDLES];
	int			idle_count;
	char		ca_file[MAXPGPATH]; /* set in all of them */
	uint32		generation;		/* how often it has changed */
	dlist_head	running;
}			engine;

static void prepare_engine(void);
static void prepare_wait_set(void);
static bool prepare_multi(void);
static ClerkHttpRequest *new_request(void);
static void on_context_reset(void *arg);
static bool copy_spec(ClerkHttpRequest *request, const ClerkHttpSpec *spec);
static bool take_easy(ClerkHttpRequest *request, const char *ca_file);
static bool set_lasting_options(CURL *easy, const char *ca_file);
static bool set_resolver_options(CURL *easy);
static bool set_request_options(ClerkHttpRequest *request,
								const ClerkHttpSpec *spec);
static bool set_body_options(ClerkHttpRequest *request);
static void set_deadlines(ClerkHttpRequest *request, const ClerkHttpSpec *spec);
static void drive_libcurl(const ClerkReadySocket *ready, int count);
static bool is_on_its_way(const ClerkHttpRequest *request);
static int64 deadline(const ClerkHttpRequest *request);
static void end_late_requests(void);
static void note_next_deadline(void);
static void fail_all(CURLMcode result);
static void settle_finished(void);
static void settle(ClerkHttpRequest *request, CURLcode result);
static void explain(ClerkHttpRequest *request, CURLcode result);
static void give_up(ClerkHttpRequest *request);
static bool abandon(CURL *easy);
static void drop_easy(ClerkHttpRequest *request, bool reuse);
static void drop_multi_if_unused(void);
static bool append(ByteBuffer *buffer, const char *data, size_t length,
				   size_t limit);
static long wait_milliseconds(long timeout, int64 started);

static int	on_attempt(void *arg, char *server_address, char *own_address,
					   int server_port, int own_port);
static size_t on_body_wanted(char *buffer, size_t size, size_t count, void *arg);
static int	on_body_rewind(void *arg, curl_off_t offset, int origin);
static size_t on_answer_header(char *data, size_t size, size_t count, void *arg);
static size_t on_answer_body(char *data, size_t size, size_t count, void *arg);
static curl_socket_t on_socket_open(void *arg, curlsocktype purpose,
									struct curl_sockaddr *address);
static curl_socket_t on_abandoned_socket_open(void *arg, curlsocktype purpose,
											  struct curl_sockaddr *address);
static int	on_socket_close(void *arg, curl_socket_t socket);
static int	on_socket_interest(CURL *easy, curl_socket_t socket, int what,
							   void *arg, void *known);
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

static inline int64
now_microseconds(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/*
 * Starts a request and returns it, running or finished already.
 *
 * Raises an error only if memory or file descriptors have run out, or if this
 * libcurl cannot do what is needed; nothing was sent then.
 */
ClerkHttpRequest *
clerk_http_start(const ClerkHttpSpec *spec)
{
	ClerkHttpRequest *request;
	const char *fault;
	bool		started = false;
	sigset_t	saved;

	prepare_engine();
	request = new_request();

	enter_libcurl(&saved);
	fault = clerk_url_fault(spec->url, &request->loopback_only);
	if (fault != NULL)
	{
		strlcpy(request->fault, fault, sizeof(request->fault));
		request->outcome = CLERK_HTTP_UNUSABLE;
	}
	else
	{
		started = copy_spec(request, spec) &&
			prepare_multi() &&
			take_easy(request, spec->ca_file) &&
			set_request_options(request, spec) &&
			curl_multi_add_handle(engine.multi, request->easy) == CURLM_OK;
		if (started)
		{
			request->outcome = CLERK_HTTP_RUNNING;
			dlist_push_tail(&engine.running, &request->node);
			drive_libcurl(NULL, 0);
		}
	}
	leave_libcurl(&saved);

	if (fault == NULL && !started)
	{
		clerk_http_release(request);
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not prepare an HTTP request"),
				 errdetail("Memory has run out, or libcurl lacks an option.")));
	}
	return request;
}

/*
 * Moves all running requests on: waits until at least one of them has had
 * something happen to it, or the process's latch is set, or "timeout"
 * milliseconds have passed (-1 means no limit).
 *
 * The latch is reset if it was set: the caller must look, before it waits
 * again, at what it may have been set for.
 */
void
clerk_http_wait(long timeout)
{
	WaitEvent	event;
	ClerkReadySocket ready[16];
	int			count = 0;
	sigset_t	saved;

	if (WaitEventSetWait(engine.wait_set,
						 wait_milliseconds(timeout, now_microseconds()),
						 &event, 1, engine.wait_event) == 1)
	{
		if (event.events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			return;
		}
		count = clerk_socket_set_ready(&engine.sockets, ready, lengthof(ready));
	}

	enter_libcurl(&saved);
	drive_libcurl(ready, count);
	leave_libcurl(&saved);
}

/* How the request stands. */
ClerkHttpOutcome
clerk_http_outcome(const ClerkHttpRequest *request)
{
	return request->outcome;
}

/* Whether the request may have reached the server; see rule 5. */
bool
clerk_http_was_sent(const ClerkHttpRequest *request)
{
	return request->sent;
}

/* The secret that the request was sent with, so that it can be concealed. */
const char *
clerk_http_bearer_token(const ClerkHttpRequest *request)
{
	return request->headers->data + strlen(AUTHORIZATION);
}

/* What went wrong with a request that was not answered: a phrase. */
const char *
clerk_http_fault(const ClerkHttpRequest *request)
{
	return request->fault;
}

/* HTTP status of the answer; 0 if there is none. */
int
clerk_http_status(const ClerkHttpRequest *request)
{
	return (int) request->status;
}

/*
 * Body of the answer, followed by a NUL byte that is not counted; valid until
 * the request is released.
 */
const char *
clerk_http_body(const ClerkHttpRequest *request, size_t *length)
{
	*length = request->answer_body.length;
	return *length > 0 ? request->answer_body.data : "";
}

/*
 * Value of the answer's header of this name, in any case, as printable ASCII
 * in the current memory context; NULL if it has none.  Other characters are
 * replaced with "?": the server chose them.
 */
char *
clerk_http_header(const ClerkHttpRequest *request, const char *name)
{
	const char *line = request->answer_headers.data;
	const char *end = line + request->answer_headers.length;
	size_t		name_length = strlen(name);

	while (line < end)
	{
		const char *next = memchr(line, '\n', end - line);
		size_t		length = (next ? next : end) - line;

		if (length > name_length && line[name_length] == ':' &&
			pg_strncasecmp(line, name, name_length) == 0)
		{
			char	   *value = pnstrdup(line + name_length + 1,
										 length - name_length - 1);
			size_t		blanks = strspn(value, " \t");

			value[strcspn(value, "\r")] = '\0';
			for (char *c = value; *c != '\0'; c++)
				if (*c < ' ' || *c > '~')
					*c = '?';
			return value + blanks;
		}
		line += length + 1;
	}
	return NULL;
}

/* Seconds that the answer's Retry-After header asks for; 0 if it has none. */
int
clerk_http_retry_after(const ClerkHttpRequest *request)
{
	return (int) Max(Min(request->retry_after, INT_MAX), 0);
}

/*
 * The time by the server's clock, in whole seconds since 1970, cut off, when it
 * answered: the Date header.  0 if it has none.
 */
pg_time_t
clerk_http_date(const ClerkHttpRequest *request)
{
	char	   *date = clerk_http_header(request, "date");

	return date == NULL ? 0 : Max(curl_getdate(date, NULL), 0);
}

/* The time by our clock when the whole answer was here. */
TimestampTz
clerk_http_answered_at(const ClerkHttpRequest *request)
{
	return request->answered_at;
}

/* Gives a request up if it is running, and frees it and its answer. */
void
clerk_http_release(ClerkHttpRequest *request)
{
	MemoryContextDelete(request->context);
}

/*
 * What waiting needs, once a process.  It stays: making it anew for each
 * request would cost more than the request's other system calls together.
 */
static void
prepare_engine(void)
{
	CURLcode	result;
	sigset_t	saved;

	if (engine.ready)
		return;

	enter_libcurl(&saved);
	result = curl_global_init(CURL_GLOBAL_DEFAULT);
	leave_libcurl(&saved);
	if (result != CURLE_OK)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not initialize libcurl: %s",
						curl_easy_strerror(result))));
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not create a set of sockets: %m")));
	if (!clerk_socket_set_create(&engine.sockets))
	{
		ReleaseExternalFD();
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not create a set of sockets: %m")));
	}
	PG_TRY();
	{
		prepare_wait_set();
	}
	PG_CATCH();
	{
		close(engine.sockets.descriptor);
		ReleaseExternalFD();
		PG_RE_THROW();
	}
	PG_END_TRY();
	engine.timer_due = NEVER;
	engine.next_deadline = NEVER;
	engine.wait_event = clerk_new_wait_event("ClerkInviteHttp");
	dlist_init(&engine.running);
	engine.ready = true;
}

/* A standalone backend has no postmaster that could die. */
static void
prepare_wait_set(void)
{
	engine.wait_set = clerk_create_wait_event_set(3);
	AddWaitEventToSet(engine.wait_set, WL_LATCH_SET, PGINVALID_SOCKET,
					  MyLatch, NULL);
	AddWaitEventToSet(engine.wait_set, WL_SOCKET_READABLE,
					  engine.sockets.descriptor, NULL, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(engine.wait_set, WL_EXIT_ON_PM_DEATH,
						  PGINVALID_SOCKET, NULL, NULL);
}

/* The multi handle, if there is none. */
static bool
prepare_multi(void)
{
	if (engine.multi != NULL)
		return true;
	engine.multi = curl_multi_init();
	if (engine.multi == NULL)
		return false;
	return curl_multi_setopt(engine.multi, CURLMOPT_SOCKETFUNCTION,
							 on_socket_interest) == CURLM_OK &&
		curl_multi_setopt(engine.multi, CURLMOPT_TIMERFUNCTION,
						  on_timer) == CURLM_OK;
}

/* An empty request, tied to the current memory context. */
static ClerkHttpRequest *
new_request(void)
{
	MemoryContext context;
	MemoryContextCallback *callback;
	ClerkHttpRequest *request;

	context = AllocSetContextCreate(CurrentMemoryContext,
									"clerk_invite HTTP request",
									ALLOCSET_SMALL_SIZES);
	callback = MemoryContextAllocZero(context, sizeof(*callback));
	request = calloc(1, sizeof(*request));
	if (request == NULL)
	{
		MemoryContextDelete(context);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	}
	request->context = context;
	request->outcome = CLERK_HTTP_NOT_SENT;
	callback->func = on_context_reset;
	callback->arg = request;
	MemoryContextRegisterResetCallback(context, callback);
	return request;
}

/* Frees a request, giving it up first if it is still running. */
static void
on_context_reset(void *arg)
{
	ClerkHttpRequest *request = arg;
	sigset_t	saved;

	if (request->easy != NULL)
	{
		enter_libcurl(&saved);
		if (request->outcome == CLERK_HTTP_RUNNING)
			give_up(request);
		else
			drop_easy(request, false);
		drop_multi_if_unused();
		leave_libcurl(&saved);
	}
	curl_slist_free_all(request->headers);
	free(request->body);
	free(request->answer_headers.data);
	free(request->answer_body.data);
	free(request);
}

/* Copies what libcurl reads while the request runs but does not copy. */
static bool
copy_spec(ClerkHttpRequest *request, const ClerkHttpSpec *spec)
{
	char		authorization[MAX_TOKEN_LENGTH + sizeof(AUTHORIZATION)];

	if (strlen(spec->bearer_token) > MAX_TOKEN_LENGTH)
		return false;
	strcpy(authorization, AUTHORIZATION);
	strcat(authorization, spec->bearer_token);
	request->headers = curl_slist_append(NULL, authorization);

	/* Without an empty Expect, libcurl would ask before a large body. */
	if (request->headers == NULL ||
		curl_slist_append(request->headers, "Expect:") == NULL)
		return false;
	for (const char *const *header = spec->headers; *header != NULL; header++)
		if (curl_slist_append(request->headers, *header) == NULL)
			return false;
	if (spec->body != NULL)
	{
		request->body_length = spec->body_length;
		request->body = malloc(Max(spec->body_length, 1));
		if (request->body == NULL)
			return false;
		memcpy(request->body, spec->body, spec->body_length);
	}
	return true;
}

/*
 * A handle for the request: an idle one, or a new one with the options that
 * never change.  The CA file is one of those, since libcurl's own choice
 * cannot be had back once it is set; handles go when it changes.
 */
static bool
take_easy(ClerkHttpRequest *request, const char *ca_file)
{
	if (strcmp(engine.ca_file, ca_file) != 0)
	{
		while (engine.idle_count > 0)
			curl_easy_cleanup(engine.idle[--engine.idle_count]);
		strlcpy(engine.ca_file, ca_file, sizeof(engine.ca_file));
		engine.generation++;
	}
	request->generation = engine.generation;
	if (engine.idle_count > 0 && engine.abandoned == 0)
	{
		request->easy = engine.idle[--engine.idle_count];
		return true;
	}
	request->easy = curl_easy_init();
	return request->easy != NULL && set_lasting_options(request->easy, ca_file);
}

/* Options are long or a pointer; the shorthand keeps the lists readable. */
#define SET(option, value) \
	(curl_easy_setopt(easy, (option), (value)) == CURLE_OK)

/*
 * Some are the defaults, but everything hangs on them: the certificate and its
 * name are checked, and no redirect is followed.  A CA file replaces the
 * system's folder of authorities, too; not every TLS library has one.  That no host is reached past the proxy
 * is set to keep libcurl from asking the environment.
 */
static bool
set_lasting_options(CURL *easy, const char *ca_file)
{
	return SET(CURLOPT_SSL_VERIFYPEER, 1L) &&
		SET(CURLOPT_SSL_VERIFYHOST, 2L) &&
		SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2) &&
		(ca_file[0] == '\0' ||
		 (SET(CURLOPT_CAINFO, ca_file) && (SET(CURLOPT_CAPATH, NULL) || true))) &&
		SET(CURLOPT_FOLLOWLOCATION, 0L) &&
		clerk_set_protocols(easy) == CURLE_OK &&
		SET(CURLOPT_NOPROXY, "") &&
		SET(CURLOPT_NOSIGNAL, 1L) &&
		set_resolver_options(easy) &&
		SET(CURLOPT_READFUNCTION, on_body_wanted) &&
		SET(CURLOPT_SEEKFUNCTION, on_body_rewind) &&
		SET(CURLOPT_HEADERFUNCTION, on_answer_header) &&
		SET(CURLOPT_WRITEFUNCTION, on_answer_body) &&
		SET(CURLOPT_OPENSOCKETFUNCTION, on_socket_open) &&
		SET(CURLOPT_CLOSESOCKETFUNCTION, on_socket_close);
}

/*
 * Rule 6.  The name cache would let a transfer go on while its own look-up
 * hangs, and libcurl would wait for that at the transfer's end.  An abandoned
 * transfer keeps the connections from being closed that are not to be used
 * any more.
 */
static bool
set_resolver_options(CURL *easy)
{
	engine.waits_for_names = !clerk_set_quick_exit(easy);
	return !engine.waits_for_names ||
		(SET(CURLOPT_DNS_CACHE_TIMEOUT, 0L) &&
		 SET(CURLOPT_FRESH_CONNECT, engine.abandoned > 0 ? 1L : 0L));
}

/*
 * The options of this request.  The proxy is set even if there is none, which
 * keeps libcurl from asking the environment; plain http is for this machine,
 * where no proxy belongs in between.
 */
static bool
set_request_options(ClerkHttpRequest *request, const ClerkHttpSpec *spec)
{
	CURL	   *easy = request->easy;
	long		spare_time = engine.waits_for_names ? SPARE_TIME : 0;

	set_deadlines(request, spec);
	return SET(CURLOPT_URL, spec->url) &&
		SET(CURLOPT_HTTPHEADER, request->headers) &&
		set_body_options(request) &&
		SET(CURLOPT_PROXY, request->loopback_only ? "" : spec->proxy) &&
		SET(CURLOPT_CONNECTTIMEOUT_MS, spec->connect_timeout + spare_time) &&
		SET(CURLOPT_TIMEOUT_MS, spec->request_timeout + spare_time) &&
		SET(CURLOPT_PRIVATE, request) &&
		SET(CURLOPT_ERRORBUFFER, request->fault) &&
		SET(CURLOPT_READDATA, request) &&
		SET(CURLOPT_SEEKDATA, request) &&
		SET(CURLOPT_HEADERDATA, request) &&
		SET(CURLOPT_WRITEDATA, request) &&
		SET(CURLOPT_OPENSOCKETDATA, request);
}

/* The body, in the way that keeps it from being sent twice: rule 4. */
static bool
set_body_options(ClerkHttpRequest *request)
{
	CURL	   *easy = request->easy;
	bool		asks = clerk_ask_before_attempt(easy, on_attempt, request);

	if (request->body == NULL)
		return SET(CURLOPT_HTTPGET, 1L);
	return SET(CURLOPT_POST, 1L) &&
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->body_length) &&
		SET(CURLOPT_POSTFIELDS, asks ? request->body : NULL);
}

static void
set_deadlines(ClerkHttpRequest *request, const ClerkHttpSpec *spec)
{
	int64		now = now_microseconds();

	request->connect_deadline = now + (int64) spec->connect_timeout * 1000;
	request->deadline = now + (int64) spec->request_timeout * 1000;
}

/*
 * Leaves a transfer to itself that is looking up a name: rule 6.  libcurl
 * fails it when the name is known and no socket is opened for it.
 */
static bool
abandon(CURL *easy)
{
	return SET(CURLOPT_OPENSOCKETFUNCTION, on_abandoned_socket_open) &&
		SET(CURLOPT_CONNECTTIMEOUT_MS, (long) INT_MAX) &&
		SET(CURLOPT_TIMEOUT_MS, 0L) &&
		SET(CURLOPT_PRIVATE, NULL) &&
		SET(CURLOPT_ERRORBUFFER, NULL) &&
		SET(CURLOPT_HTTPHEADER, NULL) &&
		SET(CURLOPT_POSTFIELDS, NULL);
}

#undef SET

/* Lets libcurl work on what is ready and on what is due by its timer. */
static void
drive_libcurl(const ClerkReadySocket *ready, int count)
{
	CURLMcode	result = CURLM_OK;
	int			running;

	/* Before libcurl could notice. */
	if (engine.waits_for_names)
		end_late_requests();
	for (int i = 0; i < count && result == CURLM_OK; i++)
		result = curl_multi_socket_action(engine.multi, ready[i].socket,
										  (ready[i].readable ? CURL_CSELECT_IN : 0) |
										  (ready[i].writable ? CURL_CSELECT_OUT : 0) |
										  (ready[i].failed ? CURL_CSELECT_ERR : 0),
										  &running);
	if (result == CURLM_OK && engine.timer_due <= now_microseconds())
	{
		engine.timer_due = NEVER;
		result = curl_multi_socket_action(engine.multi, CURL_SOCKET_TIMEOUT,
										  0, &running);
	}
	settle_finished();
	if (result != CURLM_OK)
		fail_all(result);
	drop_multi_if_unused();
	if (engine.waits_for_names)
		note_next_deadline();
}

/* Whether the request has a connection and has begun to be sent. */
static bool
is_on_its_way(const ClerkHttpRequest *request)
{
	curl_off_t	since = 0;

	curl_easy_getinfo(request->easy, CURLINFO_PRETRANSFER_TIME_T, &since);
	return since > 0;
}

/* When the request has to be finished, or on its way. */
static int64
deadline(const ClerkHttpRequest *request)
{
	return is_on_its_way(request) ? request->deadline :
		Min(request->deadline, request->connect_deadline);
}

/* What libcurl's limits do if rule 6 is not needed. */
static void
end_late_requests(void)
{
	int64		now = now_microseconds();
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &engine.running)
	{
		ClerkHttpRequest *request = dlist_container(ClerkHttpRequest, node,
													iter.cur);

		if (deadline(request) > now)
			continue;
		request->fault[0] = '\0';
		settle(request, CURLE_OPERATION_TIMEDOUT);
		give_up(request);
	}
}

static void
note_next_deadline(void)
{
	dlist_iter	iter;

	engine.next_deadline = NEVER;
	dlist_foreach(iter, &engine.running)
		engine.next_deadline = Min(engine.next_deadline,
								   deadline(dlist_container(ClerkHttpRequest,
															node, iter.cur)));
}

/*
 * The multi handle itself has failed, and would never time out: gives up all
 * requests that run on it.  The kernel having no room for a socket in the set
 * is one such case.
 */
static void
fail_all(CURLMcode result)
{
	while (!dlist_is_empty(&engine.running))
	{
		ClerkHttpRequest *request = dlist_container(ClerkHttpRequest, node,
													dlist_head_node(&engine.running));

		request->outcome = request->sent ? CLERK_HTTP_LOST : CLERK_HTTP_NOT_SENT;
		strlcpy(request->fault, curl_multi_strerror(result),
				sizeof(request->fault));
		give_up(request);
	}
}

/* Takes note of the requests that libcurl is done with. */
static void
settle_finished(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(engine.multi, &left)) != NULL)
	{
		CURLcode	result = message->data.result;
		ClerkHttpRequest *request;

		if (message->msg != CURLMSG_DONE ||
			curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE,
							  (char **) &request) != CURLE_OK)
			continue;
		if (request == NULL)
		{
			curl_multi_remove_handle(engine.multi, message->easy_handle);
			curl_easy_cleanup(message->easy_handle);
			engine.abandoned--;
			continue;
		}
		dlist_delete(&request->node);
		settle(request, result);
		drop_easy(request, !engine.discard_multi);
	}
}

static void
settle(ClerkHttpRequest *request, CURLcode result)
{
	long		header_bytes;

	if (result == CURLE_OK)
	{
		request->outcome = CLERK_HTTP_ANSWERED;
		request->answered_at = GetCurrentTimestamp();
		curl_easy_getinfo(request->easy, CURLINFO_RESPONSE_CODE,
						  &request->status);
		curl_easy_getinfo(request->easy, CURLINFO_RETRY_AFTER,
						  &request->retry_after);
		return;
	}

	/*
	 * Over HTTP/2 libcurl gives up the stream only, and would send the next
	 * request on the same connection, which may be the reason of the failure.
	 */
	engine.discard_multi = true;

	/* An old libcurl does not tell otherwise that it has sent a GET. */
	if (request->body == NULL &&
		curl_easy_getinfo(request->easy, CURLINFO_REQUEST_SIZE,
						  &header_bytes) == CURLE_OK && header_bytes > 0)
		request->sent = true;
	request->outcome = request->sent ? CLERK_HTTP_LOST : CLERK_HTTP_NOT_SENT;
	explain(request, result);
}

/*
 * Says in request->fault what has failed.  libcurl's own text may quote the
 * proxy's URL with its password, or what a server's certificate says.
 */
static void
explain(ClerkHttpRequest *request, CURLcode result)
{
	const char *text = NULL;

	if (request->too_large)
		text = "the answer is too large";
	else if (request->repetition_refused)
		text = "the server closed the connection without an answer";
	else if (request->fault[0] == '\0' ||
			 strstr(request->fault, "://") != NULL ||
			 result == CURLE_COULDNT_RESOLVE_PROXY ||
			 result == CURLE_UNSUPPORTED_PROTOCOL ||
			 result == CURLE_URL_MALFORMAT)
		text = curl_easy_strerror(result);
	if (text != NULL)
		strlcpy(request->fault, text, sizeof(request->fault));
	for (char *c = request->fault; *c != '\0'; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
}

/* Ends a running request before libcurl is done with it. */
static void
give_up(ClerkHttpRequest *request)
{
	dlist_delete(&request->node);
	engine.discard_multi = true;
	if (engine.waits_for_names &&
		!request->connecting && !is_on_its_way(request) &&
		abandon(request->easy))
	{
		engine.abandoned++;
		request->easy = NULL;
	}
	else
		drop_easy(request, false);
}

/* Takes the handle from a request; one that ran to its end can be reused. */
static void
drop_easy(ClerkHttpRequest *request, bool reuse)
{
	if (request->easy == NULL)
		return;

	/* What went wrong is known by now, and the handle may outlive the text. */
	curl_easy_setopt(request->easy, CURLOPT_ERRORBUFFER, NULL);
	if (engine.multi != NULL)
		curl_multi_remove_handle(engine.multi, request->easy);
	if (reuse && request->generation == engine.generation &&
		engine.idle_count < MAX_IDLE_HANDLES)
		engine.idle[engine.idle_count++] = request->easy;
	else
		curl_easy_cleanup(request->easy);
	request->easy = NULL;
}

/*
 * After a transfer that was aborted or failed, the multi handle goes with all
 * its connections once nothing else runs on it.
 */
static void
drop_multi_if_unused(void)
{
	if (engine.discard_multi && dlist_is_empty(&engine.running) &&
		engine.abandoned == 0)
	{
		curl_multi_cleanup(engine.multi);
		engine.multi = NULL;
		engine.timer_due = NEVER;
		engine.discard_multi = false;
	}
}

/* False if the buffer would exceed the limit or memory has run out. */
static bool
append(ByteBuffer *buffer, const char *data, size_t length, size_t limit)
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

/* The shorter of a caller's limit and the time until something is due. */
static long
wait_milliseconds(long timeout, int64 started)
{
	int64		due = Min(engine.timer_due, engine.next_deadline);
	int64		left;

	if (due == NEVER)
		return timeout;
	/* Rounded up, since waking early would only mean to wait again. */
	left = Max(due - started + 999, 0) / 1000;
	left = Min(left, INT_MAX);
	return timeout < 0 ? (long) left : Min(timeout, (long) left);
}

/* libcurl is connected and about to send the request: rule 4. */
static int
on_attempt(void *arg, char *server_address pg_attribute_unused(),
		   char *own_address pg_attribute_unused(),
		   int server_port pg_attribute_unused(),
		   int own_port pg_attribute_unused())
{
	ClerkHttpRequest *request = arg;

	if (request->sent && request->body != NULL)
	{
		request->repetition_refused = true;
		return CURL_PREREQFUNC_ABORT;
	}
	request->sent = true;
	return CURL_PREREQFUNC_OK;
}

/* libcurl wants bytes of the body. */
static size_t
on_body_wanted(char *buffer, size_t size, size_t count, void *arg)
{
	ClerkHttpRequest *request = arg;
	size_t		length = Min(size * count,
							 request->body_length - request->body_handed_over);

	memcpy(buffer, request->body + request->body_handed_over, length);
	request->body_handed_over += length;
	request->sent = true;
	return length;
}

/* libcurl wants to send the body again: rule 4. */
static int
on_body_rewind(void *arg, curl_off_t offset, int origin pg_attribute_unused())
{
	ClerkHttpRequest *request = arg;

	if (offset == 0 && request->body_handed_over == 0)
		return CURL_SEEKFUNC_OK;
	request->repetition_refused = true;
	return CURL_SEEKFUNC_FAIL;
}

/* A line of the answer's header.  A proxy's answer comes before Clerk's. */
static size_t
on_answer_header(char *data, size_t size, size_t count, void *arg)
{
	ClerkHttpRequest *request = arg;
	size_t		length = size * count;

	if (length >= 5 && memcmp(data, "HTTP/", 5) == 0)
		request->answer_headers.length = 0;
	if (append(&request->answer_headers, data, length, MAX_HEADER_BYTES))
		return length;
	request->too_large = true;
	return 0;
}

/* A piece of the answer's body; a short count ends the transfer. */
static size_t
on_answer_body(char *data, size_t size, size_t count, void *arg)
{
	ClerkHttpRequest *request = arg;
	size_t		length = size * count;

	if (append(&request->answer_body, data, length, MAX_BODY_BYTES))
		return length;
	request->too_large = true;
	return 0;
}

/* As libcurl's own, but closed in programs that the server starts. */
static curl_socket_t
on_socket_open(void *arg, curlsocktype purpose pg_attribute_unused(),
			   struct curl_sockaddr *address)
{
	ClerkHttpRequest *request = arg;
	curl_socket_t opened;

	request->connecting = true;
	if (request->loopback_only && !clerk_is_loopback_address(&address->addr))
		return CURL_SOCKET_BAD;
	opened = socket(address->family, address->socktype | SOCK_CLOEXEC,
					address->protocol);
	clerk_socket_set_opened(&engine.sockets, opened);
	return opened;
}

static curl_socket_t
on_abandoned_socket_open(void *arg pg_attribute_unused(),
						 curlsocktype purpose pg_attribute_unused(),
						 struct curl_sockaddr *address pg_attribute_unused())
{
	return CURL_SOCKET_BAD;
}

/* A connection may outlive the request that opened it: no argument. */
static int
on_socket_close(void *arg pg_attribute_unused(), curl_socket_t socket)
{
	clerk_socket_set_closed(&engine.sockets, socket);
	return close(socket);
}

/*
 * libcurl begins or ceases to care about a socket.  The pointer that it keeps
 * with each socket for us tells whether the socket is in the set.
 */
static int
on_socket_interest(CURL *easy pg_attribute_unused(), curl_socket_t socket,
				   int what, void *arg pg_attribute_unused(), void *known)
{
	if (what == CURL_POLL_REMOVE)
	{
		clerk_socket_set_rest(&engine.sockets, socket);
		return 0;
	}
	if (!clerk_socket_set_watch(&engine.sockets, socket,
								(what & CURL_POLL_IN) != 0,
								(what & CURL_POLL_OUT) != 0,
								known != NULL))
		return -1;
	curl_multi_assign(engine.multi, socket, &engine);
	return 0;
}

/* libcurl wants to be called after so many milliseconds; -1 means not. */
static int
on_timer(CURLM *multi pg_attribute_unused(), long milliseconds,
		 void *arg pg_attribute_unused())
{
	engine.timer_due = milliseconds < 0 ? NEVER :
		now_microseconds() + (int64) milliseconds * 1000;
	return 0;
}
