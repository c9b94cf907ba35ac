/*
 * http_spec.h
 *		What a request is to be, and how it ends.
 */
#ifndef CLERK_HTTP_SPEC_H
#define CLERK_HTTP_SPEC_H

/*
 * What to send.  All strings are UTF-8, and copied but for the body, which must
 * last as long as the request.
 */
typedef struct ClerkHttpSpec
{
	const char *url;
	const char *bearer_token;	/* a secret: goes into Authorization */
	const char *const *headers; /* "Name: value", ends with NULL */
	const char *body;			/* sent with POST; NULL means GET */
	size_t		body_length;
	const char *ca_file;		/* empty: the authorities of the system */
	const char *proxy;			/* empty: none */
	int			connect_timeout;	/* name, connection, TLS: milliseconds */
	int			request_timeout;	/* all of it: milliseconds */
} ClerkHttpSpec;

typedef enum ClerkHttpOutcome
{
	CLERK_HTTP_RUNNING,
	CLERK_HTTP_ANSWERED,		/* status, headers and whole body are here */
	CLERK_HTTP_UNUSABLE,		/* not tried: the URL is not one to use */
	CLERK_HTTP_NOT_SENT,		/* name, connection or TLS failed */
	CLERK_HTTP_LOST				/* sent, perhaps in part; no whole answer */
} ClerkHttpOutcome;

#endif							/* CLERK_HTTP_SPEC_H */
