/*
 * poisoned_memory.h
 *		palloc() with a zone behind each chunk that AddressSanitizer guards.
 *
 * The server takes its chunks out of larger blocks, in which AddressSanitizer
 * sees no borders.  The compiler includes this header in front of each file
 * that is to be watched (-include).
 *
 * The server keeps the memory of some contexts that it deletes, with the zones in
 * it, and gives it to other code.  So a session is good for one long call.
 */
#ifndef FUZZ_POISONED_MEMORY_H
#define FUZZ_POISONED_MEMORY_H

#include "postgres.h"

#include "utils/memutils.h"

extern void *fuzz_alloc(MemoryContext context, Size size, int flags);
extern void *fuzz_realloc(void *pointer, Size size);
extern void fuzz_free(void *pointer);
extern char *fuzz_strndup(const char *string, Size length);
extern char *fuzz_sprintf(const char *format,...) pg_attribute_printf(1, 2);

#define palloc(size) fuzz_alloc(CurrentMemoryContext, (size), 0)
#define palloc0(size) fuzz_alloc(CurrentMemoryContext, (size), MCXT_ALLOC_ZERO)
#define palloc_extended(size, flags) \
	fuzz_alloc(CurrentMemoryContext, (size), (flags))
#define MemoryContextAlloc(context, size) fuzz_alloc((context), (size), 0)
#define MemoryContextAllocZero(context, size) \
	fuzz_alloc((context), (size), MCXT_ALLOC_ZERO)
#define repalloc(pointer, size) fuzz_realloc((pointer), (size))
#define repalloc_huge(pointer, size) fuzz_realloc((pointer), (size))
#define pfree(pointer) fuzz_free(pointer)
#define pstrdup(string) fuzz_strndup((string), strlen(string))
#define pnstrdup(string, length) \
	fuzz_strndup((string), strnlen((string), (length)))
#define psprintf(...) fuzz_sprintf(__VA_ARGS__)

#endif							/* FUZZ_POISONED_MEMORY_H */
