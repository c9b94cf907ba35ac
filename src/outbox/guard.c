/*
 * guard.c
 *		The triggers that guard clerk_invitation_outbox against invalid changes
 *		by users.
 *
 * See outbox/outbox.c for the states.  Changes by a sender's own statements
 * are not checked.
 *
 * Internal columns are those in which a sender keeps its records.  A user who
 * has been granted INSERT or UPDATE, but is not the owner, can set the other
 * columns only: a row must begin with the defaults of the internal columns.
 * The owner can insert whatever the constraints allow, as a restore does.
 *
 * In replica role (session_replication_role, which every apply worker of a
 * subscription has) rows are copied that belong to another database, which
 * sends them.  They are marked as "copied", and an UPDATE from that database
 * does not change the mark, although it brings that database's value.  What a
 * trigger does in such a session, such as one on a table of members that is
 * copied, has not happened in the other database; it is handled as in any role.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type_d.h"
#include "clerk/white_space.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "outbox/id_sequence.h"
#include "outbox/outbox_statement.h"
#include "outbox/settle.h"
#include "parser/parse_coerce.h"
#include "rewrite/rewriteHandler.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/*
 * White space is removed from texts of up to so many bytes.  The constraint on
 * the column rejects a longer text anyway.
 */
#define MAX_TRIMMED 8192

/* What happens to an internal column when a failed row is queued again. */
typedef enum Retry
{
	RETRY_KEEPS,
	RETRY_RESETS,
	RETRY_RESETS_IF_KNOWN		/* kept if the outcome is unknown: what was
								 * created since then is still the row's */
} Retry;

/* A column that only the owner can set. */
typedef struct InternalColumn
{
	const char *name;
	Oid			type;
	Retry		retry;
} InternalColumn;

#define COPIED_COLUMN "copied"

static const InternalColumn internal_columns[] = {
	{"state", TEXTOID, RETRY_KEEPS},
	{"attempts", INT4OID, RETRY_RESETS},
	{"send_alone", BOOLOID, RETRY_RESETS},
	{"next_attempt_at", TIMESTAMPTZOID, RETRY_RESETS},
	{"consecutive_failures", INT4OID, RETRY_RESETS},
	{"enqueued_at", TIMESTAMPTZOID, RETRY_KEEPS},
	{"first_claimed_at", TIMESTAMPTZOID, RETRY_RESETS_IF_KNOWN},
	{"first_claimed_clock", INT8OID, RETRY_RESETS_IF_KNOWN},
	{"claimed_at", TIMESTAMPTZOID, RETRY_KEEPS},
	{"claimed_clerk_clock", TIMESTAMPTZOID, RETRY_KEEPS},
	{"settled_at", TIMESTAMPTZOID, RETRY_RESETS},
	{"invitation_id", TEXTOID, RETRY_KEEPS},
	{"status", TEXTOID, RETRY_KEEPS},
	{"url", TEXTOID, RETRY_KEEPS},
	{"expires_at", TIMESTAMPTZOID, RETRY_KEEPS},
	{"http_status", INT4OID, RETRY_KEEPS},
	{"error_code", TEXTOID, RETRY_KEEPS},
	{"error_message", TEXTOID, RETRY_KEEPS},
	{"trace_id", TEXTOID, RETRY_KEEPS},
	{"database_error", TEXTOID, RETRY_RESETS},
	{COPIED_COLUMN, BOOLOID, RETRY_KEEPS},
};

#define INTERNAL_COLUMNS ((int) lengthof(internal_columns))

/* What is known about the table, kept in fn_extra for the statement. */
typedef struct Columns
{
	int			id;				/* attribute numbers */
	int			email_address;
	int			state;
	int			internal[INTERNAL_COLUMNS]; /* 0: an older version of the
											 * table lacks it */
	bool		has_defaults;	/* whether the fields below are filled in */
	Datum		defaults[INTERNAL_COLUMNS];
	bool		default_nulls[INTERNAL_COLUMNS];
} Columns;

