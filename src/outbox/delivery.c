/*
 * delivery.c
 *		Sends what is due in the outbox: claim, send, settle.
 *
 * A pass looks at the rows that are due, plans which of them share a request
 * (outbox/packing.c), and works through the plan in batches.  Each batch has three
 * phases, and a memory context that holds its rows, requests and answers:
 *
 * 1. Claim, in a transaction: rows become "sending".  It is committed to disk
 *	  before anything is sent, so that after a crash nobody takes a row for one
 *	  that was not sent.
 * 2. Send, with no snapshot and no row locked: the batch's requests, several at
 *	  a time.
 * 3. Settle, in another transaction: what each answer means for its rows
 *	  (outbox/outcome.c).
 *
 * Rows whose outcome is unknown, because an answer was lost or a sender died,
 * are "verifying" and get batches of their own, in which phase 2 looks their
 * addresses up, one by one.
 *
 * Requests are reserved in Clerk's budgets (clerk/rate_limit.c) before phase 1.  If
 * Clerk closes an endpoint all the same, or does not take the key, or cannot
 * be reached, the rest of the batch is not sent.
 *
 * One session of a database sends at a time; see clerk_outbox_lock().
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "miscadmin.h"
#include "outbox/delivery.h"
#include "outbox/outbox.h"
#include "outbox/outbox_statement.h"
#include "outbox/outcome.h"
#include "outbox/packing.h"
#include "outbox/request_batch.h"
#include "outbox/retention.h"
#include "outbox/sender_lock.h"
#include "outbox/set_aside.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Rows that a plan looks at: six hours of what Clerk allows, so that there is
 * enough to fill bulk requests from.  Planning takes some 10 ms then.
 */
#define LOOK_AHEAD 5000

/* Milliseconds after which rows that came in meanwhile get into a plan. */
#define PLAN_LIFETIME 1000

/*
 * Requests in a batch for each that is under way at a time: the more, the less
 * often the sender waits for the last one, and for the disk; the fewer, the
 * less must be looked up after a crash.
 */
#define REQUESTS_PER_SLOT 4

/* Milliseconds between reports of progress. */
#define PROGRESS_INTERVAL 10000

/* Milliseconds until a row is tried again that somebody has locked. */
#define LOCKED_ROW_DELAY 1000

/*
 * Rounds of removing old rows in a pass, so that it ends; outbox/retention.c
 * says how many each takes.
 */
#define REMOVAL_ROUNDS 200

/*
 * Look-ups that a process makes in so many microseconds.  Clerk takes 100
 * requests of all kinds in 10 seconds on a development instance, and 1,000 on
 * one in production: look-ups must leave the greater part of it to the rest.
 */
#define MOST_LOOKUPS 40
#define LOOKUP_PERIOD INT64CONST(10000000)

/*
 * Microseconds by which the clock that can be set must have lagged behind the
 * other one between two passes to be taken for one that was set back.
 */
#define SET_BACK INT64CONST(1000000)

/* What one pass has and does. */
typedef struct Pass
{
	const ClerkDeliveryHost *host;
	ClerkDeliveryReport *report;
	int64		allowance;		/* invitations that may still be claimed */
	uint64		instance;		/* of Clerk's */
	MemoryContext memory;		/* of the pass */
	MemoryContext batch;		/* emptied after each batch */
	MemoryContext planning;		/* emptied after each plan */
	ClerkPlan	plan;
	const ClerkOutboxDue *due;	/* what it was made from */
	int			planned_next;	/* the first request that was not taken yet */
	int			claimed_by_plan;
	TimestampTz planned_at;
	HTAB	   *postponed;		/* IDs of rows, for the report */
	TimestampTz progress_at;
} Pass;

/*
 * What a process remembers between passes: look-ups made since the beginning of
 * the current LOOKUP_PERIOD, and how the two clocks stood to each other.
 */
static int	lookups_made = 0;
static int64 lookups_since = 0;
static int64 clock_difference = PG_INT64_MAX;	/* at first: not known */

static void begin_pass(Pass *pass);
static void work_off(Pass *pass);
static void work_off_what_was_early(Pass *pass);
static bool fits(Pass *pass);
static bool look_up_some(Pass *pass);
static int	lookups_left(TimestampTz *more_at);
static bool has_lock(Pass *pass);
static bool send_some(Pass *pass);
static bool may_send(Pass *pass, ClerkEndpoint endpoint, ClerkBudget *budget);
static void note_limit(Pass *pass, TimestampTz until);
static bool have_plan(Pass *pass);
static bool make_plan(Pass *pass);
static bool find_budget(Pass *pass, ClerkPackingBudget * budget);
static void plan_due(Pass *pass, const ClerkOutboxDue *due, int count,
					 const ClerkPackingBudget * budget);
