/*
 * claim.c
 *		Claims rows for sending.
 *
 * A claim makes a row "sending" and counts an attempt.  It is committed before
 * the request is sent, so that after a crash the next sender knows that the
 * row may have been sent.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type_d.h"
#include "clerk/remote_clock.h"
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

/*
 * $1 to $3 are arrays, whose elements at the same position belong to the same
 * row: id, organization_id and email_address.
 */
static ClerkOutboxStatement claim_rows = {
	.text = "UPDATE ONLY %1$s AS o "
	"SET state = 'sending', attempts = o.attempts + 1, "
	"claimed_at = due.at, claimed_clerk_clock = nullif($6, '-infinity'), "
	"first_claimed_at = coalesce(o.first_claimed_at, due.at), "
	"first_claimed_clock = CASE WHEN o.first_claimed_at IS NULL THEN $5 "
	"ELSE o.first_claimed_clock END, "
	"consecutive_failures = 0, database_error = NULL "
	"FROM generate_series(1, cardinality($1)) AS i "
	"CROSS JOIN LATERAL (SELECT seen.ctid, clock_timestamp() AS at "
	"FROM ONLY %1$s AS seen WHERE seen.id = ($1)[i] "
	"AND seen.organization_id = ($2)[i] AND seen.email_address = ($3)[i] "
	"AND seen.state = $4 AND NOT seen.copied AND " CLERK_DUE_AT " <= now() "
	"FOR UPDATE SKIP LOCKED) AS due "
	"WHERE o.ctid = due.ctid "
	"RETURNING " CLERK_ROW_COLUMNS,
	.parameters = 6,
	.types = {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT8OID,
	TIMESTAMPTZOID},
	.results = {CLERK_ROW_TYPES}
};

/*
 * The value of synchronous_commit in the transaction of the last claim: which
 * synchronous standbys its commit waited for.
 */
static int	claim_synchronous_commit = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;

static bool standbys_are_configured(void);
static int	sync_rep_wait_mode(int level);
static void fill_claim_parameters(Datum *values, int first, int count,
								  const void *rows);
static void set_aside_unclaimed(int position, const ErrorData *error,
								const void *rows);
static void collect_claimed(void *result);

/*
 * CLAIM: claims those of the given rows that are still due.  Returns a list of
 * ClerkOutboxRow in no particular order, in the current memory context; a row
 * whose claim fails is set aside.
 *
 * The caller must be in a transaction and hold the sender's lock.  It must not
 * send the rows before that transaction has committed and
 * clerk_outbox_claim_is_safe() has returned true.
 *
 * A user may change a queued row after the packing was computed.  If its
 * organization or address has changed, the row no longer fits its request and
 * stays queued.
 *
 * Raises the errors of clerk_outbox_try().
 */
List *
clerk_outbox_claim(const ClerkDueInvitation *const *due, int count)
{
	List	   *rows = NIL;

	/* A claim must survive a crash of the server. */
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", "on",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	claim_synchronous_commit = synchronous_commit;
	clerk_outbox_run_rows(&claim_rows, count, due, fill_claim_parameters,
						  set_aside_unclaimed, collect_claimed, &rows);
	return rows;
}

/*
 * Returns whether the last claim, whose transaction has committed, is on the
 * synchronous standbys that it was to wait for.  A cancel ends that wait with
 * only a WARNING; see SyncRepWaitForLSN() in syncrep.c.  A standby that never
 * received the claim would send the rows again after a failover.
 *
 * During a configuration reload, this process and the checkpointer may
 * disagree about whether there are synchronous standbys.  In that case this
 * function assumes that there are; at worst, the rows are claimed once more.
 */
bool
clerk_outbox_claim_is_safe(void)
{
	int			wait = sync_rep_wait_mode(claim_synchronous_commit);
	bool		safe;

	if (wait == SYNC_REP_NO_WAIT || max_wal_senders == 0)
		return true;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	safe = (!standbys_are_configured() && !clerk_standbys_are_awaited()) ||
		WalSndCtl->lsn[wait] >= XactLastCommitEnd;
	LWLockRelease(SyncRepLock);
	return safe;
}

/* As far as this process has read the configuration. */
static bool
standbys_are_configured(void)
{
	return SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0';
}

/*
 * Maps a value of synchronous_commit to what a standby must have done with the
 * WAL of a commit: a SYNC_REP_WAIT_ constant, or SYNC_REP_NO_WAIT.
 */
static int
sync_rep_wait_mode(int level)
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
fill_claim_parameters(Datum *values, int first, int count, const void *rows)
{
	const ClerkDueInvitation *const *due = rows;
	Datum	   *ids = palloc(count * sizeof(Datum));
	Datum	   *organization_ids = palloc(count * sizeof(Datum));
	Datum	   *addresses = palloc(count * sizeof(Datum));
	TimestampTz clerk_now = clerk_remote_clock_now();

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
	values[5] = TimestampTzGetDatum(clerk_now == 0 ? DT_NOBEGIN : clerk_now);
}

static void
set_aside_unclaimed(int position, const ErrorData *error, const void *rows)
{
	const ClerkDueInvitation *const *due = rows;

	clerk_outbox_set_aside(due[position]->id, CLERK_OUTBOX_QUEUED, error, NULL);
}

static void
collect_claimed(void *result)
{
	clerk_outbox_collect_rows(result, CLERK_OUTBOX_SENDING);
}
