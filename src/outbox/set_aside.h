/*
 * set_aside.h
 *		Rows of the outbox whose changes fail, set aside so that the others go
 *		on.
 */
#ifndef CLERK_OUTBOX_SET_ASIDE_H
#define CLERK_OUTBOX_SET_ASIDE_H

#include "datatype/timestamp.h"
#include "outbox/outbox_statement.h"

/* The rows that are set aside. */
typedef struct ClerkOutboxSetAside
{
	int64		count;
	char	   *reason;			/* one of them; NULL if there are none */
} ClerkOutboxSetAside;

/*
 * Puts the statement's parameters for some of the rows into "values", from the
 * one at position "first" on.
 */
typedef void (*ClerkOutboxFill) (Datum *values, int first, int count,
								 const void *rows);

/* Tells of a row for which the statement has failed. */
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

#endif							/* CLERK_OUTBOX_SET_ASIDE_H */
