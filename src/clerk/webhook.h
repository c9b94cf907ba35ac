/*
 * webhook.h
 *		Clerk's webhooks: whether one is Clerk's, and what it tells.
 */
#ifndef CLERK_WEBHOOK_H
#define CLERK_WEBHOOK_H

#include "common/webhook_secret.h"
#include "datatype/timestamp.h"
#include "utils/jsonb.h"

/*
 * How far the time in a webhook may be from the server's, in seconds.  It is
 * that of Svix, which delivers Clerk's webhooks, and of Standard Webhooks.
 */
#define CLERK_WEBHOOK_TOLERANCE (5 * SECS_PER_MINUTE)

/* Why a webhook is refused. */
typedef struct ClerkWebhookRefusal
{
	int			sqlstate;
	const char *message;
	const char *detail;			/* a complete sentence, or NULL */
} ClerkWebhookRefusal;

/* The three headers.  Strings are in the database's encoding. */
typedef struct ClerkWebhookHeaders
{
	const char *id;
	const char *timestamp;		/* seconds since 1970, in decimal */
	const char *signatures;
} ClerkWebhookHeaders;

/* What a webhook tells about an invitation. */
typedef struct ClerkWebhookEvent
{
	const char *status;			/* NULL: the event is of another type */
	const char *invitation_id;	/* only with a status */
} ClerkWebhookEvent;

extern const ClerkWebhookRefusal clerk_webhook_incomplete;
extern const ClerkWebhookRefusal clerk_webhook_copied;

extern const ClerkWebhookRefusal *clerk_webhook_headers(Jsonb *headers,
														ClerkWebhookHeaders *found);
extern const ClerkWebhookRefusal *clerk_webhook_time(const ClerkWebhookHeaders *headers,
													 TimestampTz now,
													 TimestampTz *sent_at);
extern const ClerkWebhookRefusal *clerk_webhook_verify(const ClerkWebhookHeaders *headers,
													   char *body,
													   const ClerkWebhookSecret *secrets,
													   int count);
extern const ClerkWebhookRefusal *clerk_webhook_read(const char *body,
													 ClerkWebhookEvent *event);

#endif							/* CLERK_WEBHOOK_H */
