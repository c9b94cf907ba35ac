/*
 * worker.c
 *		The background worker that sends the invitations of a database.
 *
 * It alternates between passes (worker/worker_pass.c) and waits.  A pass sends
 * all rows that are due.  A wait lasts until the next row is due or somebody
 * commits rows; it holds no transaction and no lock, and is a single system
 * call.  When no open rows are left, the worker waits a moment for the next
 * commit and exits.  If rows are due later, and nobody has committed any for a
 * minute, it hands its slot over to a process that waits without a connection
 * to the database.
 *
 * If it ends in any other way, nothing is lost: the postmaster starts a
 * replacement process, even after a crash and recovery of the server, and the
 * replacement verifies the rows that were in flight.  The postmaster
 * distinguishes the cases by the exit status: 0 means that the worker decided
 * to exit.
 */
#include "postgres.h"

#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "common/shared_memory.h"
#include "compat.h"
#include "miscadmin.h"
#include "outbox/outbox_statement.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "worker/slots.h"
#include "worker/worker.h"
#include "worker/worker_pass.h"

/*
 * Seconds until the postmaster restarts a worker that did not exit by its own
 * decision.  worker/slots.c defines the additional delay of a worker that
 * fails immediately after each start.
 */
#define RESTART_SECONDS 1

/* Settings of the database or role that are meant for other sessions. */
static const char *const overridden[][2] = {
	{"default_transaction_isolation", "read committed"},
	{"session_replication_role", "origin"},
	/* An error must end the pass, not the process. */
	{"exit_on_error", "off"},
	/* New in 17.  Unlike other timeouts, it applies to background workers. */
	{"transaction_timeout", "0"}
};

static uint32 wait_event;

/* The database accepts no connections. */
static bool refused = false;

static emit_log_hook_type previous_emit_log_hook;

static void enter_slot(Oid database, ClerkWorkerPass *result);
static void connect_to(Oid database);
static void detect_refused_connection(ErrorData *error);
static void release_or_keep_slot(int code, Datum arg);
static void choose_exit_status(int code, Datum arg);
static void hand_over_to_new_process(const ClerkWorkerPass *result);
static bool wait_for_next_pass(const ClerkWorkerPass *result);
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
	ClerkWorkerPass result = {0};
	bool		undisturbed = false;

	enter_slot(database, &result);
	if (result.schedule.latest > clerk_monotonic_microseconds())
		(void) wait_for_next_pass(&result);

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
		clerk_worker_run_pass(&result);
		clerk_worker_end_pass();
		if (result.library_outdated || result.read_only ||
			(undisturbed && result.handover.schedule.latest != 0))
			hand_over_to_new_process(&result);
		undisturbed = wait_for_next_pass(&result) && result.nothing_soon;
	} while (!result.nothing_left || !clerk_worker_leave());
	proc_exit(0);
}

/*
 * Makes this process the database's worker, or exits.  Sets how long to wait
 * before connecting: while it is not connected, commands such as DROP DATABASE
 * need not wait for it.
 */
static void
enter_slot(Oid database, ClerkWorkerPass *result)
{
	ClerkWorkerEntry entry;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	wait_event = clerk_new_wait_event("ClerkInviteWorker");

	on_proc_exit(choose_exit_status, (Datum) 0);
	before_shmem_exit(release_or_keep_slot, (Datum) 0);
	if (!clerk_worker_slots_attach() ||
		!clerk_worker_enter(database, &entry))
		proc_exit(0);
	result->schedule = entry.schedule;
	clerk_worker_continue(&entry);
	strlcpy(result->last_error,
			entry.handed_over || entry.last_error[0] != '\0' ? entry.last_error :
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
	clerk_outbox_adopt_settings();
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
		refused = true;

	if (refused && error->sqlerrcode == ERRCODE_UNDEFINED_DATABASE)
		error->output_to_server = false;
	if (previous_emit_log_hook != NULL)
		previous_emit_log_hook(error);
}

/* Exit callback: decides whether a replacement process is expected. */
static void
release_or_keep_slot(int code, Datum arg pg_attribute_unused())
{
	if (code == 0 || refused)
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
	if (code != 0 && refused)
		proc_exit(0);
}

/*
 * Starts another worker to replace this one, and exits.  Returns, so that the
 * caller tries again later, if the server has no room for both.
 *
 * If settings make this process read-only, or the next row is due later, it
 * hands its slot over, and the new process waits before it connects.  If its
 * library is outdated, it releases the slot instead: a newer library may have
 * slots of another layout, and a session that shares this one's layout must be
 * able to start a worker that finds the new one.
 */
static void
hand_over_to_new_process(const ClerkWorkerPass *result)
{
	ClerkWorkerEntry entry;

	if (result->library_outdated)
		clerk_worker_release_slot();
	else
	{
		/* The status to show until the new process has entered. */
		clerk_worker_begin_wait(wall_time_of(result->handover.schedule.latest),
								result->last_error);
		clerk_worker_hand_over(&result->handover);
	}
	if (clerk_worker_start(MyDatabaseId, NULL))
	{
		if (result->library_outdated)
			ereport(LOG,
					(errmsg("a worker with another version of the library continues to send invitations")));
	}
	else if (clerk_worker_enter(MyDatabaseId, &entry))
		return;
	proc_exit(0);
}

/*
 * Waits until the next pass is due or the configuration was reloaded.  Returns
 * whether time is all that has passed: nobody has committed rows.
 */
static bool
wait_for_next_pass(const ClerkWorkerPass *result)
{
	int64		latest = result->schedule.latest;

	clerk_worker_begin_wait(wall_time_of(latest), result->last_error);
	for (;;)
	{
		int64		now = clerk_monotonic_microseconds();
		bool		woken;

		/* A query cancel has nothing to cancel here. */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		ProcessCatchupInterrupt();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			return false;
		}

		/*
		 * The latch alone is not reliable, because a request may have reset
		 * it.
		 */
		woken = clerk_worker_is_woken();
		if (woken)
			latest = Min(latest, result->schedule.earliest);
		if (now >= latest)
			return !woken;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (latest - now + 999) / 1000, wait_event);
		ResetLatch(MyLatch);
	}
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
