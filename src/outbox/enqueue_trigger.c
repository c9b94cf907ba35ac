/*
 * enqueue_trigger.c
 *		clerk_invitation_trigger(): new rows of a table of members become rows
 *		of the outbox.
 *
 * Two steps with different rights.  First the values are computed, as the user
 * whose statement fired the trigger: that runs output functions, which may be
 * anyone's.  The results, plain text and jsonb, go into a tuplestore.  Then
 * the outbox's owner inserts what is in there: one statement of ours, in which
 * nothing is looked up through a search_path that others have set, and nothing
 * of theirs is called.
 *
 * Most of what an INSERT of one row costs is the preparation of the outbox's
 * constraints and indexes, so rows are inserted by the statement, also by a
 * row trigger.  That one collects its rows, and at the first of them queues an
 * event for itself, which fires when the row events of the statement have
 * fired: see queue_flush().
 *
 * What is found out about a trigger hangs on its FmgrInfo.  That belongs to
 * one trigger on one relation in one execution of a statement, so nothing in
 * it can be out of date, and an error takes it away together with the rows
 * that it has collected.
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/settings.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "outbox/owner_rights.h"
#include "outbox/statement_table.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#define OUTBOX "clerk_invitation_outbox"

/* Name of the rows that are to be inserted, in the statement that does it. */
#define NEW_ROWS "clerk_new_rows"

/* The trigger's arguments, and the values of an outbox row, in this order. */
enum
{
	FIELD_ORG_ID,
	FIELD_INVITER,
	FIELD_EMAIL,
	FIELD_ROLE,
	FIELD_REDIRECT,
	FIELD_METADATA,
	FIELDS
};

#define MIN_ARGUMENTS (FIELD_ROLE + 1)

typedef struct FieldDefinition
{
	const char *argument;		/* name in
								 * clerk_create_organization_invitation */
	const char *column;			/* name in the outbox */
	Oid			type;			/* type there */
	bool		required;
} FieldDefinition;

static const FieldDefinition fields[FIELDS] = {
	[FIELD_ORG_ID] = {"org_id", "organization_id", TEXTOID, true},
	[FIELD_INVITER] = {"inviter", "inviter_user_id", TEXTOID, false},
	[FIELD_EMAIL] = {"email", "email_address", TEXTOID, true},
	[FIELD_ROLE] = {"role", "role", TEXTOID, true},
	[FIELD_REDIRECT] = {"redirect", "redirect_url", TEXTOID, false},
	[FIELD_METADATA] = {"metadata", "public_metadata", JSONBOID, false},
};

/* How the value of a members column becomes one of an outbox column. */
typedef enum Conversion
{
	CONVERSION_NONE,			/* binary compatible */
	CONVERSION_TRIM,			/* character(n): its padding means nothing */
	CONVERSION_TEXT,			/* any other: its text form */
	CONVERSION_JSON				/* its text form, read as JSON */
} Conversion;

/* Where a value comes from. */
typedef struct Source
{
	AttrNumber	column;			/* 0: the constant below */
	Conversion	conversion;
	FmgrInfo	output;			/* for the last two conversions */
	Datum		constant;
	bool		constant_is_null;
} Source;

/* What a trigger keeps in fn_extra. */
typedef struct Enqueuer
{
	Source		sources[FIELDS];
	TupleDesc	descriptor;		/* of the rows, in the order of the fields */
	Tuplestorestate *rows;		/* to be inserted; NULL if there are none */
	int64		count;			/* how many */
	MemoryContext context;		/* keeps all this */
	MemoryContext row_context;	/* reset for each row of a transition table */
} Enqueuer;

/* What an error's context tells. */
typedef struct Work
{
	const TriggerData *trigger;
	int			field;			/* being computed; -1: none */
} Work;

/* An INSERT, kept for the session. */
typedef struct KeptPlan
{
	char	   *text;
	SPIPlanPtr	plan;			/* NULL: could not be made so far */
	struct KeptPlan *next;
} KeptPlan;

static KeptPlan *kept_plans = NULL;

