/*
 * enqueued_rows.c
 *		Collects the outbox rows of a trigger and inserts them.
 *
 * The rows are inserted by a statement of the extension's own, with the rights
 * of the outbox's owner (outbox/owner_rights.c).  No name in it is looked up
 * through a search_path that a user has set, and it calls no function of a
 * user's.
 *
 * Most of the cost of inserting one row is the preparation of the outbox's
 * constraints and indexes: one by one, 10,000 rows take about nine times as
 * long as together.  Therefore the rows of a row trigger are inserted
 * together, too, after the row events of its statement have fired.  The server
 * fires events that a statement's triggers add after those that are already
 * queued, but only for triggers that exist.  That is the purpose of the table
 * clerk_enqueue_signal, which is always empty.  An UPDATE of it, whose AFTER
 * triggers are left to the statement that is running, as those of a foreign
 * key's action are, queues its statement trigger there.  That trigger inserts
 * all rows collected so far.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tupdesc.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "common/installed_extension.h"
#include "compat.h"
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
#define SIGNAL_TABLE "clerk_enqueue_signal"

/* Name of the collected rows in the INSERT statement. */
#define NEW_ROWS "clerk_new_rows"

/* Rows that are to be inserted. */
struct ClerkEnqueuedRows
{
	Oid			schema;			/* of the outbox */
	TupleDesc	descriptor;
	const char *origin;			/* for the error context */
	MemoryContext context;		/* holds all of this */
	Tuplestorestate *rows;		/* NULL: there are none */
	int64		count;
	bool		waiting;		/* whether it is in waiting_rows */
	dlist_node	node;
};

/* A prepared statement, kept for the session. */
typedef struct KeptPlan
{
	char	   *text;
	SPIPlanPtr	plan;			/* NULL: not prepared yet */
	struct KeptPlan *next;
} KeptPlan;

static KeptPlan *kept_plans = NULL;

/* The rows that the trigger of the signal table will insert. */
static dlist_head waiting_rows = DLIST_STATIC_INIT(waiting_rows);

static void remove_from_waiting(void *arg);
static void add_error_context(void *arg);
static void insert_as_owner(const ClerkEnqueuedRows *rows);
static void queue_signal_trigger(Oid schema);
static void check_signal_trigger(Oid table);
static Oid	find_table(const char *name, Oid schema);
static SPIPlanPtr get_kept_plan(const char *text, Oid table);
static char *insert_statement(const ClerkEnqueuedRows *rows);

PG_FUNCTION_INFO_V1(clerk_insert_enqueued);

/*
 * Creates an empty collection of rows for the outbox of a schema.  "columns"
 * and "types" describe the columns that the rows have; "origin" says in the
 * error context where the rows come from.
 *
 * The collection is in the current memory context, as "origin" must be, and
 * goes away with that context.
 */
ClerkEnqueuedRows *
clerk_create_enqueued_rows(Oid schema, const char *const *columns,
						   const Oid *types, int count, const char *origin)
{
	ClerkEnqueuedRows *rows = palloc0(sizeof(ClerkEnqueuedRows));
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));

	rows->schema = schema;
	rows->descriptor = CreateTemplateTupleDesc(count);
	for (int i = 0; i < count; i++)
		TupleDescInitEntry(rows->descriptor, i + 1, columns[i], types[i], -1, 0);
	clerk_finalize_descriptor(rows->descriptor);
	rows->origin = origin;
	rows->context = CurrentMemoryContext;
	callback->func = remove_from_waiting;
	callback->arg = rows;
	MemoryContextRegisterResetCallback(rows->context, callback);
	return rows;
}

static void
remove_from_waiting(void *arg)
{
	ClerkEnqueuedRows *rows = arg;

	if (rows->waiting)
		dlist_delete(&rows->node);
	rows->waiting = false;
}

/* Adds a copy of a row, with values and nulls in the order of the columns. */
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

/*
 * Inserts the collected rows into the outbox, and empties the collection.
 *
 * Raises 55000 if the schema has no outbox or another table takes its place
 * while the statement is prepared, 42501 if code attached to the outbox leaves
 * a temporary object behind, and whatever the INSERT raises, such as a
 * violation of the outbox's constraints.
 */
