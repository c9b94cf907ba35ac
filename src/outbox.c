/*
 * outbox.c
 *		The table clerk_invitation_outbox: all SQL on it that senders, and who
 *		refreshes statuses, need.
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
 * (outbox_guard.c refuses other changes by hand.)  The status of a row that is
 * sent goes from pending to what Clerk says, and never back; it is no sender's
 * matter, and needs no lock.
 *
 * The statements run as the table's owner, whoever calls, with a search_path
 * that only the superuser can put objects into; the table is found through the
 * schema of the function that was called.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type_d.h"
#include "commands/async.h"
#include "executor/spi.h"
#include "guc.h"
#include "miscadmin.h"
#include "outbox.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
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
	"o.http_status, o.error_code, o.error_message, o.trace_id, o.send_alone"

/* When a row is due; the index clerk_invitation_outbox_due has the same. */
#define DUE_AT "coalesce(next_attempt_at, send_after)"

/*
 * Whether the invitation of a row that is sent may have changed at Clerk since;
 * the index clerk_invitation_outbox_pending has the same.  Clerk does not
 * promise to tell a status.
 */
#define IS_PENDING_IN(row) "coalesce(" row "status, 'pending') = 'pending'"
#define IS_PENDING IS_PENDING_IN("")

/* Rows that a removal takes at a time. */
#define REMOVED_AT_A_TIME "10000"

typedef enum Statement
{
	TAKE_OVER,
	DUE,
	CLAIM,
	UNVERIFIED,
	HAS_INVITATION,
	SETTLE,
	NEXT_DUE,
	COUNT_DUE,
	REMOVE_OLDER,
	PENDING,
	SET_STATUSES
} Statement;

