/*
 * outbox.c
 *		The table clerk_invitation_outbox: all SQL that a sender needs, and the
 *		guard against changes by hand.
 *
 * Invariants:
 *
 * 1. A row is sent only after its claim (state "sending") is committed.
 * 2. Only the session that holds the sender's lock changes rows that are
 *	  sending or verifying.
 * 3. Every change by a sender names the state and the number of attempts that
 *	  it has seen; a row that differs is left alone.
 *
 *	  queued ----------> sending			clerk_outbox_claim
 *	  sending ---------> verifying			clerk_outbox_take_over, _settle
 *	  sending ---------> sent, failed, queued	clerk_outbox_settle
 *	  verifying -------> sent, skipped, failed, queued	clerk_outbox_settle
 *	  queued ----------> canceled			by hand, clerk_cancel_invitation()
 *	  failed ----------> queued				by hand, clerk_retry_invitation()
 *
 * The statements run as the table's owner, whoever calls, with a search_path
 * that only the superuser can put objects into; the table is found through the
 * schema of the function that was called.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type_d.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "outbox.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define OUTBOX "clerk_invitation_outbox"

/*
 * Key of the sender's lock beside the table's OID.  Advisory locks taken with
 * SQL functions have 1 or 2 there (lockfuncs.c), so these are never the same.
 */
#define SENDER_LOCK_SPACE 0x434C	/* "CL" */

/* Columns of a row as its sender sees it, in the order of read_row(). */
#define ROW_COLUMNS \
	"o.id, o.attempts, o.organization_id, o.inviter_user_id, o.email_address, " \
	"o.role, o.redirect_url, o.public_metadata, o.private_metadata, " \
	"o.expires_in_days, o.notify, o.first_claimed_at, o.claimed_at, " \
	"o.http_status, o.error_code, o.error_message, o.trace_id"

typedef enum Statement
{
	TAKE_OVER,
	CLAIM,
	UNVERIFIED,
	NEXT_DUE,
	HAS_INVITATION,
	SETTLE
} Statement;

#define STATEMENTS (SETTLE + 1)
#define MAX_PARAMETERS 14

typedef struct StatementText
{
	const char *text;			/* %s is the table's name */
	int			parameters;
	Oid			types[MAX_PARAMETERS];
} StatementText;

static const StatementText statement_texts[STATEMENTS] = {
	[TAKE_OVER] = {
		"UPDATE %1$s AS o SET state = 'verifying', next_attempt_at = now() "
		"FROM (SELECT id FROM %1$s WHERE state = 'sending' "
		"FOR UPDATE SKIP LOCKED) AS left_behind "
		"WHERE o.id = left_behind.id",
		0, {0}
	},
	[CLAIM] = {
		"UPDATE %1$s AS o "
		"SET state = 'sending', attempts = o.attempts + 1, "
		"claimed_at = due.at, "
		"first_claimed_at = coalesce(o.first_claimed_at, due.at) "
		"FROM (SELECT id, clock_timestamp() AS at FROM %1$s "
		"WHERE state = 'queued' "
		"AND coalesce(next_attempt_at, send_after) <= now() "
		"ORDER BY coalesce(next_attempt_at, send_after), id "
		"LIMIT $1 FOR UPDATE SKIP LOCKED) AS due "
		"WHERE o.id = due.id "
		"RETURNING " ROW_COLUMNS,
		1, {INT4OID}
	},
	[UNVERIFIED] = {
		"SELECT " ROW_COLUMNS " FROM %1$s AS o WHERE state = 'verifying' "
		"AND coalesce(next_attempt_at, send_after) <= now() "
		"ORDER BY coalesce(next_attempt_at, send_after), id LIMIT $1",
		1, {INT4OID}
	},
	[NEXT_DUE] = {
		"SELECT least((SELECT now() FROM %1$s WHERE state = 'sending' LIMIT 1), "
		"(SELECT coalesce(next_attempt_at, send_after) FROM %1$s "
		"WHERE state IN ('queued', 'verifying') "
		"ORDER BY coalesce(next_attempt_at, send_after), id LIMIT 1))",
		0, {0}
	},
	[HAS_INVITATION] = {
		"SELECT 1 FROM %1$s WHERE invitation_id = $1",
		1, {TEXTOID}
	},
	[SETTLE] = {
		"UPDATE %1$s AS o SET state = $4, attempts = $5, next_attempt_at = $6, "
		"first_claimed_at = CASE WHEN $5 > 0 THEN first_claimed_at END, "
		"settled_at = CASE WHEN $4 IN ('sent', 'skipped', 'failed') "
		"THEN clock_timestamp() END, "
		"invitation_id = $7, status = $8, url = $9, expires_at = $10, "
		"http_status = $11, error_code = $12, error_message = $13, "
		"trace_id = $14 "
		"FROM (SELECT id FROM %1$s "
		"WHERE id = $1 AND attempts = $2 AND state = $3 "
		"FOR UPDATE SKIP LOCKED) AS seen "
		"WHERE o.id = seen.id",
		14, {INT8OID, INT4OID, TEXTOID, TEXTOID, INT4OID, TIMESTAMPTZOID,
			TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, INT4OID, TEXTOID,
		TEXTOID, TEXTOID}
	},
};

