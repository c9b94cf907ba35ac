/*
 * enqueued_rows.c
 *		Rows for the outbox that a trigger has collected, and their INSERT.
 *
 * The rows are inserted by one statement of ours with the rights of the
 * outbox's owner (outbox/owner_rights.c), in which nothing is looked up through
 * a search_path that others have set, and nothing of theirs is called.
 *
 * Most of what an INSERT of one row costs is the preparation of the outbox's
 * constraints and indexes: one by one, 10,000 rows take about nine times as
 * long as together.  So a row trigger's rows are inserted together, too, when
 * the row events of its statement have fired.  The server fires the events that
 * a statement's triggers add after those that are queued already, but only for
 * triggers that exist.  That is what the table clerk_enqueue_signal is for,
 * which is always empty: an UPDATE of it, whose AFTER triggers are left to the
 * statement that is running, as those of a foreign key's action are, queues its
 * statement trigger there.  That trigger inserts whatever has been collected.
 * A statement that is run by one of the triggers in between does so earlier.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tupdesc.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "common/installed_extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "outbox/enqueued_rows.h"
#include "outbox/owner_rights.h"
#include "outbox/statement_table.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#define OUTBOX "clerk_invitation_outbox"
#define SIGNAL "clerk_enqueue_signal"

/* Name of the rows that are to be inserted, in the statement that does it. */
#define NEW_ROWS "clerk_new_rows"

struct ClerkEnqueuedRows
{
	Oid			schema;			/* of the outbox */
	TupleDesc	descriptor;
	const char *origin;			/* for an error's context */
	MemoryContext context;		/* keeps all this */
	Tuplestorestate *rows;		/* NULL if there are none */
	int64		count;
	bool		waiting;		/* in the list below */
	dlist_node	node;
};

/* A statement, kept for the session. */
typedef struct KeptPlan
{
	char	   *text;
	SPIPlanPtr	plan;			/* NULL: could not be made so far */
	struct KeptPlan *next;
} KeptPlan;

static KeptPlan *kept_plans = NULL;

/* What is to be inserted when the signal's trigger fires. */
static dlist_head waiting = DLIST_STATIC_INIT(waiting);

static void forget(void *arg);
static void describe_rows(void *arg);
static void insert_as_owner(const ClerkEnqueuedRows *rows);
static void send_signal(Oid schema);
static void check_signal(Oid table);
static Oid	find_table(const char *name, Oid schema);
static SPIPlanPtr kept_plan(const char *text, Oid table);
static char *insert_statement(const ClerkEnqueuedRows *rows);

PG_FUNCTION_INFO_V1(clerk_insert_enqueued);

/*
 * Rows for the outbox of a schema, with so many of its columns.  "origin" says
 * in an error's context where they come from.  All this lives in the current
 * memory context, and is forgotten with it.
 */
ClerkEnqueuedRows *
clerk_enqueue_rows(Oid schema, const char *const *columns, const Oid *types,
				   int count, const char *origin)
{
	ClerkEnqueuedRows *rows = palloc0(sizeof(ClerkEnqueuedRows));
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));

	rows->schema = schema;
	rows->descriptor = CreateTemplateTupleDesc(count);
	for (int i = 0; i < count; i++)
		TupleDescInitEntry(rows->descriptor, i + 1, columns[i], types[i], -1, 0);
	rows->origin = origin;
	rows->context = CurrentMemoryContext;
	callback->func = forget;
	callback->arg = rows;
	MemoryContextRegisterResetCallback(rows->context, callback);
	return rows;
}

static void
forget(void *arg)
{
	ClerkEnqueuedRows *rows = arg;

	if (rows->waiting)
		dlist_delete(&rows->node);
	rows->waiting = false;
}

/* Adds a copy of a row. */
void
clerk_add_enqueued_row(ClerkEnqueuedRows *rows, Datum *values, bool *nulls)
{
	MemoryContext caller = MemoryContextSwitchTo(rows->context);

	if (rows->rows == NULL)
		rows->rows = tuplestore_begin_heap(false, false, work_mem);
	tuplestore_putvalues(rows->rows, rows->descriptor, values, nulls);
	rows->count++;
	MemoryContextSwitchTo(caller);
}

/* Inserts the rows into the outbox, and forgets them. */
void
clerk_insert_enqueued_rows(ClerkEnqueuedRows *rows)
{
	EphemeralNamedRelationData relation = {0};
	int			result;

	forget(rows);
	if (rows->count == 0)
		return;

	relation.md.name = pstrdup(NEW_ROWS);
	relation.md.tupdesc = rows->descriptor;
	relation.md.enrtype = ENR_NAMED_TUPLESTORE;
	relation.md.enrtuples = rows->count;
	relation.reldata = rows->rows;

	SPI_connect();
	result = SPI_register_relation(&relation);
	if (result != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed: %s",
			 SPI_result_code_string(result));
	insert_as_owner(rows);
	SPI_finish();

	tuplestore_end(rows->rows);
	rows->rows = NULL;
	rows->count = 0;
}

/*
 * Has the rows inserted when the AFTER ROW events of the statement that is
 * running have fired.  To be called by an AFTER trigger that is not deferred.
 */