static const Columns *get_columns(FunctionCallInfo fcinfo);
static const Columns *get_columns_with_defaults(FunctionCallInfo fcinfo);
static int	find_column(TupleDesc descriptor, const char *name, Oid type);
static bool has_owner_rights(Relation table);
static HeapTuple guard_insert(FunctionCallInfo fcinfo);
static HeapTuple guard_update_or_delete(FunctionCallInfo fcinfo);
static HeapTuple mark_copy(TriggerData *trigger);
static bool is_copied(HeapTuple tuple, TupleDesc descriptor);
static void check_change_of_copy(const char *from, const char *to);
static void check_new_row(FunctionCallInfo fcinfo);
static void check_changed_row(FunctionCallInfo fcinfo, bool queued_again,
							  bool canceled);
static bool is_same(Datum a, bool a_is_null, Datum b, bool b_is_null,
					Form_pg_attribute attribute);
pg_noreturn static void raise_column_denied(Relation table, int column,
											bool is_insert);
static HeapTuple trim_address(HeapTuple tuple, TupleDesc descriptor,
							  int column);
static HeapTuple reset_for_retry(HeapTuple tuple, FunctionCallInfo fcinfo);
static bool is_fired_by_trigger(void);
static HeapTuple complete_cancellation(HeapTuple tuple, TupleDesc descriptor);
static bool is_state_change_allowed(const char *from, const char *to);

PG_FUNCTION_INFO_V1(clerk_invitation_outbox_guard);

/*
 * clerk_invitation_outbox_guard() RETURNS trigger
 *
 * BEFORE INSERT OR UPDATE OR DELETE FOR EACH ROW on the outbox: raises 55000
 * for a user's change that would lose an invitation or send it twice, and
 * 42501 if a user other than the owner sets an internal column.  Removes white
 * space around the address, and completes a cancellation or a retry.  Marks
 * copied rows.
 *
 * BEFORE INSERT FOR EACH STATEMENT: keeps the sequence ahead of the ids in the
 * table.
 *
 * Raises 39P01 if it is fired in another way, 55000 if a column is missing or
 * has another type, and 23502 for a null state.
 */
Datum
clerk_invitation_outbox_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!(TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		  TRIGGER_FIRED_BY_INSERT(trigger->tg_event)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as the outbox's trigger",
						"clerk_invitation_outbox_guard")));

	if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
	{
		clerk_outbox_advance_id_sequence(trigger->tg_relation);
		return PointerGetDatum(NULL);
	}
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA &&
		!is_fired_by_trigger())
		return PointerGetDatum(mark_copy(trigger));
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		return PointerGetDatum(guard_insert(fcinfo));
	if (clerk_outbox_in_internal_statement() && !is_fired_by_trigger())
		return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
							   trigger->tg_newtuple : trigger->tg_trigtuple);
	return PointerGetDatum(guard_update_or_delete(fcinfo));
}

/* Returns the attribute numbers, which cannot change within a statement. */
static const Columns *
get_columns(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	Columns    *columns = fcinfo->flinfo->fn_extra;

	if (columns != NULL)
		return columns;
	columns = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Columns));
	columns->id = find_column(descriptor, "id", INT8OID);
	columns->email_address = find_column(descriptor, "email_address", TEXTOID);
	columns->state = find_column(descriptor, "state", TEXTOID);
	fcinfo->flinfo->fn_extra = columns;
	return columns;
}

/*
 * Returns the internal columns with their defaults.  Only needed if a user
 * other than the owner changes the table, or if a row is queued again.
 */
static const Columns *
get_columns_with_defaults(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	Columns    *columns = unconstify(Columns *, get_columns(fcinfo));
	EState	   *executor;

	if (columns->has_defaults)
		return columns;
	executor = CreateExecutorState();
	for (int i = 0; i < INTERNAL_COLUMNS; i++)
	{
		int			column = SPI_fnumber(descriptor, internal_columns[i].name);
		Form_pg_attribute attribute;
		Node	   *expression;
		MemoryContext caller;
		Datum		value;

		if (column <= 0)
			continue;
		(void) find_column(descriptor, internal_columns[i].name,
						   internal_columns[i].type);
		attribute = TupleDescAttr(descriptor, column - 1);
		expression = build_column_default(trigger->tg_relation, column);
		columns->internal[i] = column;
		columns->default_nulls[i] = true;
		if (expression == NULL)
			continue;
		value = ExecEvalExprSwitchContext(ExecPrepareExpr((Expr *) expression,
														  executor),
										  GetPerTupleExprContext(executor),
										  &columns->default_nulls[i]);
		caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
		if (!columns->default_nulls[i])
			columns->defaults[i] = datumCopy(value, attribute->attbyval,
											 attribute->attlen);
		MemoryContextSwitchTo(caller);
	}
	FreeExecutorState(executor);
	columns->has_defaults = true;
	return columns;
}

