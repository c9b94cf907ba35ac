/*
 * statement_table.h
 *		Ensures that a statement refers to the table that it was meant for.
 */
#ifndef CLERK_STATEMENT_TABLE_H
#define CLERK_STATEMENT_TABLE_H

extern void clerk_expect_table(const char *statement, Oid table);

#endif							/* CLERK_STATEMENT_TABLE_H */
