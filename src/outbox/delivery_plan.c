/*
 * delivery_plan.c
 *		Plans the next requests of a delivery pass within Clerk's budgets.
 *
 * A plan reads the rows that are due and packs them into requests
 * (outbox/packing.c).  Batches take their requests from the plan, and reserve
 * each one in Clerk's budgets (clerk/reservation.c), until the plan is used up
 * or too old.
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "common/settings.h"
#include "outbox/delivery_plan.h"
#include "outbox/outbox.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Rows that a plan reads at most.  Clerk's default budgets, 250 single and 50
 * bulk requests an hour, take more than six hours for so many, so that there
 * are enough to fill bulk requests.  Planning then takes about 10 ms.
 */
#define MAX_PLANNED_ROWS 5000

/*
 * So many rows are read to find out whether any are due.  Reading more would
 * hold up a pass that finds the budgets used up.
 */
#define FEW_ROWS 50

/* Milliseconds after which a new plan is made, to include new rows. */
#define PLAN_LIFETIME 1000

static bool make_plan(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan);
static int	read_due(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan,
					 int limit);
static bool find_budget(ClerkDeliveryPass *pass, ClerkPackingBudget *budget);
static void pack(ClerkDeliveryPlan *plan, int count,
				 const ClerkPackingBudget *budget);
static void reserve(ClerkDeliveryPass *pass, ClerkEndpoint endpoint,
					ClerkBatchEntry *entries, int count);
static ClerkEndpoint endpoint_of(const ClerkPackedRequest *request);

/*
 * Ensures that the plan has requests left and is not too old.  Returns false
 * if nothing was due when pass->work was read, or nothing may be sent now.  The
 * plan is in plan->memory.  Raises the errors of clerk_outbox_run().
 */
bool
clerk_plan_prepare(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan)
{
	bool		made;

	if (clerk_plan_is_usable(plan))
		return true;
	if (pass->work.send_at > pass->work.read_at)
	{
		clerk_plan_discard(plan);
		return false;
	}
	pass->host->begin();
	made = clerk_pass_fits(pass) && clerk_pass_has_lock(pass) &&
		make_plan(pass, plan);
	pass->host->commit();
	return made;
}

/* Whether the plan has requests left and is not too old. */
bool
clerk_plan_is_usable(const ClerkDeliveryPlan *plan)
{
	return plan->next < plan->packed.count &&
		!TimestampDifferenceExceeds(plan->made_at, GetCurrentTimestamp(),
									PLAN_LIFETIME);
}

/*
 * Makes a new plan.  Returns false if there is nothing to send, and also if
 * none of the requests that were taken from the previous plan could be claimed:
 * trying them again at once would not help.
 *
 * Must be called in a transaction, by the session that holds the sender's
 * lock.
 */
static bool
make_plan(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan)
{
	ClerkPackingBudget budget;
	bool		none_claimed = plan->next > 0 && plan->claimed == 0;

	clerk_plan_discard(plan);
	if (!find_budget(pass, &budget) || none_claimed)
		return false;
	pack(plan, read_due(pass, plan, MAX_PLANNED_ROWS), &budget);
	return plan->packed.count > 0;
}

/*
 * Plans the rows that are due if they are few, as those that somebody has just
 * committed.  Returns whether any row is due, in which case pass->work is
 * current; the plan remains empty if they are not few or may not be sent.
 *
 * Must be called in a transaction, by the session that holds the sender's
 * lock.  Raises the errors of clerk_outbox_run().
 */
bool
clerk_plan_few(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan)
{
	ClerkPackingBudget budget;
	int			count;

	clerk_plan_discard(plan);
	count = read_due(pass, plan, FEW_ROWS + 1);
	/* The budget matters only if there is something to send. */
	if (count > 0 && count <= FEW_ROWS && find_budget(pass, &budget))
		pack(plan, count, &budget);
	return count > 0;
}

/*
 * Reads the rows that are due into the plan.  Returns their number.  If there
 * are any, pass->work is current.
 */
static int
read_due(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan, int limit)
{
	MemoryContext caller;
	int			count;

	MemoryContextReset(plan->memory);
	caller = MemoryContextSwitchTo(plan->memory);
	count = clerk_outbox_due(limit, &plan->due, &pass->work);
	MemoryContextSwitchTo(caller);
	if (count > 0)
		pass->work_is_current = true;
	return count;
}

