/*
 * api_request.c
 *		Starts requests to Clerk's API: adds its URL, the secret key and the
 *		headers that it expects.
 */
#include "postgres.h"

#include "clerk/api_request.h"
#include "clerk/json_encoding.h"
#include "clerk/rate_limit.h"
#include "common/settings.h"

#define USER_AGENT \
	"clerk_invite/" CLERK_INVITE_VERSION " PostgreSQL/" PG_VERSION

/* Header lines of a request, and the terminating NULL. */
#define MAX_HEADERS 5

static uint64 instance_of_key(const char *key);
static size_t base_url_length(void);
static char *endpoint_url(const char *path);

/*
 * Stores in *instance the Clerk instance that requests currently go to, by
 * which the rate limit's budgets are identified.  Returns false and the reason
 * in *error if there is no usable secret key (55000).
 */
bool
clerk_chosen_instance(uint64 *instance, ClerkError **error)
{
	const char *reason;
	const char *hint;
	const char *key = clerk_secret_key(&reason, &hint);

	if (key == NULL)
	{
		*error = clerk_error_no_key(reason, hint);
		return false;
	}
	*instance = instance_of_key(key);
	return true;
}

/* Returns the Clerk instance that a request was sent to. */
uint64
clerk_request_instance(const ClerkHttpRequest *request)
{
	return instance_of_key(clerk_http_bearer_token(request));
}

/*
 * Starts a request to a path below the API's URL: a POST with "body", or a GET
 * if that is NULL.  "reservation" is NULL for requests that no budget counts;
 * otherwise it is started.
 *
 * Returns NULL and the reason in *error if the request cannot be formed;
 * nothing was sent then.  The reasons are no usable secret key or API URL
 * (55000), and a body that cannot be converted to UTF-8 (22021).  Otherwise
 * returns a request as clerk_http_start() does, and raises the errors that it
 * raises.  Raises 53200 if there is a reservation and the rate limit's shared
 * memory is not available.
 */
ClerkHttpRequest *
clerk_start_request(const char *path, char *body,
					ClerkReservation *reservation, ClerkError **error)
{
	const char *headers[MAX_HEADERS];
	const char *reason;
	const char *hint;
	const char *key = clerk_secret_key(&reason, &hint);
	ClerkHttpSpec spec;

	if (key == NULL)
	{
		*error = clerk_error_no_key(reason, hint);
		return NULL;
	}
	if (strpbrk(clerk_api_url, "?#") != NULL)
	{
		*error = clerk_error_unusable_address("the URL contains a query or fragment");
		return NULL;
	}
	spec.body = body == NULL ? NULL :
		clerk_json_to_wire(body, &spec.body_length);
	if (spec.body == NULL && body != NULL)
	{
		*error = clerk_error_unsendable("the request cannot be converted to UTF-8");
		return NULL;
	}
	headers[0] = "Content-Type: application/json";
	headers[1] = "Accept: application/json";
	headers[2] = psprintf("Clerk-API-Version: %s", clerk_api_version);
	headers[3] = "User-Agent: " USER_AGENT;
	headers[4] = NULL;
	spec.url = endpoint_url(path);
	spec.bearer_token = key;
	spec.headers = headers;
	spec.ca_file = clerk_ca_file;
	spec.proxy = clerk_proxy;
	spec.connect_timeout = clerk_connect_timeout;
	spec.request_timeout = clerk_request_timeout;
	if (reservation != NULL)
		clerk_reservation_start(reservation);
	return clerk_http_start(&spec);
}

static uint64
instance_of_key(const char *key)
{
	return clerk_rate_limit_instance(clerk_api_url, base_url_length(), key);
}

/* Length of the API's URL without "/v1" at its end, which is optional. */
static size_t
base_url_length(void)
{
	size_t		length = strlen(clerk_api_url);

	while (length > 0 && clerk_api_url[length - 1] == '/')
		length--;
	if (length >= 3 && memcmp(clerk_api_url + length - 3, "/v1", 3) == 0)
		length -= 3;
	return length;
}

/* Returns the URL of a path below the API's URL. */
static char *
endpoint_url(const char *path)
{
	return psprintf("%.*s/v1%s", (int) base_url_length(), clerk_api_url, path);
}
