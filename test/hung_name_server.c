/*
 * hung_name_server.c
 *		A name server that does not answer, for LD_PRELOAD: looking up
 *		hung.invalid takes eight seconds and fails, all other names are looked
 *		up as ever.
 *
 * getaddrinfo() blocks in whichever thread calls it and cannot be
 * interrupted, just as with a real name server that is out of reach.
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

#define HUNG_NAME "hung.invalid"
#define HUNG_SECONDS 8

typedef int (*Lookup) (const char *, const char *, const struct addrinfo *,
					   struct addrinfo **);

int
getaddrinfo(const char *name, const char *service,
			const struct addrinfo *hints, struct addrinfo **found)
{
	if (name != NULL && strcmp(name, HUNG_NAME) == 0)
	{
		sleep(HUNG_SECONDS);
		return EAI_AGAIN;
	}
	return ((Lookup) dlsym(RTLD_NEXT, "getaddrinfo")) (name, service, hints, found);
}