static const TriggerData *checked_trigger(FunctionCallInfo fcinfo);
static bool is_flush(const TriggerData *trigger);
static void describe_work(void *arg);
static Enqueuer *get_enqueuer(FunctionCallInfo fcinfo, Work *work);
static void check_arguments(const Trigger *trigger);
static void find_source(Source *source, const char *argument, Relation members,
						int field);
static void find_column(Source *source, const char *name, Relation members,
						int field);
static void collect_transition_table(Enqueuer *enqueuer, Work *work);
static void collect_row(Enqueuer *enqueuer, TupleTableSlot *slot, Work *work);
static Datum converted(Source *source, Datum value);
static void queue_flush(const TriggerData *trigger);
static void flush(Enqueuer *enqueuer, Oid function);
static void insert_as_owner(Oid function);
static SPIPlanPtr kept_plan(const char *schema, Oid outbox);
static char *insert_statement(const char *schema);

PG_FUNCTION_INFO_V1(clerk_invitation_trigger);

/*
 * clerk_invitation_trigger(org_id, inviter, email, role [, redirect
 *		[, metadata]]) RETURNS trigger
 *
 * Raises 39P01 if it is not fired AFTER INSERT or UPDATE, for a row or with a
 * transition table; 22023 and 42703 for its arguments; what the outbox's
 * constraints raise.
 */
Datum
clerk_invitation_trigger(PG_FUNCTION_ARGS)
{
	Work		work = {checked_trigger(fcinfo), -1};
	TriggerEvent event = work.trigger->tg_event;
	ErrorContextCallback context = {error_context_stack, describe_work, &work};
	Enqueuer   *enqueuer;

	/* What has been collected is inserted in any case. */
	if (!clerk_enqueue_enabled && !is_flush(work.trigger))
		return PointerGetDatum(NULL);

	error_context_stack = &context;
	enqueuer = get_enqueuer(fcinfo, &work);
	if (is_flush(work.trigger))
		flush(enqueuer, fcinfo->flinfo->fn_oid);
	else if (TRIGGER_FIRED_FOR_STATEMENT(event))
	{
		collect_transition_table(enqueuer, &work);
		flush(enqueuer, fcinfo->flinfo->fn_oid);
	}
	else
	{
		bool		first = enqueuer->count == 0;

		collect_row(enqueuer,
					TRIGGER_FIRED_BY_UPDATE(event) ?
					work.trigger->tg_newslot : work.trigger->tg_trigslot,
					&work);

		/*
		 * At the end of the transaction or in SET CONSTRAINTS there is no
		 * statement to whose events one could be added.
		 */
		if (work.trigger->tg_trigger->tgdeferrable)
			flush(enqueuer, fcinfo->flinfo->fn_oid);
		else if (first && enqueuer->count > 0)
			queue_flush(work.trigger);
	}
	error_context_stack = context.previous;
	return PointerGetDatum(NULL);
}

/* Returns what the function was called with; raises if that is not for us. */
static const TriggerData *
checked_trigger(FunctionCallInfo fcinfo)
{
	const TriggerData *trigger = (const TriggerData *) fcinfo->context;
	const char *name;
	const char *members;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" can only be called as a trigger",
						"clerk_invitation_trigger")));

	if (is_flush(trigger))
		return trigger;

	name = trigger->tg_trigger->tgname;
	members = RelationGetRelationName(trigger->tg_relation);
	if (!TRIGGER_FIRED_AFTER(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" on \"%s\" must be an AFTER trigger",
						name, members),
				 errdetail("Only then is it certain which rows there will be.")));
	if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) &&
		!TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" on \"%s\" must be for INSERT or UPDATE only",
						name, members),
				 errdetail("DELETE and TRUNCATE leave no row that could be invited.")));
	if (TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) &&
		trigger->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("statement trigger \"%s\" on \"%s\" must have a transition table of new rows",
						name, members),
				 errhint("Add REFERENCING NEW TABLE AS new_members, or make it FOR EACH ROW.")));
	return trigger;
}

