/*
 * poisoned_memory.c
 *		palloc() with a zone behind each chunk that AddressSanitizer guards.
 */
#include "postgres.h"

#include <sanitizer/asan_interface.h>

#include "utils/memutils.h"

#include "poisoned_memory.h"

/* These call the server's functions. */
#undef palloc_extended
#undef repalloc_huge
#undef pfree

/* Bytes behind each chunk that must not be touched. */
#define ZONE 16

/*
 * The least that GetMemoryChunkSpace() counts beside the chunk itself.  Where
 * it counts more, the zone of a chunk seems to reach into the header of the
 * next one, which is never poisoned.
 */
#define HEADER 8

static void *
poison(char *chunk, Size size)
{
	if (chunk != NULL)
		ASAN_POISON_MEMORY_REGION(chunk + size, ZONE);
	return chunk;
}

static void
unpoison(void *chunk)
{
	ASAN_UNPOISON_MEMORY_REGION(chunk, GetMemoryChunkSpace(chunk) - HEADER);
}

/* Raises 53200, and XX000 for an invalid size, as palloc() does. */
void *
fuzz_alloc(MemoryContext context, Size size, int flags)
{
	return poison(MemoryContextAllocExtended(context, size + ZONE, flags), size);
}

/* The chunk may be one of the server's own functions'. */
void *
fuzz_realloc(void *pointer, Size size)
{
	unpoison(pointer);
	return poison(repalloc_huge(pointer, size + ZONE), size);
}

void
fuzz_free(void *pointer)
{
	unpoison(pointer);
	pfree(pointer);
}

char *
fuzz_strndup(const char *string, Size length)
{
	char	   *copy = fuzz_alloc(CurrentMemoryContext, length + 1, 0);

	memcpy(copy, string, length);
	copy[length] = '\0';
	return copy;
}

char *
fuzz_sprintf(const char *format,...)
{
	va_list		arguments;
	char	   *text;
	int			length;

	va_start(arguments, format);
	length = pg_vsnprintf(NULL, 0, format, arguments);
	va_end(arguments);
	text = fuzz_alloc(CurrentMemoryContext, length + 1, 0);
	va_start(arguments, format);
	pg_vsnprintf(text, length + 1, format, arguments);
	va_end(arguments);
	return text;
}
