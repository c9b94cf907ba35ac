/*
 * outbox.c
 *		The table clerk_invitation_outbox: all SQL on it that sending needs.
 *
 * Invariants:
 *
 * 1. A row is sent only after its claim (state "sending") is committed.
 * 2. Only the session that holds the sender's lock changes rows that are
 *	  sending or verifying.
 * 3. Every change by a sender names the state and the number of attempts that
 *	  it has seen; a row that differs is left alone.
 *
 *	  queued ----------> sending			clerk_outbox_claim
 *	  sending ---------> verifying			clerk_outbox_take_over, _settle
 *	  sending ---------> sent, failed, queued	clerk_outbox_settle
 *	  verifying -------> sent, skipped, failed, queued	clerk_outbox_settle
 *	  queued ----------> canceled			by hand, clerk_cancel_invitation()
 *	  failed ----------> queued				by hand, clerk_retry_invitation()
 *
 * (outbox_guard.c refuses other changes by hand, and outbox_status.c has what
 * happens to a row after it is sent.)
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "commands/async.h"
#include "executor/spi.h"
#include "guc.h"
#include "miscadmin.h"
#include "outbox.h"
#include "outbox_statement.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/*
 * Key of the sender's lock beside the table's OID.  Advisory locks taken with
 * SQL functions have 1 or 2 there (lockfuncs.c), so these are never the same.
 */
#define SENDER_LOCK_SPACE 0x434C	/* "CL" */

/* Columns of a row as its sender sees it, in the order of read_row(). */
#define ROW_COLUMNS \
	"o.id, o.attempts, o.organization_id, o.inviter_user_id, o.email_address, " \
	"o.role, o.redirect_url, o.public_metadata, o.private_metadata, " \
	"o.expires_in_days, o.notify, o.first_claimed_at, o.claimed_at, " \
	"o.http_status, o.error_code, o.error_message, o.trace_id, o.send_alone"

/* When a row is due; the index clerk_invitation_outbox_due has the same. */
#define DUE_AT "coalesce(next_attempt_at, send_after)"

/* Rows that a removal takes at a time. */
#define REMOVED_AT_A_TIME "10000"

static ClerkOutboxStatement take_over_rows = {
	.text = "UPDATE %1$s AS o SET state = 'verifying', next_attempt_at = now() "
	"FROM (SELECT id FROM %1$s WHERE state = 'sending' "
	"FOR UPDATE SKIP LOCKED) AS left_behind "
	"WHERE o.id = left_behind.id"
};

static ClerkOutboxStatement find_due = {
	.text = "SELECT id, organization_id, email_address, send_alone, " DUE_AT " "
	"FROM %1$s WHERE state = 'queued' AND " DUE_AT " <= now() "
	"ORDER BY " DUE_AT ", id LIMIT $1",
	.parameters = 1,
	.types = {INT4OID}
};

static ClerkOutboxStatement claim_rows = {
	.text = "UPDATE %1$s AS o "
	"SET state = 'sending', attempts = o.attempts + 1, "
	"claimed_at = due.at, "
	"first_claimed_at = coalesce(o.first_claimed_at, due.at) "
	"FROM (SELECT seen.id, clock_timestamp() AS at "
	"FROM unnest($1, $2, $3) AS planned (id, organization_id, email_address) "
	"JOIN %1$s AS seen ON seen.id = planned.id "
	"AND seen.organization_id = planned.organization_id "
	"AND seen.email_address = planned.email_address "
	"WHERE seen.state = $4 AND " DUE_AT " <= now() "
	"FOR UPDATE OF seen SKIP LOCKED) AS due "
	"WHERE o.id = due.id "
	"RETURNING " ROW_COLUMNS,
	.parameters = 4,
	.types = {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID}
};

static ClerkOutboxStatement find_unverified = {
	.text = "SELECT " ROW_COLUMNS " FROM %1$s AS o WHERE state = 'verifying' "
	"AND " DUE_AT " <= now() ORDER BY " DUE_AT ", id LIMIT $1",
	.parameters = 1,
	.types = {INT4OID}
};

static ClerkOutboxStatement find_invitation = {
	.text = "SELECT 1 FROM %1$s WHERE invitation_id = $1",
	.parameters = 1,
	.types = {TEXTOID}
};

