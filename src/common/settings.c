/*
 * settings.c
 *		The settings: their definitions, their checks, and the choice of the
 *		secret key.
 *
 * Who may change a setting depends on whether it determines who receives the
 * key.  Only a superuser may set the address that the key is sent to, the
 * certificate authorities that verify that address, and the proxy.  Anyone may
 * set timeouts.
 *
 * The secret key is never the value of a setting.  The check hook of
 * clerk_invite.secret_key replaces the value with a mask, and passes the key
 * to the assign hook in the private data that guc.c provides for this.
 * Otherwise SHOW, pg_settings, and the log message about each parameter that a
 * reload changes would reveal the key.
 */
#include "postgres.h"

#include <limits.h>

#include "common/secret_key.h"
#include "common/settings.h"
#include "common/shared_memory.h"
#include "common/webhook_secret.h"
#include "compat.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"

#define SECRET_KEY_SETTING "clerk_invite.secret_key"
#define SECRET_KEY_FILE_SETTING "clerk_invite.secret_key_file"
#define WEBHOOK_SECRET_FILE_SETTING "clerk_invite.webhook_secret_file"
#define SECRET_KEY_MASK "********"

#define READABLE_KEY_HINT \
	"Put the key into a file and set \"clerk_invite.secret_key_file\", or add clerk_invite to \"shared_preload_libraries\"."

char	   *clerk_api_url;
char	   *clerk_api_version;
char	   *clerk_ca_file;
char	   *clerk_proxy;
int			clerk_connect_timeout;
int			clerk_request_timeout;
int			clerk_max_concurrent_requests;
int			clerk_max_attempts;
int			clerk_retry_delay;
int			clerk_retry_delay_max;
int			clerk_verify_delay;
int			clerk_retention;
char	   *clerk_notify_channel;
int			clerk_single_requests_per_hour;
int			clerk_bulk_requests_per_hour;
int			clerk_rate_limit_window;
bool		clerk_worker_enabled;
bool		clerk_enqueue_enabled;

static char *webhook_secret_file;
static char *secret_key_file;
static char *secret_key_mask;	/* the value that guc.c knows */
static const char *secret_key;	/* the key; NULL if not set */

static void warn_of_readable_secret_key(void);
static void define_superusers_string(const char *name,
									 const char *description,
									 const char *more, char **variable,
									 const char *boot_value, int flags);
static char *configured_value(const char *name);
pg_noreturn static void refuse_overridden(const char *name);
static void define_secret_key_settings(void);
static void define_transport_settings(void);
static void define_delivery_settings(void);
static void define_outbox_settings(void);
static void define_rate_limit_settings(void);
static void define_worker_settings(void);
static bool check_secret_key(char **newval, void **extra, GucSource source);
static void assign_secret_key(const char *newval, void *extra);
static bool check_api_version(char **newval, void **extra, GucSource source);
static bool check_notify_channel(char **newval, void **extra,
								 GucSource source);

/*
 * Defines all settings and reserves their prefix.  Called once per process,
 * when the library is loaded.
 */
void
clerk_define_settings(void)
{
	warn_of_readable_secret_key();
	define_secret_key_settings();
	define_transport_settings();
	define_delivery_settings();
	define_outbox_settings();
	define_rate_limit_settings();
	define_worker_settings();
	MarkGUCPrefixReserved("clerk_invite");
}

/*
 * Until the library is loaded, its settings are placeholders in guc.c, which
 * every role can read with SHOW.  If the library is preloaded, no statement
 * can run in that state; otherwise clerk_secret_key() refuses to use the key.
 * But if a key file is configured as well, that function never considers the
 * setting, so warn when a statement loads the library.
 */
static void
warn_of_readable_secret_key(void)
{
	if (debug_query_string != NULL &&
		configured_value(SECRET_KEY_FILE_SETTING) != NULL &&
		configured_value(SECRET_KEY_SETTING) != NULL)
		ereport(WARNING,
				(errmsg("parameter \"%s\" can be read by every role",
						SECRET_KEY_SETTING),
				 errdetail("Parameters of a library that is not loaded yet are not protected."),
				 errhint(READABLE_KEY_HINT)));
}

