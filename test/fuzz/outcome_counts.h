/*
 * outcome_counts.h
 *		How often something was the outcome.
 */
#ifndef FUZZ_OUTCOME_COUNTS_H
#define FUZZ_OUTCOME_COUNTS_H

#include "lib/stringinfo.h"

extern void fuzz_forget_counts(void);
extern void fuzz_count(const char *outcome);
extern void fuzz_append_counts(StringInfo lines, const char *prefix);

#endif							/* FUZZ_OUTCOME_COUNTS_H */