static int	take_requests(Pass *pass, ClerkPackedRequest * requests,
						  ClerkReservation * reservations);
static int	reserve(Pass *pass, ClerkEndpoint endpoint, int wanted,
					ClerkReservation * reservation);
static int	claim(Pass *pass, const ClerkPackedRequest * requests, int count,
				  ClerkReservation * reservations, ClerkBatchEntry * entries);
static int	assign_rows(const Pass *pass, ClerkBatchEntry * entry,
						const ClerkPackedRequest * request,
						ClerkOutboxRow **rows, int row_count);
static void stop_unreplicated(Pass *pass);
static int	settle(Pass *pass, ClerkBatchEntry * entries, int count);
static bool concerns_all(const ClerkError *error);
static int	apply(Pass *pass, ClerkOutboxChange *changes, int count);
static void count_change(Pass *pass, const ClerkOutboxChange *change);
static void stop(Pass *pass, const ClerkError *error);
static void report_progress(Pass *pass);
static void tell_of_set_aside(Pass *pass);
static void remove_old_rows(Pass *pass);
static TimestampTz next_due(Pass *pass);
static TimestampTz sooner(TimestampTz a, TimestampTz b);

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
		work_off_what_was_early(&pass);
		remove_old_rows(&pass);
		host->begin();
		report->next_due = sooner(next_due(&pass), clerk_outbox_held_until());
		tell_of_set_aside(&pass);
	}
	PG_FINALLY();
	{
		clerk_outbox_unlock();
	}
	PG_END_TRY();
	report->postponed = hash_get_num_entries(pass.postponed);
	hash_destroy(pass.postponed);
	MemoryContextDelete(pass.batch);
	MemoryContextDelete(pass.planning);
}

static void
begin_pass(Pass *pass)
{
	HASHCTL		control = {.keysize = sizeof(int64),.entrysize = sizeof(int64)};

	pass->memory = CurrentMemoryContext;
	pass->batch = AllocSetContextCreate(pass->memory, "clerk_invite batch",
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
		MemoryContext caller = MemoryContextSwitchTo(pass->batch);

		CHECK_FOR_INTERRUPTS();
		pass->report->limited_until = 0;
		worked = look_up_some(pass);
		MemoryContextReset(pass->batch);
		if (pass->report->stopped_by == NULL && send_some(pass))
			worked = true;
		MemoryContextSwitchTo(caller);
		MemoryContextReset(pass->batch);
		report_progress(pass);
	} while (worked && pass->report->stopped_by == NULL && !pass->report->busy);
}

/*
 * Sends what our clock, when it was ahead, has put off.  Looked for by a
 * process that does not know whether the clock was set back before it began,
 * and by one that has seen it.
 */
static void
work_off_what_was_early(Pass *pass)
{
	int64		difference = GetCurrentTimestamp() - clerk_monotonic_microseconds();
	bool		set_back = clock_difference == PG_INT64_MAX ||
	difference < clock_difference - SET_BACK;
	int64		brought_back = 0;

	clock_difference = difference;
	if (!set_back)
		return;
	pass->host->begin();
	brought_back = clerk_outbox_bring_back();
	pass->host->commit();
	if (brought_back > 0 && pass->report->stopped_by == NULL)
		work_off(pass);
}

/*
 * Whether the library still fits the SQL objects; if not, the pass is stopped.
 * In a transaction.
 */
static bool
fits(Pass *pass)
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

		stop(pass, &error);
	}
	return pass->report->fit == CLERK_FIT_GOOD;
}

/*
 * A batch of rows whose outcome is unknown; false if there is none, or none may
 * be looked up now.
 */
