/*
 * outbox.c
 *		The table clerk_invitation_outbox: the rows that a sender needs.
 *
 * Invariants:
 *
 * 1. A row is sent only after its claim (state "sending") has been
 *	  committed.
 * 2. Only the session that holds the sender's lock changes rows that are
 *	  sending or verifying.  The exception is clerk_abandon_invitation(), which
 *	  leaves sending rows alone while there is a sender.
 * 3. Every change by a sender names the state and the number of attempts
 *	  that it has seen; it does not apply to a row that differs.
 *
 *	  queued ----------> sending			clerk_outbox_claim
 *	  sending ---------> verifying			clerk_outbox_take_over, _settle
 *	  sending ---------> sent, failed, queued	clerk_outbox_settle
 *	  verifying -------> sent, skipped, failed, queued	clerk_outbox_settle
 *	  sending ---------> verifying			clerk_outbox_set_aside
 *	  queued ----------> canceled			user, clerk_cancel_invitation()
 *	  failed ----------> queued				user, clerk_retry_invitation()
 *	  sending, verifying -> failed			clerk_abandon_invitation()
 *	  queued ----------> canceled			clerk_abandon_invitation()
 *
 * outbox/guard.c rejects other changes by users.  What happens to a row after
 * it is sent is in outbox/status_statements.c, and its removal is in
 * outbox/retention.c.
 *
 * A copied row belongs to another database; see outbox/guard.c.  No statement
 * of a sender reads copied rows, and the indexes for senders do not contain
 * them.
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "common/settings.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "outbox/outbox.h"
#include "outbox/set_aside.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/*
 * How far in the future a time may be that was read from the wall clock, which
 * is often corrected by a small amount.
 */
#define CLOCK_TOLERANCE "interval '1 minute'"

/*
 * Excludes rows that this process leaves alone for now; the parameter is an
 * array of ids.
 */
#define NOT_HELD_BACK(parameter) "id <> ALL(" parameter ")"

static ClerkOutboxStatement find_left_behind = {
	.text = "SELECT id FROM ONLY %1$s WHERE state = 'sending' AND NOT copied "
	"AND " NOT_HELD_BACK("$1"),
	.parameters = 1,
	.types = {INT8ARRAYOID},
	.results = {INT8OID}
};

/*
 * Why an earlier request failed says nothing about the last one, and must not
 * decide how its lookups are read.
 */
static ClerkOutboxStatement take_over_rows = {
	.text = "UPDATE ONLY %1$s AS o SET state = 'verifying', next_attempt_at = now(), "
	"claimed_at = clock_timestamp(), consecutive_failures = 0, "
	"http_status = NULL, error_code = NULL, error_message = NULL, trace_id = NULL "
	"FROM unnest($1) AS wanted (id) "
	"CROSS JOIN LATERAL (SELECT seen.id FROM ONLY %1$s AS seen "
	"WHERE seen.id = wanted.id AND seen.state = $2 AND NOT seen.copied "
	"FOR UPDATE SKIP LOCKED) AS left_behind "
	"WHERE o.id = left_behind.id",
	.parameters = 2,
	.types = {INT8ARRAYOID, TEXTOID}
};

/*
 * A send_after that is later than enqueued_at by more than this is taken for a
 * date that the user has chosen, which a wrong clock does not change.
 */
#define USER_DATE_THRESHOLD "interval '1 day'"

/*
 * Corrects times that were stored while the wall clock was ahead.  A row that
 * was enqueued in the future is moved to now, and keeps its delay.  No attempt
 * waits longer than the settings allow ($1, in milliseconds).  A row that was
 * first claimed in the future counts as claimed when it was enqueued, since it
 * cannot have been claimed earlier.
 */
#define CORRECT_FUTURE_TIMES(states, condition) \
	"UPDATE ONLY %1$s AS o SET " \
	"send_after = CASE WHEN o.send_after - o.enqueued_at <= " USER_DATE_THRESHOLD " " \
	"THEN o.send_after - greatest(o.enqueued_at - now(), interval '0') " \
	"ELSE o.send_after END, " \
	"enqueued_at = least(o.enqueued_at, now()), " \
	"claimed_at = least(o.claimed_at, now()), " \
	"first_claimed_at = CASE WHEN o.first_claimed_at > now() " \
	"THEN least(o.enqueued_at, now()) ELSE o.first_claimed_at END, " \
	"next_attempt_at = CASE WHEN o.next_attempt_at > now() + $1 * interval '1 millisecond' " \
	"THEN now() ELSE o.next_attempt_at END " \
	"FROM (SELECT id FROM ONLY %1$s WHERE " states " AND NOT copied " \
	"AND (" condition ") " \
	"FOR UPDATE SKIP LOCKED) AS early " \
	"WHERE o.id = early.id"