void
clerk_insert_enqueued_rows_later(ClerkEnqueuedRows *rows)
{
	if (rows->waiting || rows->count == 0)
		return;
	send_signal(rows->schema);
	dlist_push_tail(&waiting, &rows->node);
	rows->waiting = true;
}

/* The signal's trigger. */
Datum
clerk_insert_enqueued(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" can only be called as a trigger",
						"clerk_insert_enqueued")));
	while (!dlist_is_empty(&waiting))
	{
		ClerkEnqueuedRows *rows = dlist_head_element(ClerkEnqueuedRows, node,
													 &waiting);
		ErrorContextCallback context = {
			error_context_stack, describe_rows, rows
		};

		error_context_stack = &context;
		clerk_insert_enqueued_rows(rows);
		error_context_stack = context.previous;
	}
	return PointerGetDatum(NULL);
}

static void
describe_rows(void *arg)
{
	const ClerkEnqueuedRows *rows = arg;

	errcontext("%s", rows->origin);
}

/* Inserts the rows of NEW_ROWS into the outbox with its owner's rights. */
static void
insert_as_owner(const ClerkEnqueuedRows *rows)
{
	Oid			outbox = find_table(OUTBOX, rows->schema);
	ClerkRights rights;
	int			result;

	clerk_take_owner_rights(clerk_lock_table_and_owner(outbox), &rights);
	clerk_fire_triggers();
	clerk_defer_no_constraint_of(outbox);
	result = SPI_execute_plan(kept_plan(insert_statement(rows), outbox),
							  NULL, NULL, false, 0);
	if (result != SPI_OK_INSERT)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(result));

	clerk_refuse_temporary_objects(&rights);
	clerk_restore_rights(&rights);
}

/* Queues the signal's trigger. */
static void
send_signal(Oid schema)
{
	Oid			table = find_table(SIGNAL, schema);
	char	   *text = psprintf("UPDATE ONLY %s SET never = NULL",
								quote_qualified_identifier(get_namespace_name(schema),
														   SIGNAL));
	ClerkRights rights;
	int			result;

	clerk_take_owner_rights(clerk_lock_table_and_owner(table), &rights);
	check_signal(table);
	SPI_connect();
	result = SPI_execute_snapshot(kept_plan(text, table), NULL, NULL,
								  InvalidSnapshot, InvalidSnapshot, false,
								  false /* leave AFTER triggers to the caller */ , 0);
	if (result != SPI_OK_UPDATE)
		elog(ERROR, "SPI_execute_snapshot failed: %s",
			 SPI_result_code_string(result));
	SPI_finish();
	clerk_restore_rights(&rights);
}

/*
 * Without its trigger the rows would be lost, and no other one is to run with
 * the rights of its owner.
 */
static void
check_signal(Oid table)
{
	Relation	signal = table_open(table, NoLock);
	TriggerDesc *triggers = signal->trigdesc;
	bool		good;

	good = triggers != NULL && triggers->numtriggers == 1 &&
		triggers->triggers[0].tgtype == (TRIGGER_TYPE_AFTER | TRIGGER_TYPE_UPDATE) &&
		triggers->triggers[0].tgenabled == TRIGGER_FIRES_ALWAYS;
	table_close(signal, NoLock);
	if (!good)
		clerk_raise_misfit();
}

/* A table of ours, in the schema of the function that was called. */
static Oid
find_table(const char *name, Oid schema)
{
	Oid			table = get_relname_relid(name, schema);

	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there is no table \"%s\" in the schema of function \"%s\"",
						name, "clerk_invitation_trigger"),
				 errhint("Run ALTER EXTENSION clerk_invite UPDATE.")));
	return table;
}

/*
 * A statement about a table.  Kept by its text, which names the schema: when
 * the table is another one, or has been altered, the server analyzes the
 * statement again, but it cannot know of a schema's new name.  There are two
 * in a session, or four.
 */
static SPIPlanPtr
kept_plan(const char *text, Oid table)
{
	KeptPlan   *kept = kept_plans;

	while (kept != NULL && strcmp(kept->text, text) != 0)
		kept = kept->next;

	if (kept == NULL)
	{
		kept = MemoryContextAllocZero(TopMemoryContext, sizeof(KeptPlan));
		kept->text = MemoryContextStrdup(TopMemoryContext, text);
		kept->next = kept_plans;
		kept_plans = kept;
	}
	clerk_expect_table(kept->text, table);
	if (kept->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(kept->text, 0, NULL);

		if (plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s",
				 SPI_result_code_string(SPI_result));
		SPI_keepplan(plan);
		kept->plan = plan;
	}
	return kept->plan;
}

static char *
insert_statement(const ClerkEnqueuedRows *rows)
{
	StringInfoData columns;

	initStringInfo(&columns);
	for (int i = 0; i < rows->descriptor->natts; i++)
		appendStringInfo(&columns, "%s%s", i > 0 ? ", " : "",
						 NameStr(TupleDescAttr(rows->descriptor, i)->attname));
	return psprintf("INSERT INTO %s (%s) SELECT %s FROM %s",
					quote_qualified_identifier(get_namespace_name(rows->schema),
											   OUTBOX),
					columns.data, columns.data, NEW_ROWS);
}
