/*
 * wakeup.c
 *		Starts or wakes the background worker when rows of the outbox are
 *		committed.
 *
 * A statement trigger notes that the transaction has changed the outbox, and a
 * callback tells the worker when the transaction commits: after that, because
 * the rows must be visible by then, and in a place where nothing may raise an
 * error.  A note that a rolled-back subtransaction leaves behind costs a look
 * at the outbox, no more.
 *
 * A prepared transaction is committed later, mostly by the session that has
 * prepared it, as an apply worker does for a subscription: at the end of each of
 * its next transactions such a session looks whether that has happened.  If
 * another one commits it, the worker finds out, which is started when the
 * transaction is prepared, and stays (worker.c).
 *
 * What a sender itself does to its rows is not noted, be it a worker or a CALL,
 * nor are rows that are copied from another database.
 * A CALL leaves what it has not settled to a worker when it ends.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "common/settings.h"
#include "compat.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "outbox/outbox_statement.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "worker/slots.h"
#include "worker/wakeup.h"
#include "worker/worker.h"

/* What the transaction has done to the outbox, in the order of importance. */
typedef enum Change
{
	CHANGE_NONE,
	CHANGE_REMOVED,				/* a worker that waits may have nothing left */
	CHANGE_ADDED				/* there may be something to send */
} Change;

/* Of the current transaction. */
static Change noted = CHANGE_NONE;

/*
 * Transactions with such notes that this session has prepared, and that have
 * not been committed or rolled back when it looked last.  If there are more, the
 * oldest ones are left to the worker.
 */
#define MOST_PREPARED 32

static TransactionId prepared[MOST_PREPARED];
static int	prepared_count = 0;

/* Whether this session is in the middle of a CALL that sends. */
static bool sending = false;

static void note(Change change);
static bool changed_by_sender(void);
static bool is_copied(void);
static bool by_trigger(void);
static bool can_wake(void);
static void remember_prepared(TransactionId transaction);
static void look_at_prepared(void);
static void on_transaction_end(XactEvent event, void *arg);
static void wake_worker(bool start);

PG_FUNCTION_INFO_V1(clerk_invitation_outbox_wake_worker);

/*
 * clerk_invitation_outbox_wake_worker() RETURNS trigger
 *
 * AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE FOR EACH STATEMENT on the
 * outbox, in every role.
 */
Datum
clerk_invitation_outbox_wake_worker(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as the outbox's trigger",
						"clerk_invitation_outbox_wake_worker")));

	/* A transaction without an ID has changed no row. */
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()) &&
		!changed_by_sender() && !is_copied() && can_wake())
		note(TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ||
			 TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
			 CHANGE_ADDED : CHANGE_REMOVED);
	PG_RETURN_POINTER(NULL);
}

/*
 * To be called before this session sends, as a CALL: should it be ended in the
 * middle, a worker goes on with the rows that it has left.
 */
void
clerk_wakeup_begin_call(void)
{
	if (!can_wake())
		return;
	note(CHANGE_NONE);
	sending = true;
}

/*
 * To be called when it has sent, with whether rows are open that it leaves to
 * others: those are a worker's, also if they are due later.
 */
void
clerk_wakeup_end_call(bool rows_are_left)
{
	if (sending && rows_are_left && clerk_worker_enabled)
		wake_worker(true);
	sending = false;
}

/* For the end of the transaction. */
static void
note(Change change)
{
	static bool registered = false;

	if (!registered)
		RegisterXactCallback(on_transaction_end, NULL);
	registered = true;
	noted = Max(noted, change);
}

/*
 * Whether a statement of a sender's fired the trigger.  What a user's trigger
 * does to the outbox in the middle of one is his own, as for outbox/guard.c.
 */
static bool
changed_by_sender(void)
{
	return clerk_is_worker() || (clerk_outbox_at_work() && !by_trigger());
}

/* Rows that are copied are another database's to send; see outbox/guard.c. */
static bool
is_copied(void)
{
	return SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA &&
		!by_trigger();
}

/* Whether the statement that fired the trigger is that of another trigger. */
static bool
by_trigger(void)
{
	/* Its argument list is empty; what is passed is not looked at. */
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0)) > 1;
}

/* A standalone backend has no workers, and pg_upgrade wants none. */
static bool
can_wake(void)
{
	return IsUnderPostmaster && !IsBinaryUpgrade && clerk_worker_slots_attach();
}

static void
remember_prepared(TransactionId transaction)
{
	if (prepared_count == MOST_PREPARED)
		memmove(prepared, prepared + 1,
				--prepared_count * sizeof(TransactionId));
	prepared[prepared_count++] = transaction;
}

/*
 * COMMIT PREPARED has done its work by the time its own transaction is about to
 * end.
 */
static void
look_at_prepared(void)
{
	int			left = 0;

	for (int i = 0; i < prepared_count; i++)
		if (TransactionIdIsInProgress(prepared[i]))
			prepared[left++] = prepared[i];
		else
			note(CHANGE_ADDED);
	prepared_count = left;
}

static void
on_transaction_end(XactEvent event, void *arg pg_attribute_unused())
{
	const Change change = noted;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			noted = CHANGE_NONE;
			if (change != CHANGE_NONE && clerk_worker_enabled)
				wake_worker(change == CHANGE_ADDED);
			break;
		case XACT_EVENT_ABORT:
			noted = CHANGE_NONE;
			clerk_wakeup_end_call(true);
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (change == CHANGE_ADDED)
				remember_prepared(GetTopTransactionId());
			break;
		case XACT_EVENT_PREPARE:
			noted = CHANGE_NONE;
			if (change == CHANGE_ADDED && clerk_worker_enabled)
				wake_worker(true);
			break;
		case XACT_EVENT_PRE_COMMIT:
			look_at_prepared();
			break;
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
			break;
	}
}

/* The transaction has ended: nothing in here may raise an error. */
static void
wake_worker(bool start)
{
	const char *detail;
	const char *hint = "The next commit that adds invitations tries again. You can also call clerk_send_invitations().";

	switch (clerk_worker_wake(MyDatabaseId, start))
	{
		case CLERK_WAKE_START:
			if (clerk_worker_start(MyDatabaseId, NULL))
				return;
			clerk_worker_not_started(MyDatabaseId);
			detail = "All background worker slots of the server are in use.";
			hint = "The next commit that adds invitations tries again. Consider increasing \"max_worker_processes\", or call clerk_send_invitations().";
			break;
		case CLERK_WAKE_NO_SLOT:
			detail = "Too many databases have one.";
			break;
		default:
			return;
	}
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("could not start a background worker that sends invitations"),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}
