/*
 * enqueue_trigger.c
 *		clerk_invitation_trigger(): turns new rows of a members table into rows
 *		of the outbox.
 *
 * There are two steps with different rights.  First, the values are computed
 * as the user whose statement fired the trigger, since that calls output
 * functions, which may belong to anyone.  Then the results, plain text and
 * jsonb, are inserted as the outbox's owner (outbox/enqueued_rows.c).
 *
 * What is known about a trigger is kept in its FmgrInfo.  That belongs to one
 * trigger on one relation in one execution of a statement, so nothing kept
 * there can be out of date, and an error frees it together with the collected
 * rows.
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

/*
 * The trigger's arguments, in order; the values of an outbox row have the same
 * order.
 */
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
								 * clerk_create_organization_invitation() */
	const char *column;			/* name of the column in the outbox */
	Oid			type;			/* type of that column */
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

/*
 * How the value of a members column is converted to one of an outbox column.
 */
typedef enum Conversion
{
	CONVERSION_NONE,			/* binary compatible */
	CONVERSION_TRIM,			/* character(n): remove the padding */
	CONVERSION_TEXT,			/* any other type: use its text form */
	CONVERSION_JSON				/* parse its text form as JSON */
} Conversion;

/* Where a value comes from: a column of the members table, or a constant. */
typedef struct Source
{
	AttrNumber	column;			/* 0: use the constant below */
	Conversion	conversion;
	FmgrInfo	output;			/* for CONVERSION_TEXT and CONVERSION_JSON */
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

/* What the error context reports. */
typedef struct EnqueueState
{
	const TriggerData *trigger;
	int			field;			/* the field being computed; -1: none */
} EnqueueState;

static const TriggerData *get_trigger_data(FunctionCallInfo fcinfo);
static void add_error_context(void *arg);
static Enqueuer *get_enqueuer(FunctionCallInfo fcinfo, EnqueueState *state);
static void check_arguments(const Trigger *trigger);
static void find_source(Source *source, const char *argument, Relation members,
						int field);
static void find_column(Source *source, const char *name, Relation members,
						int field);
static void collect_transition_table(Enqueuer *enqueuer, EnqueueState *state);
static void collect_row(Enqueuer *enqueuer, TupleTableSlot *slot,
						EnqueueState *state);
static Datum convert_value(Source *source, Datum value);

PG_FUNCTION_INFO_V1(clerk_invitation_trigger);

/*
 * clerk_invitation_trigger(org_id, inviter, email, role [, redirect
 *		[, metadata]]) RETURNS trigger
 *
 * Each argument is the name of a column, or "=" and a literal value.  A row
 * without an address is not enqueued.
 *
 * Raises 39P01 if it is not fired AFTER INSERT or UPDATE, for each row or with
 * a transition table; 22023, 22P02 (metadata that is not JSON), 42703 and
 * 0A000 (virtual generated column) for its arguments; 55000 if the outbox is
 * missing; and what the outbox's constraints raise.
 */
Datum
clerk_invitation_trigger(PG_FUNCTION_ARGS)
{
	EnqueueState state = {get_trigger_data(fcinfo), -1};
	TriggerEvent event = state.trigger->tg_event;
	ErrorContextCallback context = {
		error_context_stack, add_error_context, &state
	};
	Enqueuer   *enqueuer;

	if (!clerk_enqueue_enabled)
		return PointerGetDatum(NULL);

	error_context_stack = &context;
	enqueuer = get_enqueuer(fcinfo, &state);
	if (TRIGGER_FIRED_FOR_STATEMENT(event))
	{
		collect_transition_table(enqueuer, &state);
		clerk_insert_enqueued_rows(enqueuer->rows);
	}
	else
	{
		collect_row(enqueuer,
					TRIGGER_FIRED_BY_UPDATE(event) ?
					state.trigger->tg_newslot : state.trigger->tg_trigslot,
					&state);

		/*
		 * A deferred trigger fires at the end of the transaction or in SET
		 * CONSTRAINTS, where there is no statement to which events could be
		 * added.
		 */
		if (state.trigger->tg_trigger->tgdeferrable)
			clerk_insert_enqueued_rows(enqueuer->rows);
		else
			clerk_insert_enqueued_rows_later(enqueuer->rows);
	}
	error_context_stack = context.previous;
	return PointerGetDatum(NULL);
}

/*
 * Returns the trigger data.  Raises 39P01 if the function was not called as a
 * trigger that it supports.
 */
static const TriggerData *
get_trigger_data(FunctionCallInfo fcinfo)
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
add_error_context(void *arg)
{
	const EnqueueState *state = arg;

	if (state->field >= 0)
		errcontext("argument \"%s\" of clerk_invitation_trigger",
				   fields[state->field].argument);
	errcontext("invitations enqueued by trigger \"%s\" on table \"%s\"",
			   state->trigger->tg_trigger->tgname,
			   RelationGetRelationName(state->trigger->tg_relation));
}

/*
 * Returns what is known about the trigger, and finds it out in the first call
 * of a statement.  Raises an error if an argument is invalid.
 */
static Enqueuer *
get_enqueuer(FunctionCallInfo fcinfo, EnqueueState *state)
{
	const Trigger *trigger = state->trigger->tg_trigger;
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
		state->field = i;
		find_source(&enqueuer->sources[i],
					i < trigger->tgnargs ? trigger->tgargs[i] : "",
					state->trigger->tg_relation, i);
	}
	state->field = -1;
	enqueuer->rows = clerk_create_enqueued_rows(get_func_namespace(fcinfo->flinfo->fn_oid),
												names, types, FIELDS,
												psprintf("invitations enqueued by trigger \"%s\" on table \"%s\"",
														 trigger->tgname,
														 RelationGetRelationName(state->trigger->tg_relation)));
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

/*
 * Reads one of the trigger's arguments.  Allocates in the current memory
 * context.
 */
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

/* Uses a column of the members table as the source of a value. */
static void
find_column(Source *source, const char *name, Relation members, int field)
{
	TupleDesc	descriptor = RelationGetDescr(members);
	int			number = SPI_fnumber(descriptor, name);
	Form_pg_attribute attribute;
	Oid			type;
	Oid			output;
	bool		is_varlena;

	/*
	 * System columns have negative numbers; new rows of partitions lack them.
	 */
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
collect_transition_table(Enqueuer *enqueuer, EnqueueState *state)
{
	Tuplestorestate *table = state->trigger->tg_newtable;
	TupleTableSlot *slot;
	MemoryContext caller;

	/*
	 * Other triggers of the statement read the same table.  As the executor
	 * does, use a read pointer of our own.
	 */
	tuplestore_select_read_pointer(table,
								   tuplestore_alloc_read_pointer(table, EXEC_FLAG_REWIND));
	tuplestore_rescan(table);

	slot = MakeSingleTupleTableSlot(RelationGetDescr(state->trigger->tg_relation),
									&TTSOpsMinimalTuple);
	enqueuer->row_context = AllocSetContextCreate(CurrentMemoryContext,
												  "new member",
												  ALLOCSET_SMALL_SIZES);
	while (tuplestore_gettupleslot(table, true, false, slot))
	{
		CHECK_FOR_INTERRUPTS();
		caller = MemoryContextSwitchTo(enqueuer->row_context);
		collect_row(enqueuer, slot, state);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(enqueuer->row_context);
	}
	MemoryContextDelete(enqueuer->row_context);
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Adds the invitation for a member to the rows to be inserted; a member
 * without an address gets none.  Allocates in the current memory context and
 * does not clean up.
 */
static void
collect_row(Enqueuer *enqueuer, TupleTableSlot *slot, EnqueueState *state)
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
			state->field = i;
			values[i] = convert_value(source, values[i]);
		}
	}
	state->field = -1;

	clerk_add_enqueued_row(enqueuer->rows, values, nulls);
}

/*
 * Converts a value that is not null, as the invoking user: the output function
 * may belong to anyone.
 */
static Datum
convert_value(Source *source, Datum value)
{
	switch (source->conversion)
	{
		case CONVERSION_NONE:
			/* The collected row must not point into the members table. */
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
