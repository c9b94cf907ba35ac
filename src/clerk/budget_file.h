/*
 * budget_file.h
 *		Records in a file of the data directory, which survive a restart of the
 *		server.
 */
#ifndef CLERK_BUDGET_FILE_H
#define CLERK_BUDGET_FILE_H

/* Largest record, in bytes: a block of 2048 less its header. */
#define CLERK_BUDGET_RECORD_MAX (2048 - 8)

/*
 * Numbers of records: those before CLERK_BUDGET_FILE_CLOCKS are the budgets of
 * Clerk instances; that one is about Clerk's clocks (clerk/remote_clock.c).
 */
#define CLERK_BUDGET_FILE_INSTANCES 16
#define CLERK_BUDGET_FILE_CLOCKS CLERK_BUDGET_FILE_INSTANCES

extern bool clerk_budget_file_read(int number, void *record, size_t size);
extern bool clerk_budget_file_write(int number, const void *record,
									size_t size);
extern const char *clerk_budget_file_name(void);

#endif							/* CLERK_BUDGET_FILE_H */
