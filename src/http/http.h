/*
 * http.h
 *		HTTPS requests: several at a time, interruptible, limited in time and
 *		size.
 *
 * The life of a request:
 *
 *		request = clerk_http_start(&spec);
 *		while (clerk_http_outcome(request) == CLERK_HTTP_RUNNING)
 *		{
 *			CHECK_FOR_INTERRUPTS();
 *			clerk_http_wait(-1);
 *		}
 *		... clerk_http_status(request), clerk_http_body(request, &length) ...
 *		clerk_http_release(request);
 *
 * A request belongs to the memory context that was current when it was
 * started.  A reset of that context cancels and frees the request, so no
 * cleanup is needed after an error.
 */
#ifndef CLERK_HTTP_H
#define CLERK_HTTP_H

#include "datatype/timestamp.h"
#include "http/http_spec.h"
#include "pgtime.h"

typedef struct ClerkHttpRequest ClerkHttpRequest;

extern ClerkHttpRequest *clerk_http_start(const ClerkHttpSpec *spec);
extern void clerk_http_wait(long timeout);
extern ClerkHttpOutcome clerk_http_outcome(const ClerkHttpRequest *request);
extern bool clerk_http_was_sent(const ClerkHttpRequest *request);
extern const char *clerk_http_bearer_token(const ClerkHttpRequest *request);
extern const char *clerk_http_error(const ClerkHttpRequest *request);
extern int	clerk_http_status(const ClerkHttpRequest *request);
extern const char *clerk_http_body(const ClerkHttpRequest *request,
								   size_t *length);
extern char *clerk_http_header(const ClerkHttpRequest *request,
							   const char *name);
extern int	clerk_http_retry_after(const ClerkHttpRequest *request);
extern pg_time_t clerk_http_date(const ClerkHttpRequest *request);
extern TimestampTz clerk_http_response_time(const ClerkHttpRequest *request);
extern int64 clerk_http_response_clock(const ClerkHttpRequest *request);
extern void clerk_http_release(ClerkHttpRequest *request);

#endif							/* CLERK_HTTP_H */