/*
 * Returns a column's attribute number.  Raises 55000 if there is no such
 * column, or if it has another type: the owner may have altered the table, or
 * attached the trigger to another one.
 */
static int
find_column(TupleDesc descriptor, const char *name, Oid type)
{
	int			column = SPI_fnumber(descriptor, name);

	if (column <= 0 ||
		!IsBinaryCoercible(TupleDescAttr(descriptor, column - 1)->atttypid, type))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the outbox has no column \"%s\" of type %s", name,
						format_type_be(type))));
	return column;
}

/*
 * Whether the current user has the rights of the owner, as a superuser does.
 */
static bool
has_owner_rights(Relation table)
{
	return has_privs_of_role(GetUserId(), table->rd_rel->relowner);
}

/*
 * Returns the new row, marked, for a change that is copied, or for a statement of
 * ours that fires no triggers.
 */
static HeapTuple
mark_copy(TriggerData *trigger)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	int			column = SPI_fnumber(descriptor, COPIED_COLUMN);
	bool		inserted = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);
	HeapTuple	tuple = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
	trigger->tg_newtuple : trigger->tg_trigtuple;
	bool		copied = inserted || is_copied(trigger->tg_trigtuple, descriptor);
	Datum		value = BoolGetDatum(copied);
	bool		isnull = false;

	if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event) || column <= 0 ||
		is_copied(tuple, descriptor) == copied)
		return tuple;
	return heap_modify_tuple_by_cols(tuple, descriptor, 1, &column, &value,
									 &isnull);
}

/* A table of an older version lacks the column; none of its rows is copied. */
static bool
is_copied(HeapTuple tuple, TupleDesc descriptor)
{
	int			column = SPI_fnumber(descriptor, COPIED_COLUMN);
	bool		isnull;
	Datum		value;

	if (column <= 0)
		return false;
	(void) find_column(descriptor, COPIED_COLUMN, BOOLOID);
	value = heap_getattr(tuple, column, descriptor, &isnull);
	return !isnull && DatumGetBool(value);
}

static HeapTuple
guard_insert(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!has_owner_rights(trigger->tg_relation))
		check_new_row(fcinfo);
	return trim_address(trigger->tg_trigtuple,
						RelationGetDescr(trigger->tg_relation),
						get_columns(fcinfo)->email_address);
}

/* Guards an UPDATE or DELETE by a user. */
static HeapTuple
guard_update_or_delete(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	const Columns *columns = get_columns(fcinfo);
	char	   *from = SPI_getvalue(trigger->tg_trigtuple, descriptor,
									columns->state);
	char	   *to = NULL;
	HeapTuple	result;
	bool		canceled;
	bool		queued_again;

	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		to = SPI_getvalue(trigger->tg_newtuple, descriptor, columns->state);
	if (from == NULL || (to == NULL && TRIGGER_FIRED_BY_UPDATE(trigger->tg_event)))
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("the state of an invitation must not be null")));
	if (is_copied(trigger->tg_trigtuple, descriptor))
		check_change_of_copy(from, to);
	else if (!is_state_change_allowed(from, to))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 to == NULL ?
				 errmsg("cannot delete an invitation that is %s", from) :
				 strcmp(from, to) == 0 ?
				 errmsg("cannot change an invitation that is %s", from) :
				 errmsg("cannot change an invitation from \"%s\" to \"%s\"",
						from, to),
				 errhint("Use clerk_cancel_invitation() while it is queued, and clerk_retry_invitation() when it has failed.")));
	if (to == NULL)
		return trigger->tg_trigtuple;

	canceled = strcmp(from, to) != 0 && strcmp(to, CLERK_OUTBOX_CANCELED) == 0;
	queued_again = strcmp(from, to) != 0 && strcmp(to, CLERK_OUTBOX_QUEUED) == 0;
	if (!has_owner_rights(trigger->tg_relation))
		check_changed_row(fcinfo, queued_again, canceled);
	result = trim_address(trigger->tg_newtuple, descriptor,
						  columns->email_address);
	if (canceled)
		result = complete_cancellation(result, descriptor);
	if (queued_again)
		result = reset_for_retry(result, fcinfo);
	return result;
}

