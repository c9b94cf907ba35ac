/*
 * statement_request.c
 *		Requests that a statement waits for: what the SQL functions that call
 *		Clerk have in common.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "sql/statement_request.h"

/*
 * Raises 25006 or 25000 where the server refuses writes.  What changes
 * something at Clerk is a write, if not one to this database.
 */
void
clerk_prevent_write(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

/* "failure" says what could not be done. */
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
