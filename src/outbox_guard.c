/*
 * outbox_guard.c
 *		The trigger on clerk_invitation_outbox that guards it against changes by
 *		hand.
 *
 * outbox.c has the states, and its own statements pass.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "outbox.h"
#include "outbox_statement.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

static bool fired_by_another_trigger(void);
static HeapTuple complete_cancellation(HeapTuple tuple, TupleDesc descriptor);
static bool may_change_by_hand(const char *from, const char *to);

PG_FUNCTION_INFO_V1(clerk_invitation_outbox_guard);

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
	if (clerk_outbox_at_work() && !fired_by_another_trigger())
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
	if (to != NULL && strcmp(from, to) != 0 &&
		strcmp(to, CLERK_OUTBOX_CANCELED) == 0)
		result = complete_cancellation(result, descriptor);
	return PointerGetDatum(result);
}

/*
 * A user's trigger on the outbox may act on what a sender changes; its own
 * changes are by hand.
 */
static bool
fired_by_another_trigger(void)
{
	/* Its argument list is empty; what is passed is not looked at. */
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0)) > 1;
}

/* A cancellation is final: it has its time, and is announced. */
static HeapTuple
complete_cancellation(HeapTuple tuple, TupleDesc descriptor)
{
	int			column = SPI_fnumber(descriptor, "settled_at");
	Datum		value = TimestampTzGetDatum(GetCurrentTimestamp());
	bool		isnull;

	clerk_outbox_announce(DatumGetInt64(SPI_getbinval(tuple, descriptor,
													  SPI_fnumber(descriptor, "id"),
													  &isnull)),
						  CLERK_OUTBOX_CANCELED);
	isnull = false;
	return heap_modify_tuple_by_cols(tuple, descriptor, 1, &column, &value,
									 &isnull);
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
