/*
 * outbox_status.c
 *		What clerk_invitation_outbox knows of invitations' statuses: all SQL on
 *		it that refreshing them needs.
 *
 * The status of a row that is sent goes from pending to what Clerk says, and
 * never back; it is no sender's matter, and needs no lock.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "outbox.h"
#include "outbox_statement.h"
#include "outbox_status.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/*
 * Whether the invitation of a row that is sent may have changed at Clerk since;
 * the index clerk_invitation_outbox_pending has the same.  Clerk does not
 * promise to tell a status.
 */
#define IS_PENDING_IN(row) "coalesce(" row "status, 'pending') = 'pending'"
#define IS_PENDING IS_PENDING_IN("")

static ClerkOutboxStatement find_pending = {
	.text = "SELECT organization_id, invitation_id, email_address, "
	"status IS NOT NULL FROM %1$s "
	"WHERE state = 'sent' AND invitation_id IS NOT NULL AND " IS_PENDING " "
	"ORDER BY organization_id"
};

static ClerkOutboxStatement set_statuses = {
	.text = "UPDATE %1$s AS o SET status = c.status, "
	"url = CASE c.status WHEN 'pending' THEN o.url END "
	"FROM (SELECT seen.id, c.status "
	"FROM unnest($1, $2) AS c (invitation_id, status) "
	"JOIN %1$s AS seen ON seen.invitation_id = c.invitation_id "
	"WHERE seen.state = $3 AND " IS_PENDING_IN("seen.") " "
	"AND seen.status IS DISTINCT FROM c.status "
	"FOR UPDATE OF seen SKIP LOCKED) AS c "
	"WHERE o.id = c.id "
	"RETURNING o.status",
	.parameters = 3,
	.types = {TEXTARRAYOID, TEXTARRAYOID, TEXTOID}
};

static void collect_pending(void *result);
static void collect_texts(void *result);

/*
 * The invitations that were pending when last seen, by organization; returns
 * how many there are.
 */
int64
clerk_outbox_pending(ClerkOutboxPending **pending)
{
	return (int64) clerk_outbox_run(&find_pending, NULL, collect_pending, pending);
}

/*
 * Gives invitations that were pending when last seen their status at Clerk, and
 * forgets the url of those that are no longer pending: nobody can accept them
 * any more.  Returns the statuses, as strings, of the rows that have changed.
 * Those that somebody has locked, or has changed meanwhile, stay as they are.
 */
List *
clerk_outbox_set_statuses(const char *const *invitation_ids,
						  const char *const *statuses, int count)
{
	List	   *changed = NIL;
	Datum	   *ids = palloc(count * sizeof(Datum));
	Datum	   *texts = palloc(count * sizeof(Datum));
	Datum		values[3];

	for (int i = 0; i < count; i++)
	{
		ids[i] = CStringGetTextDatum(invitation_ids[i]);
		texts[i] = CStringGetTextDatum(statuses[i]);
	}
	values[0] = clerk_outbox_array(ids, NULL, count, TEXTOID);
	values[1] = clerk_outbox_array(texts, NULL, count, TEXTOID);
	values[2] = CStringGetTextDatum(CLERK_OUTBOX_SENT);
	clerk_outbox_run(&set_statuses, values, collect_texts, &changed);
	return changed;
}

/* Rows of an organization share its name. */
static void
collect_pending(void *result)
{
	ClerkOutboxPending *pending;
	const char *organization_id = NULL;

	pending = MemoryContextAllocHuge(CurrentMemoryContext,
									 Max(SPI_processed, 1) * sizeof(*pending));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	descriptor = SPI_tuptable->tupdesc;
		char	   *organization = SPI_getvalue(tuple, descriptor, 1);
		bool		isnull;

		if (organization_id == NULL || strcmp(organization, organization_id) != 0)
			organization_id = organization;
		else
			pfree(organization);
		pending[i].organization_id = organization_id;
		pending[i].invitation_id = SPI_getvalue(tuple, descriptor, 2);
		pending[i].email_address = SPI_getvalue(tuple, descriptor, 3);
		pending[i].status_known = DatumGetBool(SPI_getbinval(tuple, descriptor,
															 4, &isnull));
	}
	*(ClerkOutboxPending **) result = pending;
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
