/*
 * statement_request.h
 *		What the SQL functions that call Clerk have in common: refusing
 *		writes, and raising an error for a failed request.
 */
#ifndef CLERK_STATEMENT_REQUEST_H
#define CLERK_STATEMENT_REQUEST_H

#include "access/htup.h"
#include "clerk/error.h"
#include "compat.h"
#include "fmgr.h"

extern void clerk_prevent_write(const char *function);
pg_noreturn extern void clerk_raise(const ClerkError *error, const char *failure);

#endif							/* CLERK_STATEMENT_REQUEST_H */
