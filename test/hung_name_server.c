/*
 * hung_name_server.c
 *		Simulates a name server that does not respond, by LD_PRELOAD. The
 *		lookup of hung.invalid takes eight seconds and fails. Lookups of other
 *		names that end in ".invalid" fail at once, without a query. All other
 *		lookups work as usual.
 *
 * As with a real name server that cannot be reached, getaddrinfo() blocks the
 * thread that calls it, and cannot be interrupted.
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

#define HUNG_NAME "hung.invalid"
#define HUNG_SECONDS 8
#define UNKNOWN_DOMAIN ".invalid"

typedef int (*Lookup) (const char *, const char *, const struct addrinfo *,
					   struct addrinfo **);

static int
ends_with(const char *name, const char *end)
{
	size_t		length = strlen(name);
	size_t		end_length = strlen(end);

	return length >= end_length &&
		strcmp(name + length - end_length, end) == 0;
}

int
getaddrinfo(const char *name, const char *service,
			const struct addrinfo *hints, struct addrinfo **found)
{
	if (name != NULL && strcmp(name, HUNG_NAME) == 0)
	{
		sleep(HUNG_SECONDS);
		return EAI_AGAIN;
	}
	if (name != NULL && ends_with(name, UNKNOWN_DOMAIN))
		return EAI_NONAME;
	return ((Lookup) dlsym(RTLD_NEXT, "getaddrinfo")) (name, service, hints, found);
}
