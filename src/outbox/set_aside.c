/*
 * set_aside.c
 *		Sets aside rows of the outbox whose changes fail, so that the others
 *		are processed.
 *
 * Something that a user has added to the outbox, such as a trigger, a
 * constraint or a unique index, may refuse a sender's change of a row.
 * Changes are made for many rows at a time, so one row's error would undo all
 * of them, again in each pass.  Therefore a statement that fails for several
 * rows is run for each of them, and a row for which it fails again is set
 * aside.  Such a row keeps its state, except that one that may have been sent
 * becomes "verifying".  Its column database_error has the reason, and it is
 * tried again after a delay that doubles each time.  When the reason is gone,
 * the row is processed without further intervention.
 *
 * The statement that sets a row aside fires no user triggers, since a trigger
 * is the most likely reason.  If it fails as well, for example because of a
 * constraint on a column that it changes, this process remembers the row and
 * leaves it alone for the same time.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "outbox/set_aside.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Limits the exponent; with so many doublings any delay exceeds the maximum.
 */
#define MAX_DOUBLINGS "30"

/* Rows that a process remembers at most. */
#define MAX_HELD_BACK 1000

/* A row that could not be set aside in the table. */
typedef struct HeldBack
{
	int64		id;				/* hash key */
	int			failures;
	int64		until;			/* by clerk_monotonic_microseconds() */
} HeldBack;

static ClerkOutboxStatement set_aside_row = {
	.text = "UPDATE ONLY %1$s AS o SET "
	"state = CASE o.state WHEN 'sending' THEN 'verifying' ELSE o.state END, "
	"error_code = CASE o.state WHEN 'sending' THEN NULL ELSE o.error_code END, "
	"consecutive_failures = least(o.consecutive_failures, 1000000) + 1, "
	"database_error = $3, "
	"claimed_at = CASE o.state WHEN 'sending' THEN clock_timestamp() ELSE o.claimed_at END, "
	"next_attempt_at = clock_timestamp() + interval '1 millisecond' * "
	"least($4 * power(2, least(o.consecutive_failures, " MAX_DOUBLINGS ")), $5) "
	"FROM (SELECT id FROM ONLY %1$s WHERE id = $1 AND state = $2 "
	"FOR UPDATE SKIP LOCKED) AS free WHERE o.id = free.id",
	.parameters = 5,
	.types = {INT8OID, TEXTOID, TEXTOID, FLOAT8OID, FLOAT8OID},
	.without_triggers = true
};

static ClerkOutboxStatement count_set_aside = {
	.text = "SELECT count(*), min(database_error) FROM ONLY %1$s "
	"WHERE database_error IS NOT NULL "
	"AND state IN ('queued', 'sending', 'verifying') AND NOT copied",
	.results = {INT8OID, TEXTOID}
};

static HTAB * held_back = NULL;

static char *format_reason(const ErrorData *error, const char *secret);
static void hold_back(int64 id);
static void evict_next_due(void);
static void collect_set_aside(void *result);

/*
 * Runs a statement for all rows at once; if that fails, runs it for each row,
 * and calls "failed" for those for which it fails again.  "fill" supplies the
 * parameters, and "collect", which may be NULL, copies the results to
 * "result".  Returns the number of processed rows.  Must be called in a
 * transaction.  Raises the errors of clerk_outbox_try().
 */
uint64
clerk_outbox_run_rows(ClerkOutboxStatement *statement, int count,
					  const void *rows, ClerkOutboxFill fill,
					  ClerkOutboxFailed failed, ClerkOutboxCollect collect,
					  void *result)
{
	Datum		values[CLERK_OUTBOX_PARAMETERS];
	uint64		processed = 0;
	ErrorData  *error;

	if (count == 0)
		return 0;
	fill(values, 0, count, rows);
	if (clerk_outbox_try(statement, values, collect, result, &processed, &error))
		return processed;
	if (count == 1)
	{
		failed(0, error, rows);
		return 0;
	}
	for (int i = 0; i < count; i++)
	{
		uint64		one;

		fill(values, i, 1, rows);
		if (clerk_outbox_try(statement, values, collect, result, &one, &error))
			processed += one;
		else
			failed(i, error, rows);
	}
	return processed;
}

/*
 * Sets a row in this state aside, because of this error, and logs that.
 * "secret" is a text that must not appear in the reason, or NULL: the server's
 * message may quote any value of the row.  The error's DETAIL, which may quote
 * the whole row, is left out.  Must be called in a transaction.  Raises the
 * errors of clerk_outbox_try().
 */
void
clerk_outbox_set_aside(int64 id, const char *state, const ErrorData *error,
					   const char *secret)
{
	char	   *reason = format_reason(error, secret);
	Datum		values[5];
	uint64		processed;
	ErrorData  *again;

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(state);
	values[2] = CStringGetTextDatum(reason);
	values[3] = Float8GetDatum((float8) clerk_retry_delay);
	values[4] = Float8GetDatum((float8) clerk_retry_delay_max);
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("invitation %lld of the outbox is set aside: %s",
					(long long) id, reason),
			 errhint("Check for triggers, constraints, and indexes that were added to the table.")));
	if (!clerk_outbox_try(&set_aside_row, values, NULL, NULL, &processed, &again) ||
		processed == 0)
		hold_back(id);
}

