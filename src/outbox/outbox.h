/*
 * outbox.h
 *		The table clerk_invitation_outbox: all SQL on it that sending needs.
 */
#ifndef CLERK_OUTBOX_H
#define CLERK_OUTBOX_H

#include "clerk/invitation_json.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "outbox/packing.h"

/* States, as the column has them. */
#define CLERK_OUTBOX_QUEUED "queued"
#define CLERK_OUTBOX_SENDING "sending"
#define CLERK_OUTBOX_VERIFYING "verifying"
#define CLERK_OUTBOX_SENT "sent"
#define CLERK_OUTBOX_SKIPPED "skipped"
#define CLERK_OUTBOX_FAILED "failed"
#define CLERK_OUTBOX_CANCELED "canceled"

/* Code of a row that was given up while its outcome was unknown. */
#define CLERK_OUTBOX_ABANDONED "outcome_unknown"

/* How far a row has come, and what its last failure was; NULL is null. */
typedef struct ClerkOutboxProgress
{
	const char *state;
	int			attempts;		/* with the one that was claimed */
	int			http_status;	/* of the last response; 0: null */
	const char *error_code;
	const char *error_message;
	const char *trace_id;
	bool		send_alone;
	int			consecutive_failures;	/* of lookups */
} ClerkOutboxProgress;

/* A row as its sender sees it: sending or verifying. */
typedef struct ClerkOutboxRow
{
	int64		id;
	ClerkNewInvitation invitation;
	ClerkOutboxProgress progress;
	TimestampTz first_claimed_at;
	int64		first_claimed_clock;	/* of common/server_clock.h; 0:
										 * unknown */
	TimestampTz claimed_at;
} ClerkOutboxRow;

/* What becomes of a row. */
typedef struct ClerkOutboxChange
{
	const ClerkOutboxRow *row;	/* as its sender has seen it */
	bool		applied;		/* set by clerk_outbox_settle() */
	bool		set_aside;		/* likewise: see outbox/set_aside.c */
	ClerkOutboxProgress progress;
	TimestampTz next_attempt_at;	/* 0: none */
	const ClerkInvitation *invitation;	/* the row's own at Clerk; NULL: none */
} ClerkOutboxChange;

extern void clerk_outbox_take_over(void);
extern int64 clerk_outbox_bring_back(void);
extern int	clerk_outbox_due(int limit, ClerkDueInvitation **due);
extern List *clerk_outbox_claim(const ClerkDueInvitation *const *due, int count);
extern bool clerk_outbox_claim_is_safe(void);
extern List *clerk_outbox_unverified(int limit);
extern bool clerk_outbox_has_invitation(const char *invitation_id);
extern void clerk_outbox_settle(ClerkOutboxChange *changes, int count);
extern TimestampTz clerk_outbox_next_due(TimestampTz after);
extern int64 clerk_outbox_count_due(int64 most_unsent);
extern void clerk_outbox_announce(int64 id, const char *state);

#endif							/* CLERK_OUTBOX_H */
