/*
 * outcome_counts.c
 *		How often something was the outcome.
 */
#include "postgres.h"

#include "outcome_counts.h"

typedef struct OutcomeCount
{
	char		outcome[96];
	int64		count;
} OutcomeCount;

static OutcomeCount counts[64];
static int	outcomes;

void
fuzz_forget_counts(void)
{
	outcomes = 0;
}

void
fuzz_count(const char *outcome)
{
	int			i = 0;

	while (i < outcomes && strcmp(counts[i].outcome, outcome) != 0)
		i++;
	if (i == lengthof(counts))
		elog(ERROR, "too many kinds of outcomes");
	if (i == outcomes)
	{
		strlcpy(counts[i].outcome, outcome, sizeof(counts[i].outcome));
		counts[i].count = 0;
		outcomes++;
	}
	counts[i].count++;
}

/* Appends a line of a count and an outcome for each. */
void
fuzz_append_counts(StringInfo lines, const char *prefix)
{
	for (int i = 0; i < outcomes; i++)
		appendStringInfo(lines, INT64_FORMAT " %s%s\n", counts[i].count, prefix,
						 counts[i].outcome);
}
