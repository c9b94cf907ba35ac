/*
 * worker.c
 *		The background worker that sends a database's invitations.
 *
 * It looks and rests in turn.  A look sends everything that is due; a rest
 * lasts until the next row is due or somebody commits rows, with no transaction
 * and no lock, in one system call.  When nothing is open any more it waits a
 * moment for the next commit and leaves.
 *
 * If it ends in any other way, nothing is lost: the postmaster starts another
 * process in its place, after a crash and recovery of the server, too, and that
 * one verifies the rows that were under way.  It is the exit status that tells
 * one from the other: 0 is a worker's own decision.
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
 * How long a worker with nothing to do waits for another commit.  Starting one
 * costs some milliseconds; DROP DATABASE waits 5 seconds for it to go.
 */
#define LINGER_MS 1000

/*
 * The time between two looks while another session is sending; the shortest
 * one while something keeps the worker from sending, however many commits wake
 * it; and the one after an error, which doubles with each further error.
 */
#define PAUSE_MS 1000

/* Nobody may tell when a prepared transaction is committed; see wakeup.c. */
#define PREPARED_REST_MS 1000

/*
 * Nobody wakes a worker when the extension is dropped, or when the reason of an
 * error is gone.
 */
#define LONGEST_REST_MS 60000

/*
 * After how many seconds the postmaster starts a process in the place of one
 * that has ended without its own decision.  What one that fails at once waits
 * besides is in worker/slots.c.
 */
#define RESTART_SECONDS 1

/* What a look has found, and when to look again. */
typedef struct Outlook
{
	bool		over;			/* there is nothing to wait for */
	bool		prepared;		/* a prepared transaction may have rows */
	bool		outdated;		/* a worker with a newer library is to go on */
	bool		frozen;			/* the settings that a process has got when it
								 * connected keep it from sending */
	ClerkWorkerRest rest;
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* empty: none */
} Outlook;

/* Settings of a database or role that are meant for other sessions. */
static const char *const overridden[][2] = {
	{"search_path", ""},
	{"default_transaction_isolation", "read committed"},
	{"session_replication_role", "origin"},
	/* An error is to end a look, not the process. */
	{"exit_on_error", "off"},
	/* Since 17; unlike other time limits it concerns background workers. */
	{"transaction_timeout", "0"}
};

static const ClerkError read_only = {
	.class = CLERK_ERROR_CONFIGURATION,
	.sqlstate = ERRCODE_READ_ONLY_SQL_TRANSACTION,
	.summary = "the database is read-only by \"default_transaction_read_only\"",
	.hint = "Reset the parameter for the database or for the role of the worker, or in postgresql.conf. Invitations stay queued until then."
};

/* What this worker remembers from look to look. */
static struct
{
	MemoryContext look;			/* emptied after each look */
	uint32		wait_event;
	bool		has_looked;
	bool		has_sent;
	bool		refused;		/* the database takes no connections */
	int			failures;		/* looks in a row that ended with an error */
	char		last_error[CLERK_WORKER_ERROR_SIZE];	/* logged; empty: none */
}			worker;

static emit_log_hook_type previous_emit_log_hook;

static void enter(Oid database, Outlook *outlook);
static void connect_to(Oid database);
static void notice_refusal(ErrorData *error);
static void let_slot_go(int code, Datum arg);
static void choose_exit_status(int code, Datum arg);
static void look(Outlook *outlook);
static void look_at_outbox(Outlook *outlook);
static bool is_open(void);
static void judge(const ClerkDeliveryReport *report, Outlook *outlook);
static void note_error(const ClerkError *error);
static void recover(Outlook *outlook);
static void make_way(const Outlook *outlook);
static void rest(const Outlook *outlook);
static void begin_transaction(void);
static void commit_transaction(void);
static int64 from_now(int64 milliseconds);
static int64 milliseconds_until(TimestampTz time);
static TimestampTz wall_time_of(int64 time);

/*
 * Asks for a worker in this database; false if the server has no room for one.
 * With a handle, the caller is told when the worker starts and stops, and the
 * handle is allocated; without, this raises no error.
 *
 * The caller must have reserved the slot with clerk_worker_wake(), or just have
 * given up its own.
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

/* What the process runs; the argument is the database's OID. */
void
clerk_worker_main(Datum main_arg)
{
	Oid			database = DatumGetObjectId(main_arg);
	Outlook		outlook = {0};

	enter(database, &outlook);
	if (outlook.rest.latest > clerk_monotonic_microseconds())
		rest(&outlook);
	/* The database may have a setting of its own, which is not known before. */
	connect_to(database);
	do
	{
		CHECK_FOR_INTERRUPTS();
		if (!clerk_worker_enabled)
			break;
		clerk_worker_begin_look();
		look(&outlook);
		clerk_worker_end_look();
		if (outlook.outdated || outlook.frozen)
			make_way(&outlook);
		rest(&outlook);
	} while (!outlook.over || !clerk_worker_leave());
	proc_exit(0);
}

