/*
 * http.c
 *		The life of a request: start it, inquire about it, release it.
 *
 * A request is a struct from calloc(), since libcurl's callbacks write to it.
 * The reset callback of its own memory context frees it.
 */
#include "postgres.h"

#include "http/event_loop.h"
#include "http/http.h"
#include "http/url_rules.h"
#include "utils/memutils.h"

/* As "Sun, 06 Nov 1994 08:49:37 GMT", which is what HTTP prescribes. */
#define DATE_SIZE 32

/* Freed when its memory context is reset. */
struct ClerkHttpRequest
{
	MemoryContext context;
	ClerkLoopEntry entry;
};

static ClerkHttpRequest *new_request(void);
static void on_context_reset(void *arg);

/*
 * Starts a request and returns it, running or already finished.  It may be
 * finished because its URL is unusable (CLERK_HTTP_UNUSABLE), for example.
 *
 * Raises 53200 if memory has run out, and 38000 if memory has run out within
 * libcurl, or libcurl cannot be initialized or lacks an option.  Nothing was
 * sent then.  If file descriptors have run out, the request waits until other
 * running requests release theirs, or ends as CLERK_HTTP_NOT_SENT.
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
 * Drives all running requests.  Waits until something has happened to at least
 * one of them, the process's latch is set, or "timeout" milliseconds have
 * passed (-1 means no limit).
 *
 * Resets the latch if it was set.  The caller must check for everything that
 * the latch may have been set for before it waits again.
 *
 * Raises 53000 if file descriptors have run out, and the server's own error if
 * the kernel cannot watch a socket.
 */
void
clerk_http_wait(long timeout)
{
	clerk_event_loop_wait(timeout);
}

/* The state of a request: running, or how it ended. */
ClerkHttpOutcome
clerk_http_outcome(const ClerkHttpRequest *request)
{
	return request->entry.transfer.outcome;
}

/*
 * Whether any part of the request may have reached the server; see rule 2 in
 * http/transfer.c.
 */
bool
clerk_http_was_sent(const ClerkHttpRequest *request)
{
	return request->entry.transfer.sent;
}

/*
 * The secret that the request was sent with, so that callers can conceal it in
 * texts.  The request must not have ended as CLERK_HTTP_UNUSABLE, which has
 * none.
 */
const char *
clerk_http_bearer_token(const ClerkHttpRequest *request)
{
	return clerk_transfer_bearer_token(&request->entry.transfer);
}

/*
 * Why a request has failed, as a phrase.  Empty unless the outcome is
 * CLERK_HTTP_UNUSABLE, CLERK_HTTP_NOT_SENT or CLERK_HTTP_LOST.
 */
const char *
clerk_http_error(const ClerkHttpRequest *request)
{
	return request->entry.transfer.error;
}

/* HTTP status of the response; 0 if there was none. */
int
clerk_http_status(const ClerkHttpRequest *request)
{
	return (int) request->entry.transfer.status;
}

/*
 * Body of the response and its length in bytes.  A NUL byte follows that the
 * length does not count.  Valid until the request is released.
 */
const char *
clerk_http_body(const ClerkHttpRequest *request, size_t *length)
{
	*length = request->entry.transfer.response_body.length;
	return *length > 0 ? request->entry.transfer.response_body.data : "";
}

/*
 * Value of the first response header with this name, which is compared without
 * regard to case.  Returns NULL if there is none.  Since the server chose the
 * text, characters that are not printable ASCII are replaced with "?".  The
 * result is in the current memory context.
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

/*
 * Seconds that the response's Retry-After header asks for; 0 if it has none.
 */
int
clerk_http_retry_after(const ClerkHttpRequest *request)
{
	return (int) Max(Min(request->entry.transfer.retry_after, INT_MAX), 0);
}

/*
 * The response's Date header: when the server created the response, by its own
 * clock, in whole seconds since 1970, rounded down. 0 if it has none.
 *
 * The responses of a second have the same date, which takes an eighth as long
 * to read as its request took to send, so the last one is remembered.
 */
pg_time_t
clerk_http_date(const ClerkHttpRequest *request)
{
	static char last_text[DATE_SIZE] = "";
	static pg_time_t last_time = 0;
	char	   *date = clerk_http_header(request, "date");

	if (date == NULL)
		return 0;
	if (strcmp(date, last_text) != 0)
	{
		last_time = curl_getdate(date, NULL);
		last_time = Max(last_time, 0);
		strlcpy(last_text, strlen(date) < DATE_SIZE ? date : "", DATE_SIZE);
	}
	return last_time;
}

/* When the whole response had arrived, by our wall clock. */
TimestampTz
clerk_http_response_time(const ClerkHttpRequest *request)
{
	return request->entry.transfer.response_time;
}

/*
 * When the whole response had arrived, as a reading of clerk_server_clock(),
 * which is not affected by changes of the wall clock.
 */
int64
clerk_http_response_clock(const ClerkHttpRequest *request)
{
	return request->entry.transfer.response_clock;
}

/* Cancels a request if it is still running, and frees it and its response. */
void
clerk_http_release(ClerkHttpRequest *request)
{
	MemoryContextDelete(request->context);
}

/*
 * A zeroed request in a child of the current memory context.  Raises 53200 if
 * memory has run out.
 */
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

/* Cancels a request if it is still running, and frees it. */
static void
on_context_reset(void *arg)
{
	ClerkHttpRequest *request = arg;

	clerk_event_loop_release(&request->entry);
	clerk_transfer_clear(&request->entry.transfer);
	free(request);
}
