/*
 * status_statements.c
 *		What clerk_invitation_outbox knows of invitations' statuses: all SQL on
 *		it that refreshing them needs.
 *
 * The status of a row that is sent goes from pending to what Clerk says, and
 * never back; it is no sender's matter, and needs no lock.
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
 * Whether the invitation of a row that is sent may have changed at Clerk since;
 * the index clerk_invitation_outbox_pending has the same.  Clerk does not
 * promise to tell a status.
 */
#define IS_PENDING_IN(row) "coalesce(" row "status, 'pending') = 'pending'"
#define IS_PENDING IS_PENDING_IN("")

/* Rows read at a time, so that the server holds no more than these beside ours. */
#define READ_AT_A_TIME "10000"

static ClerkOutboxStatement find_pending = {
	.text = "SELECT organization_id, invitation_id, email_address, "
	"status IS NOT NULL, id FROM ONLY %1$s "
	"WHERE state = 'sent' AND invitation_id IS NOT NULL AND " IS_PENDING " "
	"AND NOT copied AND (organization_id, id) > ($1, $2) "
	"ORDER BY organization_id, id LIMIT " READ_AT_A_TIME,
	.parameters = 2,
	.types = {TEXTOID, INT8OID},
	.results = {TEXTOID, TEXTOID, TEXTOID, BOOLOID, INT8OID}
};

static ClerkOutboxStatement set_statuses = {
	.text = "UPDATE ONLY %1$s AS o SET status = c.status, "
	"url = CASE c.status WHEN 'pending' THEN o.url END "
	"FROM (SELECT seen.id, c.status "
	"FROM unnest($1, $2) AS c (invitation_id, status) "
	"JOIN ONLY %1$s AS seen ON seen.invitation_id = c.invitation_id "
	"WHERE seen.state = $3 AND NOT seen.copied AND " IS_PENDING_IN("seen.") " "
	"AND seen.status IS DISTINCT FROM c.status "
	"FOR UPDATE OF seen SKIP LOCKED) AS c "
	"WHERE o.id = c.id "
	"RETURNING o.status",
	.parameters = 3,
	.types = {TEXTARRAYOID, TEXTARRAYOID, TEXTOID},
	.results = {TEXTOID}
};

/* What was read so far, and where to go on. */
typedef struct PendingRows
{
	ClerkOutboxPending *rows;
	int64		count;
	int64		room;
	const char *organization_id;	/* of the last row; empty before the first */
	int64		id;
} PendingRows;

/* What is to be recorded: arrays of the same length. */
typedef struct NewStatuses
{
	const char *const *invitation_ids;
	const char *const *statuses;
} NewStatuses;

static void fill_statuses(Datum *values, int first, int count,
						  const void *rows);
static void status_failed(int position, const ErrorData *error,
						  const void *rows);
static void collect_pending(void *result);
static void collect_texts(void *result);

/*
 * The invitations that were pending when last seen, by organization; returns
 * how many there are.  They are all kept in memory, since which lists of
 * Clerk's tell most of them with the fewest requests depends on all of them: at
 * some 200 bytes each, what Clerk lets an instance create in the 30 days that an
 * invitation lasts, half a million, takes 100 MB.
 */
int64
clerk_outbox_pending(ClerkOutboxPending **pending)
{
	PendingRows found = {.organization_id = "",.room = 1000};
	int64		before;

	found.rows = palloc(found.room * sizeof(ClerkOutboxPending));
	do
	{
		Datum		values[] = {
			CStringGetTextDatum(found.organization_id),
			Int64GetDatum(found.id)
		};

		CHECK_FOR_INTERRUPTS();
		before = found.count;
		clerk_outbox_run(&find_pending, values, NULL, collect_pending, &found);
	} while (found.count > before);
	*pending = found.rows;
	return found.count;
}

/*
 * Gives invitations that were pending when last seen their status at Clerk, and
 * forgets the url of those that are no longer pending: nobody can accept them
 * any more.  Returns the statuses, as strings, of the rows that have changed.
 * Those that somebody has locked, or has changed meanwhile, or that the server
 * refuses to change, stay as they are; the next refresh finds them again.
 */
List *
clerk_outbox_set_statuses(const char *const *invitation_ids,
						  const char *const *statuses, int count)
{
	NewStatuses new = {invitation_ids, statuses};
	List	   *changed = NIL;

	clerk_outbox_run_rows(&set_statuses, count, &new, fill_statuses,
						  status_failed, collect_texts, &changed);
	return changed;
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

/* The DETAIL may have the whole row, its url included. */
static void
status_failed(int position, const ErrorData *error, const void *rows)
{
	const NewStatuses *new = rows;

	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not record the status of invitation \"%s\": SQLSTATE %s",
					new->invitation_ids[position],
					unpack_sql_state(error->sqlerrcode)),
			 errhint("Look for triggers, constraints and indexes that were added to the outbox.")));
}

/* Rows of an organization share its name. */
static void
collect_pending(void *result)
{
	PendingRows *found = result;

	if (found->count + (int64) SPI_processed > found->room)
	{
		found->room = 2 * found->room + (int64) SPI_processed;
		found->rows = repalloc_huge(found->rows,
									found->room * sizeof(ClerkOutboxPending));
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

/* A list of strings. */
static void
collect_texts(void *result)
{
	List	  **texts = result;

	for (uint64 i = 0; i < SPI_processed; i++)
		*texts = lappend(*texts, SPI_getvalue(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 1));
}