static ClerkOutboxStatement settle_rows = {
	.text = "UPDATE %1$s AS o SET state = c.state, attempts = c.attempts, "
	"next_attempt_at = c.next_attempt_at, "
	"first_claimed_at = CASE WHEN c.attempts > 0 THEN o.first_claimed_at END, "
	"settled_at = CASE WHEN c.state IN ('sent', 'skipped', 'failed') "
	"THEN clock_timestamp() END, "
	"invitation_id = c.invitation_id, status = c.status, url = c.url, "
	"expires_at = c.expires_at, http_status = c.http_status, "
	"error_code = c.error_code, error_message = c.error_message, "
	"trace_id = c.trace_id, send_alone = c.send_alone "
	"FROM (SELECT c.* FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, "
	"$11, $12, $13, $14, $15) AS c (id, seen_attempts, seen_state, state, "
	"attempts, next_attempt_at, invitation_id, status, url, expires_at, "
	"http_status, error_code, error_message, trace_id, send_alone) "
	"JOIN %1$s AS seen ON seen.id = c.id "
	"AND seen.attempts = c.seen_attempts AND seen.state = c.seen_state "
	"FOR UPDATE OF seen SKIP LOCKED) AS c "
	"WHERE o.id = c.id "
	"RETURNING o.id",
	.parameters = 15,
	.types = {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		INT4ARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID, TEXTARRAYOID,
	TEXTARRAYOID, TEXTARRAYOID, BOOLARRAYOID}
};

static ClerkOutboxStatement find_next_due = {
	.text = "SELECT least((SELECT now() FROM %1$s WHERE state = 'sending' "
	"AND now() > $1 LIMIT 1), "
	"(SELECT " DUE_AT " FROM %1$s WHERE state = 'queued' "
	"AND " DUE_AT " > $1 ORDER BY " DUE_AT ", id LIMIT 1), "
	"(SELECT " DUE_AT " FROM %1$s WHERE state = 'verifying' "
	"AND " DUE_AT " > $1 ORDER BY " DUE_AT ", id LIMIT 1))",
	.parameters = 1,
	.types = {TIMESTAMPTZOID}
};

static ClerkOutboxStatement count_due_rows = {
	.text = "SELECT least((SELECT count(*) FROM %1$s WHERE state = 'queued' "
	"AND " DUE_AT " <= now()), $1) + (SELECT count(*) FROM %1$s "
	"WHERE state = 'verifying' AND " DUE_AT " <= now())",
	.parameters = 1,
	.types = {INT8OID}
};

static ClerkOutboxStatement remove_older_rows = {
	.text = "DELETE FROM %1$s AS o USING (SELECT id FROM %1$s "
	"WHERE state IN ('sent', 'skipped', 'failed', 'canceled') "
	"AND settled_at < $1 ORDER BY settled_at LIMIT " REMOVED_AT_A_TIME " "
	"FOR UPDATE SKIP LOCKED) AS old "
	"WHERE o.id = old.id",
	.parameters = 1,
	.types = {TIMESTAMPTZOID}
};

/* The parameters of settle_rows while they are being filled. */
typedef struct SettleArrays
{
	Datum	   *elements[CLERK_OUTBOX_PARAMETERS];
	bool	   *nulls[CLERK_OUTBOX_PARAMETERS];
} SettleArrays;

typedef struct SettledRows
{
	ClerkOutboxChange *changes;
	int			count;
} SettledRows;

static LOCKTAG sender_lock(void);
static void fill_settle_arrays(SettleArrays *arrays,
							   const ClerkOutboxChange *change, int position);
static void collect_due(void *result);
static void collect_claimed(void *result);
static void collect_unverified(void *result);
static void collect_rows(List **rows, const char *state);
static void collect_settled(void *result);
static void collect_number(void *result);
static ClerkOutboxRow *read_row(HeapTuple tuple, TupleDesc descriptor);

/*
 * Makes this session the database's one sender; false if another one is.  The
 * lock outlives transactions: clerk_outbox_unlock() or the session's end
 * releases it.
 */
