/*
 * statement_request.c
 *		What the SQL functions that call Clerk have in common: refusing
 *		writes, and raising an error for a failed request.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "sql/statement_request.h"

/*
 * Raises 25006 in a read-only transaction and 25000 in a parallel operation,
 * in the name of this function.  A change at Clerk is a write, although not to
 * this database.
 */
void
clerk_prevent_write(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

/*
 * Raises the error of a failed request, with its SQLSTATE.  "failure" says
 * what could not be done, and begins the primary message.  Clerk's error code
 * and parameter name become the constraint name and the column name of the
 * error, where client programs can read them.
 */
void
clerk_raise(const ClerkError *error, const char *failure)
{
	ereport(ERROR,
			(errcode(error->sqlstate),
			 errmsg("%s: %s", failure, error->summary),
			 error->detail != NULL ? errdetail("%s", error->detail) : 0,
			 error->hint != NULL ? errhint("%s", error->hint) : 0,
			 error->code != NULL ?
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, error->code) : 0,
			 error->param_name != NULL ?
			 err_generic_string(PG_DIAG_COLUMN_NAME, error->param_name) : 0));
}
