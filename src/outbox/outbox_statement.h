/*
 * outbox_statement.h
 *		Runs SQL statements on the table clerk_invitation_outbox.
 */
#ifndef CLERK_OUTBOX_STATEMENT_H
#define CLERK_OUTBOX_STATEMENT_H

#include "executor/spi.h"

#define CLERK_OUTBOX_PARAMETERS 17
#define CLERK_OUTBOX_COLUMNS 21

/*
 * A statement.  Must be a static variable, since it keeps its plan for the
 * session.
 */
typedef struct ClerkOutboxStatement
{
	const char *text;			/* %1$s is the table's name; read it with
								 * ONLY, since tables that inherit from it are
								 * not the outbox */
	int			parameters;
	Oid			types[CLERK_OUTBOX_PARAMETERS];
	Oid			results[CLERK_OUTBOX_COLUMNS];	/* types of the result's
												 * columns */
	bool		by_hand;		/* changes rows for a user, in the user's
								 * transaction, as if the user ran it */
	bool		without_triggers;	/* does not fire user triggers */

	SPIPlanPtr	plan;			/* NULL: not prepared yet */
	char	   *full_text;		/* from which the plan was made */
	uint64		generation;		/* generation of the table, see
								 * outbox_statement.c, for which it was made */
} ClerkOutboxStatement;

/*
 * Copies the rows in SPI_tuptable to "result", in the caller's memory context.
 */
typedef void (*ClerkOutboxCollect) (void *result);

extern void clerk_outbox_adopt_settings(void);
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
extern bool clerk_outbox_in_internal_statement(void);

#endif							/* CLERK_OUTBOX_STATEMENT_H */
