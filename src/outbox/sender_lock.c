/*
 * sender_lock.c
 *		The lock that makes a session the only sender of its database.
 *
 * It is a session-level advisory lock, like those taken by SQL functions,
 * because it must outlive transactions, including those that are aborted.
 * Therefore pg_advisory_unlock_all() releases it, which a user's trigger on
 * the outbox may call while a sender is at work.  So a sender asks for the
 * lock again before it claims, sends, or looks up rows.  If another sender has
 * taken over meanwhile, that one treats all rows in flight as having an
 * unknown outcome, as after a crash.  Since each change of the first sender
 * names the state that it has seen, nothing is sent twice.
 */
#include "postgres.h"

#include "compat.h"
#include "miscadmin.h"
#include "outbox/outbox_statement.h"
#include "outbox/sender_lock.h"
#include "storage/lock.h"

/*
 * The last field of the lock's key; the table's OID is another one.  SQL
 * functions set the last field to 1 or 2 (lockfuncs.c), so their keys always
 * differ.
 */
#define SENDER_LOCK_SPACE 0x434C	/* "CL" */

static LOCKTAG sender_lock_tag(void);

/*
 * LOCK: makes this session the only sender of its database, if it is not already.
 * Returns false if another session is; does not wait.  The lock lasts until
 * clerk_outbox_unlock() or the end of the session.  Must be called in a
 * transaction, after clerk_outbox_find().
 */
bool
clerk_outbox_lock(void)
{
	LOCKTAG		tag = sender_lock_tag();

	return clerk_lock_is_held(&tag, ExclusiveLock) ||
		LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* UNLOCK: releases the lock if this session holds it. */
void
clerk_outbox_unlock(void)
{
	LOCKTAG		tag = sender_lock_tag();

	if (clerk_lock_is_held(&tag, ExclusiveLock))
		LockRelease(&tag, ExclusiveLock, true);
}

/*
 * Keeps other sessions from sending until the transaction ends.  Returns false
 * if there is a sender, including this session; does not wait.
 */
bool
clerk_outbox_keep_senders_out(void)
{
	LOCKTAG		tag = sender_lock_tag();

	return !clerk_lock_is_held(&tag, ExclusiveLock) &&
		LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

static LOCKTAG
sender_lock_tag(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, clerk_outbox_relation(), 0,
						 SENDER_LOCK_SPACE);
	return tag;
}