#define STATEMENTS (SET_STATUSES + 1)
#define MAX_PARAMETERS 15

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
	[DUE] = {
		"SELECT id, organization_id, lower(email_address), send_alone, " DUE_AT " "
		"FROM %1$s WHERE state = 'queued' AND " DUE_AT " <= now() "
		"ORDER BY " DUE_AT ", id LIMIT $1",
		1, {INT4OID}
	},
	[CLAIM] = {
		"UPDATE %1$s AS o "
		"SET state = 'sending', attempts = o.attempts + 1, "
		"claimed_at = due.at, "
		"first_claimed_at = coalesce(o.first_claimed_at, due.at) "
		"FROM (SELECT seen.id, clock_timestamp() AS at "
		"FROM unnest($1, $2, $3) AS planned (id, organization_id, address) "
		"JOIN %1$s AS seen ON seen.id = planned.id "
		"AND seen.organization_id = planned.organization_id "
		"AND lower(seen.email_address) = planned.address "
		"WHERE seen.state = $4 AND " DUE_AT " <= now() "
		"FOR UPDATE OF seen SKIP LOCKED) AS due "
		"WHERE o.id = due.id "
		"RETURNING " ROW_COLUMNS,
		4, {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID}
	},
	[UNVERIFIED] = {
		"SELECT " ROW_COLUMNS " FROM %1$s AS o WHERE state = 'verifying' "
		"AND " DUE_AT " <= now() ORDER BY " DUE_AT ", id LIMIT $1",
		1, {INT4OID}
	},
	[HAS_INVITATION] = {
		"SELECT 1 FROM %1$s WHERE invitation_id = $1",
		1, {TEXTOID}
	},
	[SETTLE] = {
		"UPDATE %1$s AS o SET state = c.state, attempts = c.attempts, "
		"next_attempt_at = c.next_attempt_at, "
		"first_claimed_at = CASE WHEN c.attempts > 0 THEN o.first_claimed_at END, "
		"settled_at = CASE WHEN c.state IN ('sent', 'skipped', 'failed') "
		"THEN clock_timestamp() END, "
		"invitation_id = c.invitation_id, status = c.status, url = c.url, "
		"expires_at = c.expires_at, http_status = c.http_status, "
		"error_code = c.error_code, error_message = c.error_message, "
		"trace_id = c.trace_id, send_alone = c.send_alone "
		"FROM (SELECT c.* FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, "
		"$11, $12, $13, $14, $15) AS c (id, seen_attempts, seen_state, state, "
		"attempts, next_attempt_at, invitation_id, status, url, expires_at, "
		"http_status, error_code, error_message, trace_id, send_alone) "
		"JOIN %1$s AS seen ON seen.id = c.id "
		"AND seen.attempts = c.seen_attempts AND seen.state = c.seen_state "
		"FOR UPDATE OF seen SKIP LOCKED) AS c "
		"WHERE o.id = c.id "
		"RETURNING o.id",
		15, {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
			INT4ARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
			TEXTARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TEXTARRAYOID, BOOLARRAYOID}
	},
	[NEXT_DUE] = {
		"SELECT least((SELECT now() FROM %1$s WHERE state = 'sending' "
		"AND now() > $1 LIMIT 1), "
		"(SELECT " DUE_AT " FROM %1$s WHERE state = 'queued' "
		"AND " DUE_AT " > $1 ORDER BY " DUE_AT ", id LIMIT 1), "
		"(SELECT " DUE_AT " FROM %1$s WHERE state = 'verifying' "
		"AND " DUE_AT " > $1 ORDER BY " DUE_AT ", id LIMIT 1))",
		1, {TIMESTAMPTZOID}
	},
	[COUNT_DUE] = {
		"SELECT least((SELECT count(*) FROM %1$s WHERE state = 'queued' "
		"AND " DUE_AT " <= now()), $1) + (SELECT count(*) FROM %1$s "
		"WHERE state = 'verifying' AND " DUE_AT " <= now())",
		1, {INT8OID}
	},
	[REMOVE_OLDER] = {
		"DELETE FROM %1$s AS o USING (SELECT id FROM %1$s "
		"WHERE state IN ('sent', 'skipped', 'failed', 'canceled') "
		"AND settled_at < $1 ORDER BY settled_at LIMIT " REMOVED_AT_A_TIME " "
		"FOR UPDATE SKIP LOCKED) AS old "
		"WHERE o.id = old.id",
		1, {TIMESTAMPTZOID}
	},
	[PENDING] = {
		"SELECT organization_id, invitation_id, email_address, "
		"status IS NOT NULL FROM %1$s "
		"WHERE state = 'sent' AND invitation_id IS NOT NULL AND " IS_PENDING " "
		"ORDER BY organization_id",
		0, {0}
	},
	[SET_STATUSES] = {
		"UPDATE %1$s AS o SET status = c.status, "
		"url = CASE c.status WHEN 'pending' THEN o.url END "
		"FROM (SELECT seen.id, c.status "
		"FROM unnest($1, $2) AS c (invitation_id, status) "
		"JOIN %1$s AS seen ON seen.invitation_id = c.invitation_id "
		"WHERE seen.state = $3 AND " IS_PENDING_IN("seen.") " "
		"AND seen.status IS DISTINCT FROM c.status "
		"FOR UPDATE OF seen SKIP LOCKED) AS c "
		"WHERE o.id = c.id "
		"RETURNING o.status",
		3, {TEXTARRAYOID, TEXTARRAYOID, TEXTOID}
	},
};

/*
 * A plan that was made while the table was small stays in use when it has
 * grown, and the statistics of a queue are always out of date: every statement
 * is to go by the index that was made for it, row by row.  For the same reason
 * a statement that looks rows up by id has their state as a parameter, and
 * plans do not depend on parameters: then the partial indexes, which have the
 * id in them, too, are out of the question.
 */
static const char *const kept_from_planner[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
	"enable_mergejoin", "enable_material"
};

/* Takes what SPI_tuptable has into the caller's memory context. */
typedef void (*CollectFunction) (void *result);

/* The parameters of SETTLE while they are being filled. */
typedef struct SettleArrays
{
	Datum	   *elements[MAX_PARAMETERS];
	bool	   *nulls[MAX_PARAMETERS];
} SettleArrays;

typedef struct SettledRows
{
	ClerkOutboxChange *changes;
	int			count;
} SettledRows;

/* The table that was found last, and the plans made for it. */
static struct
{
	Oid			relation;
	Oid			owner;
	NameData	schema;			/* the plans' text has its name */
	SPIPlanPtr	plans[STATEMENTS];
}			outbox;

/* True while statements of this file change rows. */
static bool at_work = false;

static void forget_plans(void);
static LOCKTAG sender_lock(void);
static uint64 run(Statement statement, const Datum *values, const char *nulls,
				  CollectFunction collect, void *result);
static void set_locally(const char *name, const char *value);
static SPIPlanPtr plan_for(Statement statement);
static Datum array_datum(Datum *elements, bool *nulls, int count, Oid type);
static void fill_settle_arrays(SettleArrays *arrays,
							   const ClerkOutboxChange *change, int position);
