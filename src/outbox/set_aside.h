/*
 * set_aside.h
 *		Sets aside rows of the outbox whose changes fail, so that the others
 *		are processed.
 */
#ifndef CLERK_SET_ASIDE_H
#define CLERK_SET_ASIDE_H

#include "datatype/timestamp.h"
#include "outbox/outbox_statement.h"

/* The rows that are set aside. */
typedef struct ClerkOutboxSetAside
{
	int64		count;
	char	   *reason;			/* of one of them; NULL: there are none */
} ClerkOutboxSetAside;

/*
 * Sets "values" to the statement's parameters for "count" of the rows,
 * beginning at position "first".
 */
typedef void (*ClerkOutboxFill) (Datum *values, int first, int count,
								 const void *rows);

/* Handles a row for which the statement has failed. */
typedef void (*ClerkOutboxFailed) (int position, const ErrorData *error,
								   const void *rows);

extern uint64 clerk_outbox_run_rows(ClerkOutboxStatement *statement,
									int count, const void *rows,
									ClerkOutboxFill fill,
									ClerkOutboxFailed failed,
									ClerkOutboxCollect collect, void *result);
extern void clerk_outbox_set_aside(int64 id, const char *state,
								   const ErrorData *error, const char *secret);
extern Datum clerk_outbox_held_back(void);
extern TimestampTz clerk_outbox_held_until(void);
extern ClerkOutboxSetAside clerk_outbox_all_set_aside(void);

#endif							/* CLERK_SET_ASIDE_H */
