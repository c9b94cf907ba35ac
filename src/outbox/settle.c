/*
 * settle.c
 *		Records the outcomes of rows in the outbox.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "commands/async.h"
#include "common/settings.h"
#include "executor/spi.h"
#include "outbox/set_aside.h"
#include "outbox/settle.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define SETTLE_PARAMETERS 16

/*
 * Whether an earlier claim than the last one may have sent the row: it still
 * has an attempt, or a retry has reset the number of its attempts.
 */
#define WAS_SENT_BEFORE "($5)[c.i] > 0 OR o.first_claimed_at < o.claimed_at"

/*
 * $1 to $16 are arrays, whose elements at the same position belong to the same
 * change: id, attempts and state as seen, state, attempts, next_attempt_at,
 * invitation_id, status, url, expires_at, http_status, error_code,
 * error_message, trace_id, send_alone, and consecutive_failures.  unnest() of
 * so many arrays would store each element in a tuple, which takes more time
 * than finding the rows.
 */
static ClerkOutboxStatement settle_rows = {
	.text = "UPDATE ONLY %1$s AS o SET state = ($4)[c.i], attempts = ($5)[c.i], "
	"next_attempt_at = ($6)[c.i], "
	"first_claimed_at = CASE WHEN " WAS_SENT_BEFORE " THEN o.first_claimed_at END, "
	"first_claimed_clock = CASE WHEN " WAS_SENT_BEFORE " THEN o.first_claimed_clock END, "
	"claimed_at = CASE WHEN ($4)[c.i] = 'verifying' AND ($3)[c.i] = 'sending' "
	"THEN clock_timestamp() ELSE o.claimed_at END, "
	"settled_at = CASE WHEN ($4)[c.i] IN ('sent', 'skipped', 'failed') "
	"THEN clock_timestamp() END, "
	"invitation_id = ($7)[c.i], status = ($8)[c.i], url = ($9)[c.i], "
	"expires_at = ($10)[c.i], http_status = ($11)[c.i], "
	"error_code = ($12)[c.i], error_message = ($13)[c.i], "
	"trace_id = ($14)[c.i], send_alone = ($15)[c.i], "
	"consecutive_failures = ($16)[c.i], database_error = NULL "
	"FROM generate_series(1, cardinality($1)) AS i "
	"CROSS JOIN LATERAL (SELECT seen.ctid, i FROM ONLY %1$s AS seen "
	"WHERE seen.id = ($1)[i] AND seen.attempts = ($2)[i] AND seen.state = ($3)[i] "
	"FOR UPDATE SKIP LOCKED) AS c "
	"WHERE o.ctid = c.ctid "
	"RETURNING o.id",
	.parameters = SETTLE_PARAMETERS,
	.types = {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		INT4ARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID, TEXTARRAYOID,
	TEXTARRAYOID, TEXTARRAYOID, BOOLARRAYOID, INT4ARRAYOID},
	.results = {INT8OID}
};

/* The parameters of settle_rows while they are being filled. */
typedef struct ParameterArrays
{
	Datum	   *elements[SETTLE_PARAMETERS];
	bool	   *nulls[SETTLE_PARAMETERS];
} ParameterArrays;

/* The changes that a statement may have applied. */
typedef struct SettledRows
{
	ClerkOutboxChange *changes;
	int			count;
} SettledRows;

static void fill_settle_parameters(Datum *values, int first, int count,
								   const void *rows);
static void set_aside_unsettled(int position, const ErrorData *error,
								const void *rows);
static void fill_settle_arrays(ParameterArrays *arrays,
							   const ClerkOutboxChange *change, int position);
static bool can_be_accepted(const ClerkOutboxChange *change);
static void collect_settled(void *result);

/*
 * SETTLE: changes rows, and announces those that have reached a final state.  Sets
 * change->applied and change->set_aside for each of them.
 *
 * A change does not apply if the row is no longer as its sender has seen it,
 * or if another session has locked it: a sender must not wait for locks, and
 * the next one finds the row as it is.  A row that the database refuses to
 * change is set aside.
 *
 * A row that is left with no attempt has not been sent, so the time of its
 * first claim is cleared: an invitation created before its next claim is not
 * the row's.
 *
 * Must be called in a transaction.  Raises the errors of clerk_outbox_try().
 */
void
clerk_outbox_settle(ClerkOutboxChange *changes, int count)
{
	SettledRows settled = {changes, count};

	for (int i = 0; i < count; i++)
		changes[i].applied = changes[i].set_aside = false;
	clerk_outbox_run_rows(&settle_rows, count, changes, fill_settle_parameters,
						  set_aside_unsettled, collect_settled, &settled);
	for (int i = 0; i < count; i++)
		if (changes[i].applied)
			clerk_outbox_announce(changes[i].row->id, changes[i].progress.state);
}

