/*
 * outbox_functions.c
 *		The SQL functions by which users change the outbox: enqueue, cancel,
 *		retry, abandon.
 *
 * They do what the caller could do by a statement of his own if he had the
 * privileges on the table.  They are written in C, rather than in SQL as
 * SECURITY DEFINER functions, because what is attached to the table must run
 * with the rights of the table's owner: a SECURITY DEFINER function gives it
 * those of the function's owner, a superuser, and leaves deferred triggers to
 * the caller's commit.
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

/* The guard lets the rest begin anew. */
static ClerkOutboxStatement retry_row = {
	.text = "UPDATE ONLY %1$s AS o SET state = 'queued' "
	"WHERE o.id = $1 AND o.state = 'failed' AND NOT o.copied",
	.parameters = 1,
	.types = {INT8OID},
	.by_hand = true
};

/* Fires no trigger of a user's, since one may be why the row is stuck. */
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

static void use_outbox_of(FunctionCallInfo fcinfo);
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
 * Raises what the outbox's constraints do: 23502, 23514.
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
	use_outbox_of(fcinfo);
	if (clerk_outbox_run(&enqueue_row, values, nulls, collect_id, &id) == 0)
		PG_RETURN_NULL();		/* a user's trigger has left it out */
	PG_RETURN_INT64(id);
}

/* clerk_cancel_invitation(id bigint) RETURNS boolean: strict */
Datum
clerk_cancel_invitation(PG_FUNCTION_ARGS)
{
	Datum		values[] = {PG_GETARG_DATUM(0)};

	use_outbox_of(fcinfo);
	PG_RETURN_BOOL(clerk_outbox_run(&cancel_row, values, NULL, NULL, NULL) > 0);
}

/* clerk_retry_invitation(id bigint) RETURNS boolean: strict */
Datum
clerk_retry_invitation(PG_FUNCTION_ARGS)
{
	Datum		values[] = {PG_GETARG_DATUM(0)};

	use_outbox_of(fcinfo);
	PG_RETURN_BOOL(clerk_outbox_run(&retry_row, values, NULL, NULL, NULL) > 0);
}

/*
 * clerk_abandon_invitation(id bigint, reason text) RETURNS boolean
 *
 * A row whose request is on its way is not given up: its sender will soon say
 * more about it.
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
	use_outbox_of(fcinfo);
	values[0] = PG_GETARG_DATUM(0);

	/* What is sending has lost its sender, unless there is one. */
	values[1] = clerk_outbox_array(states, NULL,
								   clerk_outbox_keep_senders_out() ? 3 : 2, TEXTOID);
	values[2] = CStringGetTextDatum(psprintf("given up by role \"%s\"",
											 GetUserNameFromId(GetUserId(), false)));
	values[3] = PG_GETARG_DATUM(1);
	if (clerk_outbox_run(&abandon_row, values, nulls, collect_state, &state) == 0)
		PG_RETURN_BOOL(false);
	clerk_outbox_announce(PG_GETARG_INT64(0), state);
	PG_RETURN_BOOL(true);
}

/* The table is in the function's schema. */
static void
use_outbox_of(FunctionCallInfo fcinfo)
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
