/*
 * delivery.c
 *		Sends what is due in the outbox: claim, send, settle.
 *
 * A pass looks at the rows that are due, plans which of them share a request
 * (planner.c), and works through the plan in waves.  Each wave has three
 * phases, and a memory context that holds its rows, requests and answers:
 *
 * 1. Claim, in a transaction: rows become "sending".  It is committed to disk
 *	  before anything is sent, so that after a crash nobody takes a row for one
 *	  that was not sent.
 * 2. Send, with no snapshot and no row locked: the wave's requests, several at
 *	  a time.
 * 3. Settle, in another transaction: what each answer means for its rows
 *	  (verdict.c).
 *
 * Rows whose outcome is unknown, because an answer was lost or a sender died,
 * are "verifying" and get waves of their own, in which phase 2 looks their
 * addresses up, one by one.
 *
 * Requests are reserved in Clerk's budgets (rate_limit.c) before phase 1.  If
 * Clerk closes an endpoint all the same, or does not take the key, or cannot
 * be reached, the rest of the wave is not sent.
 *
 * One session of a database sends at a time; see clerk_outbox_lock().
 */
#include "postgres.h"

#include "delivery.h"
#include "email_address.h"
#include "guc.h"
#include "miscadmin.h"
#include "outbox.h"
#include "outbox_statement.h"
#include "planner.h"
#include "shipment.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "verdict.h"

/*
 * Rows that a plan looks at: six hours of what Clerk allows, so that there is
 * enough to fill bulk requests from.  Planning takes some 10 ms then.
 */
#define LOOK_AHEAD 5000

/* Milliseconds after which rows that came in meanwhile get into a plan. */
#define PLAN_LIFETIME 1000

/*
 * Requests in a wave for each that is under way at a time: the more, the less
 * often the sender waits for the last one, and for the disk; the fewer, the
 * less must be looked up after a crash.
 */
#define REQUESTS_PER_LANE 4

/* Milliseconds between reports of progress. */
#define PROGRESS_INTERVAL 10000

/* Milliseconds until a row is tried again that somebody has locked. */
#define LOCKED_ROW_DELAY 1000

/* Rounds of removing old rows in a pass: outbox.c says how many each takes. */
#define REMOVAL_ROUNDS 100

/* What one pass has and does. */
typedef struct Pass
{
	const ClerkDeliveryHost *host;
	ClerkDeliveryReport *report;
	int64		allowance;		/* invitations that may still be claimed */
	uint64		instance;		/* of Clerk's */
	MemoryContext memory;		/* of the pass */
	MemoryContext wave;			/* emptied after each wave */
	MemoryContext planning;		/* emptied after each plan */
	ClerkPlan	plan;
	const ClerkOutboxDue *due;	/* what it was made from */
	int			planned_next;	/* the first request that was not taken yet */
	int			claimed_by_plan;
	TimestampTz planned_at;
	HTAB	   *postponed;		/* IDs of rows, for the report */
	TimestampTz progress_at;
} Pass;

static void begin_pass(Pass *pass);
static void work_off(Pass *pass);
static bool fits(Pass *pass);
static bool look_up_some(Pass *pass);
static bool send_some(Pass *pass);
static bool may_send(Pass *pass, ClerkEndpoint endpoint, ClerkBudget *budget);
static void note_limit(Pass *pass, TimestampTz until);
static bool have_plan(Pass *pass);
static bool make_plan(Pass *pass);
static bool find_budget(Pass *pass, ClerkPlanBudget *budget);
static void plan_due(Pass *pass, const ClerkOutboxDue *due, int count,
					 const ClerkPlanBudget *budget);
static int	take_requests(Pass *pass, ClerkPlannedRequest *requests,
						  ClerkTicket *tickets);
static int	reserve(Pass *pass, ClerkEndpoint endpoint, int wanted,
					ClerkTicket *ticket);
static int	claim(Pass *pass, const ClerkPlannedRequest *requests, int count,
				  ClerkTicket *tickets, ClerkShipment *shipments);
static int	assign_rows(const Pass *pass, ClerkShipment *shipment,
						const ClerkPlannedRequest *request,
						ClerkOutboxRow **rows, int row_count);
