/*
 * outbox_functions.c
 *		The SQL functions that change the outbox for users: enqueue, cancel,
 *		retry, abandon.
 *
 * They do what callers could do with SQL statements if they had the privileges
 * on the table.  They are not SECURITY DEFINER functions in SQL, because
 * user-defined code that is attached to the table, such as triggers, must run
 * with the rights of the table's owner.  A SECURITY DEFINER function would run
 * it with the rights of its own owner, a superuser, and leave deferred
 * triggers to the caller's commit.
 *
 * All of them raise 42P01 if there is no outbox in the function's schema, and
 * any error of the statement, including those of user triggers.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "outbox/outbox_statement.h"
#include "outbox/sender_lock.h"
#include "outbox/settle.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#define ENQUEUE_ARGUMENTS 10

static ClerkOutboxStatement enqueue_row = {
	.text = "INSERT INTO %1$s (organization_id, inviter_user_id, email_address, "
	"role, redirect_url, public_metadata, private_metadata, expires_in_days, "
	"notify, send_after) "
	"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id",
	.parameters = ENQUEUE_ARGUMENTS,
	.types = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID,
	INT4OID, BOOLOID, TIMESTAMPTZOID},
	.by_hand = true,
	.results = {INT8OID}
};

static ClerkOutboxStatement cancel_row = {
	.text = "UPDATE ONLY %1$s AS o "
	"SET state = 'canceled', settled_at = clock_timestamp() "
	"WHERE o.id = $1 AND o.state = 'queued' AND NOT o.copied",
	.parameters = 1,
	.types = {INT8OID},
	.by_hand = true
};

/* The guard trigger resets the other columns. */
static ClerkOutboxStatement retry_row = {
	.text = "UPDATE ONLY %1$s AS o SET state = 'queued' "
	"WHERE o.id = $1 AND o.state = 'failed' AND NOT o.copied",
	.parameters = 1,
	.types = {INT8OID},
	.by_hand = true
};

/*
 * Fires no user triggers, because one of them may be the reason why the row is
 * stuck.
 */
static ClerkOutboxStatement abandon_row = {
	.text = "UPDATE ONLY %1$s AS o SET "
	"state = CASE o.state WHEN 'queued' THEN 'canceled' ELSE 'failed' END, "
	"error_code = CASE o.state WHEN 'queued' THEN o.error_code "
	"ELSE '" CLERK_OUTBOX_ABANDONED "' END, "
	"error_message = concat_ws('; before that: ', "
	"concat_ws(': ', $3, $4), o.database_error, o.error_message), "
	"settled_at = clock_timestamp(), next_attempt_at = NULL, "
	"consecutive_failures = 0, database_error = NULL "
	"WHERE o.id = $1 AND o.state = ANY($2) AND NOT o.copied "
	"RETURNING o.state",
	.parameters = 4,
	.types = {INT8OID, TEXTARRAYOID, TEXTOID, TEXTOID},
	.by_hand = true,
	.without_triggers = true,
	.results = {TEXTOID}
};

static void find_outbox(FunctionCallInfo fcinfo);
static void collect_id(void *result);
static void collect_state(void *result);

PG_FUNCTION_INFO_V1(clerk_enqueue_organization_invitation);
PG_FUNCTION_INFO_V1(clerk_cancel_invitation);
PG_FUNCTION_INFO_V1(clerk_retry_invitation);
PG_FUNCTION_INFO_V1(clerk_abandon_invitation);

/*
 * clerk_enqueue_organization_invitation(org_id text, inviter text, email text,
 *		role text, redirect text, metadata jsonb, private_metadata jsonb,
 *		expires_in_days integer, notify boolean, send_after timestamptz)
 *		RETURNS bigint
 *
 * Returns the id of the new row, or NULL if a user trigger suppressed the
 * insertion.  Raises 23502 and 23514, as the outbox's constraints do.
 */
Datum
clerk_enqueue_organization_invitation(PG_FUNCTION_ARGS)
{
	Datum		values[ENQUEUE_ARGUMENTS];
	char		nulls[ENQUEUE_ARGUMENTS];
	int64		id = 0;

	for (int i = 0; i < ENQUEUE_ARGUMENTS; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	find_outbox(fcinfo);
	if (clerk_outbox_run(&enqueue_row, values, nulls, collect_id, &id) == 0)
		PG_RETURN_NULL();		/* a user trigger suppressed the row */
	PG_RETURN_INT64(id);
}

/*
 * clerk_cancel_invitation(id bigint) RETURNS boolean, STRICT
 *
 * Returns whether the row was queued and is now canceled.
 */
Datum
clerk_cancel_invitation(PG_FUNCTION_ARGS)
{
	Datum		values[] = {PG_GETARG_DATUM(0)};

	find_outbox(fcinfo);
	PG_RETURN_BOOL(clerk_outbox_run(&cancel_row, values, NULL, NULL, NULL) > 0);
}

/*
 * clerk_retry_invitation(id bigint) RETURNS boolean, STRICT
 *
 * Returns whether the row had failed and is now queued again.
 */
Datum
clerk_retry_invitation(PG_FUNCTION_ARGS)
{
	Datum		values[] = {PG_GETARG_DATUM(0)};

	find_outbox(fcinfo);
	PG_RETURN_BOOL(clerk_outbox_run(&retry_row, values, NULL, NULL, NULL) > 0);
}

/*
 * clerk_abandon_invitation(id bigint, reason text) RETURNS boolean
 *
 * Returns true if the row was queued and is now canceled, or if its outcome
 * was unknown and it is now failed; false if it is settled, or if its request
 * is in flight, because its sender will soon record the outcome; NULL if the
 * id is null.
 */
Datum
clerk_abandon_invitation(PG_FUNCTION_ARGS)
{
	Datum		states[] = {
		CStringGetTextDatum(CLERK_OUTBOX_QUEUED),
		CStringGetTextDatum(CLERK_OUTBOX_VERIFYING),
		CStringGetTextDatum(CLERK_OUTBOX_SENDING)
	};
	Datum		values[4];
	char		nulls[] = {' ', ' ', ' ', PG_ARGISNULL(1) ? 'n' : ' '};
	const char *state = NULL;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	find_outbox(fcinfo);
	values[0] = PG_GETARG_DATUM(0);

	/*
	 * Rows in state "sending" have no sender if no session holds the sender
	 * lock, which this transaction then takes.
	 */
	values[1] = clerk_outbox_array(states, NULL,
								   clerk_outbox_keep_senders_out() ? 3 : 2, TEXTOID);
	values[2] = CStringGetTextDatum(psprintf("abandoned by role \"%s\"",
											 GetUserNameFromId(GetUserId(), false)));
	values[3] = PG_GETARG_DATUM(1);
	if (clerk_outbox_run(&abandon_row, values, nulls, collect_state, &state) == 0)
		PG_RETURN_BOOL(false);
	clerk_outbox_announce(PG_GETARG_INT64(0), state);
	PG_RETURN_BOOL(true);
}

/* Finds the outbox in the function's schema. */
static void
find_outbox(FunctionCallInfo fcinfo)
{
	clerk_outbox_find(get_func_namespace(fcinfo->flinfo->fn_oid));
}

static void
collect_id(void *result)
{
	bool		isnull;

	if (SPI_processed > 0)
		*(int64 *) result = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
														SPI_tuptable->tupdesc,
														1, &isnull));
}

static void
collect_state(void *result)
{
	if (SPI_processed > 0)
		*(char **) result = SPI_getvalue(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1);
}