#define IS_DELAY_TOO_LONG "next_attempt_at > now() + $1 * interval '1 millisecond'"

static ClerkOutboxStatement correct_queued_rows = {
	.text = CORRECT_FUTURE_TIMES("state = 'queued' AND " CLERK_DUE_AT " > now() + " CLOCK_TOLERANCE,
								 "enqueued_at > now() + " CLOCK_TOLERANCE " OR " IS_DELAY_TOO_LONG),
	.parameters = 1,
	.types = {FLOAT8OID},
	.without_triggers = true
};

static ClerkOutboxStatement correct_unsettled_rows = {
	.text = CORRECT_FUTURE_TIMES("state IN ('sending', 'verifying')",
								 "claimed_at > now() + " CLOCK_TOLERANCE " OR " IS_DELAY_TOO_LONG),
	.parameters = 1,
	.types = {FLOAT8OID},
	.without_triggers = true
};

/* The second parameter of these statements is what is held back. */
#define LEFT_BEHIND \
	"EXISTS (SELECT FROM ONLY %1$s WHERE state = 'sending' " \
	"AND NOT copied AND " NOT_HELD_BACK("$2") ")"

#define FIRST_DUE(state, after) \
	"coalesce((SELECT " CLERK_DUE_AT " FROM ONLY %1$s WHERE state = '" state "' " \
	"AND NOT copied AND " CLERK_DUE_AT " > " after " AND " NOT_HELD_BACK("$2") " " \
	"ORDER BY " CLERK_DUE_AT ", id LIMIT 1), 'infinity')"