static int	settle(Pass *pass, ClerkShipment *shipments, int count);
static bool concerns_all(const ClerkError *error);
static int	apply(Pass *pass, ClerkOutboxChange *changes, int count);
static void count_change(Pass *pass, const ClerkOutboxChange *change);
static void stop(Pass *pass, const ClerkError *error);
static void report_progress(Pass *pass);
static void remove_old_rows(Pass *pass);
static TimestampTz next_due(Pass *pass);

/*
 * Sends what is due in the outbox of this schema, at most so many invitations,
 * and fills in the report.  Must be called outside a transaction, or in one
 * that host->commit may end; leaves one begun in the same way.
 *
 * Raises an error if the session is told to stop; what was under way is then
 * verified by the next sender.
 */
void
clerk_deliver(Oid schema, int64 max_invitations,
			  const ClerkDeliveryHost *host, ClerkDeliveryReport *report)
{
	Pass		pass;

	memset(report, 0, sizeof(*report));
	memset(&pass, 0, sizeof(pass));
	pass.host = host;
	pass.report = report;
	pass.allowance = max_invitations;
	begin_pass(&pass);

	host->begin();
	if (!fits(&pass))
		return;
	clerk_outbox_find(schema);
	if (!clerk_outbox_lock())
	{
		report->busy = true;
		return;
	}
	PG_TRY();
	{
		clerk_outbox_take_over();
		host->commit();
		work_off(&pass);
		remove_old_rows(&pass);
		host->begin();
		report->next_due = next_due(&pass);
	}
	PG_FINALLY();
	{
		clerk_outbox_unlock();
	}
	PG_END_TRY();
	report->postponed = hash_get_num_entries(pass.postponed);
	hash_destroy(pass.postponed);
	MemoryContextDelete(pass.wave);
	MemoryContextDelete(pass.planning);
}

