/*
 * delivery_plan.c
 *		What a delivery pass sends next: plans requests within Clerk's budgets.
 *
 * A plan looks at the rows that are due and packs them into requests
 * (outbox/packing.c).  A batch takes its requests from the plan, and reserves
 * each of them in Clerk's budgets (clerk/rate_limit.c), until the plan is used
 * up or too old.
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "common/settings.h"
#include "outbox/delivery_plan.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Rows that a plan looks at: six hours of what Clerk allows, so that there is
 * enough to fill bulk requests from.  Planning takes some 10 ms then.
 */
#define LOOK_AHEAD 5000

/* Milliseconds after which rows that came in meanwhile get into a plan. */
#define PLAN_LIFETIME 1000

static bool is_usable(const ClerkDeliveryPlan *plan);
static bool make(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan);
static bool find_budget(ClerkDeliveryPass *pass, ClerkPackingBudget *budget);
static void pack(ClerkDeliveryPlan *plan, int count,
				 const ClerkPackingBudget *budget);
static void reserve(ClerkDeliveryPass *pass, ClerkEndpoint endpoint,
					ClerkBatchEntry *entries, int count);
static ClerkEndpoint endpoint_of(const ClerkPackedRequest *request);

/*
 * Sees to it that there is a plan with something left to do, and not too old.
 * False if there is nothing to send, or nothing may be sent.
 */
bool
clerk_plan_prepare(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan)
{
	return is_usable(plan) || make(pass, plan);
}

static bool
is_usable(const ClerkDeliveryPlan *plan)
{
	return plan->next < plan->packed.count &&
		!TimestampDifferenceExceeds(plan->made_at, GetCurrentTimestamp(),
									PLAN_LIFETIME);
}

/* Gives up, too, if none of the last plan's rows could be claimed. */
static bool
make(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan)
{
	MemoryContext caller;
	ClerkPackingBudget budget;
	bool		none_claimed = plan->packed.count > 0 && plan->claimed == 0;
	int			count = 0;

	plan->packed.count = 0;
	MemoryContextReset(plan->memory);
	caller = MemoryContextSwitchTo(plan->memory);

	/*
	 * With no budget, one row is enough to know that some have to wait, even
	 * if it was another session that left the last plan none.
	 */
	pass->host->begin();
	if (clerk_pass_fits(pass) && clerk_pass_has_lock(pass) &&
		clerk_outbox_due(1, &plan->due) > 0 &&
		find_budget(pass, &budget) && !none_claimed)
		count = clerk_outbox_due(LOOK_AHEAD, &plan->due);
	if (count > 0)
		pack(plan, count, &budget);
	pass->host->commit();
	MemoryContextSwitchTo(caller);
	return plan->packed.count > 0;
}

/* What may be spent now; false if nothing may. */
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

	/* More than what a bulk request costs in requests for one each. */
	budget->worthwhile = bulks.limit > 0 ? singles.limit / bulks.limit + 1 : 0;
	return true;
}

/* In a transaction: addresses may have to be converted to be compared. */
static void
pack(ClerkDeliveryPlan *plan, int count, const ClerkPackingBudget *budget)
{
	plan->made_at = GetCurrentTimestamp();
	for (int i = 0; i < count; i++)
	{
		ClerkDueInvitation *due = &plan->due[i];

		due->normalized_address = clerk_normalize_address(due->email_address);
		due->overdue = TimestampDifferenceExceeds(due->due_at, plan->made_at,
												  clerk_rate_limit_window);
	}
	clerk_pack_requests(plan->due, count, budget, &plan->packed);
	plan->next = 0;
	plan->claimed = 0;
}

/*
 * Takes a batch's requests from the plan, as far as they can be reserved, with
 * at most so many invitations.  Returns how many entries it has filled in.
 */
int
clerk_plan_take(ClerkDeliveryPass *pass, ClerkDeliveryPlan *plan,
				int64 max_invitations, ClerkBatchEntry *entries, int max_entries)
{
	int64		invitations = 0;
	int			count = 0;
	int			kept = 0;

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

	/* Another session may have been faster: keep what was granted. */
	for (int i = 0; i < count; i++)
		if (entries[i].reservation.state == CLERK_RESERVATION_HELD)
			entries[kept++] = entries[i];
	return kept;
}

/* Reserves the requests to an endpoint, the first ones if not all. */
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
		clerk_rate_limit_take(pass->instance, endpoint, wanted, reservations,
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
