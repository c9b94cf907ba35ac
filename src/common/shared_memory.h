/*
 * shared_memory.h
 *		A structure in shared memory, with the library preloaded or not.
 */
#ifndef CLERK_SHARED_MEMORY_H
#define CLERK_SHARED_MEMORY_H

#include "storage/lwlock.h"

/*
 * Most that one structure may take: the server has 100 kB to spare for
 * libraries that were not preloaded, and we are not the only one.
 */
#define CLERK_SHARED_MEMORY_MAX (24 * 1024)

extern void clerk_request_shared_memory(Size size);
extern bool clerk_is_preloaded(void);
extern void *clerk_find_shared_memory(const char *name, Size size);

#endif							/* CLERK_SHARED_MEMORY_H */