/*
 * Raises 55000 for a change of the state of a copied row: to cancel it here, or
 * to queue it again, would have no effect in the database that sends it.  Other
 * changes and a deletion, for which "to" is NULL, are allowed in every state.
 */
static void
check_change_of_copy(const char *from, const char *to)
{
	if (to != NULL && strcmp(from, to) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot change the state of an invitation that was copied from another database"),
				 errhint("Change it in the database that sends it. If that database no longer does, set \"%s\" to false first.",
						 COPIED_COLUMN)));
}

/*
 * Raises 42501 if an internal column does not have its default, or if the id
 * is one that the sequence has yet to generate: an INSERT that was given this
 * id later would fail.
 */
static void
check_new_row(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Relation	table = trigger->tg_relation;
	TupleDesc	descriptor = RelationGetDescr(table);
	const Columns *columns = get_columns_with_defaults(fcinfo);
	Datum	   *values = palloc(descriptor->natts * sizeof(Datum));
	bool	   *nulls = palloc(descriptor->natts * sizeof(bool));
	int64		id;

	heap_deform_tuple(trigger->tg_trigtuple, descriptor, values, nulls);
	for (int i = 0; i < INTERNAL_COLUMNS; i++)
	{
		int			column = columns->internal[i];

		if (column > 0 &&
			!is_same(values[column - 1], nulls[column - 1],
					 columns->defaults[i], columns->default_nulls[i],
					 TupleDescAttr(descriptor, column - 1)))
			raise_column_denied(table, column, true);
	}

	/* The table itself rejects a null id. */
	id = DatumGetInt64(values[columns->id - 1]);
	if (!nulls[columns->id - 1] &&
		(id <= 0 || id > clerk_outbox_last_id(table)))
		raise_column_denied(table, columns->id, true);
	pfree(values);
	pfree(nulls);
}

/*
 * Raises 42501 if an internal column or the id changes, except for the columns
 * that a retry or a cancellation sets.
 */
static void
check_changed_row(FunctionCallInfo fcinfo, bool queued_again, bool canceled)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Relation	table = trigger->tg_relation;
	TupleDesc	descriptor = RelationGetDescr(table);
	const Columns *columns = get_columns_with_defaults(fcinfo);

	for (int i = -1; i < INTERNAL_COLUMNS; i++)
	{
		int			column = i < 0 ? columns->id : columns->internal[i];
		Datum		before;
		Datum		after;
		bool		before_is_null;
		bool		after_is_null;

		/* The change of the state itself was checked before. */
		if (column == 0 || column == columns->state ||
			(i >= 0 && queued_again && internal_columns[i].retry != RETRY_KEEPS) ||
			(i >= 0 && canceled &&
			 strcmp(internal_columns[i].name, "settled_at") == 0))
			continue;
		before = heap_getattr(trigger->tg_trigtuple, column, descriptor,
							  &before_is_null);
		after = heap_getattr(trigger->tg_newtuple, column, descriptor,
							 &after_is_null);
		if (!is_same(before, before_is_null, after, after_is_null,
					 TupleDescAttr(descriptor, column - 1)))
			raise_column_denied(table, column, false);
	}
}

static bool
is_same(Datum a, bool a_is_null, Datum b, bool b_is_null,
		Form_pg_attribute attribute)
{
	return a_is_null || b_is_null ? a_is_null == b_is_null :
		datum_image_eq(a, b, attribute->attbyval, attribute->attlen);
}

