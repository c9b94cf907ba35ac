/*
 * url_rules.c
 *		Which URLs and addresses a secret key may be sent to.
 *
 * A URL must begin in the plainest form, which no two parsers can read
 * differently: a lower-case scheme; a host of letters, digits, dots and
 * hyphens, or a bracketed IPv6 address; and optionally a port.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "http/url_rules.h"

/* Longest host name, in bytes: the limit of the DNS (RFC 1035). */
#define MAX_HOST_LENGTH 255

#define MAX_PORT_LENGTH 5		/* digits of 65535 */

static const char *host_error(const char *url, char *host);
static bool is_loopback_host(const char *host);

/*
 * Why a key must not be sent to this URL, as a phrase; NULL if it may be.
 *
 * Plain http is allowed for tests and for a sidecar on this machine.
 * *loopback_only reports that the URL is of that kind: the caller must then
 * check the address that the host resolves to with
 * clerk_is_loopback_address().
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

/* Whether a connection to this address stays on this machine. */
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

/*
 * Copies the host from "url", which is what follows "://", to "host", a buffer
 * of MAX_HOST_LENGTH + 1 bytes.  Returns what is wrong as a phrase, or NULL.
 */
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
