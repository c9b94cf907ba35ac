/*
 * worker.c
 *		The background worker that sends a database's invitations.
 *
 * It looks and rests in turn.  A look sends everything that is due; a rest
 * lasts until the next row is due or somebody commits rows, with no transaction
 * and no lock, in one system call.  When nothing is open any more it waits a
 * moment for the next commit and leaves.
 *
 * If it ends in any other way, nothing is lost: rows that were under way are
 * verified by the next sender.
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "delivery.h"
#include "guc.h"
#include "installed_extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "shared_memory.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"
#include "worker_slots.h"

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

/*
 * Nobody wakes a worker when the extension is dropped, when a prepared
 * transaction is committed, or when the reason of an error is gone.
 */
#define LONGEST_REST_MS 60000

/* What a look has found, and when to look again. */
typedef struct Outlook
{
	bool		over;			/* there is nothing to wait for */
	bool		outdated;		/* a worker with a newer library is to go on */
	TimestampTz earliest;		/* not before then, even if woken */
	TimestampTz latest;			/* then in any case */
	char		trouble[CLERK_WORKER_TROUBLE_SIZE]; /* empty: none */
} Outlook;

/* What this worker remembers from look to look. */
static struct
{
	MemoryContext look;			/* emptied after each look */
	uint32		wait_event;
	bool		has_looked;
	bool		has_sent;
	int			failures;		/* looks in a row that ended with an error */
	char		trouble[CLERK_WORKER_TROUBLE_SIZE]; /* logged; empty: none */
}			worker;

static void prepare(Oid database);
static void look(Outlook *outlook);
static void look_at_outbox(Outlook *outlook);
static void judge(const ClerkDeliveryReport *report, Outlook *outlook);
static void note_trouble(const ClerkError *error);
static void recover(Outlook *outlook);
static void make_way(void);
static void rest(const Outlook *outlook);
static void begin_transaction(void);
static void commit_transaction(void);
static TimestampTz from_now(int64 milliseconds);

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
	worker.bgw_restart_time = BGW_NEVER_RESTART;
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
	Outlook		outlook;

	prepare(DatumGetObjectId(main_arg));
	do
	{
		CHECK_FOR_INTERRUPTS();
		if (!clerk_worker_enabled)
			break;
		clerk_worker_begin_look();
		look(&outlook);
		if (outlook.outdated)
			make_way();
		rest(&outlook);
	} while (!outlook.over || !clerk_worker_leave());
	proc_exit(0);
}

/* Makes this process the database's worker, or ends it. */
static void
prepare(Oid database)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (!clerk_worker_slots_attach() || !clerk_worker_enter(database))
		proc_exit(0);

	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	/* Whatever the database's settings are for everybody else. */
	SetConfigOption("search_path", "", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);
	worker.look = AllocSetContextCreate(TopMemoryContext, "clerk_invite look",
										ALLOCSET_DEFAULT_SIZES);
	worker.wait_event = clerk_new_wait_event("ClerkInviteWorker");
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
	commit_transaction();
	if (!OidIsValid(schema) || !writable)
	{
		outlook->over = true;
		return;
	}
	clerk_deliver(schema, PG_INT64_MAX, &host, &report);
	commit_transaction();
	judge(&report, outlook);
}

/* When to look again, after a look without an error. */
static void
judge(const ClerkDeliveryReport *report, Outlook *outlook)
{
	TimestampTz pause = from_now(PAUSE_MS);
	bool		has_looked = worker.has_looked;

	worker.has_looked = true;
	if (report->sent + report->skipped + report->failed > 0)
		worker.has_sent = true;
	if (report->busy)
	{
		outlook->earliest = outlook->latest = pause;
		return;
	}

	/*
	 * A new process loads the library that is installed by now.  If the first
	 * look of one finds that this is too old, too, it has trouble like
	 * others.
	 */
	if (report->fit == CLERK_FIT_LIBRARY_TOO_OLD && has_looked &&
		!clerk_is_preloaded())
	{
		outlook->outdated = true;
		outlook->earliest = outlook->latest = pause;
		return;
	}

	note_trouble(report->stopped_by);
	strlcpy(outlook->trouble, worker.trouble, CLERK_WORKER_TROUBLE_SIZE);
	if (report->stopped_by != NULL)
	{
		outlook->earliest = pause;
		outlook->latest = Max(from_now(clerk_retry_delay), report->next_due);
		/* The next look may start another process. */
		if (report->fit != CLERK_FIT_GOOD)
			outlook->latest = Max(outlook->latest, pause);
	}
	else if (report->next_due == 0 || TIMESTAMP_IS_NOEND(report->next_due))
	{
		outlook->over = true;
		outlook->latest = worker.has_sent ? from_now(LINGER_MS) : 0;
	}
	else
	{
		/* What is committed meanwhile is as limited as the rest. */
		if (report->limited_until != 0)
			outlook->earliest = pause;
		outlook->latest = Min(report->next_due, from_now(LONGEST_REST_MS));
	}
}

/*
 * Remembers what keeps the worker from sending, and tells the log when that
 * begins, changes and ends; NULL if nothing does.
 */
static void
note_trouble(const ClerkError *error)
{
	const char *trouble = error != NULL ? error->summary : "";

	if (strncmp(worker.trouble, trouble, CLERK_WORKER_TROUBLE_SIZE - 1) == 0)
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
	strlcpy(worker.trouble, trouble, CLERK_WORKER_TROUBLE_SIZE);
}

/* After an error: as if the transaction had been aborted by a client. */
static void
recover(Outlook *outlook)
{
	int64		delay = PAUSE_MS;
	int			sqlstate = geterrcode();

	HOLD_INTERRUPTS();
	EmitErrorReport();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(worker.look);
	FlushErrorState();
	RESUME_INTERRUPTS();

	for (int i = 0; i < worker.failures && delay < LONGEST_REST_MS; i++)
		delay *= 2;
	worker.failures++;
	outlook->earliest = outlook->latest = from_now(delay);
	snprintf(outlook->trouble, CLERK_WORKER_TROUBLE_SIZE,
			 "error %s, see the server's log", unpack_sql_state(sqlstate));
}

/*
 * Starts another worker in the place of this one, and ends; returns, to try it
 * again, if the server has no room for both.
 */
static void
make_way(void)
{
	clerk_worker_give_up();
	if (clerk_worker_start(MyDatabaseId, NULL))
		ereport(LOG,
				(errmsg("a worker with another version of the library goes on sending invitations")));
	else if (clerk_worker_enter(MyDatabaseId))
		return;
	proc_exit(0);
}

/* Waits until the next look is due, or the settings have changed. */
static void
rest(const Outlook *outlook)
{
	TimestampTz latest = outlook->latest;

	clerk_worker_begin_rest(latest, outlook->trouble);
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();

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
			latest = Min(latest, outlook->earliest);
		if (now >= latest)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 TimestampDifferenceMilliseconds(now, latest),
						 worker.wait_event);
		ResetLatch(MyLatch);
	}
}

/* In the memory context of whoever calls, and for now(). */
static void
begin_transaction(void)
{
	MemoryContext caller = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(caller);
}

static void
commit_transaction(void)
{
	MemoryContext caller = CurrentMemoryContext;

	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
}

static TimestampTz
from_now(int64 milliseconds)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), milliseconds);
}
