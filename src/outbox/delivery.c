/*
 * delivery.c
 *		Sends what is due in the outbox: claim, send, settle.
 *
 * A pass plans which of the rows that are due share a request
 * (outbox/delivery_plan.c), and works through the plan in batches.  Each batch has three
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

#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "miscadmin.h"
#include "outbox/claim.h"
#include "outbox/delivery.h"
#include "outbox/delivery_plan.h"
#include "outbox/outbox.h"
#include "outbox/outbox_statement.h"
#include "outbox/outcome.h"
#include "outbox/request_batch.h"
#include "outbox/retention.h"
#include "outbox/sender_lock.h"
#include "outbox/set_aside.h"
#include "outbox/settle.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

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
	ClerkDeliveryPass shared;	/* with delivery_plan.c */
	ClerkDeliveryPlan plan;
	int64		allowance;		/* invitations that may still be claimed */
	MemoryContext batch;		/* emptied after each batch */
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
static bool look_up_some(Pass *pass);
static int	lookups_left(TimestampTz *more_at);
static bool send_some(Pass *pass);
static int	claim(Pass *pass, ClerkBatchEntry *entries, int count);
static void assign_rows(ClerkBatchEntry *entry, const ClerkDueInvitation *due,
						const List *claimed);
static void stop_unreplicated(Pass *pass);
static int	settle(Pass *pass, ClerkBatchEntry *entries, int count);
static bool concerns_all(const ClerkError *error);
static int	apply(Pass *pass, ClerkOutboxChange *changes, int count);
static void count_change(Pass *pass, const ClerkOutboxChange *change);
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
	pass.shared.host = host;
	pass.shared.report = report;
	pass.allowance = max_invitations;
	begin_pass(&pass);

	host->begin();
	if (!clerk_pass_fits(&pass.shared))
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
	MemoryContextDelete(pass.plan.memory);
}

