/*
 * delivery_pass.c
 *		Whether a delivery pass may continue, and why it stops.
 */
#include "postgres.h"

#include "clerk/api_request.h"
#include "clerk/rate_limit.h"
#include "common/installed_extension.h"
#include "outbox/delivery_pass.h"
#include "outbox/sender_lock.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Returns whether the library fits the installed SQL objects; stops the pass
 * if it does not.  Must be called in a transaction.  Raises no error: the
 * reason is in report->stopped_by, with SQLSTATE 55000.
 */
bool
clerk_pass_fits(ClerkDeliveryPass *pass)
{
	ClerkMisfit misfit;

	pass->report->fit = clerk_find_fit(&misfit);
	if (pass->report->fit != CLERK_FIT_GOOD)
	{
		ClerkError	error = {
			.class = CLERK_ERROR_CONFIGURATION,
			.sqlstate = CLERK_MISFIT_SQLSTATE,
			.summary = misfit.summary,
			.detail = misfit.detail,
			.hint = misfit.hint
		};

		clerk_pass_stop(pass, &error);
	}
	return pass->report->fit == CLERK_FIT_GOOD;
}

/*
 * CHECK LOCK: returns whether this session is still the only sender, or is
 * again.  If another session has become the sender, sets report->busy, which
 * ends the pass.  Must be called in a transaction.
 */
bool
clerk_pass_has_lock(ClerkDeliveryPass *pass)
{
	if (!clerk_outbox_lock())
		pass->report->busy = true;
	return !pass->report->busy;
}

/*
 * Finds out what there is to do, unless that is known.  Must be called in a
 * transaction.  Raises the errors of clerk_outbox_run().
 */
void
clerk_pass_read_work(ClerkDeliveryPass *pass)
{
	if (!pass->work_is_current)
		clerk_outbox_read_work(DT_NOBEGIN, &pass->work);
	pass->work_is_current = true;
}

/*
 * Returns whether Clerk's limits allow a request to an endpoint now, and fills
 * in the endpoint's budget.  If not, budget->available_at is the time when
 * they will; infinity if they never do.  Stops the pass if there is no usable
 * key.
 */
bool
clerk_pass_may_send(ClerkDeliveryPass *pass, ClerkEndpoint endpoint, ClerkBudget *budget)
{
	ClerkError *error;

	budget->available_at = DT_NOEND;
	if (!clerk_chosen_instance(&pass->instance, &error))
	{
		clerk_pass_stop(pass, error);
		return false;
	}
	clerk_rate_limit_read(pass->instance, endpoint, budget);
	return budget->available_at <= GetCurrentTimestamp();
}

/*
 * Notes in the report that due rows must wait for Clerk's limits until this
 * time.  Of several times, the earliest counts.
 */
void
clerk_pass_note_limit(ClerkDeliveryPass *pass, TimestampTz until)
{
	if (pass->report->stopped_by == NULL &&
		(pass->report->limited_until == 0 ||
		 pass->report->limited_until > until))
		pass->report->limited_until = until;
}

/*
 * Ends the pass after the current batch.  The first reason counts; it is
 * copied, since the report outlives the batch's memory.
 */
void
clerk_pass_stop(ClerkDeliveryPass *pass, const ClerkError *error)
{
	MemoryContext caller;

	if (pass->report->stopped_by != NULL)
		return;
	caller = MemoryContextSwitchTo(pass->memory);
	pass->report->stopped_by = clerk_error_copy(error);
	MemoryContextSwitchTo(caller);
}
