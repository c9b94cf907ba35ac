/*
 * statement_request.c
 *		Requests that a statement waits for: what the SQL functions that call
 *		Clerk have in common.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "installed_extension.h"
#include "miscadmin.h"
#include "statement_request.h"

static int	count_running(ClerkHttpRequest *const *requests, int count);
static void warn_if_about_to_leave(ClerkHttpRequest *const *requests,
								   int count, ClerkEffect effect);
static const char *what_may_be_done(int sent, ClerkEffect effect);

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

/* Returns when the request is finished; the user may end it before that. */
void
clerk_await(ClerkHttpRequest *request, ClerkEffect effect)
{
	clerk_await_any(&request, 1, effect);
}

/*
 * Returns when one more of the requests is finished, or none is running.  If
 * the user ends it before that, there is a warning about those that had been
 * sent, finished or not: give only those whose outcome is not known.
 */
void
clerk_await_any(ClerkHttpRequest *const *requests, int count,
				ClerkEffect effect)
{
	int			running = count_running(requests, count);

	while (running > 0 && count_running(requests, count) == running)
	{
		warn_if_about_to_leave(requests, count, effect);
		CHECK_FOR_INTERRUPTS();
		clerk_http_wait(-1);
	}
}

static int
count_running(ClerkHttpRequest *const *requests, int count)
{
	int			running = 0;

	for (int i = 0; i < count; i++)
		if (clerk_http_outcome(requests[i]) == CLERK_HTTP_RUNNING)
			running++;
	return running;
}

/*
 * A statement that is ended while Clerk may be at work on its requests leaves
 * something behind, of which PostgreSQL's own message knows nothing.  To be
 * called before CHECK_FOR_INTERRUPTS(), with the requests that were started
 * and not finished.
 */
static void
warn_if_about_to_leave(ClerkHttpRequest *const *requests, int count,
					   ClerkEffect effect)
{
	int			sent = 0;

	if (effect == CLERK_EFFECT_NONE || !INTERRUPTS_CAN_BE_PROCESSED() ||
		!(QueryCancelPending || ProcDiePending ||
		  clerk_transaction_timeout_pending()))
		return;
	for (int i = 0; i < count; i++)
		if (clerk_http_was_sent(requests[i]))
			sent++;
	if (sent == 0)
		return;
	ereport(WARNING,
			(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
			 sent == 1 ?
			 errmsg("the request to Clerk had been sent already") :
			 errmsg("%d requests to Clerk had been sent already", sent),
			 errdetail("%s", what_may_be_done(sent, effect)),
			 errhint("%s", clerk_error_look_first(effect))));
}

static const char *
what_may_be_done(int sent, ClerkEffect effect)
{
	if (effect == CLERK_EFFECT_REVOKES)
		return "The invitation may have been revoked.";
	if (effect == CLERK_EFFECT_CREATES)
		return "The invitation may have been created.";
	return sent == 1 ? "Its invitations may have been created." :
		"Their invitations may have been created.";
}

/*
 * The result type's descriptor, looked up through the function's own entry in
 * the catalog: no search_path comes into it.  In the current memory context.
 *
 * Raises 55000 if the library does not fit the extension's SQL objects.  To be
 * called before anything else: without a fit it is not known which arguments
 * there are.
 */
TupleDesc
clerk_invitation_descriptor(FunctionCallInfo fcinfo)
{
	TupleDesc	descriptor;

	clerk_require_fit();
	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE ||
		!clerk_fits_invitation(descriptor))
		clerk_raise_misfit();
	return BlessTupleDesc(CreateTupleDescCopy(descriptor));
}

HeapTuple
clerk_form_invitation(TupleDesc descriptor, ClerkInvitation *invitation)
{
	return heap_form_tuple(descriptor, invitation->values, invitation->nulls);
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
