/*
 * procedures.c
 *		The SQL procedures that send the invitations that are due in the
 *		outbox, and that refresh their statuses.
 *
 * They are procedures rather than functions because they wait for the network:
 * a function would hold its transaction, its snapshot and its row locks all
 * that time.  They report with NOTICE messages, which pg_cron records.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/installed_extension.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "outbox/delivery.h"
#include "outbox/status_refresh.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "worker/wakeup.h"

/* Organizations named in a report; there may be many more. */
#define MAX_NAMED_ORGANIZATIONS 5

static void keep_transaction(void);
static void report_delivery_progress(const ClerkDeliveryReport *report,
									 int64 left);
static void report_counts(const ClerkDeliveryReport *report);
static void report_delivery(const ClerkDeliveryReport *report);
static void report_refresh(const ClerkRefreshReport *report);
static void report_missing_statuses(const ClerkRefreshReport *report);
static char *first_organizations(const List *organizations);
static MemoryContext begin_procedure(FunctionCallInfo fcinfo,
									 const char *procedure);
static void commit_and_begin(void);
static void end_procedure(MemoryContext caller);
static void report_stop(const ClerkError *error, const char *what);

PG_FUNCTION_INFO_V1(clerk_send_invitations);

/*
 * clerk_send_invitations(max_invitations integer)
 *
 * Sends at most max_invitations invitations; NULL means no limit.
 *
 * Raises 2D000 where it cannot commit, 22023 for a negative number, 25006 in a
 * read-only transaction, 55000 with SQL objects that do not match the library,
 * and the SQLSTATE of a ClerkError of class CLERK_ERROR_CONFIGURATION, which
 * prevents all sending.
 */
Datum
clerk_send_invitations(PG_FUNCTION_ARGS)
{
	static const ClerkDeliveryHost host = {
		keep_transaction, commit_and_begin, report_delivery_progress
	};
	Oid			schema = get_func_namespace(fcinfo->flinfo->fn_oid);
	int64		max_invitations;
	ClerkDeliveryReport delivered;
	MemoryContext caller;

	clerk_require_fit();
	max_invitations = PG_ARGISNULL(0) ? PG_INT64_MAX : PG_GETARG_INT32(0);
	if (max_invitations < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be negative",
						"max_invitations")));

	caller = begin_procedure(fcinfo, "clerk_send_invitations()");
	clerk_wakeup_begin_call();
	clerk_deliver(schema, max_invitations, &host, &delivered);
	clerk_wakeup_end_call(!TIMESTAMP_IS_NOEND(delivered.next_due));
	report_delivery(&delivered);
	end_procedure(caller);
	PG_RETURN_VOID();
}

/*
 * clerk_deliver() calls this to begin a transaction.  A procedure always is in
 * one.
 */
static void
keep_transaction(void)
{
}

/*
 * clerk_deliver() calls this periodically: reports the counts so far, and
 * estimates the time for the "left" rows that remain.
 */
static void
report_delivery_progress(const ClerkDeliveryReport *report, int64 left)
{
	int64		done = report->sent + report->skipped + report->failed;
	int64		seconds = (GetCurrentTimestamp() - report->begun_at) / USECS_PER_SEC;

	report_counts(report);
	if (done > 0 && left > 0)
		ereport(NOTICE,
				(errmsg("invitations left: %lld, about %lld seconds at this rate",
						(long long) left,
						(long long) (seconds * left / done))));
}

static void
report_counts(const ClerkDeliveryReport *report)
{
	if (report->sent + report->skipped + report->failed + report->postponed > 0)
		ereport(NOTICE,
				(errmsg("invitations: %lld sent, %lld skipped, %lld failed, %lld postponed",
						(long long) report->sent, (long long) report->skipped,
						(long long) report->failed,
						(long long) report->postponed)));
}

static void
report_delivery(const ClerkDeliveryReport *report)
{
	const ClerkError *error = report->stopped_by;

	if (report->busy)
	{
		ereport(NOTICE,
				(errmsg("another session is sending invitations")));
		return;
	}
	report_counts(report);
	if (TIMESTAMP_IS_NOEND(report->limited_until))
		ereport(NOTICE,
				(errmsg("no invitations are sent while \"%s\" and \"%s\" are 0",
						"clerk_invite.single_requests_per_hour",
						"clerk_invite.bulk_requests_per_hour")));
	else if (report->limited_until != 0)
		ereport(NOTICE,
				(errmsg("Clerk's rate limits are exhausted until %s",
						timestamptz_to_str(report->limited_until))));
	if (report->set_aside > 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("%lld invitations are set aside: %s",
						(long long) report->set_aside,
						report->set_aside_reason),
				 errhint("See the column \"database_error\".")));
	if (error != NULL)
		report_stop(error, "sending invitations");
}

PG_FUNCTION_INFO_V1(clerk_refresh_invitations);

/*
 * clerk_refresh_invitations()
 *
 * Calls Clerk's ListInstanceOrganizationInvitations and
 * ListOrganizationInvitations.  Raises 2D000 where it cannot commit, 25006 in
 * a read-only transaction, 55000 without a usable key or address or with SQL
 * objects that do not match the library, 28000 if Clerk does not accept the
 * key.
 */
