/*
 * retention.c
 *		Removes rows of the outbox that were settled long ago.
 *
 * Rows go in the order in which they were settled, many at a time.  One may
 * have to stay: another table refers to it by a foreign key, or a user's
 * trigger refuses.  Then fewer are tried at a time, down to one, which is
 * passed over; after a success the number grows again.  So a row that has to
 * stay costs a few statements that fail, and keeps no other one.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "compat.h"
#include "outbox/outbox_statement.h"
#include "outbox/retention.h"
#include "utils/timestamp.h"

/* Rows that a transaction removes at most, and what failures divide that by. */
#define MOST_AT_A_TIME 10000
#define STEP 10

/*
 * Rows that a removal passes over before it ends, so that a table that refers
 * to all of them costs each removal some 100 ms and no more.
 */
#define MOST_REFUSED 100

/* Where the next removal goes on that follows one which ended like that. */
static struct
{
	TimestampTz settled_at;
	int64		id;
}			passed_over = {DT_NOBEGIN, 0};

/* The parameters say before when they were settled, after which one, how many. */
#define OLD_ROWS \
	"FROM ONLY %1$s WHERE state IN ('sent', 'skipped', 'failed', 'canceled') " \
	"AND NOT copied AND settled_at < $1 AND (settled_at, id) > ($2, $3) " \
	"ORDER BY settled_at, id LIMIT $4"

static ClerkOutboxStatement find_last_row = {
	.text = "SELECT settled_at, id FROM (SELECT settled_at, id " OLD_ROWS ") AS old "
	"ORDER BY settled_at DESC, id DESC LIMIT 1",
	.parameters = 4,
	.types = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT4OID},
	.results = {TIMESTAMPTZOID, INT8OID}
};

static ClerkOutboxStatement remove_rows = {
	.text = "DELETE FROM ONLY %1$s AS o USING (SELECT id FROM ONLY %1$s "
	"WHERE state IN ('sent', 'skipped', 'failed', 'canceled') "
	"AND NOT copied AND settled_at < $1 AND (settled_at, id) > ($2, $3) "
	"AND (settled_at, id) <= ($4, $5) "
	"ORDER BY settled_at, id FOR UPDATE SKIP LOCKED) AS old "
	"WHERE o.id = old.id",
	.parameters = 5,
	.types = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID}
};

/* A row's place in the order. */
typedef struct Place
{
	TimestampTz settled_at;
	int64		id;
} Place;

static void jump(ClerkOutboxRemoval *removal);
static void collect_place(void *result);
static void note_refusal(ClerkOutboxRemoval *removal, const ErrorData *error);

/* Prepares the removal of what was settled before this time. */
void
clerk_outbox_begin_removal(ClerkOutboxRemoval *removal,
						   TimestampTz settled_before)
{
	removal->settled_before = settled_before;
	removal->settled_at = passed_over.settled_at;
	removal->id = passed_over.id;
	removal->at_a_time = MOST_AT_A_TIME;
	removal->refused = 0;
	removal->jumped = false;
	removal->over = false;
}

/*
 * Removes the next rows, in a transaction of the caller's, and notes when there
 * are no more.  Those that somebody has locked stay: nobody may keep a sender
 * waiting.
 */
void
clerk_outbox_remove_some(ClerkOutboxRemoval *removal)
{
	Place		last = {0, 0};
	Datum		values[5];
	uint64		removed;
	ErrorData  *error;

	values[0] = TimestampTzGetDatum(removal->settled_before);
	values[1] = TimestampTzGetDatum(removal->settled_at);
	values[2] = Int64GetDatum(removal->id);
	values[3] = Int32GetDatum(removal->at_a_time);
	if (clerk_outbox_run(&find_last_row, values, NULL, collect_place, &last) == 0)
	{
		removal->over = true;
		if (!removal->jumped)
		{
			passed_over.settled_at = DT_NOBEGIN;
			passed_over.id = 0;
		}
		return;
	}
	values[3] = TimestampTzGetDatum(last.settled_at);
	values[4] = Int64GetDatum(last.id);
	if (clerk_outbox_try(&remove_rows, values, NULL, NULL, &removed, &error))
		removal->at_a_time = Min(removal->at_a_time * STEP, MOST_AT_A_TIME);
	else if (removal->at_a_time > 1)
	{
		removal->at_a_time /= STEP;
		return;
	}
	else
		note_refusal(removal, error);
	removal->settled_at = last.settled_at;
	removal->id = last.id;
	if (removal->refused >= MOST_REFUSED)
		jump(removal);
}

/*
 * Goes on somewhere among the younger rows, since these may be able to go, and a
 * process that makes one removal only would never come to them.  The next
 * removal of this process goes on here.
 */
static void
jump(ClerkOutboxRemoval *removal)
{
	if (removal->jumped)
	{
		removal->over = true;
		return;
	}
	removal->jumped = true;
	passed_over.settled_at = removal->settled_at;
	passed_over.id = removal->id;
	removal->refused = 0;
	removal->at_a_time = MOST_AT_A_TIME;
	removal->settled_at += (TimestampTz)
		(clerk_random_fraction() * (removal->settled_before - removal->settled_at));
	removal->id = 0;
}

/*
 * The log has the first one of a removal, and not what the server says of it,
 * which may have the whole row, its url included.
 */
static void
note_refusal(ClerkOutboxRemoval *removal, const ErrorData *error)
{
	if (removal->refused++ == 0)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("could not remove a row of the outbox that was settled long ago: SQLSTATE %s",
						unpack_sql_state(error->sqlerrcode)),
				 errhint("Such rows are passed over. Look for foreign keys to the table, and triggers on it.")));
}

static void
collect_place(void *result)
{
	Place	   *place = result;
	bool		isnull;

	if (SPI_processed == 0)
		return;
	place->settled_at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0],
														  SPI_tuptable->tupdesc,
														  1, &isnull));
	place->id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											SPI_tuptable->tupdesc, 2, &isnull));
}