/* No row trigger is ever fired by TRUNCATE, except by queue_flush(). */
static bool
is_flush(const TriggerData *trigger)
{
	return TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event) &&
		TRIGGER_FOR_ROW(trigger->tg_trigger->tgtype);
}

static void
describe_work(void *arg)
{
	const Work *work = arg;

	if (work->field >= 0)
		errcontext("argument \"%s\" of clerk_invitation_trigger",
				   fields[work->field].argument);
	errcontext("invitations enqueued by trigger \"%s\" on table \"%s\"",
			   work->trigger->tg_trigger->tgname,
			   RelationGetRelationName(work->trigger->tg_relation));
}

static Enqueuer *
get_enqueuer(FunctionCallInfo fcinfo, Work *work)
{
	const Trigger *trigger = work->trigger->tg_trigger;
	Enqueuer   *enqueuer = fcinfo->flinfo->fn_extra;
	MemoryContext caller;

	if (enqueuer != NULL)
		return enqueuer;

	check_arguments(trigger);
	caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	enqueuer = palloc0(sizeof(Enqueuer));
	enqueuer->context = fcinfo->flinfo->fn_mcxt;
	enqueuer->descriptor = CreateTemplateTupleDesc(FIELDS);
	for (int i = 0; i < FIELDS; i++)
	{
		TupleDescInitEntry(enqueuer->descriptor, i + 1, fields[i].column,
						   fields[i].type, -1, 0);
		work->field = i;
		find_source(&enqueuer->sources[i],
					i < trigger->tgnargs ? trigger->tgargs[i] : "",
					work->trigger->tg_relation, i);
	}
	work->field = -1;
	MemoryContextSwitchTo(caller);
	fcinfo->flinfo->fn_extra = enqueuer;
	return enqueuer;
}

static void
check_arguments(const Trigger *trigger)
{
	if (trigger->tgnargs < MIN_ARGUMENTS || trigger->tgnargs > FIELDS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" must have %d to %d arguments, not %d",
						trigger->tgname, MIN_ARGUMENTS, FIELDS,
						trigger->tgnargs),
				 errhint("They are org_id, inviter, email, role, redirect, metadata; the last two may be left out.")));
	for (int i = 0; i < trigger->tgnargs; i++)
		if (fields[i].required && trigger->tgargs[i][0] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" of trigger \"%s\" must not be empty",
							fields[i].argument, trigger->tgname)));
}

/* Allocates what the source refers to in the current memory context. */
static void
find_source(Source *source, const char *argument, Relation members, int field)
{
	source->column = 0;
	source->constant_is_null = argument[0] == '\0';
	if (source->constant_is_null)
		return;
	if (argument[0] != '=')
		find_column(source, argument, members, field);
	else if (fields[field].type == JSONBOID)
		source->constant = DirectFunctionCall1(jsonb_in,
											   CStringGetDatum(argument + 1));
	else
		source->constant = CStringGetTextDatum(argument + 1);
}

static void
find_column(Source *source, const char *name, Relation members, int field)
{
	TupleDesc	descriptor = RelationGetDescr(members);
	int			number = SPI_fnumber(descriptor, name);
	Form_pg_attribute attribute;
	Oid			type;
	Oid			output;
	bool		is_varlena;

	/* System columns have negative numbers; new rows of partitions lack them. */
	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist",
						name, RelationGetRelationName(members)),
				 errhint("A trigger argument is the name of a column, or \"=\" and a literal value.")));

	attribute = TupleDescAttr(descriptor, number - 1);
	if (attribute->attgenerated != '\0' &&
		attribute->attgenerated != ATTRIBUTE_GENERATED_STORED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of table \"%s\" is not stored",
						name, RelationGetRelationName(members)),
				 errdetail("The server does not compute virtual generated columns for triggers."),
				 errhint("Make the column STORED.")));

	source->column = number;
	type = getBaseType(attribute->atttypid);
	if (fields[field].type == JSONBOID)
		source->conversion = type == JSONBOID ?
			CONVERSION_NONE : CONVERSION_JSON;
	else if (type == TEXTOID || type == VARCHAROID)
		source->conversion = CONVERSION_NONE;
	else if (type == BPCHAROID)
		source->conversion = CONVERSION_TRIM;
	else
		source->conversion = CONVERSION_TEXT;

	getTypeOutputInfo(attribute->atttypid, &output, &is_varlena);
	fmgr_info(output, &source->output);
}

