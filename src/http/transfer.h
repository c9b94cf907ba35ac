/*
 * transfer.h
 *		One transfer by libcurl.
 *
 * Only the files of http/ include this header, since it exposes libcurl's
 * types.  Callers of these functions must obey the rules of event_loop.c.
 */
#ifndef CLERK_TRANSFER_H
#define CLERK_TRANSFER_H

#include <curl/curl.h>

#include "datatype/timestamp.h"
#include "http/easy_handle.h"
#include "http/header_list.h"
#include "http/http_spec.h"
#include "http/socket_set.h"

/*
 * A buffer that libcurl's callbacks append to.  A NUL byte follows the data.
 */
typedef struct ClerkByteBuffer
{
	char	   *data;
	size_t		length;
	size_t		capacity;
} ClerkByteBuffer;

/* Zeroed before clerk_transfer_prepare().  Only transfer.c modifies it. */
typedef struct ClerkTransfer
{
	ClerkEasyHandle handle;
	ClerkSocketSet *sockets;	/* gets the sockets that the transfer opens */
	bool		loopback_only;
	ClerkHeaderList *headers;
	const char *body;			/* NULL: send a GET */
	size_t		body_length;
	size_t		body_bytes_read;	/* bytes that libcurl has read */
	int			request_timeout;	/* milliseconds */
	bool		connecting;		/* the name has been resolved: libcurl opens
								 * sockets */
	bool		sent;			/* may have reached the server, at least in
								 * part */
	bool		resend_refused;
	bool		too_large;

	/*
	 * Deadlines that the event loop enforces, by
	 * clerk_monotonic_microseconds(); CLERK_NEVER if libcurl enforces the
	 * time limits.
	 */
	int64		connect_deadline;
	int64		deadline;

	/* Result */
	ClerkHttpOutcome outcome;
	long		status;
	ClerkByteBuffer response_headers;
	ClerkByteBuffer response_body;
	TimestampTz response_time;
	int64		response_clock;
	curl_off_t	retry_after;
	char		error[CURL_ERROR_SIZE];
} ClerkTransfer;

extern bool clerk_transfer_prepare(ClerkTransfer *transfer,
								   const ClerkHttpSpec *spec,
								   bool loopback_only, ClerkSocketSet *sockets,
								   bool fresh_connection, void *owner);
extern void clerk_transfer_require_new_connection(ClerkTransfer *transfer);
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