/* Takes what SPI_tuptable has into the caller's memory context. */
typedef void (*CollectFunction) (void *result);

/* The table that was found last, and the plans made for it. */
static struct
{
	Oid			relation;
	Oid			owner;
	NameData	schema;			/* the plans' text has its name */
	SPIPlanPtr	plans[STATEMENTS];
}			outbox;

/* True while this session's own statements change rows. */
static bool sender_at_work = false;

static void forget_plans(void);
static LOCKTAG sender_lock(void);
static uint64 run(Statement statement, const Datum *values, const char *nulls,
				  CollectFunction collect, void *result);
static SPIPlanPtr plan_for(Statement statement);
static void collect_claimed(void *result);
static void collect_unverified(void *result);
static void collect_rows(List **rows, const char *state);
static void collect_number(void *result);
static ClerkOutboxRow *read_row(HeapTuple tuple, TupleDesc descriptor);
static bool may_change_by_hand(const char *from, const char *to);

PG_FUNCTION_INFO_V1(clerk_invitation_outbox_guard);

/* Uses the outbox of this schema from now on; within a transaction. */
void
clerk_outbox_find(Oid schema)
{
	Oid			relation = get_relname_relid(OUTBOX, schema);
	const char *schema_name;
	HeapTuple	tuple;

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" does not exist", OUTBOX)));
	schema_name = get_namespace_name(schema);
	if (schema_name == NULL)
		elog(ERROR, "cache lookup failed for schema %u", schema);
	if (relation != outbox.relation ||
		strcmp(schema_name, NameStr(outbox.schema)) != 0)
		forget_plans();
	outbox.relation = relation;
	namestrcpy(&outbox.schema, schema_name);

	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relation);
	outbox.owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
}

/*
 * Makes this session the database's one sender; false if another one is.  The
 * lock outlives transactions: clerk_outbox_unlock() or the session's end
 * releases it.
 */