static void
collect_transition_table(Enqueuer *enqueuer, Work *work)
{
	Tuplestorestate *table = work->trigger->tg_newtable;
	TupleTableSlot *slot;
	MemoryContext caller;

	/*
	 * Other triggers of the statement read the same table: as the executor
	 * does, with a place in it of their own.
	 */
	tuplestore_select_read_pointer(table,
								   tuplestore_alloc_read_pointer(table, EXEC_FLAG_REWIND));
	tuplestore_rescan(table);

	slot = MakeSingleTupleTableSlot(RelationGetDescr(work->trigger->tg_relation),
									&TTSOpsMinimalTuple);
	enqueuer->row_context = AllocSetContextCreate(CurrentMemoryContext,
												  "new member",
												  ALLOCSET_SMALL_SIZES);
	while (tuplestore_gettupleslot(table, true, false, slot))
	{
		CHECK_FOR_INTERRUPTS();
		caller = MemoryContextSwitchTo(enqueuer->row_context);
		collect_row(enqueuer, slot, work);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(enqueuer->row_context);
	}
	MemoryContextDelete(enqueuer->row_context);
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Adds the invitation for a member to those that are to be inserted; a member
 * without an address gets none.  Leaves garbage in the current memory context.
 */
static void
collect_row(Enqueuer *enqueuer, TupleTableSlot *slot, Work *work)
{
	Datum		values[FIELDS];
	bool		nulls[FIELDS];
	MemoryContext caller;

	if (enqueuer->sources[FIELD_EMAIL].column != 0 &&
		slot_attisnull(slot, enqueuer->sources[FIELD_EMAIL].column))
		return;

	for (int i = 0; i < FIELDS; i++)
	{
		Source	   *source = &enqueuer->sources[i];

		if (source->column == 0)
		{
			values[i] = source->constant;
			nulls[i] = source->constant_is_null;
			continue;
		}
		values[i] = slot_getattr(slot, source->column, &nulls[i]);
		if (!nulls[i])
		{
			work->field = i;
			values[i] = converted(source, values[i]);
		}
	}
	work->field = -1;

	caller = MemoryContextSwitchTo(enqueuer->context);
	if (enqueuer->rows == NULL)
		enqueuer->rows = tuplestore_begin_heap(false, false, work_mem);
	tuplestore_putvalues(enqueuer->rows, enqueuer->descriptor, values, nulls);
	enqueuer->count++;
	MemoryContextSwitchTo(caller);
}

/* Runs as the invoking user: an output function may be anyone's. */
static Datum
converted(Source *source, Datum value)
{
	switch (source->conversion)
	{
		case CONVERSION_NONE:
			/* The row it may point to is the members table's business. */
			return PointerGetDatum(PG_DETOAST_DATUM_PACKED(value));
		case CONVERSION_TRIM:
			return DirectFunctionCall1(rtrim1, value);
		case CONVERSION_TEXT:
			return CStringGetTextDatum(OutputFunctionCall(&source->output, value));
		case CONVERSION_JSON:
			return DirectFunctionCall1(jsonb_in,
									   CStringGetDatum(OutputFunctionCall(&source->output, value)));
	}
	pg_unreachable();
}

/*
 * Has this row trigger called once more, after the row events of its
 * statement.
 *
 * The server queues what a statement's triggers add to it behind its other
 * events, but only for triggers that exist: so the row trigger itself is shown
 * to it, as if it were a statement trigger.  The event says TRUNCATE because
 * an INSERT or UPDATE event would replace those of the table's own statement
 * triggers, as a foreign key's second action on a table does.
 *
 * The event is then fired with the same FmgrInfo, where the rows are.  It is
 * never lost: it is fired in the same loop as the row events, or the
 * statement fails.
 */
static void
queue_flush(const TriggerData *trigger)
{
	Trigger		statement_trigger = *trigger->tg_trigger;
	TriggerDesc triggers = {0};
	ResultRelInfo *members = makeNode(ResultRelInfo);

	statement_trigger.tgtype = TRIGGER_TYPE_AFTER | TRIGGER_TYPE_STATEMENT |
		TRIGGER_TYPE_TRUNCATE;
	statement_trigger.tgqual = NULL;
	/* Whatever session_replication_role is by now: the row trigger has fired. */
	statement_trigger.tgenabled = TRIGGER_FIRES_ALWAYS;
	triggers.triggers = &statement_trigger;
	triggers.numtriggers = 1;
	triggers.trig_truncate_after_statement = true;
	members->ri_RelationDesc = trigger->tg_relation;
	members->ri_TrigDesc = &triggers;
	/* Only a WHEN condition would need an executor state. */
	ExecASTruncateTriggers(NULL, members);
	pfree(members);
}

/* Inserts the collected rows into the outbox, and forgets them. */
static void
flush(Enqueuer *enqueuer, Oid function)
{
	EphemeralNamedRelationData rows = {0};
	int			result;

	if (enqueuer->count == 0)
		return;

	rows.md.name = pstrdup(NEW_ROWS);
	rows.md.tupdesc = enqueuer->descriptor;
	rows.md.enrtype = ENR_NAMED_TUPLESTORE;
	rows.md.enrtuples = enqueuer->count;
	rows.reldata = enqueuer->rows;

	SPI_connect();
	result = SPI_register_relation(&rows);
	if (result != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed: %s",
			 SPI_result_code_string(result));
	insert_as_owner(get_func_namespace(function));
	SPI_finish();

	tuplestore_end(enqueuer->rows);
	enqueuer->rows = NULL;
	enqueuer->count = 0;
}

/*
 * Inserts the rows of NEW_ROWS into the outbox of a schema, with the rights of
 * the outbox's owner (outbox/owner_rights.c).
 */
static void
insert_as_owner(Oid schema)
{
	char	   *schema_name = get_namespace_name(schema);
	Oid			outbox = get_relname_relid(OUTBOX, schema);
	ClerkRights rights;
	int			result;

	if (schema_name == NULL || !OidIsValid(outbox))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there is no table \"%s\" in the schema of function \"%s\"",
						OUTBOX, "clerk_invitation_trigger"),
				 errhint("Run ALTER EXTENSION clerk_invite UPDATE.")));

	clerk_take_owner_rights(clerk_lock_table_and_owner(outbox), &rights);
	clerk_defer_no_constraint_of(outbox);
	result = SPI_execute_plan(kept_plan(schema_name, outbox), NULL, NULL, false, 0);
	if (result != SPI_OK_INSERT)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(result));

	clerk_refuse_temporary_objects(&rights);
	clerk_restore_rights(&rights);
}

/*
 * The INSERT into the outbox of a schema.  Kept by its text, which names the
 * schema: when the outbox is another one, or has been altered, the server
 * analyzes the statement again, but it cannot know of a schema's new name.
 * There is one in a session, or two.
 */
static SPIPlanPtr
kept_plan(const char *schema, Oid outbox)
{
	char	   *text = insert_statement(schema);
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
	clerk_expect_table(kept->text, outbox);
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
insert_statement(const char *schema)
{
	StringInfoData columns;
	StringInfoData statement;

	initStringInfo(&columns);
	for (int i = 0; i < FIELDS; i++)
		appendStringInfo(&columns, "%s%s", i > 0 ? ", " : "",
						 fields[i].column);
	initStringInfo(&statement);
	appendStringInfo(&statement, "INSERT INTO %s (%s) SELECT %s FROM %s",
					 quote_qualified_identifier(schema, OUTBOX),
					 columns.data, columns.data, NEW_ROWS);
	return statement.data;
}
