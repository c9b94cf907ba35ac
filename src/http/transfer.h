/*
 * transfer.h
 *		One transfer by libcurl.
 *
 * For the files of this room only, since it shows libcurl's types.  Whoever
 * calls these functions keeps the rules of event_loop.c.
 */
#ifndef CLERK_TRANSFER_H
#define CLERK_TRANSFER_H

#include <curl/curl.h>

#include "datatype/timestamp.h"
#include "http/http_spec.h"
#include "http/socket_set.h"

/* A time that does not come, among those of clerk_monotonic_microseconds(). */
#define CLERK_NEVER PG_INT64_MAX

/* Bytes that libcurl's callbacks may append to, followed by a NUL. */
typedef struct ClerkByteBuffer
{
	char	   *data;
	size_t		length;
	size_t		capacity;
} ClerkByteBuffer;

/* Header lines that transfers share. */
typedef struct ClerkHeaderList ClerkHeaderList;

/* Zeroed before clerk_transfer_prepare(); only transfer.c changes it. */
typedef struct ClerkTransfer
{
	CURL	   *easy;			/* until it is over */
	uint32		generation;		/* of the handle */
	ClerkSocketSet *sockets;	/* where the sockets go that it opens */
	bool		loopback_only;
	ClerkHeaderList *headers;
	const char *body;			/* NULL: a GET */
	size_t		body_length;
	size_t		body_handed_over;	/* bytes that libcurl has fetched */
	bool		connecting;		/* the server's name has been looked up */
	bool		sent;			/* may have reached the server */
	bool		repetition_refused;
	bool		too_large;
	int64		connect_deadline;	/* limits that libcurl does not keep, */
	int64		deadline;		/* or CLERK_NEVER */

	/* What came of it */
	ClerkHttpOutcome outcome;
	long		status;
	ClerkByteBuffer response_headers;
	ClerkByteBuffer response_body;
	TimestampTz answered_at;
	int64		answered_clock;
	curl_off_t	retry_after;
	char		error[CURL_ERROR_SIZE];
} ClerkTransfer;

extern bool clerk_transfer_prepare(ClerkTransfer *transfer,
								   const ClerkHttpSpec *spec,
								   bool loopback_only, ClerkSocketSet *sockets,
								   bool fresh_connection, void *owner);
extern void clerk_transfer_refuse_kept(ClerkTransfer *transfer);
extern void clerk_transfer_refuse(ClerkTransfer *transfer,
								  ClerkHttpOutcome outcome, const char *error);
extern int64 clerk_transfer_deadline(const ClerkTransfer *transfer);
extern void clerk_transfer_settle(ClerkTransfer *transfer, CURLcode result);
extern void clerk_transfer_fail(ClerkTransfer *transfer, const char *error);
extern bool clerk_transfer_abandon(ClerkTransfer *transfer);
extern void clerk_transfer_drop_handle(ClerkTransfer *transfer, bool reuse);
extern void clerk_transfer_clear(ClerkTransfer *transfer);
extern const char *clerk_transfer_bearer_token(const ClerkTransfer *transfer);

#endif							/* CLERK_TRANSFER_H */
