/*
 * delivery.c
 *		Delivers the rows of the outbox that are due: claim, send, settle.
 *
 * A pass plans which due rows share a request (outbox/delivery_plan.c) and
 * works through the plan in batches.  Each batch has three phases, and a
 * memory context that holds its rows, requests and responses:
 *
 * 1. Claim, in a transaction: rows become "sending".  The transaction is
 *	  committed and flushed to disk before anything is sent, so that after a
 *	  crash no sender mistakes a row that may have been sent for one that was
 *	  not.
 * 2. Send, without a snapshot or row locks: the batch's requests, several at
 *	  a time.
 * 3. Settle, in another transaction: record what each response means for its
 *	  rows (outbox/outcome.c).
 *
 * Rows whose outcome is unknown, because a response was lost or a sender died,
 * are "verifying".  They get batches of their own, in which phase 2 looks up
 * their addresses one by one.
 *
 * Requests are reserved in Clerk's budgets (clerk/reservation.c) before they
 * are claimed.  If Clerk nevertheless rejects requests to an endpoint with
 * status 429, rejects the key, or cannot be reached, the rest of the batch is
 * not sent.
 *
 * Only one session of a database sends at a time; see clerk_outbox_lock().
 *
 * test/model/delivery.pml is a model of this, in which the steps are called
 * LOCK, TAKE OVER, CLAIM, CHECK LOCK, SEND, SETTLE, LOOK UP, SETTLE LOOKUP, and
 * UNLOCK, as in the comments on the functions.
 */
#include "postgres.h"

#include "common/settings.h"
#include "miscadmin.h"
#include "outbox/claim.h"
#include "outbox/clock_setback.h"
#include "outbox/commit_wait.h"
#include "outbox/delivery.h"
#include "outbox/delivery_plan.h"
#include "outbox/lookup_limit.h"
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
 * Requests in a batch for each concurrent request.  A larger value makes the
 * sender wait less often for the last request of a batch and for the disk; a
 * smaller one leaves fewer rows to look up after a crash.
 */
#define REQUESTS_PER_SLOT 4

/* Milliseconds between progress reports. */
#define PROGRESS_INTERVAL 10000

/* Milliseconds before a row that another session has locked is tried again. */
#define LOCKED_ROW_DELAY 1000

/*
 * Most batches of old rows that a pass removes, so that the pass ends;
 * outbox/retention.c has the size of a batch.
 */
#define MAX_REMOVAL_BATCHES 200

/* The state of a pass. */
typedef struct Pass
{
	ClerkDeliveryPass shared;	/* shared with delivery_plan.c */
	ClerkDeliveryPlan plan;
	int64		allowance;		/* invitations that may still be claimed */
	MemoryContext batch;		/* reset after each batch */
	HTAB	   *postponed;		/* IDs of rows, for the report */
	TimestampTz last_progress_at;
} Pass;

static void begin_pass(Pass *pass);
static void look_first(Pass *pass);
static void deliver_due_rows(Pass *pass);
static void deliver_rows_with_future_times(Pass *pass);
static void look_for_work(Pass *pass);
static bool look_up_batch(Pass *pass);
static bool send_batch(Pass *pass);
static int	claim(Pass *pass, ClerkBatchEntry *entries, int count);
static void assign_rows(ClerkBatchEntry *entry, const ClerkDueInvitation *due,
						const List *claimed, int *next);
static void stop_without_standby(Pass *pass);
static int	settle(Pass *pass, ClerkBatchEntry *entries, int count);
static bool is_claim_to_follow(const Pass *pass);
static bool affects_all_requests(const ClerkError *error);
static int	apply_changes(Pass *pass, ClerkOutboxChange *changes, int count);
static void count_change(Pass *pass, const ClerkOutboxChange *change);
static void report_progress(Pass *pass);
static void report_set_aside(Pass *pass);
static void remove_old_rows(Pass *pass);
static TimestampTz next_due(Pass *pass);