Datum
clerk_refresh_invitations(PG_FUNCTION_ARGS)
{
	Oid			schema = get_func_namespace(fcinfo->flinfo->fn_oid);
	ClerkRefreshReport report;
	MemoryContext caller;

	clerk_require_fit();
	caller = begin_procedure(fcinfo, "clerk_refresh_invitations()");
	clerk_refresh_statuses(schema, commit_and_begin, &report);
	report_refresh(&report);
	if (report.limited_until != 0)
		ereport(NOTICE,
				(errmsg("Clerk accepts no list requests until %s",
						timestamptz_to_str(report.limited_until))));
	else if (report.stopped_by != NULL)
		report_stop(report.stopped_by, "refreshing invitations");
	else
		report_missing_statuses(&report);
	end_procedure(caller);
	PG_RETURN_VOID();
}

static void
report_refresh(const ClerkRefreshReport *report)
{
	if (report->pending > 0)
		ereport(NOTICE,
				(errmsg("pending invitations: %lld, of which %lld have changed: %lld accepted, %lld revoked, %lld expired",
						(long long) report->pending,
						(long long) report->changed,
						(long long) report->accepted,
						(long long) report->revoked,
						(long long) report->expired)));
}

/*
 * Warns about pending invitations for which Clerk returned no status: their
 * organization was deleted, or another key is in use now, or requests failed.
 */
static void
report_missing_statuses(const ClerkRefreshReport *report)
{
	const ClerkError *error = report->unreported_reason;
	char	   *organizations;

	if (report->unreported == 0)
		return;
	organizations = first_organizations(report->unreported_organizations);
	ereport(WARNING,
			(errcode(error != NULL ? error->sqlstate : ERRCODE_NO_DATA),
			 errmsg("Clerk reported nothing about %lld pending invitations",
					(long long) report->unreported),
			 error == NULL ?
			 errdetail("Clerk's lists do not contain them. Organizations: %s.", organizations) :
			 errdetail("The last error was: %s. Organizations: %s.", error->summary,
					   organizations),
			 errhint("If their organization was deleted, set their status manually.")));
}

/*
 * Returns the first organizations as text for a message.  Some are enough: the
 * user has to check one by one which of them were deleted.
 */
static char *
first_organizations(const List *organizations)
{
	StringInfoData names;
	const ListCell *cell;
	int			count = 0;

	initStringInfo(&names);
	foreach(cell, organizations)
	{
		if (count++ == MAX_NAMED_ORGANIZATIONS)
			break;
		appendStringInfo(&names, "%s\"%s\"", count > 1 ? ", " : "",
						 (char *) lfirst(cell));
	}
	if (list_length(organizations) > MAX_NAMED_ORGANIZATIONS)
		appendStringInfo(&names, ", and %d more",
						 list_length(organizations) - MAX_NAMED_ORGANIZATIONS);
	return names.data;
}

/*
 * Prepares a procedure: connects to SPI, ends the caller's transaction, and
 * makes the portal's memory context the current one, because it survives the
 * transactions.  Returns the previous memory context, for end_procedure().
 *
 * Raises 2D000 where the procedure cannot commit, and 25006 in a read-only
 * transaction.
 */
static MemoryContext
begin_procedure(FunctionCallInfo fcinfo, const char *procedure)
{
	MemoryContext caller;

	PreventCommandIfReadOnly(procedure);
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s cannot run inside a transaction block or a function",
						procedure),
				 errhint("Call it as a separate statement.")));
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	caller = MemoryContextSwitchTo(PortalContext);
	/* The current transaction may already have a snapshot. */
	commit_and_begin();
	return caller;
}

/*
 * Ends the transaction and begins the next one.  The memory context stays.
 *
 * The statements skip rows that another session has locked or changed in the
 * meantime.  This requires READ COMMITTED; at a stricter default level of the
 * session such a row would be an error.  The new transaction has no snapshot
 * yet, so its level can be set as SET TRANSACTION does.
 */
static void
commit_and_begin(void)
{
	MemoryContext caller = CurrentMemoryContext;

	clerk_spi_commit_and_begin();
	(void) set_config_option("transaction_isolation", "read committed",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	MemoryContextSwitchTo(caller);
}

/*
 * Ends what begin_procedure() began.  Begins a transaction with the session's
 * own isolation level, for the statements that follow the CALL, as in a DO
 * block.
 */
static void
end_procedure(MemoryContext caller)
{
	clerk_spi_commit_and_begin();
	MemoryContextSwitchTo(caller);
	SPI_finish();
}

/*
 * Reports why the procedure ends early; "what" is what it stopped doing.
 * Raises an error if the settings must be changed first, so that a job that
 * calls the procedure fails.  Otherwise a warning is enough, because the next
 * call continues.
 */
static void
report_stop(const ClerkError *error, const char *what)
{
	ereport(error->class == CLERK_ERROR_CONFIGURATION ? ERROR : WARNING,
			(errcode(error->sqlstate),
			 errmsg("stopped %s: %s", what, error->summary),
			 error->detail != NULL ? errdetail("%s", error->detail) : 0,
			 error->hint != NULL ? errhint("%s", error->hint) : 0));
}