static void
raise_column_denied(Relation table, int column, bool is_insert)
{
	const char *name = NameStr(TupleDescAttr(RelationGetDescr(table),
											 column - 1)->attname);

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 is_insert ?
			 errmsg("permission denied to set \"%s\" of an invitation", name) :
			 errmsg("permission denied to change \"%s\" of an invitation", name),
			 errdetail("Only the owner of table \"%s\" may do that.",
					   RelationGetRelationName(table)),
			 is_insert ?
			 errhint("Omit the column.") :
			 errhint("Use clerk_cancel_invitation() while it is queued, and clerk_retry_invitation() when it has failed."),
			 errtablecol(table, column)));
}

/* Returns the tuple itself if its address has no surrounding white space. */
static HeapTuple
trim_address(HeapTuple tuple, TupleDesc descriptor, int column)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, column, descriptor, &isnull);
	text	   *address;
	size_t		length;
	const char *trimmed;

	if (isnull || toast_raw_datum_size(value) > MAX_TRIMMED)
		return tuple;
	address = DatumGetTextPP(value);
	length = VARSIZE_ANY_EXHDR(address);
	trimmed = clerk_trim(VARDATA_ANY(address), &length);
	if (length == VARSIZE_ANY_EXHDR(address))
		return tuple;
	value = PointerGetDatum(cstring_to_text_with_len(trimmed, (int) length));
	return heap_modify_tuple_by_cols(tuple, descriptor, 1, &column, &value,
									 &isnull);
}

/*
 * Resets the internal columns of a row that is queued again, as if there had
 * been no attempt.
 */
static HeapTuple
reset_for_retry(HeapTuple tuple, FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const Columns *known = get_columns_with_defaults(fcinfo);
	int			columns[INTERNAL_COLUMNS];
	Datum		values[INTERNAL_COLUMNS];
	bool		nulls[INTERNAL_COLUMNS];
	int			count = 0;
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	char	   *code = SPI_getvalue(trigger->tg_trigtuple, descriptor,
									find_column(descriptor, "error_code", TEXTOID));
	bool		outcome_unknown = code != NULL &&
	strcmp(code, CLERK_OUTBOX_ABANDONED) == 0;

	for (int i = 0; i < INTERNAL_COLUMNS; i++)
	{
		if (known->internal[i] == 0 || internal_columns[i].retry == RETRY_KEEPS)
			continue;
		columns[count] = known->internal[i];
		if (internal_columns[i].retry == RETRY_RESETS_IF_KNOWN &&
			outcome_unknown)
		{
			/* Keep the old value, even if the statement sets another one. */
			values[count] = heap_getattr(trigger->tg_trigtuple,
										 columns[count], descriptor,
										 &nulls[count]);
			count++;
			continue;
		}
		values[count] = known->defaults[i];
		nulls[count++] = known->default_nulls[i];
	}
	return heap_modify_tuple_by_cols(tuple, descriptor, count, columns, values,
									 nulls);
}

/*
 * Whether another trigger caused the change.  A user's trigger on the outbox
 * may react to a sender's changes; what it changes counts as changed by a
 * user.
 */
static bool
is_fired_by_trigger(void)
{
	/* pg_trigger_depth() has no arguments and ignores this one. */
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0)) > 1;
}

/*
 * Sets the time of a cancellation, which is a final state, and announces it.
 */
static HeapTuple
complete_cancellation(HeapTuple tuple, TupleDesc descriptor)
{
	int			column = find_column(descriptor, "settled_at", TIMESTAMPTZOID);
	int			id = find_column(descriptor, "id", INT8OID);
	Datum		value = TimestampTzGetDatum(GetCurrentTimestamp());
	bool		isnull;

	clerk_outbox_announce(DatumGetInt64(SPI_getbinval(tuple, descriptor, id,
													  &isnull)),
						  CLERK_OUTBOX_CANCELED);
	isnull = false;
	return heap_modify_tuple_by_cols(tuple, descriptor, 1, &column, &value,
									 &isnull);
}

/*
 * Whether a user may change the state in this way; "to" is NULL for a DELETE.
 */
static bool
is_state_change_allowed(const char *from, const char *to)
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
