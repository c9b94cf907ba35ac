/*
 * outbox_statement.h
 *		Runs SQL statements on the table clerk_invitation_outbox.
 */
#ifndef CLERK_OUTBOX_STATEMENT_H
#define CLERK_OUTBOX_STATEMENT_H

#include "executor/spi.h"

#define CLERK_OUTBOX_PARAMETERS 17
#define CLERK_OUTBOX_COLUMNS 20

/* A statement, for a static variable: it keeps its plan for the session. */
typedef struct ClerkOutboxStatement
{
	const char *text;			/* %1$s is the table's name; to be read with
								 * ONLY: what inherits from it is no outbox */
	int			parameters;
	Oid			types[CLERK_OUTBOX_PARAMETERS];
	Oid			results[CLERK_OUTBOX_COLUMNS];	/* types of its columns */
	bool		by_hand;		/* in a user's transaction, as if he ran it */
	bool		without_triggers;	/* do not fire the users' triggers */

	SPIPlanPtr	plan;			/* NULL: not yet made */
	char	   *full_text;		/* that it was made from */
	uint64		table;			/* for which it was made */
} ClerkOutboxStatement;

/* Takes what SPI_tuptable has into the caller's memory context. */
typedef void (*ClerkOutboxCollect) (void *result);

extern void clerk_outbox_find(Oid schema);
extern Oid	clerk_outbox_relation(void);
extern void clerk_outbox_own_transaction(void);
extern uint64 clerk_outbox_run(ClerkOutboxStatement *statement,
							   const Datum *values, const char *nulls,
							   ClerkOutboxCollect collect, void *result);
extern bool clerk_outbox_try(ClerkOutboxStatement *statement,
							 const Datum *values,
							 ClerkOutboxCollect collect, void *result,
							 uint64 *processed, ErrorData **error);
extern Datum clerk_outbox_array(Datum *elements, bool *nulls, int count,
								Oid type);
extern bool clerk_outbox_at_work(void);

#endif							/* CLERK_OUTBOX_STATEMENT_H */