/*
 * Returns an array of the ids of the rows that must be left alone for now and
 * could not be set aside in the table.
 */
Datum
clerk_outbox_held_back(void)
{
	Datum	   *ids = palloc(MAX_HELD_BACK * sizeof(Datum));
	int			count = 0;
	int64		now = clerk_monotonic_microseconds();

	if (held_back != NULL)
	{
		HASH_SEQ_STATUS sequence;
		HeldBack   *row;

		hash_seq_init(&sequence, held_back);
		while ((row = hash_seq_search(&sequence)) != NULL)
			if (row->until > now)
				ids[count++] = Int64GetDatum(row->id);
	}
	return clerk_outbox_array(ids, NULL, count, INT8OID);
}

/*
 * Returns when the first of these rows is to be tried again, by the wall
 * clock; infinity if there are none.
 */
TimestampTz
clerk_outbox_held_until(void)
{
	HASH_SEQ_STATUS sequence;
	HeldBack   *row;
	int64		now = clerk_monotonic_microseconds();
	int64		until = PG_INT64_MAX;

	if (held_back == NULL)
		return DT_NOEND;
	hash_seq_init(&sequence, held_back);
	while ((row = hash_seq_search(&sequence)) != NULL)
		if (row->until > now)
			until = Min(until, row->until);
	return until == PG_INT64_MAX ? DT_NOEND : GetCurrentTimestamp() + until - now;
}

/*
 * Returns how many rows are set aside, in the table or by this process, and
 * the reason of one of them, in the current memory context.  Must be called in
 * a transaction.  Raises the errors of clerk_outbox_run().
 */
ClerkOutboxSetAside
clerk_outbox_all_set_aside(void)
{
	ClerkOutboxSetAside all = {0, NULL};
	ArrayType  *held;

	clerk_outbox_run(&count_set_aside, NULL, NULL, collect_set_aside, &all);
	held = DatumGetArrayTypeP(clerk_outbox_held_back());
	all.count += ArrayGetNItems(ARR_NDIM(held), ARR_DIMS(held));
	if (all.count > 0 && all.reason == NULL)
		all.reason = pstrdup("see the server log");
	return all;
}

/*
 * Formats the error for the log and for database_error, with "secret" replaced
 * by asterisks.
 */
static char *
format_reason(const ErrorData *error, const char *secret)
{
	char	   *reason = psprintf("%s (SQLSTATE %s)", error->message,
								  unpack_sql_state(error->sqlerrcode));
	size_t		length = secret != NULL ? strlen(secret) : 0;

	for (char *found = reason;
		 length > 0 && (found = strstr(found, secret)) != NULL;)
		memset(found, '*', length);
	return reason;
}

/* Remembers a row for as long as it would have been set aside. */
static void
hold_back(int64 id)
{
	HeldBack   *row;
	bool		found;
	double		delay = clerk_retry_delay;

	if (held_back == NULL)
	{
		HASHCTL		control = {
			.keysize = sizeof(int64),.entrysize = sizeof(HeldBack),
			.hcxt = TopMemoryContext
		};

		held_back = hash_create("clerk_invite rows held back", 16, &control,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	hash_search(held_back, &id, HASH_FIND, &found);
	if (!found && hash_get_num_entries(held_back) >= MAX_HELD_BACK)
		evict_next_due();
	row = hash_search(held_back, &id, HASH_ENTER, &found);
	row->failures = found ? row->failures + 1 : 0;
	for (int i = 0; i < row->failures && delay < clerk_retry_delay_max; i++)
		delay *= 2;
	row->until = clerk_monotonic_microseconds() +
		(int64) (Min(delay, clerk_retry_delay_max) * 1000);
}

/*
 * Makes room: forgets the row that is due first, which is then tried somewhat
 * early.
 */
static void
evict_next_due(void)
{
	HASH_SEQ_STATUS sequence;
	HeldBack   *row;
	int64		until = PG_INT64_MAX;
	int64		id = 0;

	hash_seq_init(&sequence, held_back);
	while ((row = hash_seq_search(&sequence)) != NULL)
	{
		if (row->until >= until)
			continue;
		until = row->until;
		id = row->id;
	}
	hash_search(held_back, &id, HASH_REMOVE, NULL);
}

static void
collect_set_aside(void *result)
{
	ClerkOutboxSetAside *all = result;
	HeapTuple	tuple = SPI_tuptable->vals[0];
	bool		isnull;

	all->count = DatumGetInt64(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1,
											 &isnull));
	all->reason = SPI_getvalue(tuple, SPI_tuptable->tupdesc, 2);
}
