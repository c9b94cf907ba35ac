/*
 * send_invitations.c
 *		The SQL procedure that sends what is due in the outbox, here and now.
 */
#include "postgres.h"

#include "delivery.h"
#include "fmgr.h"
#include "installed_extension.h"
#include "procedure.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "worker_wakeup.h"

static void begin_nothing(void);
static void report_progress(const ClerkDeliveryReport *report, int64 left);
static void report_counts(const ClerkDeliveryReport *report);
static void report(const ClerkDeliveryReport *report);

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
		begin_nothing, clerk_procedure_commit, report_progress
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

	caller = clerk_procedure_begin(fcinfo, "clerk_send_invitations()");
	clerk_wakeup_begin_call();
	clerk_deliver(schema, max_invitations, &host, &delivered);
	clerk_wakeup_end_call(delivered.next_due != 0 &&
						  !TIMESTAMP_IS_NOEND(delivered.next_due));
	report(&delivered);
	clerk_procedure_end(caller);
	PG_RETURN_VOID();
}

/* A procedure always is in a transaction. */
static void
begin_nothing(void)
{
}

/* While it goes on: how far it has come, and how long the rest will take. */
static void
report_progress(const ClerkDeliveryReport *report, int64 left)
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
report(const ClerkDeliveryReport *report)
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
				(errmsg("no invitation is sent while \"%s\" and \"%s\" are 0",
						"clerk_invite.single_requests_per_hour",
						"clerk_invite.bulk_requests_per_hour")));
	else if (report->limited_until != 0)
		ereport(NOTICE,
				(errmsg("Clerk's rate limits are used up until %s",
						timestamptz_to_str(report->limited_until))));
	if (report->set_aside > 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("%lld invitations are set aside: %s",
						(long long) report->set_aside,
						report->set_aside_reason),
				 errhint("See the column \"database_error\".")));
	if (error != NULL)
		clerk_procedure_report_stop(error, "sending invitations");
}