void
clerk_insert_enqueued_rows(ClerkEnqueuedRows *rows)
{
	EphemeralNamedRelationData relation = {0};
	int			result;

	remove_from_waiting(rows);
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
 * Has the collected rows inserted after the AFTER ROW events of the running
 * statement have fired.  Must be called by an AFTER trigger that is not
 * deferred.  Raises 55000 if the signal table is missing or its trigger is not
 * as installed.
 */
void
clerk_insert_enqueued_rows_later(ClerkEnqueuedRows *rows)
{
	if (rows->waiting || rows->count == 0)
		return;
	queue_signal_trigger(rows->schema);
	dlist_push_tail(&waiting_rows, &rows->node);
	rows->waiting = true;
}

/*
 * clerk_insert_enqueued() RETURNS trigger
 *
 * The trigger of the signal table: inserts all rows that wait for it.  Raises
 * 39P01 if it is not called as a trigger, and the errors of
 * clerk_insert_enqueued_rows().
 */
Datum
clerk_insert_enqueued(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" can only be called as a trigger",
						"clerk_insert_enqueued")));
	while (!dlist_is_empty(&waiting_rows))
	{
		ClerkEnqueuedRows *rows = dlist_head_element(ClerkEnqueuedRows, node,
													 &waiting_rows);
		ErrorContextCallback context = {
			error_context_stack, add_error_context, rows
		};

		error_context_stack = &context;
		clerk_insert_enqueued_rows(rows);
		error_context_stack = context.previous;
	}
	return PointerGetDatum(NULL);
}

static void
add_error_context(void *arg)
{
	const ClerkEnqueuedRows *rows = arg;

	errcontext("%s", rows->origin);
}

/* Inserts NEW_ROWS into the outbox with the rights of its owner. */
static void
insert_as_owner(const ClerkEnqueuedRows *rows)
{
	Oid			outbox = find_table(OUTBOX, rows->schema);
	ClerkRights rights;
	int			result;

	clerk_take_owner_rights(clerk_lock_table_and_owner(outbox), &rights);
	clerk_fire_triggers();
	clerk_make_constraints_immediate_of(outbox);
	result = SPI_execute_plan(get_kept_plan(insert_statement(rows), outbox),
							  NULL, NULL, false, 0);
	if (result != SPI_OK_INSERT)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(result));

	clerk_refuse_temporary_objects(&rights);
	clerk_restore_rights(&rights);
}

/*
 * Queues the trigger of the signal table, to be fired by the running
 * statement.
 */
static void
queue_signal_trigger(Oid schema)
{
	Oid			table = find_table(SIGNAL_TABLE, schema);
	char	   *text = psprintf("UPDATE ONLY %s SET never = NULL",
								quote_qualified_identifier(get_namespace_name(schema),
														   SIGNAL_TABLE));
	ClerkRights rights;
	int			result;

	clerk_take_owner_rights(clerk_lock_table_and_owner(table), &rights);
	check_signal_trigger(table);
	SPI_connect();
	result = SPI_execute_snapshot(get_kept_plan(text, table), NULL, NULL,
								  InvalidSnapshot, InvalidSnapshot, false,
								  false /* leave AFTER triggers to the caller */ , 0);
	if (result != SPI_OK_UPDATE)
		elog(ERROR, "SPI_execute_snapshot failed: %s",
			 SPI_result_code_string(result));
	SPI_finish();
	clerk_restore_rights(&rights);
}

/*
 * Raises 55000 unless the signal table has exactly its own trigger: without
 * that, the rows would be lost, and no other trigger may run with the rights
 * of the table's owner.
 */
static void
check_signal_trigger(Oid table)
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

/*
 * Finds a table of the extension's, in the schema of the function that was
 * called.  Raises 55000 if there is none.
 */
static Oid
find_table(const char *name, Oid schema)
{
	Oid			table = get_relname_relid(name, schema);

	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" does not exist in the schema of function \"%s\"",
						name, "clerk_invitation_trigger"),
				 errhint("Run ALTER EXTENSION clerk_invite UPDATE.")));
	return table;
}

/*
 * Returns the plan of a statement about a table, prepared once a session.
 * Plans are found by the statement's text, which names the schema.  The server
 * replans when the table is another one or has been altered, but does not
 * notice that the schema was renamed.  A session has two such statements, and
 * four if the schema is renamed.
 */
static SPIPlanPtr
get_kept_plan(const char *text, Oid table)
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
