/*
 * set_aside.c
 *		Rows of the outbox whose changes fail, set aside so that the others go
 *		on.
 *
 * What a user has added to the outbox, such as a trigger, a constraint or a
 * unique index, may refuse a sender's change of a row.  Changes are made for
 * many rows at a time, so that one row's error would undo those of all, at each
 * pass again.  Therefore a statement that fails for many rows is run for one
 * after another, and a row for which it fails is set aside: it keeps its state,
 * but for one that may have been sent, which is verifying then; it says in
 * database_error why, and is tried again after a delay that doubles each time.
 * When the reason is gone, the row goes on by itself.
 *
 * Setting it aside fires no trigger of a user's, since a trigger is what has
 * most likely failed.  If that fails, too, as with a constraint on a column
 * that tells of the error, this process remembers the row and leaves it alone
 * for the same time.
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

/* After this, the delay is as long as it gets whatever the settings are. */
#define MOST_DOUBLINGS "30"

/* Rows that a process remembers; a place is reused when its time has come. */
#define HELD_BACK_MAX 1000

/* A row that could not be set aside in the table. */
typedef struct HeldBack
{
	int64		id;				/* the key */
	int			failures;
	int64		until;			/* by clerk_monotonic_microseconds() */
} HeldBack;

static ClerkOutboxStatement set_aside_row = {
	.text = "UPDATE ONLY %1$s AS o SET "
	"state = CASE o.state WHEN 'sending' THEN 'verifying' ELSE o.state END, "
	"consecutive_failures = least(o.consecutive_failures, 1000000) + 1, "
	"database_error = $3, "
	"claimed_at = CASE o.state WHEN 'sending' THEN clock_timestamp() ELSE o.claimed_at END, "
	"next_attempt_at = clock_timestamp() + interval '1 millisecond' * "
	"least($4 * power(2, least(o.consecutive_failures, " MOST_DOUBLINGS ")), $5) "
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

static char *reason_of(const ErrorData *error, const char *secret);
static void hold_back(int64 id);
static void forget_one(void);
static void collect_set_aside(void *result);

/*
 * Runs a statement for all rows at once; if that fails, for each of them, and
 * tells "failed" of those for which it fails again.  Returns the number of rows
 * that it has processed.
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
 * Sets a row aside that is in this state, and tells the log.  "secret" is what
 * must not be told of the row, or NULL: what the server says of an error may
 * quote any value, and its DETAIL the whole row.
 */
void
clerk_outbox_set_aside(int64 id, const char *state, const ErrorData *error,
					   const char *secret)
{
	char	   *reason = reason_of(error, secret);
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
			 errhint("Look for triggers, constraints and indexes that were added to the table.")));
	if (!clerk_outbox_try(&set_aside_row, values, NULL, NULL, &processed, &again) ||
		processed == 0)
		hold_back(id);
}

/*
 * The rows that must be left alone for now, because they could not be set aside
 * in the table: an array of their IDs.
 */
Datum
clerk_outbox_held_back(void)
{
	Datum	   *ids = palloc(HELD_BACK_MAX * sizeof(Datum));
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

/* When the first of them is to be tried again, by our clock; 0: there are none. */
TimestampTz
clerk_outbox_held_until(void)
{
	HASH_SEQ_STATUS sequence;
	HeldBack   *row;
	int64		now = clerk_monotonic_microseconds();
	int64		until = PG_INT64_MAX;

	if (held_back == NULL)
		return 0;
	hash_seq_init(&sequence, held_back);
	while ((row = hash_seq_search(&sequence)) != NULL)
		if (row->until > now)
			until = Min(until, row->until);
	return until == PG_INT64_MAX ? 0 : GetCurrentTimestamp() + until - now;
}

/* How many rows are set aside, and why one of them is; in a transaction. */
ClerkOutboxSetAside
clerk_outbox_all_set_aside(void)
{
	ClerkOutboxSetAside all = {0, NULL};
	ArrayType  *held;

	clerk_outbox_run(&count_set_aside, NULL, NULL, collect_set_aside, &all);
	held = DatumGetArrayTypeP(clerk_outbox_held_back());
	all.count += ArrayGetNItems(ARR_NDIM(held), ARR_DIMS(held));
	if (all.count > 0 && all.reason == NULL)
		all.reason = pstrdup("see the server's log");
	return all;
}

static char *
reason_of(const ErrorData *error, const char *secret)
{
	char	   *reason = psprintf("%s (SQLSTATE %s)", error->message,
								  unpack_sql_state(error->sqlerrcode));
	size_t		length = secret != NULL ? strlen(secret) : 0;

	for (char *found = reason;
		 length > 0 && (found = strstr(found, secret)) != NULL;)
		memset(found, '*', length);
	return reason;
}

/* For as long as it would be set aside. */
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
	row = hash_search(held_back, &id, HASH_FIND, &found);
	if (!found && hash_get_num_entries(held_back) >= HELD_BACK_MAX)
		forget_one();
	row = hash_search(held_back, &id, HASH_ENTER, &found);
	row->failures = found ? row->failures + 1 : 0;
	for (int i = 0; i < row->failures && delay < clerk_retry_delay_max; i++)
		delay *= 2;
	row->until = clerk_monotonic_microseconds() +
		(int64) (Min(delay, clerk_retry_delay_max) * 1000);
}

/* The row whose time comes first: it is tried again a little early. */
static void
forget_one(void)
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