static void collect_due(void *result);
static void collect_claimed(void *result);
static void collect_unverified(void *result);
static void collect_rows(List **rows, const char *state);
static void collect_settled(void *result);
static void collect_number(void *result);
static void collect_pending(void *result);
static void collect_texts(void *result);
static ClerkOutboxRow *read_row(HeapTuple tuple, TupleDesc descriptor);

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

/* Stores the rows that are due, oldest first; returns how many there are. */
int
clerk_outbox_due(int limit, ClerkOutboxDue **due)
{
	Datum		values[] = {Int32GetDatum(limit)};

	*due = palloc(limit * sizeof(ClerkOutboxDue));
	return (int) run(DUE, values, NULL, collect_due, *due);
}

/*
 * Claims those of some rows that still are due: a list of ClerkOutboxRow, in
 * no order, which must not be sent before the transaction has committed.  A
 * queued row may be changed by hand: one whose organization or address is not
 * what it was does not fit the request that it was meant for, and stays queued.
 */
List *
clerk_outbox_claim(const ClerkOutboxDue *const *due, int count)
{
	List	   *rows = NIL;
	Datum	   *ids = palloc(count * sizeof(Datum));
	Datum	   *organization_ids = palloc(count * sizeof(Datum));
	Datum	   *addresses = palloc(count * sizeof(Datum));
	Datum		values[4];

	for (int i = 0; i < count; i++)
	{
		ids[i] = Int64GetDatum(due[i]->id);
		organization_ids[i] = CStringGetTextDatum(due[i]->organization_id);
		addresses[i] = CStringGetTextDatum(due[i]->address);
	}
	values[0] = array_datum(ids, NULL, count, INT8OID);
	values[1] = array_datum(organization_ids, NULL, count, TEXTOID);
	values[2] = array_datum(addresses, NULL, count, TEXTOID);
	values[3] = CStringGetTextDatum(CLERK_OUTBOX_QUEUED);

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

/* Whether a row has this invitation. */
bool
clerk_outbox_has_invitation(const char *invitation_id)
{
	Datum		values[] = {CStringGetTextDatum(invitation_id)};

	return run(HAS_INVITATION, values, NULL, NULL, NULL) > 0;
}

/*
 * Changes rows, and tells for each change whether it was applied: it is not if
 * the row is no longer as its sender has seen it, or if somebody holds a lock
 * on it.  Nobody may keep a sender waiting, and the next one finds the row as
 * it is.  A row that has no attempt left behind it has not been sent yet: what
 * came before its next claim is not its own.
 */
void
clerk_outbox_settle(ClerkOutboxChange *changes, int count)
{
	SettleArrays *arrays = palloc(sizeof(SettleArrays));
	Datum		values[MAX_PARAMETERS];
	SettledRows settled = {changes, count};

	for (int i = 0; i < MAX_PARAMETERS; i++)
	{
		arrays->elements[i] = palloc(count * sizeof(Datum));
		arrays->nulls[i] = palloc0(count * sizeof(bool));
	}
	for (int i = 0; i < count; i++)
	{
		changes[i].applied = false;
		fill_settle_arrays(arrays, &changes[i], i);
	}
	for (int i = 0; i < MAX_PARAMETERS; i++)
		values[i] = array_datum(arrays->elements[i], arrays->nulls[i], count,
								get_element_type(statement_texts[SETTLE].types[i]));
	run(SETTLE, values, NULL, collect_settled, &settled);
	for (int i = 0; i < count; i++)
		if (changes[i].applied)
			clerk_outbox_announce(changes[i].row->id, changes[i].state);
}

/* Tells who listens that a row has reached a final state. */
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

/* One element of each of the statement's parameters. */
static void
fill_settle_arrays(SettleArrays *arrays, const ClerkOutboxChange *change,
				   int position)
{
	int			parameter = 0;

#define ADD(is_null, datum) \
	(arrays->nulls[parameter][position] = (is_null), \
	 arrays->elements[parameter++][position] = (is_null) ? (Datum) 0 : (datum))
#define ADD_TEXT(string) ADD((string) == NULL, CStringGetTextDatum(string))

	ADD(false, Int64GetDatum(change->row->id));
	ADD(false, Int32GetDatum(change->row->attempts));
	ADD_TEXT(change->row->state);
	ADD_TEXT(change->state);
	ADD(false, Int32GetDatum(change->attempts));
	ADD(change->next_attempt_at == 0,
		TimestampTzGetDatum(change->next_attempt_at));
	ADD_TEXT(change->invitation_id);
	ADD_TEXT(change->status);
	ADD_TEXT(change->url);
	ADD(change->expires_at == 0, TimestampTzGetDatum(change->expires_at));
	ADD(change->http_status == 0, Int32GetDatum(change->http_status));
	ADD_TEXT(change->error_code);
	ADD_TEXT(change->error_message);
	ADD_TEXT(change->trace_id);
	ADD(false, BoolGetDatum(change->send_alone));
	Assert(parameter == MAX_PARAMETERS);

#undef ADD
#undef ADD_TEXT
}

/*
 * The earliest time after the given one at which a row is due; 0 if there is
 * none.  One that is sending, and was left so by its sender, is due now.
 */
TimestampTz
clerk_outbox_next_due(TimestampTz after)
{
	Datum		values[] = {TimestampTzGetDatum(after)};
	int64		due_at = 0;

	run(NEXT_DUE, values, NULL, collect_number, &due_at);
	return (TimestampTz) due_at;
}

/* How many rows are due now, of which at most so many are yet to be sent. */
int64
clerk_outbox_count_due(int64 most_unsent)
{
	Datum		values[] = {Int64GetDatum(most_unsent)};
	int64		count = 0;

	run(COUNT_DUE, values, NULL, collect_number, &count);
	return count;
}

/*
 * Removes some of the rows that were settled before this time; returns how
 * many.  Those that somebody has locked stay: nobody may keep a sender waiting.
 */
int
clerk_outbox_remove_older(TimestampTz settled_before)
{
	Datum		values[] = {TimestampTzGetDatum(settled_before)};

	return (int) run(REMOVE_OLDER, values, NULL, NULL, NULL);
}

/*
 * The invitations that were pending when last seen, by organization; returns
 * how many there are.
 */
int64
clerk_outbox_pending(ClerkOutboxPending **pending)
{
	return (int64) run(PENDING, NULL, NULL, collect_pending, pending);
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
	values[0] = array_datum(ids, NULL, count, TEXTOID);
	values[1] = array_datum(texts, NULL, count, TEXTOID);
	values[2] = CStringGetTextDatum(CLERK_OUTBOX_SENT);
	run(SET_STATUSES, values, NULL, collect_texts, &changed);
	return changed;
}

/* Whether a row is being changed by a statement of this file. */
bool
clerk_outbox_at_work(void)
{
	return at_work;
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
	set_locally("search_path", "pg_catalog, pg_temp");
	for (int i = 0; i < (int) lengthof(kept_from_planner); i++)
		set_locally(kept_from_planner[i], "off");
	set_locally("plan_cache_mode", "force_generic_plan");
	at_work = true;
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
		at_work = false;
	}
	PG_END_TRY();
	AtEOXact_GUC(true, nest_level);
	SetUserIdAndSecContext(user, security);
	return processed;
}

