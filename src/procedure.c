/*
 * procedure.c
 *		Procedures that commit as they go, so that nothing is held while the
 *		network waits.
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "procedure.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/*
 * Raises 2D000 where the procedure cannot commit, 25006 in a read-only
 * transaction.  After that the memory context is the portal's: transactions
 * come and go, the portal stays.  Returns the context to go back to.
 */
MemoryContext
clerk_procedure_begin(FunctionCallInfo fcinfo, const char *procedure)
{
	MemoryContext caller;

	PreventCommandIfReadOnly(procedure);
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s cannot run inside a transaction block or a function",
						procedure),
				 errhint("Call it as a statement of its own.")));
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	caller = MemoryContextSwitchTo(PortalContext);
	/* The caller's own transaction may have a snapshot from before this. */
	clerk_procedure_commit();
	return caller;
}

/*
 * Ends the transaction and begins the next one; the memory context stays.
 *
 * What another session has changed meanwhile is passed over, as locked rows
 * are: with a stricter default for the session it would be an error.  The
 * transaction has just begun and has no snapshot yet, so that its level may be
 * set as SET TRANSACTION does it.
 */
void
clerk_procedure_commit(void)
{
	MemoryContext caller = CurrentMemoryContext;

	clerk_spi_commit_and_begin();
	(void) set_config_option("transaction_isolation", "read committed",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	MemoryContextSwitchTo(caller);
}

/* What comes after the CALL, as in a DO block, has its own level again. */
void
clerk_procedure_end(MemoryContext caller)
{
	clerk_spi_commit_and_begin();
	MemoryContextSwitchTo(caller);
	SPI_finish();
}

/*
 * Tells why the procedure ends early: "what" says what it stopped doing.  An
 * ERROR if somebody must change the settings first, so that a job that calls it
 * fails; else a WARNING, and the next call goes on.
 */
void
clerk_procedure_report_stop(const ClerkError *error, const char *what)
{
	ereport(error->class == CLERK_ERROR_CONFIGURATION ? ERROR : WARNING,
			(errcode(error->sqlstate),
			 errmsg("stopped %s: %s", what, error->summary),
			 error->detail != NULL ? errdetail("%s", error->detail) : 0,
			 error->hint != NULL ? errhint("%s", error->hint) : 0));
}