/*
 * Runs one pass: delivers the rows that are due in the outbox of this schema,
 * then removes rows that clerk_invite.retention no longer keeps.  Claims at
 * most max_invitations rows; lookups do not count.  Fills in the report, whose
 * strings are in the current memory context.
 *
 * Must be called inside a transaction begun by host->begin, and returns inside
 * one.
 *
 * A failed request is not an error: see report->stopped_by.  Raises 42P01 if
 * the schema has no outbox, the errors of clerk_outbox_run(), and 57014 or
 * 57P01 if the session is told to stop; the next sender then verifies the rows
 * that were in flight.
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
		look_first(&pass);
		host->commit();
		deliver_due_rows(&pass);
		deliver_rows_with_future_times(&pass);
		remove_old_rows(&pass);
		host->begin();
		report->next_due = next_due(&pass);
		report_set_aside(&pass);
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

/* Allocates what the pass needs in the current memory context. */
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
	pass->last_progress_at = pass->shared.report->begun_at;
}

/*
 * Finds out what there is to do, and makes rows that a previous sender has left
 * behind due to be looked up.  Most passes have only a few rows to send; these
 * are planned at once, which saves a statement, unless other rows must be
 * looked up before.
 */
static void
look_first(Pass *pass)
{
	ClerkOutboxWork *work = &pass->shared.work;

	if (pass->allowance <= 0 || !clerk_plan_few(&pass->shared, &pass->plan))
		clerk_pass_read_work(&pass->shared);
	if (work->left_behind)
	{
		clerk_outbox_take_over();
		work->look_up_at = work->read_at;
	}
	if (work->look_up_at <= work->read_at)
		clerk_plan_discard(&pass->plan);
}

/*
 * Looks up and sends batches until no row can be processed or the pass must
 * stop.
 */
static void
deliver_due_rows(Pass *pass)
{
	bool		found_rows;

	do
	{
		MemoryContext caller = MemoryContextSwitchTo(pass->batch);

		CHECK_FOR_INTERRUPTS();
		pass->shared.report->limited_until = 0;
		look_for_work(pass);
		found_rows = pass->shared.work.look_up_at <= GetCurrentTimestamp() &&
			look_up_batch(pass);
		MemoryContextReset(pass->batch);
		if (pass->shared.report->stopped_by == NULL && send_batch(pass))
			found_rows = true;
		MemoryContextSwitchTo(caller);
		MemoryContextReset(pass->batch);
		report_progress(pass);
	} while (found_rows && pass->shared.report->stopped_by == NULL &&
			 !pass->shared.report->busy);
}

/*
 * Finds out what there is to do, once the plan is used up or too old.  Rows
 * that the pass itself makes due for a lookup are known before that.
 */
static void
look_for_work(Pass *pass)
{
	if (pass->shared.work_is_current ||
		(clerk_plan_is_usable(&pass->plan) && pass->allowance > 0))
		return;
	pass->shared.host->begin();
	if (clerk_pass_has_lock(&pass->shared))
		clerk_pass_read_work(&pass->shared);
	pass->shared.host->commit();
}

/*
 * Delivers rows that were postponed too far because the wall clock was ahead.
 * Done by the first pass of a process, which cannot know whether the clock was
 * set back before, and by a pass that sees that it was.
 */
static void
deliver_rows_with_future_times(Pass *pass)
{
	int64		corrected;

	if (!clerk_clock_was_set_back())
		return;
	pass->shared.host->begin();
	corrected = clerk_outbox_correct_future_times();
	pass->shared.host->commit();
	if (corrected > 0 && pass->shared.report->stopped_by == NULL)
	{
		pass->shared.work_is_current = false;
		deliver_due_rows(pass);
	}
}

/*
 * LOOK UP: looks up a batch of rows whose outcome is unknown.  Returns false if there
 * are none, if no lookup is allowed now, or if no row changed.
 */
