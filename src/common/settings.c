/*
 * settings.c
 *		The settings: definitions, checks, and the choice of the secret key.
 *
 * Who may change what follows from who would receive the key: the address it
 * is sent to, the authorities that vouch for that address, and the proxy in
 * between are the superuser's, time limits are anyone's.
 *
 * The secret key never is the value of a setting.  The check hook of
 * clerk_invite.secret_key leaves a mask as the value and carries the key past
 * guc.c in the hook's private data: SHOW, pg_settings, and the log line that
 * the postmaster writes for each parameter that a reload has changed would
 * give it away otherwise.
 */
#include "postgres.h"

#include <limits.h>

#include "common/secret_key.h"
#include "common/settings.h"
#include "common/shared_memory.h"
#include "compat.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"

#define SECRET_KEY_SETTING "clerk_invite.secret_key"
#define SECRET_KEY_FILE_SETTING "clerk_invite.secret_key_file"
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

static char *secret_key_file;
static char *secret_key_mask;	/* what guc.c believes the key to be */
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

/* Defines all settings and reserves their prefix.  Called once a process. */
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
 * Until a library is loaded, guc.c takes its settings for placeholders, which
 * every role may read with SHOW.  Where the library is preloaded nobody gets
 * to run a statement in that state; elsewhere clerk_secret_key() refuses to use
 * the key.  Where a file comes before it, it will not be asked for: say so when
 * a statement loads the library.
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
 * Defines a string that only a superuser may set.
 *
 * A connection option of an ordinary role replaces the configured value in the
 * placeholder.  guc.c refuses it when the setting is defined, but has forgotten
 * the configured value by then and falls back to the built-in one: the key
 * would go to another address than the administrator chose.  With a library
 * that is preloaded, such a connection fails; let it end here, too.
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
 * What a setting that is not defined yet would be without this session's own
 * SET: a copy; NULL if it is not configured at all.
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
	 * PGC_SIGHUP keeps it out of ALTER DATABASE and ALTER ROLE, whose catalog
	 * everyone can read.
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
}

static void
define_transport_settings(void)
{
	define_superusers_string("clerk_invite.api_url",
							 "Sets the URL of Clerk's Backend API.",
							 "The suffix \"/v1\" is optional.",
							 &clerk_api_url, "https://api.clerk.com/v1", 0);

	/* The version whose documents clerk/operations.c was written from. */
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

	/* A proxy's URL may contain its password. */
	define_superusers_string("clerk_invite.proxy",
							 "Sets the proxy used to connect to Clerk.",
							 "If empty, no proxy is used. Proxy environment variables are ignored.",
							 &clerk_proxy, "", GUC_SUPERUSER_ONLY);

	/* Name, connection and TLS take well under a second anywhere. */
	DefineCustomIntVariable("clerk_invite.connect_timeout",
							"Sets the maximum time to establish a connection, including name lookup and TLS handshake.",
							NULL,
							&clerk_connect_timeout,
							5000, 1, INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	/*
	 * Giving up a request whose answer may still come leaves its outcome
	 * unknown, which costs more than waiting: allow far more than Clerk
	 * needs.
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

	/* With 10 attempts, doubling up to an hour, it goes on for some 4 hours. */
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
	 * A request given up here may still be on its way at Clerk's edge; none
	 * is known to take longer than this.
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
	 * PGC_USERSET: a restore need not be a superuser's, and who may insert a
	 * member may do without the invitation.
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

	/* Off by default: NOTIFY takes a lock of the whole server at commit. */
	DefineCustomStringVariable("clerk_invite.notify_channel",
							   "Sets the channel that is notified when an invitation is settled.",
							   "The payload is the row's ID and state. If empty, no notifications are sent.",
							   &clerk_notify_channel,
							   "",
							   PGC_SUSET,
							   0,
							   check_notify_channel, NULL, NULL);
}

/* The defaults are Clerk's documented limits. */
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

	/* PGC_SIGHUP: all databases of the server share the counts. */
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
 * PGC_SUSET: it can be set for a database or a session, but whether invitations
 * go out by themselves is the administrator's choice, like the rest of the
 * delivery.
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
 * The secret key from the first of its sources that is set: the file, the
 * setting, the environment of the server.  Valid until the next call or
 * reload.
 *
 * Returns NULL and sets *reason to a sentence, without the key in it, if none
 * is set or the first one that is set holds no usable key; *hint is another
 * about what to do, or NULL.
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
 * Takes the key out of the setting's value; see the head of this file.  It is
 * judged when it is used: refused here, it would leave the setting empty, and
 * the next source would be used as if this one had not been set.
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
		return false;
	memcpy(*extra, *newval, size);
	memcpy(mask, SECRET_KEY_MASK, sizeof(SECRET_KEY_MASK));
	guc_free(*newval);
	*newval = mask;
	return true;
}

static void
assign_secret_key(const char *newval pg_attribute_unused(), void *extra)
{
	secret_key = extra;
}

/* The version is sent in a header line. */
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

/* Longer names are refused by NOTIFY, which must not happen to a sender. */
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
