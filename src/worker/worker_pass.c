/*
 * worker_pass.c
 *		A pass of the background worker: what it does before and after the rows
 *		are delivered, recovery from errors, and when the next pass begins.
 *
 * No error leaves a pass.  It is logged, and delays the next one.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/installed_extension.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "common/shared_memory.h"
#include "miscadmin.h"
#include "outbox/clock_setback.h"
#include "outbox/delivery.h"
#include "outbox/outbox.h"
#include "outbox/outbox_statement.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/worker_pass.h"

/*
 * How long a worker with nothing to do waits for another commit.  Starting a
 * worker costs some milliseconds, and DROP DATABASE waits 5 seconds for it to
 * exit.
 */
#define LINGER_MS 1000

/*
 * The wait between two passes while another session is sending; the shortest
 * wait while something prevents the worker from sending, however many commits
 * wake it; and the wait after an error, which doubles with each consecutive
 * one.
 */
#define MIN_WAIT_MS 1000

/*
 * The wait while a prepared transaction may add rows: nothing may wake a worker
 * when it is committed; see wakeup.c.
 */
#define PREPARED_WAIT_MS 1000

/*
 * The longest wait, except for a rest.  Nothing wakes a worker when the extension
 * is dropped, or when the cause of an error disappears.
 */
#define MAX_WAIT_MS 60000

/*
 * The shortest and the longest rest, which is a wait without a connection until
 * the next row is due.  A shorter one is not worth another process.  The wall
 * clock may be set in the meantime, which the monotonic clock does not show.
 */
#define MIN_REST_MS 5000
#define MAX_REST_MS (60 * 60 * 1000)

static const ClerkError read_only_error = {
	.class = CLERK_ERROR_CONFIGURATION,
	.sqlstate = ERRCODE_READ_ONLY_SQL_TRANSACTION,
	.summary = "the database is read-only because of \"default_transaction_read_only\"",
	.hint = "Reset the parameter for the database, for the worker's role, or in postgresql.conf. Invitations remain queued until then."
};

/* What this process remembers between passes. */
static struct
{
	MemoryContext memory;		/* reset after each pass */
	bool		has_completed_pass;
	bool		has_sent;
	int			failures;		/* consecutive passes that ended with an error */
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* as logged; empty if
														 * none */
}			passes;

static void deliver(ClerkWorkerPass *result);
static bool has_open_rows(void);
static void schedule_next_pass(const ClerkDeliveryReport *report,
							   ClerkWorkerPass *result);
static void log_error_change(const ClerkError *error);
static void recover_from_error(ClerkWorkerPass *result);
static void begin_transaction(void);
static void commit_transaction(void);
static int64 from_now(int64 milliseconds);
static int64 milliseconds_until(TimestampTz time);

/*
 * Continues where the previous worker of this database has stopped: what
 * prevented it from sending is logged again only when it changes.  The library
 * of a process to which the slot was handed over may be as old as that of one
 * that has completed a pass.
 */
void
clerk_worker_continue(const ClerkWorkerEntry *entry)
{
	strlcpy(passes.last_error, entry->last_error, CLERK_WORKER_ERROR_SIZE);
	if (!entry->handed_over)
		return;
	passes.has_completed_pass = true;
	clerk_clock_expect_difference(entry->clock_difference);
}

/*
 * Makes a pass over the outbox.  An error ends the pass and only delays the
 * next one.
 */