/*
 * Makes this process the database's worker, or ends it; fills in how long to
 * wait before it connects.  Nobody needs to wait for a worker that is not
 * connected, as DROP DATABASE would.
 */
static void
enter(Oid database, Outlook *outlook)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	worker.wait_event = clerk_new_wait_event("ClerkInviteWorker");

	on_proc_exit(choose_exit_status, (Datum) 0);
	before_shmem_exit(let_slot_go, (Datum) 0);
	if (!clerk_worker_slots_attach() ||
		!clerk_worker_enter(database, &outlook->rest, worker.last_error))
		proc_exit(0);
	strlcpy(outlook->last_error,
			worker.last_error[0] != '\0' ? worker.last_error :
			"the worker has ended early, see the server's log",
			CLERK_WORKER_ERROR_SIZE);
}

static void
connect_to(Oid database)
{
	previous_emit_log_hook = emit_log_hook;
	emit_log_hook = notice_refusal;
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	emit_log_hook = previous_emit_log_hook;

	for (int i = 0; i < (int) lengthof(overridden); i++)
		if (GetConfigOption(overridden[i][0], true, false) != NULL)
			SetConfigOption(overridden[i][0], overridden[i][1],
							PGC_SUSET, PGC_S_OVERRIDE);
	worker.look = AllocSetContextCreate(TopMemoryContext, "clerk_invite look",
										ALLOCSET_DEFAULT_SIZES);
}

/*
 * Looks at the FATAL error that ends the process while it connects, and that
 * nothing can catch: a database that was dropped, or takes no connections any
 * more, needs no worker.  The former needs no message either: somebody has
 * dropped it WITH (FORCE), which has ended the worker before.
 */
static void
notice_refusal(ErrorData *error)
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

/* At the end of the process: is there to be another one? */
static void
let_slot_go(int code, Datum arg pg_attribute_unused())
{
	if (code == 0 || worker.refused)
		clerk_worker_give_up();
	else
		clerk_worker_expect_restart();
}

/*
 * A FATAL error ends with 1, and that has the postmaster start the worker
 * again.  To exit from within is how an error in one of these callbacks goes on
 * with the others, too.
 */
static void
choose_exit_status(int code, Datum arg pg_attribute_unused())
{
	if (code != 0 && worker.refused)
		proc_exit(0);
}

/* Sends what is due; an error costs no more than time. */
static void
look(Outlook *outlook)
{
	memset(outlook, 0, sizeof(*outlook));
	pgstat_report_activity(STATE_RUNNING, "sending invitations");
	MemoryContextSwitchTo(worker.look);
	PG_TRY();
	{
		look_at_outbox(outlook);
		worker.failures = 0;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(worker.look);
		recover(outlook);
	}
	PG_END_TRY();
	MemoryContextReset(worker.look);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

static void
look_at_outbox(Outlook *outlook)
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
	/* From the next transaction on each is the owner's. */
	if (OidIsValid(schema))
	{
		clerk_outbox_find(schema);
		/* Before the rows: what is committed from now on, the next look sees. */
		outlook->prepared = clerk_outbox_is_prepared();
	}
	outlook->over = !OidIsValid(schema) ||
		(!writable && !outlook->prepared && !is_open());
	commit_transaction();
	if (outlook->over)
		return;
	if (!writable)
	{
		note_error(&read_only);
		strlcpy(outlook->last_error, worker.last_error, CLERK_WORKER_ERROR_SIZE);
		outlook->frozen = true;
		outlook->rest.earliest = from_now(PAUSE_MS);
		outlook->rest.latest = from_now(LONGEST_REST_MS);
		return;
	}
	clerk_deliver(schema, PG_INT64_MAX, &host, &report);
	commit_transaction();
	judge(&report, outlook);
}

/* Whether any row waits to be sent; in a transaction that may be read-only. */
static bool
is_open(void)
{
	return clerk_outbox_next_due(DT_NOBEGIN) != 0;
}

