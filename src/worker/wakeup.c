/*
 * wakeup.c
 *		Starts or wakes the background worker when changes to the outbox are
 *		committed.
 *
 * A statement trigger records that the transaction has changed the outbox, and
 * a transaction callback wakes the worker after the commit.  It must be after
 * the commit so that the rows are visible, and there nothing may raise an
 * error.  If a subtransaction that changed the outbox is rolled back, the
 * record remains; the cost is one unnecessary pass.
 *
 * A prepared transaction is committed later, usually by the session that
 * prepared it, as an apply worker of a subscription does.  Such a session checks
 * at the end of each of its following transactions whether that has happened.
 * In case another session commits it, a worker is started when the transaction
 * is prepared, and stays; see worker_pass.c.
 *
 * Changes by a sender itself, whether a worker or a CALL, are not recorded.
 * When a CALL ends, it leaves the rows that it has not settled to a worker.
 * Rows that are copied from another database are not recorded either.
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

/*
 * What the transaction has done to the outbox, in ascending order of
 * importance.
 */
typedef enum Change
{
	CHANGE_NONE,
	CHANGE_REMOVED,				/* a waiting worker may have nothing left to
								 * wait for */
	CHANGE_ADDED				/* there may be rows to send */
} Change;

/* Of the current transaction. */
static Change noted_change = CHANGE_NONE;

/*
 * Transactions with such changes that this session has prepared, and that were
 * still in progress at the last check.  If there are more, the oldest ones are
 * left to the worker.
 */
#define MAX_PREPARED 32

static TransactionId prepared[MAX_PREPARED];
static int	prepared_count = 0;

/* Whether this session is executing a CALL that sends. */
static bool call_is_sending = false;

static void note_change(Change change);
static bool changed_by_sender(void);
static bool is_copied(void);
static bool is_fired_by_trigger(void);
static bool can_wake(void);
static void remember_prepared(TransactionId transaction);
static void check_prepared_transactions(void);
static void on_transaction_end(XactEvent event, void *arg);
static void wake_worker(bool start);

PG_FUNCTION_INFO_V1(clerk_invitation_outbox_wake_worker);

/*
 * clerk_invitation_outbox_wake_worker() RETURNS trigger
 *
 * AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE FOR EACH STATEMENT on the
 * outbox.  Raises 39P01 if it is called in any other way.
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
		note_change(TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ||
					TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
					CHANGE_ADDED : CHANGE_REMOVED);
	PG_RETURN_POINTER(NULL);
}

/*
 * Must be called before a CALL begins to send.  If the CALL is ended early, a
 * worker then continues with the rows that it leaves behind.
 */
void
clerk_wakeup_begin_call(void)
{
	if (!can_wake())
		return;
	note_change(CHANGE_NONE);
	call_is_sending = true;
}

/*
 * Must be called when the CALL has finished sending.  If it leaves rows that
 * are not settled, starts or wakes a worker for them, even if they are due
 * later.
 */
void
clerk_wakeup_end_call(bool rows_are_left)
{
	if (call_is_sending && rows_are_left && clerk_worker_enabled)
		wake_worker(true);
	call_is_sending = false;
}

/* Records a change until the transaction ends. */
static void
note_change(Change change)
{
	static bool registered = false;

	if (!registered)
		RegisterXactCallback(on_transaction_end, NULL);
	registered = true;
	noted_change = Max(noted_change, change);
}

/*
 * Whether a sender's statement fired the trigger.  If a user trigger changes
 * the outbox during such a statement, that is a change by the user, as
 * outbox/guard.c treats it.
 */
static bool
changed_by_sender(void)
{
	return clerk_is_worker() ||
		(clerk_outbox_in_internal_statement() && !is_fired_by_trigger());
}

/* Another database sends the rows that it copies here; see outbox/guard.c. */
static bool
is_copied(void)
{
	return SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA &&
		!is_fired_by_trigger();
}

/* Whether another trigger caused the change. */
static bool
is_fired_by_trigger(void)
{
	/* pg_trigger_depth() takes no argument and ignores this one. */
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0)) > 1;
}

/*
 * A standalone backend has no background workers, and in pg_upgrade none must
 * run.
 */
static bool
can_wake(void)
{
	return IsUnderPostmaster && !IsBinaryUpgrade && clerk_worker_slots_attach();
}

/*
 * Transaction callback: wakes the worker after a commit that changed the
 * outbox, or after an abort that ended a CALL.
 */
static void
remember_prepared(TransactionId transaction)
{
	if (prepared_count == MAX_PREPARED)
		memmove(prepared, prepared + 1,
				--prepared_count * sizeof(TransactionId));
	prepared[prepared_count++] = transaction;
}

/*
 * Records a change for each prepared transaction that has ended.  By the time
 * the transaction of a COMMIT PREPARED is about to end, the prepared one has.
 */
static void
check_prepared_transactions(void)
{
	int			left = 0;

	for (int i = 0; i < prepared_count; i++)
		if (TransactionIdIsInProgress(prepared[i]))
			prepared[left++] = prepared[i];
		else
			note_change(CHANGE_ADDED);
	prepared_count = left;
}

static void
on_transaction_end(XactEvent event, void *arg pg_attribute_unused())
{
	const Change change = noted_change;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			noted_change = CHANGE_NONE;
			if (change != CHANGE_NONE && clerk_worker_enabled)
				wake_worker(change == CHANGE_ADDED);
			break;
		case XACT_EVENT_ABORT:
			noted_change = CHANGE_NONE;
			clerk_wakeup_end_call(true);
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (change == CHANGE_ADDED)
				remember_prepared(GetTopTransactionId());
			break;
		case XACT_EVENT_PREPARE:
			noted_change = CHANGE_NONE;
			if (change == CHANGE_ADDED && clerk_worker_enabled)
				wake_worker(true);
			break;
		case XACT_EVENT_PRE_COMMIT:
			check_prepared_transactions();
			break;
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
			break;
	}
}

/*
 * Wakes the worker, and starts one if there is none and "start" is true.  The
 * transaction has ended, so nothing in here may raise an error.
 */
static void
wake_worker(bool start)
{
	const char *detail;
	const char *hint = "The next commit that adds invitations will try again. You can also call clerk_send_invitations().";

	switch (clerk_worker_wake(MyDatabaseId, start))
	{
		case CLERK_WAKE_START:
			if (clerk_worker_start(MyDatabaseId, NULL))
				return;
			clerk_worker_not_started(MyDatabaseId);
			detail = "All background worker slots of the server are in use.";
			hint = "The next commit that adds invitations will try again. Consider increasing \"max_worker_processes\", or call clerk_send_invitations().";
			break;
		case CLERK_WAKE_NO_SLOT:
			detail = "Too many databases have a background worker.";
			break;
		default:
			return;
	}
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("could not start a background worker to send invitations"),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}
