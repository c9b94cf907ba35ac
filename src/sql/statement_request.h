/*
 * statement_request.h
 *		Requests that a statement waits for: what the SQL functions that call
 *		Clerk have in common.
 */
#ifndef CLERK_STATEMENT_REQUEST_H
#define CLERK_STATEMENT_REQUEST_H

#include "access/htup.h"
#include "clerk/operations.h"
#include "compat.h"
#include "fmgr.h"

extern void clerk_prevent_write(const char *function);
pg_noreturn extern void clerk_raise(const ClerkError *error, const char *failure);

#endif							/* CLERK_STATEMENT_REQUEST_H */