static void
begin_pass(Pass *pass)
{
	HASHCTL		control = {.keysize = sizeof(int64),.entrysize = sizeof(int64)};

	pass->shared.memory = CurrentMemoryContext;
	pass->batch = AllocSetContextCreate(pass->shared.memory, "clerk_invite batch",
										ALLOCSET_DEFAULT_SIZES);
	pass->plan.memory = AllocSetContextCreate(pass->shared.memory, "clerk_invite plan",
											  ALLOCSET_DEFAULT_SIZES);
	control.hcxt = pass->shared.memory;
	pass->postponed = hash_create("clerk_invite postponed rows", 64, &control,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	pass->shared.report->begun_at = GetCurrentTimestamp();
	pass->progress_at = pass->shared.report->begun_at;
}

static void
work_off(Pass *pass)
{
	bool		worked;

	do
	{
		MemoryContext caller = MemoryContextSwitchTo(pass->batch);

		CHECK_FOR_INTERRUPTS();
		pass->shared.report->limited_until = 0;
		worked = look_up_some(pass);
		MemoryContextReset(pass->batch);
		if (pass->shared.report->stopped_by == NULL && send_some(pass))
			worked = true;
		MemoryContextSwitchTo(caller);
		MemoryContextReset(pass->batch);
		report_progress(pass);
	} while (worked && pass->shared.report->stopped_by == NULL && !pass->shared.report->busy);
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
	pass->shared.host->begin();
	brought_back = clerk_outbox_bring_back();
	pass->shared.host->commit();
	if (brought_back > 0 && pass->shared.report->stopped_by == NULL)
		work_off(pass);
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

	pass->shared.host->begin();
	rows = clerk_pass_has_lock(&pass->shared) ?
		clerk_outbox_unverified(Max(most, 1)) : NIL;
	pass->shared.host->commit();
	if (rows == NIL)
		return false;
	if (!clerk_pass_may_send(&pass->shared, CLERK_ENDPOINT_LIST, &budget) || most == 0)
	{
		clerk_pass_note_limit(&pass->shared, Max(budget.available_at, more_at));
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

/* A batch of rows to be sent; false if there is none. */
static bool
send_some(Pass *pass)
{
	int			most = clerk_max_concurrent_requests * REQUESTS_PER_SLOT;
	ClerkBatchEntry *entries = palloc0(most * sizeof(ClerkBatchEntry));
	int			count;

	if (pass->allowance <= 0 || !clerk_plan_prepare(&pass->shared, &pass->plan))
		return false;
	count = clerk_plan_take(&pass->shared, &pass->plan, pass->allowance,
							entries, most);
	if (count == 0)
		return true;
	if (claim(pass, entries, count) > 0)
	{
		/*
		 * A user's trigger may have released the lock while rows were
		 * claimed.
		 */
		if (!clerk_outbox_claim_is_safe())
			stop_unreplicated(pass);
		else if (clerk_pass_has_lock(&pass->shared))
			clerk_send_batch(entries, count);
	}
	settle(pass, entries, count);
	return true;
}

/*
 * Claims the rows that the entries are for, and gives each entry those of its
 * rows that were claimed, which may be none.  Returns how many were.
 */
static int
claim(Pass *pass, ClerkBatchEntry *entries, int count)
{
	const ClerkDueInvitation **due;
	int			due_count = 0;
	List	   *claimed;

	due = palloc(count * CLERK_BULK_MAX * sizeof(*due));
	for (int i = 0; i < count; i++)
		for (int j = 0; j < entries[i].packed.count; j++)
			due[due_count++] = &pass->plan.due[entries[i].packed.members[j]];

	pass->shared.host->begin();
	claimed = clerk_pass_has_lock(&pass->shared) ?
		clerk_outbox_claim(due, due_count) : NIL;
	pass->shared.host->commit();
	pass->plan.claimed += list_length(claimed);
	pass->allowance -= list_length(claimed);
	for (int i = 0; i < count; i++)
		assign_rows(&entries[i], pass->plan.due, claimed);
	return list_length(claimed);
}

/* Gives an entry those of its rows that were claimed. */
static void
assign_rows(ClerkBatchEntry *entry, const ClerkDueInvitation *due,
			const List *claimed)
{
	for (int i = 0; i < entry->packed.count; i++)
	{
		const ListCell *cell;

		foreach(cell, claimed)
		{
			ClerkOutboxRow *row = lfirst(cell);

			if (row->id == due[entry->packed.members[i]].id)
				entry->rows[entry->count++] = row;
		}
	}
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
	error.detail = "Invitations are sent only after the standby has received their claim.";
	clerk_pass_stop(&pass->shared, &error);
}

/* Records in the outbox what came of a batch; returns how many rows changed. */
static int
settle(Pass *pass, ClerkBatchEntry *entries, int count)
{
	ClerkOutboxChange *changes;
	List	   *adopted = NIL;
	int			row_count = 0;
	int			applied;

	for (int i = 0; i < count; i++)
		row_count += entries[i].count;
	changes = palloc0(row_count * sizeof(ClerkOutboxChange));

	pass->shared.host->begin();
	row_count = 0;
	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < entries[i].count; j++)
			changes[row_count + j].row = entries[i].rows[j];
		clerk_batch_entry_outcomes(&entries[i], &changes[row_count], &adopted);
		if (concerns_all(entries[i].error))
			clerk_pass_stop(&pass->shared, entries[i].error);
		row_count += entries[i].count;
	}
	applied = apply(pass, changes, row_count);
	pass->shared.host->commit();
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
	if (strcmp(change->progress.state, CLERK_OUTBOX_SENT) == 0)
		pass->shared.report->sent++;
	else if (strcmp(change->progress.state, CLERK_OUTBOX_SKIPPED) == 0)
		pass->shared.report->skipped++;
	else if (strcmp(change->progress.state, CLERK_OUTBOX_FAILED) == 0)
		pass->shared.report->failed++;
	hash_search(pass->postponed, &change->row->id,
				clerk_is_final(change) ? HASH_REMOVE : HASH_ENTER, NULL);
}

static void
report_progress(Pass *pass)
{
	if (pass->shared.host->progress == NULL ||
		!TimestampDifferenceExceeds(pass->progress_at, GetCurrentTimestamp(),
									PROGRESS_INTERVAL))
		return;
	pass->progress_at = GetCurrentTimestamp();
	pass->shared.report->postponed = hash_get_num_entries(pass->postponed);
	pass->shared.host->begin();
	pass->shared.host->progress(pass->shared.report, clerk_outbox_count_due(pass->allowance));
	pass->shared.host->commit();
}

/* Fills in which rows are set aside; in a transaction. */
static void
tell_of_set_aside(Pass *pass)
{
	MemoryContext caller = MemoryContextSwitchTo(pass->shared.memory);
	ClerkOutboxSetAside all = clerk_outbox_all_set_aside();

	pass->shared.report->set_aside = all.count;
	pass->shared.report->set_aside_reason = all.reason;
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

	if (clerk_retention == 0 || pass->shared.report->busy)
		return;
	clerk_outbox_begin_removal(&removal,
							   TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														   -(int64) clerk_retention * 1000));
	for (int i = 0; i < REMOVAL_ROUNDS && !removal.over; i++)
	{
		MemoryContext caller = MemoryContextSwitchTo(pass->batch);

		CHECK_FOR_INTERRUPTS();
		pass->shared.host->begin();
		clerk_outbox_remove_some(&removal);
		pass->shared.host->commit();
		MemoryContextSwitchTo(caller);
		MemoryContextReset(pass->batch);
		if (pass->shared.report->stopped_by == NULL)
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
	again = pass->shared.report->limited_until != 0 ? pass->shared.report->limited_until :
		TimestampTzPlusMilliseconds(now, LOCKED_ROW_DELAY);
	return sooner(clerk_outbox_next_due(now), again);
}

/* Of two times, of which 0 is none. */
static TimestampTz
sooner(TimestampTz a, TimestampTz b)
{
	return a == 0 || (b != 0 && b < a) ? b : a;
}
