/*
 * worker.c
 *		The background worker that sends the invitations of a database.
 *
 * It alternates between passes and waits.  A pass sends all rows that are
 * due.  A wait lasts until the next row is due or somebody commits rows; it
 * holds no transaction and no lock, and is a single system call.  When no open
 * rows are left, the worker waits a moment for the next commit and exits.
 *
 * If it ends in any other way, nothing is lost: the postmaster starts a
 * replacement process, even after a crash and recovery of the server, and the
 * replacement verifies the rows that were in flight.  The postmaster
 * distinguishes the cases by the exit status: 0 means that the worker decided
 * to exit.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/installed_extension.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "common/shared_memory.h"
#include "compat.h"
#include "miscadmin.h"
#include "outbox/delivery.h"
#include "outbox/outbox.h"
#include "outbox/outbox_statement.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/slots.h"
#include "worker/worker.h"

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
 * The longest wait.  Nothing wakes a worker when the extension is dropped, or
 * when the cause of an error disappears.
 */
#define MAX_WAIT_MS 60000

/*
 * Seconds until the postmaster restarts a worker that did not exit by its own
 * decision.  worker/slots.c defines the additional delay of a worker that
 * fails immediately after each start.
 */
#define RESTART_SECONDS 1

/* The result of a pass, and when to begin the next one. */
typedef struct PassResult
{
	bool		nothing_left;	/* no open rows are left, so there is nothing
								 * to wait for */
	bool		prepared;		/* a prepared transaction may add rows */
	bool		library_outdated;	/* a process with a newer library must
									 * take over */
	bool		read_only;		/* settings that took effect when the process
								 * connected make its transactions read-only */
	ClerkWorkerSchedule schedule;
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* empty if none */
} PassResult;

/* Settings of the database or role that are meant for other sessions. */
static const char *const overridden[][2] = {
	{"search_path", ""},
	{"default_transaction_isolation", "read committed"},
	{"session_replication_role", "origin"},
	/* An error must end the pass, not the process. */
	{"exit_on_error", "off"},
	/* New in 17.  Unlike other timeouts, it applies to background workers. */
	{"transaction_timeout", "0"}
};

static const ClerkError read_only_error = {
	.class = CLERK_ERROR_CONFIGURATION,
	.sqlstate = ERRCODE_READ_ONLY_SQL_TRANSACTION,
	.summary = "the database is read-only because of \"default_transaction_read_only\"",
	.hint = "Reset the parameter for the database, for the worker's role, or in postgresql.conf. Invitations remain queued until then."
};

/* What this worker remembers between passes. */
static struct
{
	MemoryContext pass_memory;	/* reset after each pass */
	uint32		wait_event;
	bool		has_completed_pass;
	bool		has_sent;
	bool		refused;		/* the database accepts no connections */
	int			failures;		/* consecutive passes that ended with an error */
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* as logged; empty if
														 * none */
}			worker;

static emit_log_hook_type previous_emit_log_hook;

static void enter_slot(Oid database, PassResult *result);
static void connect_to(Oid database);
static void detect_refused_connection(ErrorData *error);
static void release_or_keep_slot(int code, Datum arg);
static void choose_exit_status(int code, Datum arg);
static void run_pass(PassResult *result);
static void deliver(PassResult *result);
static bool has_open_rows(void);
static void schedule_next_pass(const ClerkDeliveryReport *report,
							   PassResult *result);
static void log_error_change(const ClerkError *error);
static void recover_from_error(PassResult *result);
static void hand_over_to_new_process(const PassResult *result);
static void wait_for_next_pass(const PassResult *result);
static void begin_transaction(void);
static void commit_transaction(void);
static int64 from_now(int64 milliseconds);
static int64 milliseconds_until(TimestampTz time);
static TimestampTz wall_time_of(int64 time);

/*
 * Requests a worker for this database from the postmaster.  Returns false if
 * the server has no free background worker slot.  If "handle" is not NULL,
 * sets it to a palloc'd handle, and the postmaster notifies this process when
 * the worker starts and stops.  If it is NULL, raises no error.
 *
 * The caller must have reserved the slot with clerk_worker_wake() or
 * clerk_worker_hand_over(), or have released its own.
 */