bool
clerk_outbox_lock(void)
{
	LOCKTAG		tag = sender_lock();

	return LockAcquire(&tag, ExclusiveLock, true, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

void
clerk_outbox_unlock(void)
{
	LOCKTAG		tag = sender_lock();

	LockRelease(&tag, ExclusiveLock, true);
}

/* Rows that a former sender left in the middle: their outcome is unknown. */
void
clerk_outbox_take_over(void)
{
	run(TAKE_OVER, NULL, NULL, NULL, NULL);
}

/*
 * Claims rows that are due, oldest first: a list of ClerkOutboxRow, which must
 * not be sent before the transaction has committed.
 */
List *
clerk_outbox_claim(int limit)
{
	List	   *rows = NIL;
	Datum		values[] = {Int32GetDatum(limit)};

	/* A claim that a crash could lose would be no claim. */
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", "on",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	run(CLAIM, values, NULL, collect_claimed, &rows);
	return rows;
}

/* Rows whose outcome is unknown and that are due to be looked up. */
List *
clerk_outbox_unverified(int limit)
{
	List	   *rows = NIL;
	Datum		values[] = {Int32GetDatum(limit)};

	run(UNVERIFIED, values, NULL, collect_unverified, &rows);
	return rows;
}

/*
 * The earliest time at which there is something to do for a row, which may
 * have passed; 0 if no row is open.
 */
TimestampTz
clerk_outbox_next_due(void)
{
	int64		due_at = 0;

	run(NEXT_DUE, NULL, NULL, collect_number, &due_at);
	return (TimestampTz) due_at;
}

/* Whether a row has this invitation. */
bool
clerk_outbox_has_invitation(const char *invitation_id)
{
	Datum		values[] = {CStringGetTextDatum(invitation_id)};

	return run(HAS_INVITATION, values, NULL, NULL, NULL) > 0;
}

/*
 * Changes a row; false if it is no longer as its sender has seen it, or if
 * somebody holds a lock on it: nobody may keep a sender waiting, and the next
 * one finds the row as it is.  A row that has no attempt left behind it has
 * not been sent yet: what came before its next claim is not its own.
 */
bool
clerk_outbox_settle(const ClerkOutboxRow *row, const ClerkOutboxChange *change)
{
	Datum		values[MAX_PARAMETERS];
	char		nulls[MAX_PARAMETERS];
	const char *texts[] = {
		change->invitation_id, change->status, change->url,
		change->error_code, change->error_message, change->trace_id
	};
	const int	positions[] = {6, 7, 8, 11, 12, 13};

	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int64GetDatum(row->id);
	values[1] = Int32GetDatum(row->attempts);
	values[2] = CStringGetTextDatum(row->state);
	values[3] = CStringGetTextDatum(change->state);
	values[4] = Int32GetDatum(change->attempts);
	values[5] = TimestampTzGetDatum(change->next_attempt_at);
	nulls[5] = change->next_attempt_at != 0 ? ' ' : 'n';
	values[9] = TimestampTzGetDatum(change->expires_at);
	nulls[9] = change->expires_at != 0 ? ' ' : 'n';
	values[10] = Int32GetDatum(change->http_status);
	nulls[10] = change->http_status != 0 ? ' ' : 'n';
	for (int i = 0; i < (int) lengthof(texts); i++)
	{
		nulls[positions[i]] = texts[i] != NULL ? ' ' : 'n';
		values[positions[i]] = texts[i] != NULL ?
			CStringGetTextDatum(texts[i]) : (Datum) 0;
	}
	return run(SETTLE, values, nulls, NULL, NULL) == 1;
}

/*
 * clerk_invitation_outbox_guard() RETURNS trigger
 *
 * BEFORE UPDATE OR DELETE FOR EACH ROW on the outbox.  Raises 55000 for a
 * change by hand that would lose an invitation or send it twice.
 */
Datum
clerk_invitation_outbox_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor;
	HeapTuple	result;
	char	   *from;
	char	   *to = NULL;
	int			column;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as the outbox's trigger",
						"clerk_invitation_outbox_guard")));

	result = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
		trigger->tg_newtuple : trigger->tg_trigtuple;
	if (sender_at_work)
		return PointerGetDatum(result);

	descriptor = RelationGetDescr(trigger->tg_relation);
	column = SPI_fnumber(descriptor, "state");
	from = SPI_getvalue(trigger->tg_trigtuple, descriptor, column);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		to = SPI_getvalue(trigger->tg_newtuple, descriptor, column);
	if (!may_change_by_hand(from, to))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 to == NULL ?
				 errmsg("cannot delete an invitation that is %s", from) :
				 strcmp(from, to) == 0 ?
				 errmsg("cannot change an invitation that is %s", from) :
				 errmsg("cannot change an invitation from \"%s\" to \"%s\"",
						from, to),
				 errhint("Use clerk_cancel_invitation() while it is queued, and clerk_retry_invitation() when it has failed.")));
	return PointerGetDatum(result);
}

/* "to" is NULL for a deletion. */
static bool
may_change_by_hand(const char *from, const char *to)
{
	if (strcmp(from, CLERK_OUTBOX_SENDING) == 0 ||
		strcmp(from, CLERK_OUTBOX_VERIFYING) == 0)
		return false;
	return to == NULL || strcmp(from, to) == 0 ||
		(strcmp(from, CLERK_OUTBOX_QUEUED) == 0 &&
		 strcmp(to, CLERK_OUTBOX_CANCELED) == 0) ||
		(strcmp(from, CLERK_OUTBOX_FAILED) == 0 &&
		 strcmp(to, CLERK_OUTBOX_QUEUED) == 0);
}

