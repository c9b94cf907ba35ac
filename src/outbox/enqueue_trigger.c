/*
 * enqueue_trigger.c
 *		clerk_invitation_trigger(): new rows of a table of members become rows
 *		of the outbox.
 *
 * Two steps with different rights.  First the values are computed, as the user
 * whose statement fired the trigger: that runs output functions, which may be
 * anyone's.  Then the outbox's owner inserts the results, plain text and jsonb
 * (outbox/enqueued_rows.c).
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
#include "outbox/enqueued_rows.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

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
	ClerkEnqueuedRows *rows;	/* in the order of the fields */
	MemoryContext row_context;	/* reset for each row of a transition table */
} Enqueuer;

/* What an error's context tells. */
typedef struct Work
{
	const TriggerData *trigger;
	int			field;			/* being computed; -1: none */
} Work;

static const TriggerData *checked_trigger(FunctionCallInfo fcinfo);
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

	if (!clerk_enqueue_enabled)
		return PointerGetDatum(NULL);

	error_context_stack = &context;
	enqueuer = get_enqueuer(fcinfo, &work);
	if (TRIGGER_FIRED_FOR_STATEMENT(event))
	{
		collect_transition_table(enqueuer, &work);
		clerk_insert_enqueued_rows(enqueuer->rows);
	}
	else
	{
		collect_row(enqueuer,
					TRIGGER_FIRED_BY_UPDATE(event) ?
					work.trigger->tg_newslot : work.trigger->tg_trigslot,
					&work);

		/*
		 * At the end of the transaction or in SET CONSTRAINTS there is no
		 * statement to whose events one could be added.
		 */
		if (work.trigger->tg_trigger->tgdeferrable)
			clerk_insert_enqueued_rows(enqueuer->rows);
		else
			clerk_insert_enqueued_rows_later(enqueuer->rows);
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

	name = trigger->tg_trigger->tgname;
	members = RelationGetRelationName(trigger->tg_relation);
	if (!TRIGGER_FIRED_AFTER(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" on \"%s\" must be an AFTER trigger",
						name, members),
				 errdetail("Only an AFTER trigger is guaranteed to see the final rows.")));
	if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) &&
		!TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" on \"%s\" must be for INSERT or UPDATE only",
						name, members),
				 errdetail("DELETE and TRUNCATE leave no row to invite.")));
	if (TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) &&
		trigger->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("statement trigger \"%s\" on \"%s\" must have a transition table of new rows",
						name, members),
				 errhint("Add REFERENCING NEW TABLE AS new_members, or make it FOR EACH ROW.")));
	return trigger;
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
	const char *names[FIELDS];
	Oid			types[FIELDS];
	MemoryContext caller;

	if (enqueuer != NULL)
		return enqueuer;

	check_arguments(trigger);
	caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	enqueuer = palloc0(sizeof(Enqueuer));
	for (int i = 0; i < FIELDS; i++)
	{
		names[i] = fields[i].column;
		types[i] = fields[i].type;
		work->field = i;
		find_source(&enqueuer->sources[i],
					i < trigger->tgnargs ? trigger->tgargs[i] : "",
					work->trigger->tg_relation, i);
	}
	work->field = -1;
	enqueuer->rows = clerk_enqueue_rows(get_func_namespace(fcinfo->flinfo->fn_oid),
										names, types, FIELDS,
										psprintf("invitations enqueued by trigger \"%s\" on table \"%s\"",
												 trigger->tgname,
												 RelationGetRelationName(work->trigger->tg_relation)));
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
				 errhint("The arguments are org_id, inviter, email, role, redirect, and metadata; the last two are optional.")));
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
				 errhint("A trigger argument is the name of a column, or \"=\" followed by a literal value.")));

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

	clerk_add_enqueued_row(enqueuer->rows, values, nulls);
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
