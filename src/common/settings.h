/*
 * settings.h
 *		The settings, all of which are named clerk_invite.*.
 */
#ifndef CLERK_SETTINGS_H
#define CLERK_SETTINGS_H

#include "common/webhook_secret.h"

extern char *clerk_api_url;
extern char *clerk_api_version;
extern char *clerk_ca_file;
extern char *clerk_proxy;
extern int	clerk_connect_timeout;	/* milliseconds */
extern int	clerk_request_timeout;	/* milliseconds */

extern int	clerk_max_concurrent_requests;
extern int	clerk_max_attempts;
extern int	clerk_retry_delay;	/* milliseconds */
extern int	clerk_retry_delay_max;	/* milliseconds */
extern int	clerk_verify_delay; /* milliseconds */
extern int	clerk_retention;	/* seconds; 0: forever */
extern char *clerk_notify_channel;	/* empty: no notifications */
extern bool clerk_worker_enabled;
extern bool clerk_enqueue_enabled;

extern int	clerk_single_requests_per_hour; /* in each clerk_rate_limit_window */
extern int	clerk_bulk_requests_per_hour;	/* in each clerk_rate_limit_window */
extern int	clerk_rate_limit_window;	/* milliseconds */

extern void clerk_define_settings(void);
extern const char *clerk_secret_key(const char **reason, const char **hint);
extern int	clerk_webhook_secrets(const ClerkWebhookSecret **secrets,
								  const char **reason);

#endif							/* CLERK_SETTINGS_H */
