/*
 * http_internal.h
 *		What http.c, http_event_loop.c and http_transfer.c share.
 *
 * Calls go from http.c down to http_event_loop.c, and from both down to
 * http_transfer.c.  No other file includes this header.
 */
#ifndef CLERK_HTTP_INTERNAL_H
#define CLERK_HTTP_INTERNAL_H

#include <curl/curl.h>

#include "http.h"
#include "lib/ilist.h"
#include "portability/instr_time.h"
#include "socket_set.h"

/* A time that does not come, among those of now_microseconds(). */
#define NEVER PG_INT64_MAX

/* Bytes that libcurl's callbacks may append to, followed by a NUL. */
typedef struct ByteBuffer
{
	char	   *data;
	size_t		length;
	size_t		capacity;
} ByteBuffer;

/* Header lines that requests share, kept by http_transfer.c. */
typedef struct HeaderList HeaderList;

struct ClerkHttpRequest
{
	/* http.c's */
	MemoryContext context;		/* its reset frees the request */

	/* http_event_loop.c's */
	dlist_node	node;			/* in loop.running or loop.waiting */
	bool		waiting;		/* for descriptors, in loop.waiting */

	/* http_transfer.c's */
	CURL	   *easy;			/* while running */
	uint32		generation;		/* of the handle */
	ClerkSocketSet *sockets;	/* where the sockets go that it opens */
	bool		loopback_only;	/* set before */
	HeaderList *headers;
	char	   *body;
	size_t		body_length;
	size_t		body_handed_over;	/* bytes that libcurl has fetched */
	bool		connecting;		/* the server's name has been looked up */
	bool		sent;			/* may have reached the server */
	bool		repetition_refused;
	bool		too_large;
	int64		connect_deadline;	/* limits that libcurl does not keep, */
	int64		deadline;		/* or NEVER */

	/* What came of it */
	ClerkHttpOutcome outcome;
	long		status;
	ByteBuffer	answer_headers;
	ByteBuffer	answer_body;
	TimestampTz answered_at;
	int64		answered_clock;
	curl_off_t	retry_after;
	char		fault[CURL_ERROR_SIZE];
};

static inline int64
now_microseconds(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* http_event_loop.c */
extern void clerk_event_loop_prepare(void);
extern bool clerk_event_loop_start(ClerkHttpRequest *request,
								   const ClerkHttpSpec *spec);
extern void clerk_event_loop_wait(long timeout);
extern void clerk_event_loop_release(ClerkHttpRequest *request);

/* http_transfer.c */
extern bool clerk_transfer_prepare(ClerkHttpRequest *request,
								   const ClerkHttpSpec *spec,
								   ClerkSocketSet *sockets,
								   bool fresh_connection);
extern void clerk_transfer_refuse_kept(ClerkHttpRequest *request);
extern int64 clerk_transfer_deadline(const ClerkHttpRequest *request);
extern void clerk_transfer_settle(ClerkHttpRequest *request, CURLcode result);
extern void clerk_transfer_fail(ClerkHttpRequest *request, const char *fault);
extern bool clerk_transfer_abandon(ClerkHttpRequest *request);
extern void clerk_transfer_drop_handle(ClerkHttpRequest *request, bool reuse);
extern void clerk_transfer_clear(ClerkHttpRequest *request);
extern const char *clerk_transfer_bearer_token(const ClerkHttpRequest *request);

#endif							/* CLERK_HTTP_INTERNAL_H */