static bool
look_up_batch(Pass *pass)
{
	List	   *rows;
	ClerkBatchEntry *entries;
	ClerkBudget budget;
	TimestampTz next_lookup_at;
	int			left = clerk_lookups_left(&next_lookup_at);
	int			limit = Min(clerk_max_concurrent_requests * REQUESTS_PER_SLOT, left);
	int			count = 0;
	ListCell   *cell;

	pass->shared.host->begin();
	rows = clerk_pass_has_lock(&pass->shared) ?
		clerk_outbox_unverified(Max(limit, 1)) : NIL;
	pass->shared.host->commit();
	pass->shared.work_is_current = false;
	if (rows == NIL)
	{
		pass->shared.work.look_up_at = DT_NOEND;
		return false;
	}
	if (!clerk_pass_may_send(&pass->shared, CLERK_ENDPOINT_LIST, &budget) ||
		limit == 0)
	{
		clerk_pass_note_limit(&pass->shared,
							  Max(budget.available_at, next_lookup_at));
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
	clerk_lookups_note(count);
	clerk_send_batch(entries, count, NULL);

	/*
	 * If other sessions have locked all of these rows, none has changed, and
	 * they would be looked up over and over.
	 */
	return settle(pass, entries, count) > 0;
}

/*
 * Claims, sends and settles the next batch of the plan.  Returns false if
 * nothing can be sent.
 */
static bool
send_batch(Pass *pass)
{
	int			limit = clerk_max_concurrent_requests * REQUESTS_PER_SLOT;
	ClerkBatchEntry *entries = palloc0(limit * sizeof(ClerkBatchEntry));
	ClerkClaimTime claimed;
	int			count;

	if (pass->shared.report->busy || pass->allowance <= 0 ||
		!clerk_plan_prepare(&pass->shared, &pass->plan))
		return false;
	count = clerk_plan_take(&pass->shared, &pass->plan, pass->allowance,
							entries, limit);
	if (count == 0)
		return true;
	claimed = clerk_claim_time_now();
	if (claim(pass, entries, count) > 0)
	{
		/*
		 * A user's trigger may have released the sender's lock during the
		 * claim.
		 */
		if (!clerk_commit_is_safe())
			stop_without_standby(pass);
		else if (clerk_pass_has_lock(&pass->shared))
			clerk_send_batch(entries, count, &claimed);
	}
	settle(pass, entries, count);
	return true;
}

/*
 * Claims the rows that the entries are for, and gives each entry those of its
 * rows that were claimed, if any.  Returns the number of claimed rows.
 */
static int
claim(Pass *pass, ClerkBatchEntry *entries, int count)
{
	const ClerkDueInvitation **due;
	int			due_count = 0;
	int			next = 0;
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
		assign_rows(&entries[i], pass->plan.due, claimed, &next);
	return list_length(claimed);
}

/*
 * Gives an entry those of its rows that were claimed.  They are usually in the
 * order in which they were claimed, so the search for a row begins at *next,
 * after the last one found.
 */
static void
assign_rows(ClerkBatchEntry *entry, const ClerkDueInvitation *due,
			const List *claimed, int *next)
{
	int			count = list_length(claimed);

	for (int i = 0; i < entry->packed.count; i++)
	{
		for (int j = 0; j < count; j++)
		{
			int			candidate = (*next + j) % count;
			ClerkOutboxRow *row = list_nth(claimed, candidate);

			if (row->id != due[entry->packed.members[i]].id)
				continue;
			entry->rows[entry->count++] = row;
			*next = candidate + 1;
			break;
		}
	}
}

/*
 * Stops the pass before anything is sent: the claim may be missing on a
 * synchronous standby, which would send the rows again after a failover.
 */
static void
stop_without_standby(Pass *pass)
{
	ClerkError	error = {0};

	error.class = CLERK_ERROR_TRY_LATER;
	error.sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error.summary = "the wait for a synchronous standby was canceled";
	error.detail = "Invitations are sent only after the standby has received their claim.";
	clerk_pass_stop(&pass->shared, &error);
}

/*
 * Records the results of a batch in the outbox.  Returns the number of rows
 * that were changed or set aside.
 *
 * If a crash of the server loses what was recorded, the next sender looks the
 * rows up, so the commit need not be on disk before the next batch is sent.
 */
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
	pass->shared.work_is_current = false;
	row_count = 0;
	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < entries[i].count; j++)
			changes[row_count + j].row = entries[i].rows[j];
		clerk_batch_entry_outcomes(&entries[i], &changes[row_count], &adopted);
		if (affects_all_requests(entries[i].error))
			clerk_pass_stop(&pass->shared, entries[i].error);
		row_count += entries[i].count;
	}
	applied = apply_changes(pass, changes, row_count);
	if (is_claim_to_follow(pass))
		clerk_commit_does_not_wait();
	pass->shared.host->commit();
	return applied;
}

