/*
 * claim.c
 *		Claims rows for sending, so that whatever happens everybody knows that they
 *		may have been sent.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type_d.h"
#include "common/server_clock.h"
#include "executor/spi.h"
#include "outbox/claim.h"
#include "outbox/set_aside.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "compat.h"				/* after walsender_private.h */

static ClerkOutboxStatement claim_rows = {
	.text = "UPDATE ONLY %1$s AS o "
	"SET state = 'sending', attempts = o.attempts + 1, "
	"claimed_at = due.at, "
	"first_claimed_at = coalesce(o.first_claimed_at, due.at), "
	"first_claimed_clock = CASE WHEN o.first_claimed_at IS NULL THEN $5 "
	"ELSE o.first_claimed_clock END, "
	"consecutive_failures = 0, database_error = NULL "
	"FROM (SELECT seen.id, clock_timestamp() AS at "
	"FROM unnest($1, $2, $3) AS planned (id, organization_id, email_address) "
	"JOIN ONLY %1$s AS seen ON seen.id = planned.id "
	"AND seen.organization_id = planned.organization_id "
	"AND seen.email_address = planned.email_address "
	"WHERE seen.state = $4 AND NOT seen.copied AND " CLERK_DUE_AT " <= now() "
	"FOR UPDATE OF seen SKIP LOCKED) AS due "
	"WHERE o.id = due.id "
	"RETURNING " CLERK_ROW_COLUMNS,
	.parameters = 5,
	.types = {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT8OID},
	.results = {CLERK_ROW_TYPES}
};

/*
 * How the transaction of the last claim waits for synchronous standbys: what
 * synchronous_commit was in it.
 */
static int	claim_wait = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;

static bool standbys_are_configured(void);
static int	awaited_position(int level);
static void fill_due(Datum *values, int first, int count, const void *rows);
static void claim_failed(int position, const ErrorData *error,
						 const void *rows);
static void collect_claimed(void *result);

/*
 * Claims those of some rows that still are due: a list of ClerkOutboxRow, in
 * no order, which must not be sent before the transaction has committed and
 * clerk_outbox_claim_is_safe().  A queued row may be changed by hand: one whose
 * organization or address is not what it was does not fit the request that it
 * was meant for, and stays queued.
 */
List *
clerk_outbox_claim(const ClerkDueInvitation *const *due, int count)
{
	List	   *rows = NIL;

	/* A claim that a crash could lose would be no claim. */
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", "on",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	claim_wait = synchronous_commit;
	clerk_outbox_run_rows(&claim_rows, count, due, fill_due, claim_failed,
						  collect_claimed, &rows);
	return rows;
}

/*
 * Whether the last claim, whose transaction has committed, is where it must be.
 * A cancel ends the wait for a synchronous standby, with no more than a WARNING
 * (SyncRepWaitForLSN() in syncrep.c), and what only this server knows would be
 * sent once more by a standby that takes its place.
 *
 * While the configuration is being reloaded, this process and the others may
 * differ on whether there are such standbys.  If in doubt, there are: the claim
 * is made once more then.
 */
bool
clerk_outbox_claim_is_safe(void)
{
	int			wait = awaited_position(claim_wait);
	bool		safe;

	if (wait == SYNC_REP_NO_WAIT || max_wal_senders == 0)
		return true;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	safe = (!standbys_are_configured() && !clerk_standbys_are_awaited()) ||
		WalSndCtl->lsn[wait] >= XactLastCommitEnd;
	LWLockRelease(SyncRepLock);
	return safe;
}

/* By the configuration as this process knows it. */
static bool
standbys_are_configured(void)
{
	return SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0';
}

/* What a standby must have done for a commit with this synchronous_commit. */
static int
awaited_position(int level)
{
	switch (level)
	{
		case SYNCHRONOUS_COMMIT_REMOTE_WRITE:
			return SYNC_REP_WAIT_WRITE;
		case SYNCHRONOUS_COMMIT_REMOTE_FLUSH:
			return SYNC_REP_WAIT_FLUSH;
		case SYNCHRONOUS_COMMIT_REMOTE_APPLY:
			return SYNC_REP_WAIT_APPLY;
		default:
			return SYNC_REP_NO_WAIT;
	}
}

static void
fill_due(Datum *values, int first, int count, const void *rows)
{
	const ClerkDueInvitation *const *due = rows;
	Datum	   *ids = palloc(count * sizeof(Datum));
	Datum	   *organization_ids = palloc(count * sizeof(Datum));
	Datum	   *addresses = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
	{
		ids[i] = Int64GetDatum(due[first + i]->id);
		organization_ids[i] = CStringGetTextDatum(due[first + i]->organization_id);
		addresses[i] = CStringGetTextDatum(due[first + i]->email_address);
	}
	values[0] = clerk_outbox_array(ids, NULL, count, INT8OID);
	values[1] = clerk_outbox_array(organization_ids, NULL, count, TEXTOID);
	values[2] = clerk_outbox_array(addresses, NULL, count, TEXTOID);
	values[3] = CStringGetTextDatum(CLERK_OUTBOX_QUEUED);
	values[4] = Int64GetDatum(clerk_server_clock());
}

static void
claim_failed(int position, const ErrorData *error, const void *rows)
{
	const ClerkDueInvitation *const *due = rows;

	clerk_outbox_set_aside(due[position]->id, CLERK_OUTBOX_QUEUED, error, NULL);
}

static void
collect_claimed(void *result)
{
	clerk_outbox_collect_rows(result, CLERK_OUTBOX_SENDING);
}
