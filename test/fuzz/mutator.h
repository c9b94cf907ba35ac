/*
 * mutator.h
 *		Changes texts at random, as bytes and as JSON.
 */
#ifndef FUZZ_MUTATOR_H
#define FUZZ_MUTATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Largest text that a mutation makes, in bytes: what http/ accepts. */
#define FUZZ_MAX_TEXT (4 * 1024 * 1024)

/* A text of bytes from malloc().  It may contain NUL bytes. */
typedef struct FuzzText
{
	char	   *data;
	size_t		length;
} FuzzText;

typedef uint64_t FuzzRandom;

extern uint64_t fuzz_random(FuzzRandom *random, uint64_t limit);
extern FuzzText fuzz_copy(const char *data, size_t length);
extern FuzzText fuzz_mutated(FuzzRandom *random, const FuzzText *original,
							 const FuzzText *donor, bool is_json);

#endif							/* FUZZ_MUTATOR_H */
