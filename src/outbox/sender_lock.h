/*
 * sender_lock.h
 *		The lock that makes a session the only sender of its database.
 */
#ifndef CLERK_SENDER_LOCK_H
#define CLERK_SENDER_LOCK_H

extern bool clerk_outbox_lock(void);
extern void clerk_outbox_unlock(void);
extern bool clerk_outbox_keep_senders_out(void);

#endif							/* CLERK_SENDER_LOCK_H */
