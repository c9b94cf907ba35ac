/*
 * retention.c
 *		Removes rows of the outbox that were settled long ago.
 *
 * Rows are removed in batches, in the order in which they were settled.  The
 * database may refuse to remove a row: another table refers to it by a foreign
 * key, or a user's trigger raises an error.  Then smaller batches are tried,
 * down to a single row, which is skipped; after a success the batches grow
 * again.  So a row that cannot be removed costs a few statements that fail,
 * and does not keep others from being removed.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "compat.h"
#include "outbox/outbox_statement.h"
#include "outbox/retention.h"
#include "utils/timestamp.h"

/*
 * Rows that a transaction removes at most, and the factor by which a failure
 * reduces that number and a success increases it.
 */
#define MAX_BATCH_SIZE 10000
#define BATCH_SIZE_FACTOR 10

/*
 * Rows that a removal skips one by one before it skips ahead, and again before
 * it ends, so that a table that refers to all rows costs each removal no more
 * than about 100 ms.
 */
#define MAX_REFUSED 100

/* Where this process's next removal begins, after one that skipped ahead. */
static struct
{
	TimestampTz settled_at;
	int64		id;
}			resume_after = {DT_NOBEGIN, 0};

/*
 * Parameters: settled before this time ($1), after this position ($2, $3), at
 * most so many rows ($4).
 */
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

/* A row's position in the order of removal. */
typedef struct RowPosition
{
	TimestampTz settled_at;
	int64		id;
} RowPosition;

static void skip_ahead(ClerkOutboxRemoval *removal);
static void collect_position(void *result);
static void note_refusal(ClerkOutboxRemoval *removal, const ErrorData *error);

/*
 * Prepares the removal of the rows that were settled before this time,
 * beginning where the last removal of this process skipped ahead.
 */
void
clerk_outbox_begin_removal(ClerkOutboxRemoval *removal,
						   TimestampTz settled_before)
{
	removal->settled_before = settled_before;
	removal->settled_at = resume_after.settled_at;
	removal->id = resume_after.id;
	removal->batch_size = MAX_BATCH_SIZE;
	removal->refused = 0;
	removal->skipped_ahead = false;
	removal->finished = false;
}

/*
 * Removes the next batch, and sets removal->finished when nothing is left to
 * do.  Must be called in a transaction; the caller commits it.  Rows that
 * another session has locked stay, since a sender must not wait for locks.  A
 * row that the database refuses to remove is logged and skipped.  Raises the
 * errors of clerk_outbox_try().
 */
void
clerk_outbox_remove_batch(ClerkOutboxRemoval *removal)
{
	RowPosition last = {0, 0};
	Datum		values[5];
	uint64		removed;
	ErrorData  *error;

	values[0] = TimestampTzGetDatum(removal->settled_before);
	values[1] = TimestampTzGetDatum(removal->settled_at);
	values[2] = Int64GetDatum(removal->id);
	values[3] = Int32GetDatum(removal->batch_size);
	if (clerk_outbox_run(&find_last_row, values, NULL, collect_position,
						 &last) == 0)
	{
		removal->finished = true;
		if (!removal->skipped_ahead)
		{
			resume_after.settled_at = DT_NOBEGIN;
			resume_after.id = 0;
		}
		return;
	}
	values[3] = TimestampTzGetDatum(last.settled_at);
	values[4] = Int64GetDatum(last.id);
	if (clerk_outbox_try(&remove_rows, values, NULL, NULL, &removed, &error))
		removal->batch_size = Min(removal->batch_size * BATCH_SIZE_FACTOR,
								  MAX_BATCH_SIZE);
	else if (removal->batch_size > 1)
	{
		removal->batch_size /= BATCH_SIZE_FACTOR;
		return;
	}
	else
		note_refusal(removal, error);
	removal->settled_at = last.settled_at;
	removal->id = last.id;
	if (removal->refused >= MAX_REFUSED)
		skip_ahead(removal);
}

/*
 * Continues at a random time among the younger rows, since those may be
 * removable, and a process that makes only one removal would never reach them.
 * This process's next removal continues here.  The second call ends the
 * removal.
 */
static void
skip_ahead(ClerkOutboxRemoval *removal)
{
	if (removal->skipped_ahead)
	{
		removal->finished = true;
		return;
	}
	removal->skipped_ahead = true;
	resume_after.settled_at = removal->settled_at;
	resume_after.id = removal->id;
	removal->refused = 0;
	removal->batch_size = MAX_BATCH_SIZE;
	removal->settled_at += (TimestampTz)
		(clerk_random_fraction() * (removal->settled_before - removal->settled_at));
	removal->id = 0;
}

/*
 * Logs the first refusal of a removal.  The server's message is left out,
 * since it may quote the whole row, including its url.
 */
static void
note_refusal(ClerkOutboxRemoval *removal, const ErrorData *error)
{
	if (removal->refused++ == 0)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("could not remove a settled row from the outbox: SQLSTATE %s",
						unpack_sql_state(error->sqlerrcode)),
				 errhint("Such rows are skipped. Check for foreign keys that reference the table and triggers on it.")));
}

static void
collect_position(void *result)
{
	RowPosition *position = result;
	bool		isnull;

	if (SPI_processed == 0)
		return;
	position->settled_at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0],
															 SPI_tuptable->tupdesc,
															 1, &isnull));
	position->id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											   SPI_tuptable->tupdesc, 2, &isnull));
}
