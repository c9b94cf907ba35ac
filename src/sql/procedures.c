/*
 * procedures.c
 *		The SQL procedures that send what is due in the outbox, and that bring its
 *		statuses up to date.
 *
 * They are procedures and not functions because they wait for the network: a
 * function would hold its transaction and snapshot, and the locks on the rows
 * it has changed, all that time.  What they report is a NOTICE, which pg_cron
 * keeps.
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

/* Organizations that a report names; there may be many more. */
#define MOST_NAMED 5

static void begin_nothing(void);
static void report_sending_progress(const ClerkDeliveryReport *report,
									int64 left);
static void report_sent(const ClerkDeliveryReport *report);
static void report_sending(const ClerkDeliveryReport *report);
static void report_refreshed(const ClerkRefreshReport *report);
static void report_untold(const ClerkRefreshReport *report);
static char *some_of(const List *organizations);
static MemoryContext begin_procedure(FunctionCallInfo fcinfo,
									 const char *procedure);
static void commit_and_begin(void);
static void end_procedure(MemoryContext caller);
static void report_stop(const ClerkError *error, const char *what);

PG_FUNCTION_INFO_V1(clerk_send_invitations);

/*
 * clerk_send_invitations(max_invitations integer)
 *
 * Raises 2D000 where it cannot commit, 25006 in a read-only transaction, and
 * what keeps the whole queue from being sent.
 */
Datum
clerk_send_invitations(PG_FUNCTION_ARGS)
{
	static const ClerkDeliveryHost host = {
		begin_nothing, commit_and_begin, report_sending_progress
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
	clerk_wakeup_end_call(delivered.next_due != 0 &&
						  !TIMESTAMP_IS_NOEND(delivered.next_due));
	report_sending(&delivered);
	end_procedure(caller);
	PG_RETURN_VOID();
}

/* A procedure always is in a transaction. */
static void
begin_nothing(void)
{
}

/* While it goes on: how far it has come, and how long the rest will take. */
static void
report_sending_progress(const ClerkDeliveryReport *report, int64 left)
{
	int64		done = report->sent + report->skipped + report->failed;
	int64		seconds = (GetCurrentTimestamp() - report->begun_at) / USECS_PER_SEC;

	report_sent(report);
	if (done > 0 && left > 0)
		ereport(NOTICE,
				(errmsg("invitations left: %lld, about %lld seconds at this rate",
						(long long) left,
						(long long) (seconds * left / done))));
}

static void
report_sent(const ClerkDeliveryReport *report)
{
	if (report->sent + report->skipped + report->failed + report->postponed > 0)
		ereport(NOTICE,
				(errmsg("invitations: %lld sent, %lld skipped, %lld failed, %lld postponed",
						(long long) report->sent, (long long) report->skipped,
						(long long) report->failed,
						(long long) report->postponed)));
}

static void
report_sending(const ClerkDeliveryReport *report)
{
	const ClerkError *error = report->stopped_by;

	if (report->busy)
	{
		ereport(NOTICE,
				(errmsg("another session is sending invitations")));
		return;
	}
	report_sent(report);
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
 * Clerk's ListInstanceOrganizationInvitations and ListOrganizationInvitations.
 * Raises 2D000 where it cannot commit, 25006 in a read-only transaction, 55000
 * without a usable key or address, 28000 if Clerk does not accept the key.
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
	report_refreshed(&report);
	if (report.limited_until != 0)
		ereport(NOTICE,
				(errmsg("Clerk accepts no list requests until %s",
						timestamptz_to_str(report.limited_until))));
	else if (report.stopped_by != NULL)
		report_stop(report.stopped_by, "refreshing invitations");
	else
		report_untold(&report);
	end_procedure(caller);
	PG_RETURN_VOID();
}

static void
report_refreshed(const ClerkRefreshReport *report)
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

/* Their organization was deleted, or another key is used now, or Clerk failed. */
static void
report_untold(const ClerkRefreshReport *report)
{
	const ClerkError *error = report->untold_for;
	char	   *organizations;

	if (report->untold == 0)
		return;
	organizations = some_of(report->untold_organizations);
	ereport(WARNING,
			(errcode(error != NULL ? error->sqlstate : ERRCODE_NO_DATA),
			 errmsg("Clerk reported nothing about %lld pending invitations",
					(long long) report->untold),
			 error == NULL ?
			 errdetail("Clerk's lists do not contain them. Organizations: %s.", organizations) :
			 errdetail("The last error was: %s. Organizations: %s.", error->summary,
					   organizations),
			 errhint("If their organization was deleted, set their status manually.")));
}

/* The first of them, for a message; which are deleted can be seen one by one. */
static char *
some_of(const List *organizations)
{
	StringInfoData names;
	const ListCell *cell;
	int			count = 0;

	initStringInfo(&names);
	foreach(cell, organizations)
	{
		if (count++ == MOST_NAMED)
			break;
		appendStringInfo(&names, "%s\"%s\"", count > 1 ? ", " : "",
						 (char *) lfirst(cell));
	}
	if (list_length(organizations) > MOST_NAMED)
		appendStringInfo(&names, ", and %d more",
						 list_length(organizations) - MOST_NAMED);
	return names.data;
}

/*
 * Raises 2D000 where the procedure cannot commit, 25006 in a read-only
 * transaction.  After that the memory context is the portal's: transactions
 * come and go, the portal stays.  Returns the context to go back to.
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
	/* The caller's own transaction may have a snapshot from before this. */
	commit_and_begin();
	return caller;
}

/*
 * Ends the transaction and begins the next one; the memory context stays.
 *
 * What another session has changed meanwhile is passed over, as locked rows
 * are: with a stricter default for the session it would be an error.  The
 * transaction has just begun and has no snapshot yet, so that its level may be
 * set as SET TRANSACTION does it.
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

/* What comes after the CALL, as in a DO block, has its own level again. */
static void
end_procedure(MemoryContext caller)
{
	clerk_spi_commit_and_begin();
	MemoryContextSwitchTo(caller);
	SPI_finish();
}

/*
 * Tells why the procedure ends early: "what" says what it stopped doing.  An
 * ERROR if somebody must change the settings first, so that a job that calls it
 * fails; else a WARNING, and the next call goes on.
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