static bool
look_up_some(Pass *pass)
{
	List	   *rows;
	ClerkBatchEntry *entries;
	ClerkBudget budget;
	TimestampTz more_at;
	int			most = Min(clerk_max_concurrent_requests * REQUESTS_PER_SLOT,
						   lookups_left(&more_at));
	int			count = 0;
	ListCell   *cell;

	pass->host->begin();
	rows = has_lock(pass) ? clerk_outbox_unverified(Max(most, 1)) : NIL;
	pass->host->commit();
	if (rows == NIL)
		return false;
	if (!may_send(pass, CLERK_ENDPOINT_LIST, &budget) || most == 0)
	{
		note_limit(pass, Max(budget.available_at, more_at));
		return false;
	}

	entries = palloc0(list_length(rows) * sizeof(ClerkBatchEntry));
	foreach(cell, rows)
	{
		ClerkBatchEntry *entry = &entries[count++];

		entry->endpoint = CLERK_ENDPOINT_LIST;
		entry->count = 1;
		entry->rows[0] = lfirst(cell);
	}
	lookups_made += count;
	clerk_send_batch(entries, count);

	/* Rows that somebody has locked would be looked up again and again. */
	return settle(pass, entries, count) > 0;
}

/* How many look-ups may be made now; if none, there are more at *more_at. */
static int
lookups_left(TimestampTz *more_at)
{
	int64		now = clerk_monotonic_microseconds();

	if (now - lookups_since >= LOOKUP_PERIOD)
	{
		lookups_made = 0;
		lookups_since = now;
	}
	*more_at = lookups_made < MOST_LOOKUPS ? 0 :
		GetCurrentTimestamp() + lookups_since + LOOKUP_PERIOD - now;
	return Max(MOST_LOOKUPS - lookups_made, 0);
}

/*
 * Whether this session is still the one sender; if another one has taken its
 * place, the pass ends.  In a transaction.
 */
static bool
has_lock(Pass *pass)
{
	if (!clerk_outbox_lock())
		pass->report->busy = true;
	return !pass->report->busy;
}