bool
clerk_worker_start(Oid database, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	snprintf(worker.bgw_name, BGW_MAXLEN,
			 "clerk_invite worker for database %u", database);
	strlcpy(worker.bgw_type, "clerk_invite worker", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_SECONDS;

	strlcpy(worker.bgw_library_name, CLERK_WORKER_LIBRARY,
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "clerk_worker_main", BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = handle != NULL ? MyProcPid : 0;

	return RegisterDynamicBackgroundWorker(&worker, handle);
}

/*
 * Main function of the worker process; the argument is the OID of the
 * database.
 */
void
clerk_worker_main(Datum main_arg)
{
	Oid			database = DatumGetObjectId(main_arg);
	PassResult	result = {0};

	enter_slot(database, &result);
	if (result.schedule.latest > clerk_monotonic_microseconds())
		wait_for_next_pass(&result);

	/*
	 * A database can have its own value of this setting, which is known only
	 * after connecting.
	 */
	connect_to(database);
	do
	{
		CHECK_FOR_INTERRUPTS();
		if (!clerk_worker_enabled)
			break;
		clerk_worker_begin_pass();
		run_pass(&result);
		clerk_worker_end_pass();
		if (result.library_outdated || result.read_only)
			hand_over_to_new_process(&result);
		wait_for_next_pass(&result);
	} while (!result.nothing_left || !clerk_worker_leave());
	proc_exit(0);
}

/*
 * Makes this process the database's worker, or exits.  Sets how long to wait
 * before connecting: while it is not connected, commands such as DROP DATABASE
 * need not wait for it.
 */
static void
enter_slot(Oid database, PassResult *result)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	worker.wait_event = clerk_new_wait_event("ClerkInviteWorker");

	on_proc_exit(choose_exit_status, (Datum) 0);
	before_shmem_exit(release_or_keep_slot, (Datum) 0);
	if (!clerk_worker_slots_attach() ||
		!clerk_worker_enter(database, &result->schedule, worker.last_error))
		proc_exit(0);
	strlcpy(result->last_error,
			worker.last_error[0] != '\0' ? worker.last_error :
			"the worker exited unexpectedly; see the server log",
			CLERK_WORKER_ERROR_SIZE);
}

/* Connects to the database.  The process exits if that is refused. */
static void
connect_to(Oid database)
{
	previous_emit_log_hook = emit_log_hook;
	emit_log_hook = detect_refused_connection;
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	emit_log_hook = previous_emit_log_hook;

	for (int i = 0; i < (int) lengthof(overridden); i++)
		if (GetConfigOption(overridden[i][0], true, false) != NULL)
			SetConfigOption(overridden[i][0], overridden[i][1],
							PGC_SUSET, PGC_S_OVERRIDE);
	worker.pass_memory = AllocSetContextCreate(TopMemoryContext,
											   "clerk_invite look",
											   ALLOCSET_DEFAULT_SIZES);
}

/*
 * Examines the FATAL error that ends the process while it connects, which
 * nothing can catch.  A database that was dropped or does not accept
 * connections any more needs no worker.  If it was dropped, the message is
 * also suppressed: the database was dropped WITH (FORCE), which terminated the
 * previous worker process.
 */
static void
detect_refused_connection(ErrorData *error)
{
	if (error->elevel == FATAL &&
		(error->sqlerrcode == ERRCODE_UNDEFINED_DATABASE ||
		 error->sqlerrcode == ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE))
		worker.refused = true;

	if (worker.refused && error->sqlerrcode == ERRCODE_UNDEFINED_DATABASE)
		error->output_to_server = false;
	if (previous_emit_log_hook != NULL)
		previous_emit_log_hook(error);
}

/* Exit callback: decides whether a replacement process is expected. */
static void
release_or_keep_slot(int code, Datum arg pg_attribute_unused())
{
	if (code == 0 || worker.refused)
		clerk_worker_release_slot();
	else
		clerk_worker_expect_restart();
}

/*
 * Exit callback: changes the exit status after a refused connection to 0.  A
 * FATAL error results in 1, which makes the postmaster restart the worker.
 * Calling proc_exit() in an exit callback is safe: the remaining callbacks
 * still run, just as after an error in a callback.
 */
static void
choose_exit_status(int code, Datum arg pg_attribute_unused())
{
	if (code != 0 && worker.refused)
		proc_exit(0);
}

/*
 * Makes a pass over the outbox.  An error ends the pass and only delays the
 * next one.
 */
static void
run_pass(PassResult *result)
{
	memset(result, 0, sizeof(*result));
	pgstat_report_activity(STATE_RUNNING, "sending invitations");
	MemoryContextSwitchTo(worker.pass_memory);
	PG_TRY();
	{
		deliver(result);
		worker.failures = 0;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(worker.pass_memory);
		recover_from_error(result);
	}
	PG_END_TRY();
	MemoryContextReset(worker.pass_memory);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/*
 * Sends the rows that are due, unless the extension does not exist or the
 * database is read-only.
 */
static void
deliver(PassResult *result)
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

	/*
	 * From the next transaction on, begin_transaction() takes the owner's
	 * rights.
	 */
	if (OidIsValid(schema))
	{
		clerk_outbox_find(schema);
		/* Before the rows: the next pass sees what is committed from now on. */
		result->prepared = clerk_outbox_is_prepared();
	}
	result->nothing_left = !OidIsValid(schema) ||
		(!writable && !result->prepared && !has_open_rows());
	commit_transaction();
	if (result->nothing_left)
		return;
	if (!writable)
	{
		log_error_change(&read_only_error);
		strlcpy(result->last_error, worker.last_error, CLERK_WORKER_ERROR_SIZE);
		result->read_only = true;
		result->schedule.earliest = from_now(MIN_WAIT_MS);
		result->schedule.latest = from_now(MAX_WAIT_MS);
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
schedule_next_pass(const ClerkDeliveryReport *report, PassResult *result)
{
	int64		pause = from_now(MIN_WAIT_MS);
	int64		due = from_now(Min(milliseconds_until(report->next_due),
								   MAX_WAIT_MS));
	bool		has_completed_pass = worker.has_completed_pass;

	worker.has_completed_pass = true;

	if (report->sent + report->skipped + report->failed > 0)
		worker.has_sent = true;

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
	strlcpy(result->last_error, worker.last_error, CLERK_WORKER_ERROR_SIZE);
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
		result->schedule.latest = from_now(worker.has_sent ? LINGER_MS : 0);
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

	if (strncmp(worker.last_error, last_error, CLERK_WORKER_ERROR_SIZE - 1) == 0)
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
	strlcpy(worker.last_error, last_error, CLERK_WORKER_ERROR_SIZE);
}

/*
 * Error recovery, as when a client's transaction is aborted.  No transaction
 * is active while requests are running; AbortCurrentTransaction() does nothing
 * then, so whatever the error left behind is released here, as other
 * background processes do.
 */
static void
recover_from_error(PassResult *result)
{
	int64		delay = MIN_WAIT_MS;
	int			sqlstate = geterrcode();

	HOLD_INTERRUPTS();
	EmitErrorReport();
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(worker.pass_memory);
	FlushErrorState();
	RESUME_INTERRUPTS();

	for (int i = 0; i < worker.failures && delay < MAX_WAIT_MS; i++)
		delay *= 2;
	worker.failures++;

	result->schedule.earliest = result->schedule.latest = from_now(delay);
	snprintf(result->last_error, CLERK_WORKER_ERROR_SIZE,
			 "error %s; see the server log", unpack_sql_state(sqlstate));
}

/*
 * Starts another worker to replace this one, and exits.  Returns, so that the
 * caller tries again later, if the server has no room for both.
 *
 * If settings make this process read-only, it hands its slot over, and the new
 * process waits before it connects.  If its library is outdated, it releases
 * the slot instead: a newer library may have slots of another layout, and a
 * session that shares this one's layout must be able to start a worker that
 * finds the new one.
 */
static void
hand_over_to_new_process(const PassResult *result)
{
	ClerkWorkerSchedule schedule;

	if (result->read_only)
	{
		/* The status to show until the new process has entered. */
		clerk_worker_begin_wait(wall_time_of(result->schedule.latest),
								result->last_error);
		clerk_worker_hand_over(&result->schedule);
	}
	else
		clerk_worker_release_slot();
	if (clerk_worker_start(MyDatabaseId, NULL))
	{
		if (result->library_outdated)
			ereport(LOG,
					(errmsg("a worker with another version of the library continues to send invitations")));
	}
	else if (clerk_worker_enter(MyDatabaseId, &schedule, worker.last_error))
		return;
	proc_exit(0);
}

/* Waits until the next pass is due or the configuration was reloaded. */
static void
wait_for_next_pass(const PassResult *result)
{
	int64		latest = result->schedule.latest;

	clerk_worker_begin_wait(wall_time_of(latest), result->last_error);
	for (;;)
	{
		int64		now = clerk_monotonic_microseconds();

		/* A query cancel has nothing to cancel here. */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		ProcessCatchupInterrupt();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			break;
		}

		/*
		 * The latch alone is not reliable, because a request may have reset
		 * it.
		 */
		if (clerk_worker_is_woken())
			latest = Min(latest, result->schedule.earliest);
		if (now >= latest)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (latest - now + 999) / 1000, worker.wait_event);
		ResetLatch(MyLatch);
	}
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

/*
 * Converts a time of the monotonic clock to wall-clock time, assuming that the
 * wall clock is not set in the meantime.
 */
static TimestampTz
wall_time_of(int64 time)
{
	return GetCurrentTimestamp() + time - clerk_monotonic_microseconds();
}