/*
 * Notifies the channel clerk_invite.notify_channel, if there is one, that a
 * row has reached a final state.  The payload is the row's id and its state.
 * Does nothing for the states "queued" and "verifying".  The server delivers
 * it at commit.
 */
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

/* Adds an element to each of the statement's parameters. */
static void
fill_settle_arrays(ParameterArrays *arrays, const ClerkOutboxChange *change,
				   int position)
{
	const ClerkOutboxProgress *seen = &change->row->progress;
	const ClerkOutboxProgress *next = &change->progress;
	bool		exists = change->invitation != NULL;
	bool		acceptable = can_be_accepted(change);
	int			parameter = 0;

#define ADD(is_null, datum) \
	(arrays->nulls[parameter][position] = (is_null), \
	 arrays->elements[parameter++][position] = (is_null) ? (Datum) 0 : (datum))
#define ADD_TEXT(string) ADD((string) == NULL, CStringGetTextDatum(string))
#define ADD_FIELD(condition, field) \
	ADD(!(condition) || change->invitation->nulls[field], \
		change->invitation->values[field])

	ADD(false, Int64GetDatum(change->row->id));
	ADD(false, Int32GetDatum(seen->attempts));
	ADD_TEXT(seen->state);
	ADD_TEXT(next->state);
	ADD(false, Int32GetDatum(next->attempts));
	ADD(change->next_attempt_at == 0,
		TimestampTzGetDatum(change->next_attempt_at));
	ADD_FIELD(exists, CLERK_INVITATION_ID);
	ADD_FIELD(exists, CLERK_INVITATION_STATUS);
	ADD_FIELD(acceptable, CLERK_INVITATION_URL);
	ADD_FIELD(exists, CLERK_INVITATION_EXPIRES_AT);
	ADD(next->http_status == 0, Int32GetDatum(next->http_status));
	ADD_TEXT(next->error_code);
	ADD_TEXT(next->error_message);
	ADD_TEXT(next->trace_id);
	ADD(false, BoolGetDatum(next->send_alone));
	ADD(false, Int32GetDatum(next->consecutive_failures));
	Assert(parameter == SETTLE_PARAMETERS);

#undef ADD
#undef ADD_TEXT
#undef ADD_FIELD
}

/*
 * Whether the url is worth storing: the invitation is pending, or Clerk
 * reports no status.
 */
static bool
can_be_accepted(const ClerkOutboxChange *change)
{
	const char *status;

	if (change->invitation == NULL)
		return false;
	status = clerk_invitation_text(change->invitation, CLERK_INVITATION_STATUS);
	return status == NULL || strcmp(status, CLERK_INVITATION_PENDING) == 0;
}

static void
fill_settle_parameters(Datum *values, int first, int count, const void *rows)
{
	const ClerkOutboxChange *changes = rows;
	ParameterArrays arrays;

	for (int i = 0; i < SETTLE_PARAMETERS; i++)
	{
		arrays.elements[i] = palloc(count * sizeof(Datum));
		arrays.nulls[i] = palloc0(count * sizeof(bool));
	}
	for (int i = 0; i < count; i++)
		fill_settle_arrays(&arrays, &changes[first + i], i);
	for (int i = 0; i < SETTLE_PARAMETERS; i++)
		values[i] = clerk_outbox_array(arrays.elements[i], arrays.nulls[i], count,
									   get_element_type(settle_rows.types[i]));
}

static void
set_aside_unsettled(int position, const ErrorData *error, const void *rows)
{
	ClerkOutboxChange *change = &((ClerkOutboxChange *) rows)[position];

	clerk_outbox_set_aside(change->row->id, change->row->progress.state, error,
						   can_be_accepted(change) ?
						   clerk_invitation_text(change->invitation,
												 CLERK_INVITATION_URL) : NULL);
	change->set_aside = true;
}

/*
 * Marks the changes whose rows the statement returned.  That is usually in the
 * order of the changes, so the search for a row begins after the last one
 * found.
 */
static void
collect_settled(void *result)
{
	SettledRows *settled = result;
	int			next = 0;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc,
													 1, &isnull));

		for (int j = 0; j < settled->count; j++)
		{
			int			candidate = (next + j) % settled->count;

			if (settled->changes[candidate].row->id != id)
				continue;
			settled->changes[candidate].applied = true;
			next = candidate + 1;
			break;
		}
	}
}