/* A batch of rows to be sent; false if there is none. */
static bool
send_some(Pass *pass)
{
	int			most = clerk_max_concurrent_requests * REQUESTS_PER_SLOT;
	ClerkPackedRequest *requests = palloc(most * sizeof(ClerkPackedRequest));
	ClerkBatchEntry *entries = palloc0(most * sizeof(ClerkBatchEntry));
	ClerkReservation reservations[CLERK_ENDPOINT_LIST + 1];
	int			count;

	if (pass->allowance <= 0 || (!have_plan(pass) && !make_plan(pass)))
		return false;
	count = take_requests(pass, requests, reservations);
	count = claim(pass, requests, count, reservations, entries);
	if (count > 0)
	{
		/*
		 * A user's trigger may have released the lock while rows were
		 * claimed.
		 */
		if (!clerk_outbox_claim_is_safe())
			stop_unreplicated(pass);
		else if (has_lock(pass))
			clerk_send_batch(entries, count);
		settle(pass, entries, count);
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
	clerk_rate_limit_read(pass->instance, endpoint, budget);
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
	ClerkPackingBudget budget;
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
	if (fits(pass) && has_lock(pass) && clerk_outbox_due(1, &due) > 0 &&
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
find_budget(Pass *pass, ClerkPackingBudget * budget)
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
		 const ClerkPackingBudget * budget)
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
	clerk_pack_requests(candidates, count, budget, &pass->plan);
	pass->planned_next = 0;
	pass->claimed_by_plan = 0;
}

/*
 * Takes a batch's requests from the plan, as far as they can be reserved, and
 * fills in the reservations for each endpoint.  Returns how many there are.
 */
static int
take_requests(Pass *pass, ClerkPackedRequest * requests, ClerkReservation * reservations)
{
	int			most = clerk_max_concurrent_requests * REQUESTS_PER_SLOT;
	int			wanted[CLERK_ENDPOINT_LIST + 1] = {0};
	int			count = 0;
	int			taken = 0;
	int64		invitations = 0;

	while (count < most && pass->planned_next < pass->plan.count)
	{
		ClerkPackedRequest *next = &pass->plan.requests[pass->planned_next];

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
		wanted[i] = reserve(pass, i, wanted[i], &reservations[i]);

	/* Another session may have been faster: keep what was granted. */
	for (int i = 0; i < count; i++)
		if (wanted[requests[i].bulk ? CLERK_ENDPOINT_BULK : CLERK_ENDPOINT_SINGLE]-- > 0)
			requests[taken++] = requests[i];
	return taken;
}

static int
reserve(Pass *pass, ClerkEndpoint endpoint, int wanted, ClerkReservation * reservation)
{
	TimestampTz available_at;

	return wanted == 0 ? 0 :
		clerk_rate_limit_take(pass->instance, endpoint, wanted, reservation,
							  &available_at);
}

/*
 * Claims the requests' rows and makes a entry of each request that got
 * some; the reservations of the others are given back.  Returns how many
 * entries there are.
 */
static int
claim(Pass *pass, const ClerkPackedRequest * requests, int count,
	  ClerkReservation * reservations, ClerkBatchEntry * entries)
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
	claimed = has_lock(pass) ? clerk_outbox_claim(due, due_count) : NIL;
	pass->host->commit();
	pass->claimed_by_plan += list_length(claimed);
	pass->allowance -= list_length(claimed);

	rows = palloc(due_count * sizeof(ClerkOutboxRow *));
	foreach(cell, claimed)
		rows[row_count++] = lfirst(cell);
	for (int i = 0; i < count; i++)
	{
		ClerkBatchEntry *entry = &entries[used];

		entry->endpoint = requests[i].bulk ?
			CLERK_ENDPOINT_BULK : CLERK_ENDPOINT_SINGLE;
		entry->reservation = &reservations[entry->endpoint];
		if (assign_rows(pass, entry, &requests[i], rows, row_count) > 0)
			used++;
		else
			clerk_rate_limit_give_back(entry->reservation, 1);
	}
	return used;
}

/* Gives a entry those of its rows that were claimed. */
static int
assign_rows(const Pass *pass, ClerkBatchEntry * entry,
			const ClerkPackedRequest * request,
			ClerkOutboxRow **rows, int row_count)
{
	entry->count = 0;
	for (int i = 0; i < request->count; i++)
		for (int j = 0; j < row_count; j++)
			if (rows[j]->id == pass->due[request->members[i]].id)
				entry->rows[entry->count++] = rows[j];
	return entry->count;
}

/*
 * A claim that no synchronous standby has is as good as none: nothing is sent,
 * and the pass ends.
 */
static void
stop_unreplicated(Pass *pass)
{
	ClerkError	error = {0};

	error.class = CLERK_ERROR_TRY_LATER;
	error.sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error.summary = "the wait for a synchronous standby was canceled";
	error.detail = "Invitations are sent only after the standby knows that they are about to be.";
	stop(pass, &error);
}

/* Records in the outbox what came of a batch; returns how many rows changed. */
static int
settle(Pass *pass, ClerkBatchEntry * entries, int count)
{
	ClerkOutboxChange *changes;
	List	   *adopted = NIL;
	int			row_count = 0;
	int			applied;

	for (int i = 0; i < count; i++)
		row_count += entries[i].count;
	changes = palloc0(row_count * sizeof(ClerkOutboxChange));

	pass->host->begin();
	row_count = 0;
	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < entries[i].count; j++)
			changes[row_count + j].row = entries[i].rows[j];
		clerk_batch_entry_outcomes(&entries[i], &changes[row_count], &adopted);
		if (concerns_all(entries[i].error))
			stop(pass, entries[i].error);
		row_count += entries[i].count;
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
		else if (changes[i].set_aside)
			applied++;			/* it is not due any more */
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

/* Ends the pass after this batch; the report outlives the batch's memory. */
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

/* Fills in which rows are set aside; in a transaction. */
static void
tell_of_set_aside(Pass *pass)
{
	MemoryContext caller = MemoryContextSwitchTo(pass->memory);
	ClerkOutboxSetAside all = clerk_outbox_all_set_aside();

	pass->report->set_aside = all.count;
	pass->report->set_aside_reason = all.reason;
	MemoryContextSwitchTo(caller);
}

/*
 * Rows that have been settled for longer than the user wants to keep them.
 * What becomes due meanwhile does not wait for that.
 */
static void
remove_old_rows(Pass *pass)
{
	ClerkOutboxRemoval removal;

	if (clerk_retention == 0 || pass->report->busy)
		return;
	clerk_outbox_begin_removal(&removal,
							   TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														   -(int64) clerk_retention * 1000));
	for (int i = 0; i < REMOVAL_ROUNDS && !removal.over; i++)
	{
		MemoryContext caller = MemoryContextSwitchTo(pass->batch);

		CHECK_FOR_INTERRUPTS();
		pass->host->begin();
		clerk_outbox_remove_some(&removal);
		pass->host->commit();
		MemoryContextSwitchTo(caller);
		MemoryContextReset(pass->batch);
		if (pass->report->stopped_by == NULL)
			work_off(pass);
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
	return sooner(clerk_outbox_next_due(now), again);
}

/* Of two times, of which 0 is none. */
static TimestampTz
sooner(TimestampTz a, TimestampTz b)
{
	return a == 0 || (b != 0 && b < a) ? b : a;
}
