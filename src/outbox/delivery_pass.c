/*
 * delivery_pass.c
 *		Whether a delivery pass may go on, and why it stops.
 */
#include "postgres.h"

#include "clerk/operations.h"
#include "common/installed_extension.h"
#include "outbox/delivery_pass.h"
#include "outbox/sender_lock.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Whether the library still fits the SQL objects; if not, the pass is stopped.
 * In a transaction.
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
 * Whether this session is still the one sender; if another one has taken its
 * place, the pass ends.  In a transaction.
 */
bool
clerk_pass_has_lock(ClerkDeliveryPass *pass)
{
	if (!clerk_outbox_lock())
		pass->report->busy = true;
	return !pass->report->busy;
}

/*
 * Whether an endpoint takes requests now, and what is left of its budget.  If
 * not, the time when it will is in budget->available_at; without a usable key
 * the pass is stopped.
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

/* Rows are due that have to wait for Clerk's limits until then. */
void
clerk_pass_note_limit(ClerkDeliveryPass *pass, TimestampTz until)
{
	if (pass->report->stopped_by == NULL &&
		(pass->report->limited_until == 0 ||
		 pass->report->limited_until > until))
		pass->report->limited_until = until;
}

/* Ends the pass after this batch; the report outlives the batch's memory. */
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
