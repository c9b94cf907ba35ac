/*
 * webhook_secret.h
 *		The secrets with which Clerk's webhooks are signed.
 */
#ifndef CLERK_WEBHOOK_SECRET_H
#define CLERK_WEBHOOK_SECRET_H

/* Standard Webhooks: a secret has 24 to 64 bytes. */
#define CLERK_WEBHOOK_SECRET_MIN 24
#define CLERK_WEBHOOK_SECRET_MAX 64

/* More than one is needed only while one is being replaced. */
#define CLERK_WEBHOOK_SECRETS_MAX 8

typedef struct ClerkWebhookSecret
{
	int			length;
	unsigned char bytes[CLERK_WEBHOOK_SECRET_MAX];
} ClerkWebhookSecret;

extern int	clerk_webhook_secrets_from_file(const char *path,
											const ClerkWebhookSecret **secrets,
											const char **reason);

#endif							/* CLERK_WEBHOOK_SECRET_H */