/* Leaves the plan without requests. */
void
clerk_plan_discard(ClerkDeliveryPlan *plan)
{
	plan->packed.count = 0;
	plan->next = 0;
	plan->claimed = 0;
}

/*
 * Reads the budgets that can be spent now; returns false if both are used up.
 */
static bool
find_budget(ClerkDeliveryPass *pass, ClerkPackingBudget *budget)
{
	ClerkBudget singles;
	ClerkBudget bulks;
	bool		single = clerk_pass_may_send(pass, CLERK_ENDPOINT_SINGLE, &singles);
	bool		bulk = clerk_pass_may_send(pass, CLERK_ENDPOINT_BULK, &bulks);

	if (!single && !bulk)
	{
		clerk_pass_note_limit(pass, Min(singles.available_at, bulks.available_at));
		return false;
	}
	budget->singles = single ? singles.remaining : 0;
	budget->bulks = bulk ? bulks.remaining : 0;

	/*
	 * A bulk request should carry more invitations than the number of single
	 * requests that cost the same share of the budget.
	 */
	budget->min_bulk_size = bulks.limit > 0 ?
		singles.limit / bulks.limit + 1 : 0;
	return true;
}

/*
 * Packs the first "count" rows of the plan into requests.  Must be called in a
 * transaction: comparing addresses may need a conversion between encodings.
 */
static void
pack(ClerkDeliveryPlan *plan, int count, const ClerkPackingBudget *budget)
{
	MemoryContext caller = MemoryContextSwitchTo(plan->memory);

	plan->made_at = GetCurrentTimestamp();
	for (int i = 0; i < count; i++)
	{
		ClerkDueInvitation *due = &plan->due[i];

		due->normalized_address = clerk_normalize_address(due->email_address);
		due->overdue = TimestampDifferenceExceeds(due->due_at, plan->made_at,
												  clerk_rate_limit_window);
	}
	clerk_pack_requests(plan->due, count, budget, &plan->packed);
	MemoryContextSwitchTo(caller);
}

/*
 * Takes the requests of the next batch from the plan, with at most
 * max_invitations invitations in total, and reserves them.  Fills in at most
 * max_entries entries, without the requests for which no reservation was
 * granted.  Returns the number of entries.
 */
int
clerk_plan_take(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan,
				int64 max_invitations, ClerkBatchEntry *entries, int max_entries)
{
	int64		invitations = 0;
	int			count = 0;
	int			granted_count = 0;

	while (count < max_entries && plan->next < plan->packed.count &&
		   invitations < max_invitations)
	{
		ClerkBatchEntry *entry = &entries[count++];

		entry->packed = plan->packed.requests[plan->next++];
		entry->packed.count = (int) Min(entry->packed.count,
										max_invitations - invitations);
		entry->endpoint = endpoint_of(&entry->packed);
		invitations += entry->packed.count;
	}
	reserve(pass, CLERK_ENDPOINT_SINGLE, entries, count);
	reserve(pass, CLERK_ENDPOINT_BULK, entries, count);

	/* Another session may have used up the budget since the plan was made. */
	for (int i = 0; i < count; i++)
		if (entries[i].reservation.state == CLERK_RESERVATION_HELD)
			entries[granted_count++] = entries[i];
	return granted_count;
}

/*
 * Reserves the entries' requests to an endpoint: the first ones if the budget
 * does not suffice for all.
 */
static void
reserve(ClerkDeliveryPass *pass, ClerkEndpoint endpoint,
		ClerkBatchEntry *entries, int count)
{
	ClerkReservation *reservations = palloc0(count * sizeof(ClerkReservation));
	TimestampTz available_at;
	int			wanted = 0;
	int			granted;
	int			used = 0;

	for (int i = 0; i < count; i++)
		if (entries[i].endpoint == endpoint)
			wanted++;
	granted = wanted == 0 ? 0 :
		clerk_reservation_take(pass->instance, endpoint, wanted, reservations,
							   &available_at);
	for (int i = 0; i < count && used < granted; i++)
		if (entries[i].endpoint == endpoint)
			entries[i].reservation = reservations[used++];
}

static ClerkEndpoint
endpoint_of(const ClerkPackedRequest *request)
{
	return request->bulk ? CLERK_ENDPOINT_BULK : CLERK_ENDPOINT_SINGLE;
}
