/*
 * commit_wait.c
 *		What the commits of a sender wait for: the disk, and synchronous
 *		standbys.
 *
 * Before its rows are sent, a claim must be stored where a crash or a failover
 * cannot lose it: a sender that does not find it would send them again.  What is
 * recorded after that can be found out again, by a lookup.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "outbox/commit_wait.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"
#include "utils/guc.h"

#include "compat.h"				/* after walsender_private.h */

/*
 * The value of synchronous_commit in the last transaction whose commit waited:
 * which synchronous standbys it waited for.
 */
static int	awaited = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;

static void set_synchronous_commit(const char *value);
static bool standbys_are_configured(void);
static int	sync_rep_wait_mode(int level);

/*
 * Makes the commit of the current transaction wait until it is at least on
 * disk, even with synchronous_commit = off.
 */
void
clerk_commit_waits(void)
{
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		set_synchronous_commit("on");
	awaited = synchronous_commit;
}

/*
 * Returns whether the last commit after clerk_commit_waits() is on the
 * synchronous standbys that it was to wait for.  A cancel ends that wait with
 * only a WARNING; see SyncRepWaitForLSN() in syncrep.c.
 *
 * During a configuration reload, this process and the checkpointer may
 * disagree about whether there are synchronous standbys.  In that case this
 * function assumes that there are.
 */
bool
clerk_commit_is_safe(void)
{
	int			wait = sync_rep_wait_mode(awaited);
	bool		safe;

	if (wait == SYNC_REP_NO_WAIT || max_wal_senders == 0)
		return true;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	safe = (!standbys_are_configured() && !clerk_standbys_are_awaited()) ||
		WalSndCtl->lsn[wait] >= XactLastCommitEnd;
	LWLockRelease(SyncRepLock);
	return safe;
}

/* Lets the commit of the current transaction return before it is on disk. */
void
clerk_commit_does_not_wait(void)
{
	if (synchronous_commit != SYNCHRONOUS_COMMIT_OFF)
		set_synchronous_commit("off");
}

/* Until the transaction ends. */
static void
set_synchronous_commit(const char *value)
{
	(void) set_config_option("synchronous_commit", value, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
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
