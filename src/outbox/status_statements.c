/*
 * status_statements.c
 *		The SQL statements on clerk_invitation_outbox that refreshing statuses
 *		needs.
 *
 * The status of a sent row changes from pending to what Clerk reports, and
 * never back.  Senders do not use it, so changing it needs no lock.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "outbox/outbox_row.h"
#include "outbox/set_aside.h"
#include "outbox/status_statements.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/*
 * Whether the invitation of a sent row may have changed at Clerk since; the
 * index clerk_invitation_outbox_pending has the same condition.  Clerk's API
 * does not guarantee that a response contains a status, so it may be null.
 */
#define IS_PENDING_IN(row) "coalesce(" row "status, 'pending') = 'pending'"
#define IS_PENDING IS_PENDING_IN("")

/*
 * Rows per query, so that the server holds no more than these in addition to
 * the extension's own copies.
 */
#define ROWS_PER_QUERY "10000"

static ClerkOutboxStatement find_pending = {
	.text = "SELECT organization_id, invitation_id, email_address, "
	"status IS NOT NULL, id FROM ONLY %1$s "
	"WHERE state = 'sent' AND invitation_id IS NOT NULL AND " IS_PENDING " "
	"AND NOT copied AND (organization_id, id) > ($1, $2) "
	"ORDER BY organization_id, id LIMIT " ROWS_PER_QUERY,
	.parameters = 2,
	.types = {TEXTOID, INT8OID},
	.results = {TEXTOID, TEXTOID, TEXTOID, BOOLOID, INT8OID}
};

static ClerkOutboxStatement set_statuses = {
	.text = "UPDATE ONLY %1$s AS o SET status = c.status, "
	"url = CASE c.status WHEN 'pending' THEN o.url END "
	"FROM unnest($1, $2) AS wanted (invitation_id, status) "
	"CROSS JOIN LATERAL (SELECT seen.id, wanted.status FROM ONLY %1$s AS seen "
	"WHERE seen.invitation_id = wanted.invitation_id "
	"AND seen.state = $3 AND NOT seen.copied AND " IS_PENDING_IN("seen.") " "
	"AND seen.status IS DISTINCT FROM wanted.status "
	"FOR UPDATE SKIP LOCKED) AS c "
	"WHERE o.id = c.id "
	"RETURNING o.status",
	.parameters = 3,
	.types = {TEXTARRAYOID, TEXTARRAYOID, TEXTOID},
	.results = {TEXTOID}
};

/* In a user's transaction, which waits for the row. */
static ClerkOutboxStatement set_status = {
	.text = "UPDATE ONLY %1$s AS o SET status = $2, "
	"url = CASE $2 WHEN 'pending' THEN o.url END "
	"WHERE o.invitation_id = $1 AND o.state = $3 AND NOT o.copied "
	"AND " IS_PENDING_IN("o.") " AND o.status IS DISTINCT FROM $2",
	.parameters = 3,
	.types = {TEXTOID, TEXTOID, TEXTOID},
	.by_hand = true
};

/* The rows read so far, and where to continue. */
typedef struct PendingRows
{
	ClerkOutboxPending *rows;
	int64		count;
	int64		capacity;
	const char *organization_id;	/* of the last row; initially empty */
	int64		id;
} PendingRows;

/* The changes to record: arrays of the same length. */
typedef struct NewStatuses
{
	const char *const *invitation_ids;
	const char *const *statuses;
} NewStatuses;

static void fill_statuses(Datum *values, int first, int count,
						  const void *rows);
static void warn_unchanged(int position, const ErrorData *error,
						   const void *rows);
static void collect_pending(void *result);
static void collect_texts(void *result);

/*
 * Reads the rows whose invitations are pending as far as the outbox knows,
 * ordered by organization.  *pending is an array in the current memory
 * context.  Returns the number of rows.
 *
 * All of them are kept in memory, since the choice of lists that need the
 * fewest requests depends on all of them.  At about 200 bytes each, half a
 * million take 100 MB; that is what an instance can create within Clerk's
 * limits, 750 an hour, in the 30 days that an invitation lasts.
 *
 * Raises the errors of clerk_outbox_run(), and 57014 or 57P01 if the session
 * is told to stop.
 */