static void
begin_pass(Pass *pass)
{
	HASHCTL		control = {.keysize = sizeof(int64),.entrysize = sizeof(int64)};

	pass->memory = CurrentMemoryContext;
	pass->wave = AllocSetContextCreate(pass->memory, "clerk_invite wave",
									   ALLOCSET_DEFAULT_SIZES);
	pass->planning = AllocSetContextCreate(pass->memory, "clerk_invite plan",
										   ALLOCSET_DEFAULT_SIZES);
	control.hcxt = pass->memory;
	pass->postponed = hash_create("clerk_invite postponed rows", 64, &control,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	pass->report->begun_at = GetCurrentTimestamp();
	pass->progress_at = pass->report->begun_at;
}

static void
work_off(Pass *pass)
{
	bool		worked;

	do
	{
		MemoryContext caller = MemoryContextSwitchTo(pass->wave);

		CHECK_FOR_INTERRUPTS();
		pass->report->limited_until = 0;
		worked = look_up_some(pass);
		MemoryContextReset(pass->wave);
		if (pass->report->stopped_by == NULL && send_some(pass))
			worked = true;
		MemoryContextSwitchTo(caller);
		MemoryContextReset(pass->wave);
		report_progress(pass);
	} while (worked && pass->report->stopped_by == NULL);
}

/*
 * Whether the library still fits the SQL objects; if not, the pass is stopped.
 * In a transaction.
 */
static bool
fits(Pass *pass)
{
	ClerkError *error;

	pass->report->fit = clerk_find_fit(&error);
	if (pass->report->fit != CLERK_FIT_GOOD)
		stop(pass, error);
	return pass->report->fit == CLERK_FIT_GOOD;
}

/* A wave of rows whose outcome is unknown; false if there is none. */
static bool
look_up_some(Pass *pass)
{
	List	   *rows;
	ClerkShipment *shipments;
	ClerkBudget budget;
	int			count = 0;
	ListCell   *cell;

	pass->host->begin();
	rows = clerk_outbox_unverified(clerk_max_concurrent_requests *
								   REQUESTS_PER_LANE);
	pass->host->commit();
	if (rows == NIL)
		return false;
	if (!may_send(pass, CLERK_ENDPOINT_LIST, &budget))
	{
		note_limit(pass, budget.available_at);
		return false;
	}

	shipments = palloc0(list_length(rows) * sizeof(ClerkShipment));
	foreach(cell, rows)
	{
		ClerkShipment *shipment = &shipments[count++];

		shipment->endpoint = CLERK_ENDPOINT_LIST;
		shipment->count = 1;
		shipment->rows[0] = lfirst(cell);
	}
	clerk_ship(shipments, count);

	/* Rows that somebody has locked would be looked up again and again. */
	return settle(pass, shipments, count) > 0;
}

/* A wave of rows to be sent; false if there is none. */
static bool
send_some(Pass *pass)
{
	int			most = clerk_max_concurrent_requests * REQUESTS_PER_LANE;
	ClerkPlannedRequest *requests = palloc(most * sizeof(ClerkPlannedRequest));
	ClerkShipment *shipments = palloc0(most * sizeof(ClerkShipment));
	ClerkTicket tickets[CLERK_ENDPOINT_LIST + 1];
	int			count;

	if (pass->allowance <= 0 || (!have_plan(pass) && !make_plan(pass)))
		return false;
	count = take_requests(pass, requests, tickets);
	count = claim(pass, requests, count, tickets, shipments);
	if (count > 0)
	{
		clerk_ship(shipments, count);
		settle(pass, shipments, count);
	}
	return true;
}

/*
 * Whether an endpoint takes requests now, and what is left of its budget.  If
 * not, the time when it will is in budget->available_at; without a usable key
 * the pass is stopped.
 */
static bool
may_send(Pass *pass, ClerkEndpoint endpoint, ClerkBudget *budget)
{
	ClerkError *error;

	budget->available_at = DT_NOEND;
	if (!clerk_chosen_instance(&pass->instance, &error))
	{
		stop(pass, error);
		return false;
	}
	clerk_rate_limit_look(pass->instance, endpoint, budget);
	return budget->available_at <= GetCurrentTimestamp();
}

/* Rows are due that have to wait for Clerk's limits until then. */
static void
note_limit(Pass *pass, TimestampTz until)
{
	if (pass->report->stopped_by == NULL &&
		(pass->report->limited_until == 0 ||
		 pass->report->limited_until > until))
		pass->report->limited_until = until;
}

/* Whether there is a plan with something left to do, and not too old. */
static bool
have_plan(Pass *pass)
{
	return pass->planned_next < pass->plan.count &&
		!TimestampDifferenceExceeds(pass->planned_at, GetCurrentTimestamp(),
									PLAN_LIFETIME);
}

/*
 * Plans what to send of the rows that are due.  False if there is nothing, or
 * nothing may be sent, or if the last plan got hold of none of its rows.
 */
static bool
make_plan(Pass *pass)
{
	MemoryContext caller;
	ClerkOutboxDue *due;
	ClerkPlanBudget budget;
	bool		in_vain = pass->plan.count > 0 && pass->claimed_by_plan == 0;
	int			count = 0;

	pass->plan.count = 0;
	MemoryContextReset(pass->planning);
	caller = MemoryContextSwitchTo(pass->planning);

	/*
	 * With no budget, one row is enough to know that some have to wait: also
	 * if it was another session that left the last plan none.
	 */
	pass->host->begin();
	if (fits(pass) && clerk_outbox_due(1, &due) > 0 &&
		find_budget(pass, &budget) && !in_vain)
		count = clerk_outbox_due(LOOK_AHEAD, &due);
	if (count > 0)
		plan_due(pass, due, count, &budget);
	pass->host->commit();
	MemoryContextSwitchTo(caller);
	return pass->plan.count > 0;
}

/* What may be spent now; false if nothing may. */
static bool
find_budget(Pass *pass, ClerkPlanBudget *budget)
{
	ClerkBudget singles;
	ClerkBudget bulks;
	bool		single = may_send(pass, CLERK_ENDPOINT_SINGLE, &singles);
	bool		bulk = may_send(pass, CLERK_ENDPOINT_BULK, &bulks);

	if (!single && !bulk)
	{
		note_limit(pass, Min(singles.available_at, bulks.available_at));
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
plan_due(Pass *pass, const ClerkOutboxDue *due, int count,
		 const ClerkPlanBudget *budget)
{
	ClerkCandidate *candidates = palloc(count * sizeof(ClerkCandidate));

	pass->planned_at = GetCurrentTimestamp();
	pass->due = due;
	for (int i = 0; i < count; i++)
	{
		candidates[i].organization_id = due[i].organization_id;
		candidates[i].address = clerk_normalize_address(due[i].email_address);
		candidates[i].alone = due[i].send_alone;
		candidates[i].overdue = TimestampDifferenceExceeds(due[i].due_at,
														   pass->planned_at,
														   clerk_rate_limit_window);
	}
	clerk_plan_requests(candidates, count, budget, &pass->plan);
	pass->planned_next = 0;
	pass->claimed_by_plan = 0;
}

/*
 * Takes a wave's requests from the plan, as far as they can be reserved, and
 * fills in the tickets for each endpoint.  Returns how many there are.
 */
static int
take_requests(Pass *pass, ClerkPlannedRequest *requests, ClerkTicket *tickets)
{
	int			most = clerk_max_concurrent_requests * REQUESTS_PER_LANE;
	int			wanted[CLERK_ENDPOINT_LIST + 1] = {0};
	int			count = 0;
	int			taken = 0;
	int64		invitations = 0;

	while (count < most && pass->planned_next < pass->plan.count)
	{
		ClerkPlannedRequest *next = &pass->plan.requests[pass->planned_next];

		if (invitations >= pass->allowance)
			break;
		requests[count] = *next;
		requests[count].count = (int) Min(next->count,
										  pass->allowance - invitations);
		invitations += requests[count].count;
		wanted[next->bulk ? CLERK_ENDPOINT_BULK : CLERK_ENDPOINT_SINGLE]++;
		pass->planned_next++;
		count++;
	}
	for (int i = 0; i < CLERK_ENDPOINT_LIST; i++)
		wanted[i] = reserve(pass, i, wanted[i], &tickets[i]);

	/* Another session may have been faster: keep what was granted. */
	for (int i = 0; i < count; i++)
		if (wanted[requests[i].bulk ? CLERK_ENDPOINT_BULK : CLERK_ENDPOINT_SINGLE]-- > 0)
			requests[taken++] = requests[i];
	return taken;
}

static int
reserve(Pass *pass, ClerkEndpoint endpoint, int wanted, ClerkTicket *ticket)
{
	TimestampTz available_at;

	return wanted == 0 ? 0 :
		clerk_rate_limit_take(pass->instance, endpoint, wanted, ticket,
							  &available_at);
}

/*
 * Claims the requests' rows and makes a shipment of each request that got
 * some; the reservations of the others are given back.  Returns how many
 * shipments there are.
 */
static int
claim(Pass *pass, const ClerkPlannedRequest *requests, int count,
	  ClerkTicket *tickets, ClerkShipment *shipments)
{
	const ClerkOutboxDue **due;
	int			due_count = 0;
	ClerkOutboxRow **rows;
	int			row_count = 0;
	List	   *claimed;
	ListCell   *cell;
	int			used = 0;

	due = palloc(Max(count, 1) * CLERK_BULK_MAX * sizeof(*due));
	for (int i = 0; i < count; i++)
		for (int j = 0; j < requests[i].count; j++)
			due[due_count++] = &pass->due[requests[i].members[j]];
	if (due_count == 0)
		return 0;

	pass->host->begin();
	claimed = clerk_outbox_claim(due, due_count);
	pass->host->commit();
	pass->claimed_by_plan += list_length(claimed);
	pass->allowance -= list_length(claimed);

	rows = palloc(due_count * sizeof(ClerkOutboxRow *));
	foreach(cell, claimed)
		rows[row_count++] = lfirst(cell);
	for (int i = 0; i < count; i++)
	{
		ClerkShipment *shipment = &shipments[used];

		shipment->endpoint = requests[i].bulk ?
			CLERK_ENDPOINT_BULK : CLERK_ENDPOINT_SINGLE;
		shipment->ticket = &tickets[shipment->endpoint];
		if (assign_rows(pass, shipment, &requests[i], rows, row_count) > 0)
			used++;
		else
			clerk_rate_limit_give_back(shipment->ticket, 1);
	}
	return used;
}

/* Gives a shipment those of its rows that were claimed. */
static int
assign_rows(const Pass *pass, ClerkShipment *shipment,
			const ClerkPlannedRequest *request,
			ClerkOutboxRow **rows, int row_count)
{
	shipment->count = 0;
	for (int i = 0; i < request->count; i++)
		for (int j = 0; j < row_count; j++)
			if (rows[j]->id == pass->due[request->members[i]].id)
				shipment->rows[shipment->count++] = rows[j];
	return shipment->count;
}

/* Records in the outbox what came of a wave; returns how many rows changed. */
static int
settle(Pass *pass, ClerkShipment *shipments, int count)
{
	ClerkOutboxChange *changes;
	List	   *adopted = NIL;
	int			row_count = 0;
	int			applied;

	for (int i = 0; i < count; i++)
		row_count += shipments[i].count;
	changes = palloc0(row_count * sizeof(ClerkOutboxChange));

	pass->host->begin();
	row_count = 0;
	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < shipments[i].count; j++)
			changes[row_count + j].row = shipments[i].rows[j];
		clerk_judge_shipment(&shipments[i], &changes[row_count], &adopted);
		if (concerns_all(shipments[i].error))
			stop(pass, shipments[i].error);
		row_count += shipments[i].count;
	}
	applied = apply(pass, changes, row_count);
	pass->host->commit();
	return applied;
}

/* Whether what became of one request would become of any other. */
static bool
concerns_all(const ClerkError *error)
{
	return error != NULL &&
		(error->class == CLERK_ERROR_CONFIGURATION ||
		 error->class == CLERK_ERROR_NOT_SENT);
}

static int
apply(Pass *pass, ClerkOutboxChange *changes, int count)
{
	int			applied = 0;

	for (int i = 0; i < count; i++)
		if (clerk_is_final(&changes[i]))
			changes[i].next_attempt_at = 0;
	clerk_outbox_settle(changes, count);
	for (int i = 0; i < count; i++)
	{
		if (changes[i].applied)
		{
			count_change(pass, &changes[i]);
			applied++;
		}
		else
			ereport(LOG,
					(errmsg("invitation %lld of the outbox is locked, or was changed while it was being sent",
							(long long) changes[i].row->id)));
	}
	return applied;
}

static void
count_change(Pass *pass, const ClerkOutboxChange *change)
{
	if (strcmp(change->state, CLERK_OUTBOX_SENT) == 0)
		pass->report->sent++;
	else if (strcmp(change->state, CLERK_OUTBOX_SKIPPED) == 0)
		pass->report->skipped++;
	else if (strcmp(change->state, CLERK_OUTBOX_FAILED) == 0)
		pass->report->failed++;
	hash_search(pass->postponed, &change->row->id,
				clerk_is_final(change) ? HASH_REMOVE : HASH_ENTER, NULL);
}

/* Ends the pass after this wave; the report outlives the wave's memory. */
static void
stop(Pass *pass, const ClerkError *error)
{
	MemoryContext caller;

	if (pass->report->stopped_by != NULL)
		return;
	caller = MemoryContextSwitchTo(pass->memory);
	pass->report->stopped_by = clerk_error_copy(error);
	MemoryContextSwitchTo(caller);
}

static void
report_progress(Pass *pass)
{
	if (pass->host->progress == NULL ||
		!TimestampDifferenceExceeds(pass->progress_at, GetCurrentTimestamp(),
									PROGRESS_INTERVAL))
		return;
	pass->progress_at = GetCurrentTimestamp();
	pass->report->postponed = hash_get_num_entries(pass->postponed);
	pass->host->begin();
	pass->host->progress(pass->report, clerk_outbox_count_due(pass->allowance));
	pass->host->commit();
}

/* Rows that have been settled for longer than the user wants to keep them. */
static void
remove_old_rows(Pass *pass)
{
	TimestampTz before;
	int			removed = 1;

	if (clerk_retention == 0)
		return;
	before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										 -(int64) clerk_retention * 1000);
	for (int i = 0; i < REMOVAL_ROUNDS && removed > 0; i++)
	{
		CHECK_FOR_INTERRUPTS();
		pass->host->begin();
		removed = clerk_outbox_remove_older(before);
		pass->host->commit();
	}
}

/* When there is something to do again; in a transaction. */
static TimestampTz
next_due(Pass *pass)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = clerk_outbox_next_due(DT_NOBEGIN);
	TimestampTz again;

	if (due == 0 || due > now)
		return due;

	/* Due already: limited, locked by somebody, or the pass was stopped. */
	again = pass->report->limited_until != 0 ? pass->report->limited_until :
		TimestampTzPlusMilliseconds(now, LOCKED_ROW_DELAY);
	due = clerk_outbox_next_due(now);
	return due == 0 ? again : Min(due, again);
}