void
clerk_worker_run_pass(ClerkWorkerPass *result)
{
	memset(result, 0, sizeof(*result));
	if (passes.memory == NULL)
		passes.memory = AllocSetContextCreate(TopMemoryContext,
											  "clerk_invite pass",
											  ALLOCSET_DEFAULT_SIZES);
	pgstat_report_activity(STATE_RUNNING, "sending invitations");
	MemoryContextSwitchTo(passes.memory);
	PG_TRY();
	{
		deliver(result);
		result->handover.clock_difference = clerk_clock_difference();
		passes.failures = 0;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(passes.memory);
		recover_from_error(result);
	}
	PG_END_TRY();
	MemoryContextReset(passes.memory);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/*
 * Sends the rows that are due, unless the extension does not exist or the
 * database is read-only.
 */
static void
deliver(ClerkWorkerPass *result)
{
	static const ClerkDeliveryHost host = {
		begin_transaction, commit_transaction, NULL
	};
	ClerkDeliveryReport report;
	Oid			schema;
	bool		writable;

	begin_transaction();
	schema = clerk_extension_schema();
	writable = !XactReadOnly;

	if (OidIsValid(schema))
	{
		clerk_outbox_find(schema);
		/* begin_transaction() may not have known this table. */
		clerk_outbox_own_transaction();
		/* Before the rows: the next pass sees what is committed from now on. */
		result->prepared = clerk_outbox_is_prepared();
	}
	result->nothing_left = !OidIsValid(schema) ||
		(!writable && !result->prepared && !has_open_rows());
	if (result->nothing_left || !writable)
		commit_transaction();
	if (result->nothing_left)
		return;
	if (!writable)
	{
		log_error_change(&read_only_error);
		strlcpy(result->last_error, passes.last_error, CLERK_WORKER_ERROR_SIZE);
		result->read_only = true;
		result->schedule.earliest = from_now(MIN_WAIT_MS);
		result->schedule.latest = from_now(MAX_WAIT_MS);
		result->handover.schedule = result->schedule;
		return;
	}
	clerk_deliver(schema, PG_INT64_MAX, &host, &report);
	commit_transaction();
	schedule_next_pass(&report, result);
}

/* Whether rows are waiting to be sent.  The transaction may be read-only. */
static bool
has_open_rows(void)
{
	ClerkOutboxWork work;

	clerk_outbox_read_work(DT_NOBEGIN, &work);
	return work.left_behind ||
		!TIMESTAMP_IS_NOEND(Min(work.send_at, work.look_up_at));
}

/* Sets when to begin the next pass, after one that ended without an error. */
static void
schedule_next_pass(const ClerkDeliveryReport *report, ClerkWorkerPass *result)
{
	int64		pause = from_now(MIN_WAIT_MS);
	int64		until_due = milliseconds_until(report->next_due);
	int64		due = from_now(Min(until_due, MAX_WAIT_MS));
	bool		has_completed_pass = passes.has_completed_pass;

	passes.has_completed_pass = true;

	if (report->sent + report->skipped + report->failed > 0)
		passes.has_sent = true;

	if (report->busy)
	{
		result->schedule.earliest = result->schedule.latest = pause;
		return;
	}

	/*
	 * A new process loads the library that is installed now.  If its first
	 * pass finds that this is too old, too, it reports that like other
	 * errors.
	 */
	if (report->fit == CLERK_FIT_LIBRARY_TOO_OLD && has_completed_pass &&
		!clerk_is_preloaded())
	{
		result->library_outdated = true;
		result->schedule.earliest = result->schedule.latest = pause;
		return;
	}

	log_error_change(report->stopped_by);
	strlcpy(result->last_error, passes.last_error, CLERK_WORKER_ERROR_SIZE);
	/* The log has the error of each row. */
	if (report->stopped_by == NULL && report->set_aside > 0)
		snprintf(result->last_error, CLERK_WORKER_ERROR_SIZE,
				 "%lld set aside: %s", (long long) report->set_aside,
				 report->set_aside_reason);
	if (report->stopped_by != NULL)
	{
		result->schedule.earliest = pause;
		result->schedule.latest = Max(from_now(clerk_retry_delay), due);
		/* The next pass may start another process. */
		if (report->fit != CLERK_FIT_GOOD)
			result->schedule.latest = Max(result->schedule.latest, pause);
	}
	else if (!result->prepared &&
			 TIMESTAMP_IS_NOEND(report->next_due))
	{
		result->nothing_left = true;
		result->schedule.latest = from_now(passes.has_sent ? LINGER_MS : 0);
	}
	else
	{
		/*
		 * Rows that are committed in the meantime are subject to the same
		 * rate limit.
		 */
		if (report->limited_until != 0)
			result->schedule.earliest = pause;
		result->schedule.latest = due;
		if (result->prepared)
			result->schedule.latest = Min(due, from_now(PREPARED_WAIT_MS));
		/* When a row that is set aside is tried again is known only here. */
		else if (until_due >= MIN_REST_MS && report->set_aside == 0)
		{
			result->nothing_soon = until_due > MAX_WAIT_MS;
			result->handover.schedule.earliest = result->schedule.earliest;
			result->handover.schedule.latest =
				from_now(Min(until_due, MAX_REST_MS));
		}
	}
}

/*
 * Remembers the error that prevents the worker from sending, or NULL if there
 * is none.  Logs it when it begins, changes or ends.
 */
static void
log_error_change(const ClerkError *error)
{
	const char *last_error = error != NULL ? error->summary : "";

	if (strncmp(passes.last_error, last_error, CLERK_WORKER_ERROR_SIZE - 1) == 0)
		return;
	if (error != NULL)
		ereport(LOG,
				(errcode(error->sqlstate),
				 errmsg("stopped sending invitations: %s", error->summary),
				 error->detail != NULL ? errdetail("%s", error->detail) : 0,
				 error->hint != NULL ? errhint("%s", error->hint) : 0));
	else
		ereport(LOG,
				(errmsg("resumed sending invitations")));
	strlcpy(passes.last_error, last_error, CLERK_WORKER_ERROR_SIZE);
}

/*
 * Error recovery, as when a client's transaction is aborted.  No transaction
 * is active while requests are running; AbortCurrentTransaction() does nothing
 * then, so whatever the error left behind is released here, as other
 * background processes do.
 */
static void
recover_from_error(ClerkWorkerPass *result)
{
	int64		delay = MIN_WAIT_MS;
	int			sqlstate = geterrcode();

	HOLD_INTERRUPTS();
	EmitErrorReport();
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(passes.memory);
	FlushErrorState();
	RESUME_INTERRUPTS();

	for (int i = 0; i < passes.failures && delay < MAX_WAIT_MS; i++)
		delay *= 2;
	passes.failures++;

	result->schedule.earliest = result->schedule.latest = from_now(delay);
	snprintf(result->last_error, CLERK_WORKER_ERROR_SIZE,
			 "error %s; see the server log", unpack_sql_state(sqlstate));
}

/*
 * Begins a transaction that runs with the rights of the outbox's owner until
 * it ends.  The session has superuser rights, which code attached to the
 * outbox must have no way to acquire.  Preserves the memory context, and sets
 * the time that now() returns.
 */
static void
begin_transaction(void)
{
	MemoryContext caller = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	clerk_outbox_own_transaction();
	MemoryContextSwitchTo(caller);
}

static void
commit_transaction(void)
{
	MemoryContext caller = CurrentMemoryContext;

	PopActiveSnapshot();
	CommitTransactionCommand();
	/* Restore the session's rights. */
	SetUserIdAndSecContext(GetSessionUserId(), 0);
	MemoryContextSwitchTo(caller);
}

/*
 * Returns the time this many milliseconds from now, by the monotonic clock, in
 * microseconds.
 */
static int64
from_now(int64 milliseconds)
{
	return clerk_monotonic_microseconds() + milliseconds * 1000;
}

/* Returns 0 if the time has passed. */
static int64
milliseconds_until(TimestampTz time)
{
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), time);
}