/* When to look again, after a look without an error. */
static void
judge(const ClerkDeliveryReport *report, Outlook *outlook)
{
	int64		pause = from_now(PAUSE_MS);
	int64		due = from_now(Min(milliseconds_until(report->next_due),
								   LONGEST_REST_MS));
	bool		has_looked = worker.has_looked;

	worker.has_looked = true;

	if (report->sent + report->skipped + report->failed > 0)
		worker.has_sent = true;

	if (report->busy)
	{
		outlook->rest.earliest = outlook->rest.latest = pause;
		return;
	}

	/*
	 * A new process loads the library that is installed by now.  If the first
	 * look of one finds that this is too old, too, it reports that like
	 * others.
	 */
	if (report->fit == CLERK_FIT_LIBRARY_TOO_OLD && has_looked &&
		!clerk_is_preloaded())
	{
		outlook->outdated = true;
		outlook->rest.earliest = outlook->rest.latest = pause;
		return;
	}

	note_error(report->stopped_by);
	strlcpy(outlook->last_error, worker.last_error, CLERK_WORKER_ERROR_SIZE);
	/* The log has each row by itself. */
	if (report->stopped_by == NULL && report->set_aside > 0)
		snprintf(outlook->last_error, CLERK_WORKER_ERROR_SIZE,
				 "%lld set aside: %s", (long long) report->set_aside,
				 report->set_aside_reason);
	if (report->stopped_by != NULL)
	{
		outlook->rest.earliest = pause;
		outlook->rest.latest = Max(from_now(clerk_retry_delay), due);
		/* The next look may start another process. */
		if (report->fit != CLERK_FIT_GOOD)
			outlook->rest.latest = Max(outlook->rest.latest, pause);
	}
	else if (!outlook->prepared &&
			 (report->next_due == 0 || TIMESTAMP_IS_NOEND(report->next_due)))
	{
		outlook->over = true;
		outlook->rest.latest = from_now(worker.has_sent ? LINGER_MS : 0);
	}
	else
	{
		/* What is committed meanwhile is as limited as the rest. */
		if (report->limited_until != 0)
			outlook->rest.earliest = pause;
		outlook->rest.latest = due;
		if (outlook->prepared)
			outlook->rest.latest = report->next_due == 0 ?
				from_now(PREPARED_REST_MS) :
				Min(due, from_now(PREPARED_REST_MS));
	}
}

/*
 * Remembers what keeps the worker from sending, and tells the log when that
 * begins, changes and ends; NULL if nothing does.
 */
static void
note_error(const ClerkError *error)
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
				(errmsg("sending invitations again")));
	strlcpy(worker.last_error, last_error, CLERK_WORKER_ERROR_SIZE);
}

/*
 * After an error: as if the transaction had been aborted by a client.  While
 * requests are under way there is none; then AbortCurrentTransaction() does
 * nothing, and what the error has left is released here, as other background
 * processes do it.
 */
static void
recover(Outlook *outlook)
{
	int64		delay = PAUSE_MS;
	int			sqlstate = geterrcode();

	HOLD_INTERRUPTS();
	EmitErrorReport();
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(worker.look);
	FlushErrorState();
	RESUME_INTERRUPTS();

	for (int i = 0; i < worker.failures && delay < LONGEST_REST_MS; i++)
		delay *= 2;
	worker.failures++;

	outlook->rest.earliest = outlook->rest.latest = from_now(delay);
	snprintf(outlook->last_error, CLERK_WORKER_ERROR_SIZE,
			 "error %s, see the server's log", unpack_sql_state(sqlstate));
}

/*
 * Starts another worker in the place of this one, and ends; returns, to try it
 * again, if the server has no room for both.
 *
 * One that the settings keep from sending hands its slot over, and the next one
 * waits before it connects.  One that is outdated gives it up: the slots of a
 * newer library may be others, and who shares this one's must be able to start
 * a worker that finds the other.
 */
static void
make_way(const Outlook *outlook)
{
	ClerkWorkerRest before;

	if (outlook->frozen)
	{
		/* For whoever asks until the next one has entered. */
		clerk_worker_begin_rest(wall_time_of(outlook->rest.latest),
								outlook->last_error);
		clerk_worker_hand_over(&outlook->rest);
	}
	else
		clerk_worker_give_up();
	if (clerk_worker_start(MyDatabaseId, NULL))
	{
		if (outlook->outdated)
			ereport(LOG,
					(errmsg("a worker with another version of the library goes on sending invitations")));
	}
	else if (clerk_worker_enter(MyDatabaseId, &before, worker.last_error))
		return;
	proc_exit(0);
}

/* Waits until the next look is due, or the settings have changed. */
static void
rest(const Outlook *outlook)
{
	int64		latest = outlook->rest.latest;

	clerk_worker_begin_rest(wall_time_of(latest), outlook->last_error);
	for (;;)
	{
		int64		now = clerk_monotonic_microseconds();

		/* Who cancels finds nothing under way. */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		ProcessCatchupInterrupt();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			break;
		}
		/* The latch does not tell: a request may have reset it. */
		if (clerk_worker_is_woken())
			latest = Min(latest, outlook->rest.earliest);
		if (now >= latest)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (latest - now + 999) / 1000, worker.wait_event);
		ResetLatch(MyLatch);
	}
}

/*
 * In the memory context of whoever calls, and for now().  The session is the
 * superuser's, but the transaction is the owner's of the outbox to its end: what
 * is attached to the outbox finds nobody else to run as.
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
	/* As it was before the outbox's owner got the transaction. */
	SetUserIdAndSecContext(GetSessionUserId(), 0);
	MemoryContextSwitchTo(caller);
}

/* By the monotonic clock, in its microseconds. */
static int64
from_now(int64 milliseconds)
{
	return clerk_monotonic_microseconds() + milliseconds * 1000;
}

/* 0 if it is past. */
static int64
milliseconds_until(TimestampTz time)
{
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), time);
}

/* Of a time by the monotonic clock, as far as the clock stays as it is. */
static TimestampTz
wall_time_of(int64 time)
{
	return GetCurrentTimestamp() + time - clerk_monotonic_microseconds();
}
