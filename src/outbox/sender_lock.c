/*
 * sender_lock.c
 *		The lock that makes a session the database's one sender.
 *
 * It outlives transactions, as the advisory locks do that SQL functions take,
 * and is one of their kind, since those of the other kind go with a transaction
 * that is aborted.  So pg_advisory_unlock_all() releases it, which a user's
 * trigger on the outbox may call while a sender is at work.  A sender therefore
 * asks for it again before it claims rows or looks them up.  If another sender
 * came in between, that one takes every row that is under way for one whose
 * outcome is unknown, as after a crash, and each change of the first sender
 * names the state that it has seen: nothing is sent twice.
 */
#include "postgres.h"

#include "compat.h"
#include "miscadmin.h"
#include "outbox/outbox_statement.h"
#include "outbox/sender_lock.h"
#include "storage/lock.h"

/*
 * Key of the lock beside the table's OID.  Advisory locks taken with SQL
 * functions have 1 or 2 there (lockfuncs.c), so these are never the same.
 */
#define SENDER_LOCK_SPACE 0x434C	/* "CL" */

static LOCKTAG sender_lock(void);

/*
 * Makes this session the database's one sender, if it is not already; false if
 * another one is.  clerk_outbox_unlock() or the session's end releases it.
 */
bool
clerk_outbox_lock(void)
{
	LOCKTAG		tag = sender_lock();

	return clerk_lock_is_held(&tag, ExclusiveLock) ||
		LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Lets another session be the sender, if this one is. */
void
clerk_outbox_unlock(void)
{
	LOCKTAG		tag = sender_lock();

	if (clerk_lock_is_held(&tag, ExclusiveLock))
		LockRelease(&tag, ExclusiveLock, true);
}

/*
 * Keeps other sessions from sending until the transaction ends; false if one is
 * sending already, this one included.
 */
bool
clerk_outbox_keep_senders_out(void)
{
	LOCKTAG		tag = sender_lock();

	return !clerk_lock_is_held(&tag, ExclusiveLock) &&
		LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

static LOCKTAG
sender_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, clerk_outbox_relation(), 0,
						 SENDER_LOCK_SPACE);
	return tag;
}