bool
clerk_outbox_lock(void)
{
	LOCKTAG		tag = sender_lock();

	return LockAcquire(&tag, ExclusiveLock, true, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

void
clerk_outbox_unlock(void)
{
	LOCKTAG		tag = sender_lock();

	LockRelease(&tag, ExclusiveLock, true);
}

/* Rows that a former sender left in the middle: their outcome is unknown. */
void
clerk_outbox_take_over(void)
{
	clerk_outbox_run(&take_over_rows, NULL, NULL, NULL);
}

/* Stores the rows that are due, oldest first; returns how many there are. */
int
clerk_outbox_due(int limit, ClerkOutboxDue **due)
{
	Datum		values[] = {Int32GetDatum(limit)};

	*due = palloc(limit * sizeof(ClerkOutboxDue));
	return (int) clerk_outbox_run(&find_due, values, collect_due, *due);
}

/*
 * Claims those of some rows that still are due: a list of ClerkOutboxRow, in
 * no order, which must not be sent before the transaction has committed.  A
 * queued row may be changed by hand: one whose organization or address is not
 * what it was does not fit the request that it was meant for, and stays queued.
 */
List *
clerk_outbox_claim(const ClerkOutboxDue *const *due, int count)
{
	List	   *rows = NIL;
	Datum	   *ids = palloc(count * sizeof(Datum));
	Datum	   *organization_ids = palloc(count * sizeof(Datum));
	Datum	   *addresses = palloc(count * sizeof(Datum));
	Datum		values[4];

	for (int i = 0; i < count; i++)
	{
		ids[i] = Int64GetDatum(due[i]->id);
		organization_ids[i] = CStringGetTextDatum(due[i]->organization_id);
		addresses[i] = CStringGetTextDatum(due[i]->email_address);
	}
	values[0] = clerk_outbox_array(ids, NULL, count, INT8OID);
	values[1] = clerk_outbox_array(organization_ids, NULL, count, TEXTOID);
	values[2] = clerk_outbox_array(addresses, NULL, count, TEXTOID);
	values[3] = CStringGetTextDatum(CLERK_OUTBOX_QUEUED);

	/* A claim that a crash could lose would be no claim. */
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", "on",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	clerk_outbox_run(&claim_rows, values, collect_claimed, &rows);
	return rows;
}

/* Rows whose outcome is unknown and that are due to be looked up. */
List *
clerk_outbox_unverified(int limit)
{
	List	   *rows = NIL;
	Datum		values[] = {Int32GetDatum(limit)};

	clerk_outbox_run(&find_unverified, values, collect_unverified, &rows);
	return rows;
}

/* Whether a row has this invitation. */
bool
clerk_outbox_has_invitation(const char *invitation_id)
{
	Datum		values[] = {CStringGetTextDatum(invitation_id)};

	return clerk_outbox_run(&find_invitation, values, NULL, NULL) > 0;
}

/*
 * Changes rows, and tells for each change whether it was applied: it is not if
 * the row is no longer as its sender has seen it, or if somebody holds a lock
 * on it.  Nobody may keep a sender waiting, and the next one finds the row as
 * it is.  A row that has no attempt left behind it has not been sent yet: what
 * came before its next claim is not its own.
 */
void
clerk_outbox_settle(ClerkOutboxChange *changes, int count)
{
	SettleArrays *arrays = palloc(sizeof(SettleArrays));
	Datum		values[CLERK_OUTBOX_PARAMETERS];
	SettledRows settled = {changes, count};

	for (int i = 0; i < CLERK_OUTBOX_PARAMETERS; i++)
	{
		arrays->elements[i] = palloc(count * sizeof(Datum));
		arrays->nulls[i] = palloc0(count * sizeof(bool));
	}
	for (int i = 0; i < count; i++)
	{
		changes[i].applied = false;
		fill_settle_arrays(arrays, &changes[i], i);
	}
	for (int i = 0; i < CLERK_OUTBOX_PARAMETERS; i++)
		values[i] = clerk_outbox_array(arrays->elements[i], arrays->nulls[i], count,
									   get_element_type(settle_rows.types[i]));
	clerk_outbox_run(&settle_rows, values, collect_settled, &settled);
	for (int i = 0; i < count; i++)
		if (changes[i].applied)
			clerk_outbox_announce(changes[i].row->id, changes[i].state);
}

/* Tells who listens that a row has reached a final state. */
void
clerk_outbox_announce(int64 id, const char *state)
{
	char		payload[64];

	if (clerk_notify_channel[0] == '\0' ||
		strcmp(state, CLERK_OUTBOX_QUEUED) == 0 ||
		strcmp(state, CLERK_OUTBOX_VERIFYING) == 0)
		return;
	snprintf(payload, sizeof(payload), "%lld %s", (long long) id, state);
	Async_Notify(clerk_notify_channel, payload);
}

/* One element of each of the statement's parameters. */
static void
fill_settle_arrays(SettleArrays *arrays, const ClerkOutboxChange *change,
				   int position)
{
	int			parameter = 0;

#define ADD(is_null, datum) \
	(arrays->nulls[parameter][position] = (is_null), \
	 arrays->elements[parameter++][position] = (is_null) ? (Datum) 0 : (datum))
#define ADD_TEXT(string) ADD((string) == NULL, CStringGetTextDatum(string))

	ADD(false, Int64GetDatum(change->row->id));
	ADD(false, Int32GetDatum(change->row->attempts));
	ADD_TEXT(change->row->state);
	ADD_TEXT(change->state);
	ADD(false, Int32GetDatum(change->attempts));
	ADD(change->next_attempt_at == 0,
		TimestampTzGetDatum(change->next_attempt_at));
	ADD_TEXT(change->invitation_id);
	ADD_TEXT(change->status);
	ADD_TEXT(change->url);
	ADD(change->expires_at == 0, TimestampTzGetDatum(change->expires_at));
	ADD(change->http_status == 0, Int32GetDatum(change->http_status));
	ADD_TEXT(change->error_code);
	ADD_TEXT(change->error_message);
	ADD_TEXT(change->trace_id);
	ADD(false, BoolGetDatum(change->send_alone));
	Assert(parameter == CLERK_OUTBOX_PARAMETERS);

#undef ADD
#undef ADD_TEXT
}

/*
 * The earliest time after the given one at which a row is due; 0 if there is
 * none.  One that is sending, and was left so by its sender, is due now.
 */
TimestampTz
clerk_outbox_next_due(TimestampTz after)
{
	Datum		values[] = {TimestampTzGetDatum(after)};
	int64		due_at = 0;

	clerk_outbox_run(&find_next_due, values, collect_number, &due_at);
	return (TimestampTz) due_at;
}

/* How many rows are due now, of which at most so many are yet to be sent. */
int64
clerk_outbox_count_due(int64 most_unsent)
{
	Datum		values[] = {Int64GetDatum(most_unsent)};
	int64		count = 0;

	clerk_outbox_run(&count_due_rows, values, collect_number, &count);
	return count;
}

/*
 * Removes some of the rows that were settled before this time; returns how
 * many.  Those that somebody has locked stay: nobody may keep a sender waiting.
 */
int
clerk_outbox_remove_older(TimestampTz settled_before)
{
	Datum		values[] = {TimestampTzGetDatum(settled_before)};

	return (int) clerk_outbox_run(&remove_older_rows, values, NULL, NULL);
}

static LOCKTAG
sender_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, clerk_outbox_relation(), 0,
						 SENDER_LOCK_SPACE);
	return tag;
}

