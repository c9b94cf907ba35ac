/*
 * url_rules.c
 *		Which URLs and addresses a secret key may be sent to.
 *
 * A URL is accepted only if its beginning is of the plainest form, of which
 * no two parsers can think differently: a lower-case scheme, a host of
 * letters, digits, dots and hyphens or a bracketed IPv6 address, and perhaps a
 * port.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "http/url_rules.h"

/* Longest host name that the DNS has, RFC 1035. */
#define MAX_HOST_LENGTH 255

#define MAX_PORT_LENGTH 5		/* digits of 65535 */

static const char *host_error(const char *url, char *host);
static bool is_loopback_host(const char *host);

/*
 * What speaks against sending a key to this URL: NULL if nothing, else a
 * phrase.
 *
 * Plain http is for tests and sidecars on this machine.  *loopback_only tells
 * that the URL is such a one: what its host turns out to be must be held
 * against clerk_is_loopback_address().
 */
const char *
clerk_url_error(const char *url, bool *loopback_only)
{
	char		host[MAX_HOST_LENGTH + 1];
	const char *reason;

	*loopback_only = (strncmp(url, "http://", 7) == 0);
	if (!*loopback_only && strncmp(url, "https://", 8) != 0)
		return "the URL does not begin with https://";

	reason = host_error(strchr(url, ':') + 3, host);
	if (reason == NULL && *loopback_only && !is_loopback_host(host))
		reason = "the URL begins with http://, which is allowed only for a loopback address";
	return reason;
}

/* Whether a socket connected to this address stays on this machine. */
bool
clerk_is_loopback_address(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET)
	{
		const struct sockaddr_in *in = (const struct sockaddr_in *) address;

		return (ntohl(in->sin_addr.s_addr) >> 24) == IN_LOOPBACKNET;
	}
	if (address->sa_family == AF_INET6)
	{
		const struct sockaddr_in6 *in = (const struct sockaddr_in6 *) address;

		return IN6_IS_ADDR_LOOPBACK(&in->sin6_addr);
	}
	return false;
}

/* Stores the host of what follows a URL's "://", or says what is wrong. */
static const char *
host_error(const char *url, char *host)
{
	size_t		length = strcspn(url, "/?#");
	bool		bracketed = (url[0] == '[');
	size_t		host_length;
	const char *port;

	if (memchr(url, '@', length) != NULL)
		return "the URL contains a user name";
	host_length = bracketed ?
		1 + strspn(url + 1, "0123456789abcdefABCDEF:.") + 1 :
		strspn(url, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "abcdefghijklmnopqrstuvwxyz0123456789.-");
	if (host_length == 0)
		return "the URL has no host";
	if (host_length > Min(length, MAX_HOST_LENGTH) ||
		(bracketed && url[host_length - 1] != ']'))
		return "the URL is malformed";
	port = url + host_length;
	if (host_length < length &&
		(port[0] != ':' ||
		 host_length + 1 + strspn(port + 1, "0123456789") != length ||
		 length - host_length > MAX_PORT_LENGTH + 1 || atoi(port + 1) > 65535))
		return "the URL is malformed";
	for (const char *c = url; *c != '\0'; c++)
		if (*c <= ' ' || *c > '~')
			return "the URL is malformed";

	memcpy(host, url, host_length);
	host[host_length] = '\0';
	return NULL;
}

static bool
is_loopback_host(const char *host)
{
	struct in_addr address;

	if (strcmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0)
		return true;
	return inet_pton(AF_INET, host, &address) == 1 &&
		(ntohl(address.s_addr) >> 24) == IN_LOOPBACKNET;
}