static ClerkOutboxStatement read_work = {
	.text = "SELECT " LEFT_BEHIND ", " FIRST_DUE("queued", "$1") ", "
	FIRST_DUE("verifying", "$1"),
	.parameters = 2,
	.types = {TIMESTAMPTZOID, INT8ARRAYOID},
	.results = {BOOLOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
};

/* The last two columns have the same value in each row. */
static ClerkOutboxStatement find_due = {
	.text = "SELECT id, organization_id, email_address, send_alone, " CLERK_DUE_AT ", "
	LEFT_BEHIND ", " FIRST_DUE("verifying", "'-infinity'") " "
	"FROM ONLY %1$s WHERE state = 'queued' AND NOT copied "
	"AND " CLERK_DUE_AT " <= now() AND " NOT_HELD_BACK("$2") " ORDER BY " CLERK_DUE_AT ", id LIMIT $1",
	.parameters = 2,
	.types = {INT4OID, INT8ARRAYOID},
	.results = {INT8OID, TEXTOID, TEXTOID, BOOLOID, TIMESTAMPTZOID, BOOLOID,
	TIMESTAMPTZOID}
};

static ClerkOutboxStatement find_unverified = {
	.text = "SELECT " CLERK_ROW_COLUMNS " FROM ONLY %1$s AS o WHERE state = 'verifying' "
	"AND NOT copied AND " CLERK_DUE_AT " <= now() AND " NOT_HELD_BACK("$2") " "
	"ORDER BY " CLERK_DUE_AT ", id LIMIT $1",
	.parameters = 2,
	.types = {INT4OID, INT8ARRAYOID},
	.results = {CLERK_ROW_TYPES}
};

static ClerkOutboxStatement find_invitation = {
	.text = "SELECT 1 FROM ONLY %1$s WHERE invitation_id = $1",
	.parameters = 1,
	.types = {TEXTOID}
};

static ClerkOutboxStatement count_due_rows = {
	.text = "SELECT least((SELECT count(*) FROM ONLY %1$s WHERE state = 'queued' "
	"AND NOT copied AND " CLERK_DUE_AT " <= now()), $1) + (SELECT count(*) FROM ONLY %1$s "
	"WHERE state = 'verifying' AND NOT copied AND " CLERK_DUE_AT " <= now())",
	.parameters = 1,
	.types = {INT8OID},
	.results = {INT8OID}
};

/* What the rows that are due are collected in. */
typedef struct DueRows
{
	ClerkDueInvitation **due;
	ClerkOutboxWork *work;
} DueRows;

static void collect_work(void *result);
static void fill_take_over_parameters(Datum *values, int first, int count,
									  const void *rows);
static void set_aside_left_behind(int position, const ErrorData *error,
								  const void *rows);
static void collect_ids(void *result);
static void collect_due(void *result);
static void collect_unverified(void *result);
static void collect_number(void *result);

/*
 * Finds out what there is to do, or what there will be after the given time.
 * It is one statement, which a sender runs each time it looks for more to do.
 * Must be called in a transaction.  Raises the errors of clerk_outbox_run().
 */
void
clerk_outbox_read_work(TimestampTz after, ClerkOutboxWork *work)
{
	Datum		values[] = {TimestampTzGetDatum(after), clerk_outbox_held_back()};

	/* The statements that fetch the rows compare with now(), too. */
	work->read_at = GetCurrentTransactionStartTimestamp();
	clerk_outbox_run(&read_work, values, NULL, collect_work, work);
}

static void
collect_work(void *result)
{
	ClerkOutboxWork *work = result;
	HeapTuple	tuple = SPI_tuptable->vals[0];
	TupleDesc	descriptor = SPI_tuptable->tupdesc;
	bool		isnull;

	work->left_behind = DatumGetBool(SPI_getbinval(tuple, descriptor, 1, &isnull));
	work->send_at = DatumGetTimestampTz(SPI_getbinval(tuple, descriptor, 2, &isnull));
	work->look_up_at = DatumGetTimestampTz(SPI_getbinval(tuple, descriptor, 3, &isnull));
}

/*
 * TAKE OVER: takes over the rows that a previous sender left in state "sending": their
 * outcome is unknown, so they become "verifying", and the code of an earlier
 * refusal says nothing about it.  A row whose change fails is set aside.  Must be called in a transaction, by the session that holds the
 * sender's lock.  Raises the errors of clerk_outbox_try().
 */
void
clerk_outbox_take_over(void)
{
	List	   *rows = NIL;
	Datum		values[] = {clerk_outbox_held_back()};
	int64	   *ids;
	int			count = 0;
	ListCell   *cell;

	clerk_outbox_run(&find_left_behind, values, NULL, collect_ids, &rows);
	ids = palloc(list_length(rows) * sizeof(int64));
	foreach(cell, rows)
		ids[count++] = *(int64 *) lfirst(cell);
	clerk_outbox_run_rows(&take_over_rows, count, ids,
						  fill_take_over_parameters, set_aside_left_behind,
						  NULL, NULL);
}

/*
 * Makes rows due that are late because they were stored while the wall clock
 * was ahead.  Returns how many there were.  Must be called in a transaction.
 * A failure that may be due to a row is only logged.
 */
int64
clerk_outbox_correct_future_times(void)
{
	ClerkOutboxStatement *const statements[] = {
		&correct_queued_rows, &correct_unsettled_rows
	};
	Datum		values[1];
	uint64		total = 0;

	/*
	 * Milliseconds.  Jitter makes the longest delay a quarter longer; see
	 * outbox/outcome.c.
	 */
	values[0] = Float8GetDatum(Max(1.25 * clerk_retry_delay_max,
								   (double) clerk_verify_delay) + 60000.0);
	for (int i = 0; i < (int) lengthof(statements); i++)
	{
		uint64		count;
		ErrorData  *error;

		if (!clerk_outbox_try(statements[i], values, NULL, NULL, &count, &error))
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("could not reschedule invitations that were stored while the clock was ahead: %s",
							error->message)));
		total += count;
	}
	if (total > 0)
		ereport(LOG,
				(errmsg("rescheduled %llu invitations that were stored while the clock was ahead",
						(unsigned long long) total)));
	return (int64) total;
}

/*
 * Fetches up to "limit" rows that are due to be sent, oldest first.  *due is
 * an array in the current memory context; normalized_address and overdue are
 * not filled in.  Returns the number of rows.  If there are any, fills in *work
 * as clerk_outbox_read_work() does, which saves a sender that statement.
 * Raises the errors of clerk_outbox_run().
 */
int
clerk_outbox_due(int limit, ClerkDueInvitation **due, ClerkOutboxWork *work)
{
	Datum		values[] = {Int32GetDatum(limit), clerk_outbox_held_back()};
	DueRows		rows = {due, work};

	work->read_at = GetCurrentTransactionStartTimestamp();
	return (int) clerk_outbox_run(&find_due, values, NULL, collect_due, &rows);
}