static void
collect_due(void *result)
{
	ClerkOutboxDue *due = result;

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
	}
}

static void
collect_claimed(void *result)
{
	collect_rows(result, CLERK_OUTBOX_SENDING);
}

static void
collect_unverified(void *result)
{
	collect_rows(result, CLERK_OUTBOX_VERIFYING);
}

static void
collect_rows(List **rows, const char *state)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ClerkOutboxRow *row = read_row(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc);

		row->state = state;
		*rows = lappend(*rows, row);
	}
}

/* The statement tells which rows it has changed, in any order. */
static void
collect_settled(void *result)
{
	SettledRows *settled = result;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc,
													 1, &isnull));

		for (int j = 0; j < settled->count; j++)
			if (settled->changes[j].row->id == id)
				settled->changes[j].applied = true;
	}
}

/* A number, or a time; it stays as it is if the statement gave null. */
static void
collect_number(void *result)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull);

	if (!isnull)
		*(int64 *) result = DatumGetInt64(value);
}

/* Columns are in the order of ROW_COLUMNS. */
static ClerkOutboxRow *
read_row(HeapTuple tuple, TupleDesc descriptor)
{
	ClerkOutboxRow *row = palloc0(sizeof(ClerkOutboxRow));
	int			column = 0;
	bool		isnull;
	Datum		value;

#define NEXT() (value = SPI_getbinval(tuple, descriptor, ++column, &isnull))
#define NEXT_TEXT() (NEXT(), isnull ? NULL : TextDatumGetCString(value))
#define NEXT_JSONB() (NEXT(), isnull ? NULL : DatumGetJsonbPCopy(value))

	row->id = DatumGetInt64(NEXT());
	row->attempts = DatumGetInt32(NEXT());
	row->organization_id = NEXT_TEXT();
	row->inviter_user_id = NEXT_TEXT();
	row->email_address = NEXT_TEXT();
	row->role = NEXT_TEXT();
	row->redirect_url = NEXT_TEXT();
	row->public_metadata = NEXT_JSONB();
	row->private_metadata = NEXT_JSONB();
	NEXT();
	row->expires_in_days = isnull ? 0 : DatumGetInt32(value);
	NEXT();
	if (!isnull)
	{
		row->notify = palloc(sizeof(bool));
		*row->notify = DatumGetBool(value);
	}
	NEXT();
	row->first_claimed_at = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->claimed_at = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->http_status = isnull ? 0 : DatumGetInt32(value);
	row->error_code = NEXT_TEXT();
	row->error_message = NEXT_TEXT();
	row->trace_id = NEXT_TEXT();
	row->send_alone = DatumGetBool(NEXT());
	return row;
}