/*
 * Defines a string setting that only a superuser may set.
 *
 * An ordinary role can replace the configured value of the placeholder with a
 * connection option.  When the setting is defined, guc.c rejects that value,
 * but it no longer has the configured value and uses the built-in default.
 * The key would then be sent to an address that the administrator did not
 * choose.  If the library is preloaded, such a connection fails; make it fail
 * here, too.
 */
static void
define_superusers_string(const char *name, const char *description,
						 const char *more, char **variable,
						 const char *boot_value, int flags)
{
	char	   *configured = configured_value(name);
	char	   *current = NULL;

	if (configured != NULL)
		current = pstrdup(GetConfigOption(name, false, false));
	DefineCustomStringVariable(name, description, more, variable, boot_value,
							   PGC_SUSET, flags, NULL, NULL, NULL);
	if (configured != NULL &&
		strcmp(*variable, current) != 0 && strcmp(*variable, configured) != 0)
		refuse_overridden(name);
}

/*
 * Returns the value that a setting that is not defined yet would have without
 * a SET of this session, as a palloc'd copy, or NULL if it is not configured.
 */
static char *
configured_value(const char *name)
{
	const char *value;

	if (GetConfigOption(name, true, false) == NULL)
		return NULL;
	value = GetConfigOptionResetString(name);
	return value != NULL && value[0] != '\0' ? pstrdup(value) : NULL;
}

/* Raises 42501 and ends the session. */
static void
refuse_overridden(const char *name)
{
	ereport(FATAL,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to set parameter \"%s\"", name)));
}

static void
define_secret_key_settings(void)
{
	bool		configured = (configured_value(SECRET_KEY_SETTING) != NULL);

	define_superusers_string(SECRET_KEY_FILE_SETTING,
							 "Sets the file that contains Clerk's secret key.",
							 "A relative path is relative to the data directory. The file takes precedence over \"clerk_invite.secret_key\".",
							 &secret_key_file, "", GUC_SUPERUSER_ONLY);

	/*
	 * PGC_SIGHUP excludes it from ALTER DATABASE and ALTER ROLE, which would
	 * store the key in a catalog that everyone can read.
	 */
	DefineCustomStringVariable(SECRET_KEY_SETTING,
							   "Sets Clerk's secret key.",
							   "It takes precedence over the server's environment variable CLERK_SECRET_KEY.",
							   &secret_key_mask,
							   "",
							   PGC_SIGHUP,
							   GUC_SUPERUSER_ONLY,
							   check_secret_key, assign_secret_key, NULL);
	if (configured && secret_key == NULL)
		refuse_overridden(SECRET_KEY_SETTING);

	define_superusers_string(WEBHOOK_SECRET_FILE_SETTING,
							 "Sets the file that contains the secrets of Clerk's webhooks.",
							 "A relative path is relative to the data directory. Each line is a secret.",
							 &webhook_secret_file, "", GUC_SUPERUSER_ONLY);
}

