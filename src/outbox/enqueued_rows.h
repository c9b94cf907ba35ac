/*
 * enqueued_rows.h
 *		Collects the outbox rows of a trigger and inserts them.
 */
#ifndef CLERK_ENQUEUED_ROWS_H
#define CLERK_ENQUEUED_ROWS_H

typedef struct ClerkEnqueuedRows ClerkEnqueuedRows;

extern ClerkEnqueuedRows *clerk_create_enqueued_rows(Oid schema,
													 const char *const *columns,
													 const Oid *types, int count,
													 const char *origin);
extern void clerk_add_enqueued_row(ClerkEnqueuedRows *rows, Datum *values,
								   bool *nulls);
extern void clerk_insert_enqueued_rows(ClerkEnqueuedRows *rows);
extern void clerk_insert_enqueued_rows_later(ClerkEnqueuedRows *rows);

#endif							/* CLERK_ENQUEUED_ROWS_H */
