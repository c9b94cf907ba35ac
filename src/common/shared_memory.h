/*
 * shared_memory.h
 *		Structures in shared memory, with or without preloading the library.
 */
#ifndef CLERK_SHARED_MEMORY_H
#define CLERK_SHARED_MEMORY_H

#include "storage/lwlock.h"

/*
 * Maximum size of a structure, in bytes.  The server has 100 kB to spare for
 * libraries that are not preloaded, and others may need some of it.
 */
#define CLERK_SHARED_MEMORY_MAX (24 * 1024)

extern void clerk_request_shared_memory(Size size);
extern bool clerk_is_preloaded(void);
extern void *clerk_find_shared_memory(const char *name, Size size);

#endif							/* CLERK_SHARED_MEMORY_H */