static void
define_transport_settings(void)
{
	define_superusers_string("clerk_invite.api_url",
							 "Sets the URL of Clerk's Backend API.",
							 "The suffix \"/v1\" is optional.",
							 &clerk_api_url, "https://api.clerk.com/v1", 0);

	/* The version that clerk/operations.c was written for. */
	DefineCustomStringVariable("clerk_invite.api_version",
							   "Sets the version of Clerk's Backend API to request.",
							   NULL,
							   &clerk_api_version,
							   "2026-05-12",
							   PGC_SUSET,
							   0,
							   check_api_version, NULL, NULL);

	define_superusers_string("clerk_invite.ca_file",
							 "Sets the file that contains the trusted certificate authorities.",
							 "If empty, the system's certificate authorities are trusted.",
							 &clerk_ca_file, "", 0);

	/* GUC_SUPERUSER_ONLY because the proxy's URL may contain a password. */
	define_superusers_string("clerk_invite.proxy",
							 "Sets the proxy used to connect to Clerk.",
							 "If empty, no proxy is used. Proxy environment variables are ignored.",
							 &clerk_proxy, "", GUC_SUPERUSER_ONLY);

	/* Name lookup, connection and TLS normally take well under a second. */
	DefineCustomIntVariable("clerk_invite.connect_timeout",
							"Sets the maximum time to establish a connection, including name lookup and TLS handshake.",
							NULL,
							&clerk_connect_timeout,
							5000, 1, INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	/*
	 * If a request is canceled although a response may still arrive, its
	 * outcome is unknown, and verifying it costs more than waiting.  So allow
	 * far more time than Clerk needs.
	 */
	DefineCustomIntVariable("clerk_invite.request_timeout",
							"Sets the maximum time for an entire request.",
							NULL,
							&clerk_request_timeout,
							30000, 1, INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
}

static void
define_delivery_settings(void)
{
	/* Clerk's general limit is 1000 requests in 10 seconds. */
	DefineCustomIntVariable("clerk_invite.max_concurrent_requests",
							"Sets the maximum number of requests that a sender has in flight at the same time.",
							NULL,
							&clerk_max_concurrent_requests,
							10, 1, 100,
							PGC_SUSET,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("clerk_invite.max_attempts",
							"Sets the maximum number of attempts to send an invitation.",
							NULL,
							&clerk_max_attempts,
							10, 1, 1000,
							PGC_SUSET,
							0,
							NULL, NULL, NULL);

	/*
	 * With 10 attempts, these are 9 delays from 10 s to 2560 s: 85 minutes in
	 * total, or up to 106 minutes with jitter.
	 */
	DefineCustomIntVariable("clerk_invite.retry_delay",
							"Sets the delay before the second attempt; it doubles with each further attempt.",
							NULL,
							&clerk_retry_delay,
							10000, 1, INT_MAX,
							PGC_SUSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("clerk_invite.retry_delay_max",
							"Sets the maximum delay between two attempts.",
							NULL,
							&clerk_retry_delay_max,
							3600000, 1, INT_MAX,
							PGC_SUSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	/*
	 * A request that was canceled here may still be in transit at Clerk's
	 * edge.  No request is known to take longer than this.
	 */
	DefineCustomIntVariable("clerk_invite.verify_delay",
							"Sets how long after a request a lookup that finds no invitation becomes conclusive.",
							NULL,
							&clerk_verify_delay,
							30000, 0, INT_MAX,
							PGC_SUSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
}

static void
define_outbox_settings(void)
{
	/*
	 * PGC_USERSET: a restore need not run as a superuser, and a role that may
	 * insert a member may decide against an invitation.
	 */
	DefineCustomBoolVariable("clerk_invite.enqueue",
							 "Adds invitations for new members to the outbox.",
							 "If off, clerk_invitation_trigger() does nothing. Turn it off for a restore.",
							 &clerk_enqueue_enabled,
							 true,
							 PGC_USERSET,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("clerk_invite.retention",
							"Sets how long invitations are kept in the outbox after they are settled.",
							"0 keeps them forever.",
							&clerk_retention,
							0, 0, INT_MAX,
							PGC_SUSET,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	/*
	 * Off by default, because NOTIFY takes a lock at commit that serializes
	 * it with all other notifying transactions of the server.
	 */
	DefineCustomStringVariable("clerk_invite.notify_channel",
							   "Sets the channel that is notified when an invitation is settled.",
							   "The payload is the row's ID and state. If empty, no notifications are sent.",
							   &clerk_notify_channel,
							   "",
							   PGC_SUSET,
							   0,
							   check_notify_channel, NULL, NULL);
}

/* The default values are the limits that Clerk documents. */
static void
define_rate_limit_settings(void)
{
	DefineCustomIntVariable("clerk_invite.single_requests_per_hour",
							"Sets the maximum number of single-invitation requests per hour.",
							"Synchronous calls are counted, but not delayed.",
							&clerk_single_requests_per_hour,
							250, 0, INT_MAX,
							PGC_SUSET,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("clerk_invite.bulk_requests_per_hour",
							"Sets the maximum number of bulk requests per hour.",
							"0 disables bulk requests.",
							&clerk_bulk_requests_per_hour,
							50, 0, INT_MAX,
							PGC_SUSET,
							0,
							NULL, NULL, NULL);

	/* PGC_SIGHUP, because all databases of the server share the counts. */
	DefineCustomIntVariable("clerk_invite.rate_limit_window",
							"Sets the length of the window for the hourly request limits.",
							"Clerk's window is one hour; other values are for testing only.",
							&clerk_rate_limit_window,
							3600000, 1000, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
}

/*
 * PGC_SUSET: the setting can differ between databases and sessions, but
 * whether invitations are sent automatically is the administrator's decision,
 * like the other settings of the delivery.
 */
static void
define_worker_settings(void)
{
	DefineCustomBoolVariable("clerk_invite.worker",
							 "Sends invitations from a background worker as soon as they are committed.",
							 "If off, clerk_send_invitations() must be called.",
							 &clerk_worker_enabled,
							 true,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);
}

/*
 * Returns the secret key from the first of these sources that is set: the
 * file, the setting, the environment of the server.  The result is valid until
 * the next call or reload.
 *
 * If no source is set, or the first one that is set has no usable key, returns
 * NULL and sets *reason to a sentence that does not contain the key, and *hint
 * to a sentence about what to do, or NULL.
 */
const char *
clerk_secret_key(const char **reason, const char **hint)
{
	const char *key;

	*hint = NULL;
	if (secret_key_file[0] != '\0')
		return clerk_secret_key_from_file(secret_key_file, reason);
	if (secret_key != NULL && !clerk_is_preloaded())
	{
		*reason = "Every role can read \"clerk_invite.secret_key\", because the library was not preloaded when the server started.";
		*hint = READABLE_KEY_HINT;
		return NULL;
	}
	key = secret_key != NULL ? secret_key : getenv("CLERK_SECRET_KEY");
	if (key == NULL || key[0] == '\0')
		*reason = "No secret key is configured.";
	else
		*reason = clerk_secret_key_error(key);
	return *reason == NULL ? key : NULL;
}

/*
 * Returns the number of secrets with which Clerk's webhooks may be signed, and
 * the secrets in *secrets, valid until the next call.  If there is none,
 * returns 0 and sets *reason to a sentence.
 */
int
clerk_webhook_secrets(const ClerkWebhookSecret **secrets, const char **reason)
{
	if (webhook_secret_file[0] != '\0')
		return clerk_webhook_secrets_from_file(webhook_secret_file, secrets, reason);
	*reason = "No webhook secret is configured.";
	return 0;
}

/*
 * Check hook: replaces the key with a mask and passes the key on in *extra;
 * see the head of this file.  Whether the key is valid is checked when it is
 * used.  If an invalid key were rejected here, the setting would stay empty,
 * and the next source would be used as if this one were not set.
 */
static bool
check_secret_key(char **newval, void **extra,
				 GucSource source pg_attribute_unused())
{
	size_t		size = strlen(*newval) + 1;
	char	   *mask;

	if (size == 1)
		return true;
	*extra = guc_malloc(LOG, size);
	mask = guc_malloc(LOG, sizeof(SECRET_KEY_MASK));
	if (*extra == NULL || mask == NULL)
	{
		guc_free(mask);
		guc_free(*extra);
		*extra = NULL;
		return false;
	}
	memcpy(*extra, *newval, size);
	memcpy(mask, SECRET_KEY_MASK, sizeof(SECRET_KEY_MASK));
	guc_free(*newval);
	*newval = mask;
	return true;
}

/* Assign hook: takes the key from the private data. */
static void
assign_secret_key(const char *newval pg_attribute_unused(), void *extra)
{
	secret_key = extra;
}

/* Check hook: the version is sent in a header line. */
static bool
check_api_version(char **newval, void **extra pg_attribute_unused(),
				  GucSource source pg_attribute_unused())
{
	for (const char *c = *newval; *c != '\0'; c++)
		if (*c <= ' ' || *c > '~')
		{
			GUC_check_errdetail("The version contains an invalid character.");
			return false;
		}
	return true;
}

/* Check hook: NOTIFY rejects longer names, and must not fail in a sender. */
static bool
check_notify_channel(char **newval, void **extra pg_attribute_unused(),
					 GucSource source pg_attribute_unused())
{
	if (strlen(*newval) < NAMEDATALEN)
		return true;
	GUC_check_errdetail("A channel name can have at most %d bytes.",
						NAMEDATALEN - 1);
	return false;
}
