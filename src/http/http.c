/*
 * http.c
 *		Requests and their life: started, asked about, released.
 *
 * A request is one calloc()ed struct, since libcurl's callbacks write to it,
 * freed by the reset callback of a memory context of its own.
 */
#include "postgres.h"

#include "http/event_loop.h"
#include "http/http.h"
#include "http/url_rules.h"
#include "utils/memutils.h"

/* Freed by a reset of its memory context. */
struct ClerkHttpRequest
{
	MemoryContext context;
	ClerkLoopEntry entry;
};

static ClerkHttpRequest *new_request(void);
static void on_context_reset(void *arg);

/*
 * Starts a request and returns it, running or finished already.
 *
 * Raises an error only if memory has run out, or if this libcurl cannot do what
 * is needed; nothing was sent then.  If file descriptors have run out, the
 * request waits for those of others that are running, or ends unsent.
 */
ClerkHttpRequest *
clerk_http_start(const ClerkHttpSpec *spec)
{
	ClerkHttpRequest *request;
	const char *error;
	bool		loopback_only;

	clerk_event_loop_prepare();
	request = new_request();
	error = clerk_url_error(spec->url, &loopback_only);
	if (error != NULL)
		clerk_transfer_refuse(&request->entry.transfer, CLERK_HTTP_UNUSABLE,
							  error);
	else if (!clerk_event_loop_start(&request->entry, spec, loopback_only))
	{
		clerk_http_release(request);
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not prepare an HTTP request"),
				 errdetail("Memory is exhausted, or libcurl does not support a required option.")));
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
 *
 * Raises an error if the kernel has no room for what is to be waited for.
 */
void
clerk_http_wait(long timeout)
{
	clerk_event_loop_wait(timeout);
}

/* How the request stands. */
ClerkHttpOutcome
clerk_http_outcome(const ClerkHttpRequest *request)
{
	return request->entry.transfer.outcome;
}

/* Whether the request may have reached the server; see http/transfer.c. */
bool
clerk_http_was_sent(const ClerkHttpRequest *request)
{
	return request->entry.transfer.sent;
}

/* The secret that the request was sent with, so that it can be concealed. */
const char *
clerk_http_bearer_token(const ClerkHttpRequest *request)
{
	return clerk_transfer_bearer_token(&request->entry.transfer);
}

/* What went wrong with a request that was not answered: a phrase. */
const char *
clerk_http_error(const ClerkHttpRequest *request)
{
	return request->entry.transfer.error;
}

/* HTTP status of the answer; 0 if there is none. */
int
clerk_http_status(const ClerkHttpRequest *request)
{
	return (int) request->entry.transfer.status;
}

/*
 * Body of the answer, followed by a NUL byte that is not counted; valid until
 * the request is released.
 */
const char *
clerk_http_body(const ClerkHttpRequest *request, size_t *length)
{
	*length = request->entry.transfer.response_body.length;
	return *length > 0 ? request->entry.transfer.response_body.data : "";
}

/*
 * Value of the answer's header of this name, in any case, as printable ASCII
 * in the current memory context; NULL if it has none.  Other characters are
 * replaced with "?": the server chose them.
 */
char *
clerk_http_header(const ClerkHttpRequest *request, const char *name)
{
	const char *line = request->entry.transfer.response_headers.data;
	const char *end = line + request->entry.transfer.response_headers.length;
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
	return (int) Max(Min(request->entry.transfer.retry_after, INT_MAX), 0);
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
	return request->entry.transfer.answered_at;
}

/* The same by the clock that nobody can set; see common/server_clock.h. */
int64
clerk_http_answered_clock(const ClerkHttpRequest *request)
{
	return request->entry.transfer.answered_clock;
}

/* Gives a request up if it is running, and frees it and its answer. */
void
clerk_http_release(ClerkHttpRequest *request)
{
	MemoryContextDelete(request->context);
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
	request->entry.transfer.outcome = CLERK_HTTP_NOT_SENT;
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

	clerk_event_loop_release(&request->entry);
	clerk_transfer_clear(&request->entry.transfer);
	free(request);
}
