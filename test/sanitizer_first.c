/*
 * sanitizer_first.c
 *		Starts AddressSanitizer before any other library does anything.
 *
 * It starts with the process's first allocation.  Without this library, that
 * is one that libgpg-error makes while it holds glibc's lock for message
 * catalogs, which AddressSanitizer takes, too, as it starts: the server would
 * wait for itself.  Preloaded after libasan, and linked with -z initfirst.
 */
#include <stdlib.h>

__attribute__((constructor)) static void
start_sanitizer(void)
{
	free(malloc(1));
}
