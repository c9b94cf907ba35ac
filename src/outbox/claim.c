/*
 * claim.c
 *		Claims rows for sending.
 *
 * A claim makes a row "sending" and counts an attempt.  It is committed before
 * the request is sent, so that after a crash the next sender knows that the
 * row may have been sent.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "clerk/remote_clock.h"
#include "common/server_clock.h"
#include "executor/spi.h"
#include "outbox/claim.h"
#include "outbox/commit_wait.h"
#include "outbox/set_aside.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * $1 to $3 are arrays, whose elements at the same position belong to the same
 * row: id, organization_id and email_address.
 */
static ClerkOutboxStatement claim_rows = {
	.text = "UPDATE ONLY %1$s AS o "
	"SET state = 'sending', attempts = o.attempts + 1, "
	"claimed_at = due.at, claimed_clerk_clock = nullif($6, '-infinity'), "
	"first_claimed_at = coalesce(o.first_claimed_at, due.at), "
	"first_claimed_clock = CASE WHEN o.first_claimed_at IS NULL THEN $5 "
	"ELSE o.first_claimed_clock END, "
	"consecutive_failures = 0, database_error = NULL "
	"FROM generate_series(1, cardinality($1)) AS i "
	"CROSS JOIN LATERAL (SELECT seen.ctid, clock_timestamp() AS at "
	"FROM ONLY %1$s AS seen WHERE seen.id = ($1)[i] "
	"AND seen.organization_id = ($2)[i] AND seen.email_address = ($3)[i] "
	"AND seen.state = $4 AND NOT seen.copied AND " CLERK_DUE_AT " <= now() "
	"FOR UPDATE SKIP LOCKED) AS due "
	"WHERE o.ctid = due.ctid "
	"RETURNING " CLERK_ROW_COLUMNS,
	.parameters = 6,
	.types = {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT8OID,
	TIMESTAMPTZOID},
	.results = {CLERK_ROW_TYPES}
};

static void fill_claim_parameters(Datum *values, int first, int count,
								  const void *rows);
static void set_aside_unclaimed(int position, const ErrorData *error,
								const void *rows);
static void collect_claimed(void *result);

/*
 * CLAIM: claims those of the given rows that are still due.  Returns a list of
 * ClerkOutboxRow in no particular order, in the current memory context; a row
 * whose claim fails is set aside.
 *
 * The caller must be in a transaction and hold the sender's lock.  It must not
 * send the rows before that transaction has committed and
 * clerk_commit_is_safe() has returned true.
 *
 * A user may change a queued row after the packing was computed.  If its
 * organization or address has changed, the row no longer fits its request and
 * stays queued.
 *
 * Raises the errors of clerk_outbox_try().
 */
List *
clerk_outbox_claim(const ClerkDueInvitation *const *due, int count)
{
	List	   *rows = NIL;

	clerk_commit_waits();
	clerk_outbox_run_rows(&claim_rows, count, due, fill_claim_parameters,
						  set_aside_unclaimed, collect_claimed, &rows);
	return rows;
}

static void
fill_claim_parameters(Datum *values, int first, int count, const void *rows)
{
	const ClerkDueInvitation *const *due = rows;
	Datum	   *ids = palloc(count * sizeof(Datum));
	Datum	   *organization_ids = palloc(count * sizeof(Datum));
	Datum	   *addresses = palloc(count * sizeof(Datum));
	TimestampTz clerk_now = clerk_remote_clock_now();

	for (int i = 0; i < count; i++)
	{
		ids[i] = Int64GetDatum(due[first + i]->id);
		organization_ids[i] = CStringGetTextDatum(due[first + i]->organization_id);
		addresses[i] = CStringGetTextDatum(due[first + i]->email_address);
	}
	values[0] = clerk_outbox_array(ids, NULL, count, INT8OID);
	values[1] = clerk_outbox_array(organization_ids, NULL, count, TEXTOID);
	values[2] = clerk_outbox_array(addresses, NULL, count, TEXTOID);
	values[3] = CStringGetTextDatum(CLERK_OUTBOX_QUEUED);
	values[4] = Int64GetDatum(clerk_server_clock());
	values[5] = TimestampTzGetDatum(clerk_now == 0 ? DT_NOBEGIN : clerk_now);
}

static void
set_aside_unclaimed(int position, const ErrorData *error, const void *rows)
{
	const ClerkDueInvitation *const *due = rows;

	clerk_outbox_set_aside(due[position]->id, CLERK_OUTBOX_QUEUED, error, NULL);
}

static void
collect_claimed(void *result)
{
	clerk_outbox_collect_rows(result, CLERK_OUTBOX_SENDING);
}