static void
set_locally(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
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

static Datum
array_datum(Datum *elements, bool *nulls, int count, Oid type)
{
	int			lower_bound = 1;
	int16		length;
	bool		by_value;
	char		alignment;

	get_typlenbyvalalign(type, &length, &by_value, &alignment);
	return PointerGetDatum(construct_md_array(elements, nulls, 1, &count,
											  &lower_bound, type, length,
											  by_value, alignment));
}

static void
collect_due(void *result)
{
	ClerkOutboxDue *due = result;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	descriptor = SPI_tuptable->tupdesc;
		bool		isnull;

		due[i].id = DatumGetInt64(SPI_getbinval(tuple, descriptor, 1, &isnull));
		due[i].organization_id = SPI_getvalue(tuple, descriptor, 2);
		due[i].address = SPI_getvalue(tuple, descriptor, 3);
		due[i].send_alone = DatumGetBool(SPI_getbinval(tuple, descriptor, 4,
													   &isnull));
		due[i].due_at = DatumGetTimestampTz(SPI_getbinval(tuple, descriptor, 5,
														  &isnull));
	}
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

/* The statement tells which rows it has changed, in any order. */
static void
collect_settled(void *result)
{
	SettledRows *settled = result;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc,
													 1, &isnull));

		for (int j = 0; j < settled->count; j++)
			if (settled->changes[j].row->id == id)
				settled->changes[j].applied = true;
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
	row->send_alone = DatumGetBool(NEXT());
	return row;
}