static void
forget_plans(void)
{
	for (int i = 0; i < STATEMENTS; i++)
	{
		if (outbox.plans[i] != NULL)
			SPI_freeplan(outbox.plans[i]);
		outbox.plans[i] = NULL;
	}
}

static LOCKTAG
sender_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, outbox.relation, 0,
						 SENDER_LOCK_SPACE);
	return tag;
}

/*
 * Runs a statement as the table's owner; returns the number of rows, which are
 * handed to a function first if one is given.
 */
static uint64
run(Statement statement, const Datum *values, const char *nulls,
	CollectFunction collect, void *result)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			user;
	int			security;
	int			nest_level;
	volatile uint64 processed = 0;

	/* An error leaves these to the transaction's abort. */
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(outbox.owner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	nest_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	sender_at_work = true;
	PG_TRY();
	{
		SPI_connect();
		if (SPI_execute_plan(plan_for(statement), unconstify(Datum *, values),
							 nulls, false, 0) < 0)
			elog(ERROR, "could not run a statement on \"%s\"", OUTBOX);
		processed = SPI_processed;
		if (collect != NULL)
		{
			MemoryContext spi = MemoryContextSwitchTo(caller);

			collect(result);
			MemoryContextSwitchTo(spi);
		}
		SPI_finish();
	}
	PG_FINALLY();
	{
		sender_at_work = false;
	}
	PG_END_TRY();
	AtEOXact_GUC(true, nest_level);
	SetUserIdAndSecContext(user, security);
	return processed;
}

/* Plans are kept for the session; the plan cache keeps them valid. */
static SPIPlanPtr
plan_for(Statement statement)
{
	const StatementText *source = &statement_texts[statement];

	if (outbox.plans[statement] == NULL)
	{
		char	   *name = quote_qualified_identifier(NameStr(outbox.schema),
													  OUTBOX);
		char	   *text = psprintf(source->text, name);
		SPIPlanPtr	plan = SPI_prepare(text, source->parameters,
									   (Oid *) source->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare a statement on \"%s\"", OUTBOX);
		outbox.plans[statement] = plan;
	}
	return outbox.plans[statement];
}

static void
collect_claimed(void *result)
{
	collect_rows(result, CLERK_OUTBOX_SENDING);
}

static void
collect_unverified(void *result)
{
	collect_rows(result, CLERK_OUTBOX_VERIFYING);
}

static void
collect_rows(List **rows, const char *state)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ClerkOutboxRow *row = read_row(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc);

		row->state = state;
		*rows = lappend(*rows, row);
	}
}

/* A number, or a time; it stays as it is if the statement gave null. */
static void
collect_number(void *result)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull);

	if (!isnull)
		*(int64 *) result = DatumGetInt64(value);
}

/* Columns are in the order of ROW_COLUMNS. */
static ClerkOutboxRow *
read_row(HeapTuple tuple, TupleDesc descriptor)
{
	ClerkOutboxRow *row = palloc0(sizeof(ClerkOutboxRow));
	int			column = 0;
	bool		isnull;
	Datum		value;

#define NEXT() (value = SPI_getbinval(tuple, descriptor, ++column, &isnull))
#define NEXT_TEXT() (NEXT(), isnull ? NULL : TextDatumGetCString(value))
#define NEXT_JSONB() (NEXT(), isnull ? NULL : DatumGetJsonbPCopy(value))

	row->id = DatumGetInt64(NEXT());
	row->attempts = DatumGetInt32(NEXT());
	row->organization_id = NEXT_TEXT();
	row->inviter_user_id = NEXT_TEXT();
	row->email_address = NEXT_TEXT();
	row->role = NEXT_TEXT();
	row->redirect_url = NEXT_TEXT();
	row->public_metadata = NEXT_JSONB();
	row->private_metadata = NEXT_JSONB();
	NEXT();
	row->expires_in_days = isnull ? 0 : DatumGetInt32(value);
	NEXT();
	if (!isnull)
	{
		row->notify = palloc(sizeof(bool));
		*row->notify = DatumGetBool(value);
	}
	NEXT();
	row->first_claimed_at = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->claimed_at = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->http_status = isnull ? 0 : DatumGetInt32(value);
	row->error_code = NEXT_TEXT();
	row->error_message = NEXT_TEXT();
	row->trace_id = NEXT_TEXT();
	return row;
}