/*
 * Whether the next transaction is most likely a claim, whose commit waits until
 * this one is on disk, and on the synchronous standbys, too.
 */
static bool
is_claim_to_follow(const Pass *pass)
{
	return clerk_plan_is_usable(&pass->plan) && pass->allowance > 0 &&
		pass->shared.report->stopped_by == NULL;
}

/* Whether every other request would fail for the same reason. */
static bool
affects_all_requests(const ClerkError *error)
{
	return error != NULL &&
		(error->class == CLERK_ERROR_CONFIGURATION ||
		 error->class == CLERK_ERROR_NOT_SENT);
}

/*
 * Writes the changes to the table and counts them for the report.  Returns the
 * number of rows that were changed or set aside.
 */
static int
apply_changes(Pass *pass, ClerkOutboxChange *changes, int count)
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
			applied++;			/* it is no longer due */
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
	else if (strcmp(change->progress.state, CLERK_OUTBOX_VERIFYING) == 0)
		pass->shared.work.look_up_at = Min(pass->shared.work.look_up_at,
										   change->next_attempt_at);
	hash_search(pass->postponed, &change->row->id,
				clerk_is_final(change) ? HASH_REMOVE : HASH_ENTER, NULL);
}

static void
report_progress(Pass *pass)
{
	if (pass->shared.host->progress == NULL ||
		!TimestampDifferenceExceeds(pass->last_progress_at, GetCurrentTimestamp(),
									PROGRESS_INTERVAL))
		return;
	pass->last_progress_at = GetCurrentTimestamp();
	pass->shared.report->postponed = hash_get_num_entries(pass->postponed);
	pass->shared.host->begin();
	pass->shared.host->progress(pass->shared.report, clerk_outbox_count_due(pass->allowance));
	pass->shared.host->commit();
}

/* Reports how many rows are set aside.  Must be called in a transaction. */
static void
report_set_aside(Pass *pass)
{
	MemoryContext caller = MemoryContextSwitchTo(pass->shared.memory);
	ClerkOutboxSetAside all = clerk_outbox_all_set_aside();

	pass->shared.report->set_aside = all.count;
	pass->shared.report->set_aside_reason = all.reason;
	MemoryContextSwitchTo(caller);
}

/*
 * Removes rows that were settled longer ago than clerk_invite.retention.
 * Deliveries that become due meanwhile do not wait for that.
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
	for (int i = 0; i < MAX_REMOVAL_BATCHES && !removal.finished; i++)
	{
		MemoryContext caller = MemoryContextSwitchTo(pass->batch);

		CHECK_FOR_INTERRUPTS();
		pass->shared.host->begin();
		clerk_outbox_remove_batch(&removal);
		pass->shared.host->commit();
		MemoryContextSwitchTo(caller);
		MemoryContextReset(pass->batch);
		if (!removal.finished && pass->shared.report->stopped_by == NULL)
		{
			pass->shared.work_is_current = false;
			deliver_due_rows(pass);
		}
	}
}

/*
 * Returns when the next pass has something to do; infinity if no row is open.
 * Must be called in a transaction.
 */
static TimestampTz
next_due(Pass *pass)
{
	ClerkOutboxWork *work = &pass->shared.work;
	TimestampTz held_until = clerk_outbox_held_until();
	TimestampTz retry_at;

	clerk_pass_read_work(&pass->shared);
	if (!work->left_behind && Min(work->send_at, work->look_up_at) > work->read_at)
		return Min(Min(work->send_at, work->look_up_at), held_until);

	/*
	 * A row is due but was not processed: a rate limit applies, another
	 * session has locked the row, or the pass was stopped.
	 */
	retry_at = pass->shared.report->limited_until != 0 ?
		pass->shared.report->limited_until :
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCKED_ROW_DELAY);
	clerk_outbox_read_work(work->read_at, work);
	return Min(Min(retry_at, held_until), Min(work->send_at, work->look_up_at));
}