/*
 * Returns up to "limit" rows, as a list of ClerkOutboxRow, whose outcome is
 * unknown and that are due to be looked up, oldest first.  Raises the errors
 * of clerk_outbox_run().
 */
List *
clerk_outbox_unverified(int limit)
{
	List	   *rows = NIL;
	Datum		values[] = {Int32GetDatum(limit), clerk_outbox_held_back()};

	clerk_outbox_run(&find_unverified, values, NULL, collect_unverified, &rows);
	return rows;
}

/*
 * Returns whether a row of the outbox has this invitation.  Raises the errors
 * of clerk_outbox_run().
 */
bool
clerk_outbox_has_invitation(const char *invitation_id)
{
	Datum		values[] = {CStringGetTextDatum(invitation_id)};

	return clerk_outbox_run(&find_invitation, values, NULL, NULL, NULL) > 0;
}

/*
 * Returns the number of rows that are due now.  Rows that are yet to be sent
 * count up to max_unsent.  Raises the errors of clerk_outbox_run().
 */
int64
clerk_outbox_count_due(int64 max_unsent)
{
	Datum		values[] = {Int64GetDatum(max_unsent)};
	int64		count = 0;

	clerk_outbox_run(&count_due_rows, values, NULL, collect_number, &count);
	return count;
}

/*
 * Whether a prepared transaction may have rows that appear when it is committed:
 * it has kept the lock with which it has written to the table.
 */
bool
clerk_outbox_is_prepared(void)
{
	LockData   *held;

	if (max_prepared_xacts == 0)
		return false;
	held = GetLockStatusData();
	for (int i = 0; i < held->nelements; i++)
	{
		const LockInstanceData *instance = &held->locks[i];

		/* A prepared transaction is in no process. */
		if (instance->pid == 0 &&
			instance->locktag.locktag_type == LOCKTAG_RELATION &&
			instance->locktag.locktag_field1 == MyDatabaseId &&
			instance->locktag.locktag_field2 == clerk_outbox_relation() &&
			(instance->holdMask & LOCKBIT_ON(RowExclusiveLock)) != 0)
			return true;
	}
	return false;
}

static void
fill_take_over_parameters(Datum *values, int first, int count,
						  const void *rows)
{
	const int64 *ids = rows;
	Datum	   *elements = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = Int64GetDatum(ids[first + i]);
	values[0] = clerk_outbox_array(elements, NULL, count, INT8OID);
	values[1] = CStringGetTextDatum(CLERK_OUTBOX_SENDING);
}

static void
set_aside_left_behind(int position, const ErrorData *error, const void *rows)
{
	const int64 *ids = rows;

	clerk_outbox_set_aside(ids[position], CLERK_OUTBOX_SENDING, error, NULL);
}

/* Appends pointers to the ids to a list. */
static void
collect_ids(void *result)
{
	List	  **ids = result;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		int64	   *id = palloc(sizeof(int64));
		bool		isnull;

		*id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										  SPI_tuptable->tupdesc, 1, &isnull));
		*ids = lappend(*ids, id);
	}
}

static void
collect_due(void *result)
{
	DueRows    *rows = result;
	ClerkDueInvitation *due = palloc(SPI_processed * sizeof(ClerkDueInvitation));

	*rows->due = due;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	descriptor = SPI_tuptable->tupdesc;
		bool		isnull;

		due[i].id = DatumGetInt64(SPI_getbinval(tuple, descriptor, 1, &isnull));
		due[i].organization_id = SPI_getvalue(tuple, descriptor, 2);
		due[i].email_address = SPI_getvalue(tuple, descriptor, 3);
		due[i].send_alone = DatumGetBool(SPI_getbinval(tuple, descriptor, 4,
													   &isnull));
		due[i].due_at = DatumGetTimestampTz(SPI_getbinval(tuple, descriptor, 5,
														  &isnull));
		if (i > 0)
			continue;
		rows->work->send_at = due[i].due_at;
		rows->work->left_behind =
			DatumGetBool(SPI_getbinval(tuple, descriptor, 6, &isnull));
		rows->work->look_up_at =
			DatumGetTimestampTz(SPI_getbinval(tuple, descriptor, 7, &isnull));
	}
}

static void
collect_unverified(void *result)
{
	clerk_outbox_collect_rows(result, CLERK_OUTBOX_VERIFYING);
}

static void
collect_number(void *result)
{
	bool		isnull;

	*(int64 *) result = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
													SPI_tuptable->tupdesc,
													1, &isnull));
}
