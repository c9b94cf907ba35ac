/*
 * refresh_invitations.c
 *		The SQL procedure that brings the outbox's statuses up to date.
 *
 * It is a procedure and not a function because it asks Clerk as often as there
 * are pages: a function would hold its transaction and snapshot, and the locks
 * on the rows it has changed, all that time.  What it has to tell is a NOTICE,
 * which pg_cron keeps, as that of clerk_send_invitations().
 */
#include "postgres.h"

#include "fmgr.h"
#include "installed_extension.h"
#include "lib/stringinfo.h"
#include "procedure.h"
#include "status_refresh.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/* Organizations that a report names; there may be many more. */
#define MOST_NAMED 5

static void report_counts(const ClerkRefreshReport *report);
static void report_untold(const ClerkRefreshReport *report);
static char *some_of(const List *organizations);

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
	caller = clerk_procedure_begin(fcinfo, "clerk_refresh_invitations()");
	clerk_refresh_statuses(schema, &report);
	report_counts(&report);
	if (report.limited_until != 0)
		ereport(NOTICE,
				(errmsg("Clerk takes no lists until %s",
						timestamptz_to_str(report.limited_until))));
	else if (report.stopped_by != NULL)
		clerk_procedure_report_stop(report.stopped_by, "refreshing invitations");
	else
		report_untold(&report);
	clerk_procedure_end(caller);
	PG_RETURN_VOID();
}

static void
report_counts(const ClerkRefreshReport *report)
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
			 errmsg("Clerk tells nothing about %lld pending invitations",
					(long long) report->untold),
			 error == NULL ?
			 errdetail("Its lists lack them. Organizations: %s.", organizations) :
			 errdetail("The last reason: %s. Organizations: %s.", error->summary,
					   organizations),
			 errhint("If their organization was deleted, set their status by hand.")));
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
