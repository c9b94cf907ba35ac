/*
 * http_spec.h
 *		What a request consists of, and how it can end.
 */
#ifndef CLERK_HTTP_SPEC_H
#define CLERK_HTTP_SPEC_H

/*
 * What to send.  All strings are UTF-8.  Everything is copied except the body,
 * which must live as long as the request.
 */
typedef struct ClerkHttpSpec
{
	const char *url;
	const char *bearer_token;	/* a secret, for the Authorization header */
	const char *const *headers; /* "Name: value" each; a NULL ends the list */
	const char *body;			/* sent by POST; NULL: send a GET */
	size_t		body_length;
	const char *ca_file;		/* empty: the system's authorities */
	const char *proxy;			/* empty: no proxy */
	int			connect_timeout;	/* milliseconds for name lookup,
									 * connection and TLS together */
	int			request_timeout;	/* milliseconds for the whole request */
} ClerkHttpSpec;

typedef enum ClerkHttpOutcome
{
	CLERK_HTTP_RUNNING,
	CLERK_HTTP_COMPLETED,		/* status, headers and the whole body have
								 * arrived */
	CLERK_HTTP_UNUSABLE,		/* not tried: clerk_url_error() rejects the
								 * URL */
	CLERK_HTTP_NOT_SENT,		/* name lookup, connection or TLS failed */
	CLERK_HTTP_LOST				/* sent at least in part, but no complete
								 * response */
} ClerkHttpOutcome;

#endif							/* CLERK_HTTP_SPEC_H */
