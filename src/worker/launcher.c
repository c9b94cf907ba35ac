/*
 * launcher.c
 *		A background worker that starts the other workers after the server
 *		has started, if the library is preloaded.
 *
 * Workers are normally started by commits.  Rows that were queued when the
 * server stopped or crashed, or while it was a standby, would have to wait for
 * the next commit.  Therefore, after each start and after a promotion, the
 * launcher starts a worker in each database, one after another; a worker that
 * finds nothing to do exits immediately.  Then the launcher sleeps until a
 * worker cannot be started because the server has no free background worker
 * slot.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "compat.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "worker/launcher.h"
#include "worker/slots.h"
#include "worker/worker.h"

/*
 * Seconds until the launcher is restarted after an error of its own, and until
 * it tries again when a worker could not be started.
 */
#define RETRY_SECONDS 5

/*
 * How long the launcher waits for a worker to exit before it starts the next
 * one.  The workers are to come one after another, but the next one must not
 * wait until a long queue is sent.  Finding that there is nothing to do takes
 * about a hundredth of this time.
 */
#define WATCH_MS 1000

/* State of the launcher process. */
static struct
{
	List	   *databases;		/* OIDs of those that still need a worker */
	bool		listed;			/* databases were listed since the setting
								 * clerk_invite.worker was turned on */
	uint32		wait_event;
}			launcher;

static void list_databases(void);
static bool start_workers(void);
static bool start_worker(Oid database);
static void watch_worker(BackgroundWorkerHandle *handle);
static void wait_for_latch(long milliseconds);

/*
 * Registers the launcher.  Must be called when the library is loaded.  Does
 * nothing if the library is not preloaded, or in a binary upgrade.
 */
void
clerk_register_launcher(void)
{
	BackgroundWorker worker;

	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	memset(&worker, 0, sizeof(worker));
	strlcpy(worker.bgw_name, "clerk_invite launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "clerk_invite launcher", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RETRY_SECONDS;

	strlcpy(worker.bgw_library_name, CLERK_WORKER_LIBRARY,
			sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "clerk_launcher_main", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/*
 * Main function of the launcher process.  It never returns and never exits
 * with 0, because the postmaster would then unregister the launcher.
 */
void
clerk_launcher_main(Datum main_arg pg_attribute_unused())
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	if (!clerk_worker_slots_attach())
		proc_exit(1);
	clerk_worker_register_launcher();
	launcher.wait_event = clerk_new_wait_event("ClerkInviteLauncher");

	for (;;)
	{
		bool		done = true;

		if (!clerk_worker_enabled)
			launcher.listed = false;

		else
		{
			if (!launcher.listed)
				list_databases();
			done = start_workers();
		}
		wait_for_latch(done ? -1 : RETRY_SECONDS * 1000L);
	}
}

/* Lists all databases that accept connections. */
static void
list_databases(void)
{
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	list_free(launcher.databases);
	launcher.databases = NIL;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext transaction;

		if (!database->datallowconn ||
			database->datconnlimit == DATCONNLIMIT_INVALID_DB)
			continue;
		transaction = MemoryContextSwitchTo(TopMemoryContext);
		launcher.databases = lappend_oid(launcher.databases, database->oid);

		MemoryContextSwitchTo(transaction);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	launcher.listed = true;
}

/*
 * Starts a worker for each listed database, and for those whose worker could
 * not be started by a commit.  Returns false if a worker could not be started
 * and a retry makes sense.
 */
static bool
start_workers(void)
{
	while (clerk_worker_enabled)
	{
		bool		listed = (launcher.databases != NIL);
		Oid			database = listed ? linitial_oid(launcher.databases) :
		clerk_worker_wanted();

		if (!OidIsValid(database))
			break;
		if (!start_worker(database))
			return false;
		if (listed)
			launcher.databases = list_delete_first(launcher.databases);
	}
	return true;
}

/*
 * Starts or wakes the worker of a database.  Returns false if that is not
 * possible at the moment.
 */
static bool
start_worker(Oid database)
{
	BackgroundWorkerHandle *handle;

	switch (clerk_worker_wake(database, true))
	{
		case CLERK_WAKE_DONE:
			return true;
		case CLERK_WAKE_NO_SLOT:
			return false;
		case CLERK_WAKE_START:
			break;
	}
	MemoryContextSwitchTo(TopMemoryContext);
	if (!clerk_worker_start(database, &handle))
	{
		clerk_worker_not_started(database);
		return false;
	}
	watch_worker(handle);
	pfree(handle);
	return true;
}

/* Waits until the worker exits, at most WATCH_MS. */
static void
watch_worker(BackgroundWorkerHandle *handle)
{
	int64		deadline;
	int64		now;
	pid_t		pid;

	if (WaitForBackgroundWorkerStartup(handle, &pid) != BGWH_STARTED)
		return;
	now = clerk_monotonic_microseconds();
	deadline = now + WATCH_MS * 1000;
	while (GetBackgroundWorkerPid(handle, &pid) == BGWH_STARTED && now < deadline)
	{
		wait_for_latch((deadline - now + 999) / 1000);
		now = clerk_monotonic_microseconds();
	}
}

/* Waits for the latch, at most this long (-1: no limit). */
static void
wait_for_latch(long milliseconds)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

	if (milliseconds >= 0)
		events |= WL_TIMEOUT;
	(void) WaitLatch(MyLatch, events, milliseconds, launcher.wait_event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	ProcessCatchupInterrupt();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}