int64
clerk_outbox_pending(ClerkOutboxPending **pending)
{
	PendingRows found = {.organization_id = "",.capacity = 1000};
	int64		previous_count;

	found.rows = palloc(found.capacity * sizeof(ClerkOutboxPending));
	do
	{
		Datum		values[] = {
			CStringGetTextDatum(found.organization_id),
			Int64GetDatum(found.id)
		};

		CHECK_FOR_INTERRUPTS();
		previous_count = found.count;
		clerk_outbox_run(&find_pending, values, NULL, collect_pending, &found);
	} while (found.count > previous_count);
	*pending = found.rows;
	return found.count;
}

/*
 * Gives rows whose invitations were pending the status that Clerk reports; the
 * two arrays have "count" elements each.  Clears the url of those that are no
 * longer pending, since nobody can accept these any more.  Returns a list with
 * the new status, a string, of each row that has changed.
 *
 * Rows do not change if another session has locked or changed them.  If the
 * database refuses to change a row, there is a WARNING.  The next refresh
 * finds such rows again.  Raises the errors of clerk_outbox_try().
 */
List *
clerk_outbox_set_statuses(const char *const *invitation_ids,
						  const char *const *statuses, int count)
{
	NewStatuses new = {invitation_ids, statuses};
	List	   *changed = NIL;

	clerk_outbox_run_rows(&set_statuses, count, &new, fill_statuses,
						  warn_unchanged, collect_texts, &changed);
	return changed;
}

/*
 * Gives the row of an invitation the status that Clerk has announced, unless
 * it is no longer pending: announcements may arrive in any order.  Clears its
 * url like clerk_outbox_set_statuses().  Returns whether a row has changed.
 *
 * Waits for a row that another session has locked.  Raises the errors of
 * clerk_outbox_run().
 */
bool
clerk_outbox_set_status(const char *invitation_id, const char *status)
{
	Datum		values[] = {
		CStringGetTextDatum(invitation_id),
		CStringGetTextDatum(status),
		CStringGetTextDatum(CLERK_OUTBOX_SENT)
	};

	return clerk_outbox_run(&set_status, values, NULL, NULL, NULL) > 0;
}

static void
fill_statuses(Datum *values, int first, int count, const void *rows)
{
	const NewStatuses *new = rows;
	Datum	   *ids = palloc(count * sizeof(Datum));
	Datum	   *texts = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
	{
		ids[i] = CStringGetTextDatum(new->invitation_ids[first + i]);
		texts[i] = CStringGetTextDatum(new->statuses[first + i]);
	}
	values[0] = clerk_outbox_array(ids, NULL, count, TEXTOID);
	values[1] = clerk_outbox_array(texts, NULL, count, TEXTOID);
	values[2] = CStringGetTextDatum(CLERK_OUTBOX_SENT);
}

/* Leaves out the DETAIL, which may quote the whole row, including its url. */
static void
warn_unchanged(int position, const ErrorData *error, const void *rows)
{
	const NewStatuses *new = rows;

	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not record the status of invitation \"%s\": SQLSTATE %s",
					new->invitation_ids[position],
					unpack_sql_state(error->sqlerrcode)),
			 errhint("Check for triggers, constraints, and indexes that were added to the outbox.")));
}

/* Rows of the same organization share the string of its id. */
static void
collect_pending(void *result)
{
	PendingRows *found = result;

	if (found->count + (int64) SPI_processed > found->capacity)
	{
		found->capacity = 2 * found->capacity + (int64) SPI_processed;
		found->rows = repalloc_huge(found->rows,
									found->capacity * sizeof(ClerkOutboxPending));
	}
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ClerkOutboxPending *row = &found->rows[found->count++];
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	descriptor = SPI_tuptable->tupdesc;
		char	   *organization = SPI_getvalue(tuple, descriptor, 1);
		bool		isnull;

		if (strcmp(organization, found->organization_id) != 0)
			found->organization_id = organization;
		else
			pfree(organization);
		row->organization_id = found->organization_id;
		row->invitation_id = SPI_getvalue(tuple, descriptor, 2);
		row->email_address = SPI_getvalue(tuple, descriptor, 3);
		row->status_known = DatumGetBool(SPI_getbinval(tuple, descriptor, 4,
													   &isnull));
		found->id = DatumGetInt64(SPI_getbinval(tuple, descriptor, 5, &isnull));
	}
}

/* Appends the texts to a list. */
static void
collect_texts(void *result)
{
	List	  **texts = result;

	for (uint64 i = 0; i < SPI_processed; i++)
		*texts = lappend(*texts, SPI_getvalue(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 1));
}
