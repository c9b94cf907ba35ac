/*
 * settle.h
 *		Records the outcomes of rows in the outbox.
 */
#ifndef CLERK_SETTLE_H
#define CLERK_SETTLE_H

#include "outbox/outbox_row.h"

extern void clerk_outbox_settle(ClerkOutboxChange *changes, int count);
extern void clerk_outbox_announce(int64 id, const char *state);

#endif							/* CLERK_SETTLE_H */
