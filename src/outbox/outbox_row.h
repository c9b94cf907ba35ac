/*
 * outbox_row.h
 *		A row of the outbox as its sender sees it, and changes of such a row.
 */
#ifndef CLERK_OUTBOX_ROW_H
#define CLERK_OUTBOX_ROW_H

#include "clerk/invitation_json.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* States, as stored in the column. */
#define CLERK_OUTBOX_QUEUED "queued"
#define CLERK_OUTBOX_SENDING "sending"
#define CLERK_OUTBOX_VERIFYING "verifying"
#define CLERK_OUTBOX_SENT "sent"
#define CLERK_OUTBOX_SKIPPED "skipped"
#define CLERK_OUTBOX_FAILED "failed"
#define CLERK_OUTBOX_CANCELED "canceled"

/* Error code of a row that was abandoned while its outcome was unknown. */
#define CLERK_OUTBOX_ABANDONED "outcome_unknown"

/* A row's state, attempts and last failure; NULL stands for null. */
typedef struct ClerkOutboxProgress
{
	const char *state;
	int			attempts;		/* including the one in flight */
	int			http_status;	/* of the last response that failed; 0: null */
	const char *error_code;
	const char *error_message;
	const char *trace_id;
	bool		send_alone;
	int			consecutive_failures;	/* of lookups */
} ClerkOutboxProgress;

/* A row in state "sending" or "verifying", as its sender sees it. */
typedef struct ClerkOutboxRow
{
	int64		id;
	ClerkNewInvitation invitation;
	ClerkOutboxProgress progress;
	TimestampTz first_claimed_at;
	int64		first_claimed_clock;	/* by common/server_clock.h; 0:
										 * unknown */
	TimestampTz claimed_at;
	TimestampTz claimed_clerk_clock;	/* the same by Clerk's clock, as it
										 * was known then; 0: unknown */
} ClerkOutboxRow;

/* A change of a row. */
typedef struct ClerkOutboxChange
{
	const ClerkOutboxRow *row;	/* as its sender has seen it */
	bool		applied;		/* set by clerk_outbox_settle() */
	bool		set_aside;		/* likewise; see outbox/set_aside.c */
	ClerkOutboxProgress progress;
	TimestampTz next_attempt_at;	/* 0: null */
	const ClerkInvitation *invitation;	/* the row's invitation at Clerk;
										 * NULL: none */
} ClerkOutboxChange;

/* The columns that clerk_outbox_collect_rows() reads, in this order. */
#define CLERK_ROW_COLUMNS \
	"o.id, o.attempts, o.organization_id, o.inviter_user_id, o.email_address, " \
	"o.role, o.redirect_url, o.public_metadata, o.private_metadata, " \
	"o.expires_in_days, o.notify, o.first_claimed_at, o.first_claimed_clock, " \
	"o.claimed_at, o.claimed_clerk_clock, o.http_status, o.error_code, o.error_message, o.trace_id, " \
	"o.send_alone, o.consecutive_failures"

#define CLERK_ROW_TYPES \
	INT8OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, \
	JSONBOID, INT4OID, BOOLOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, \
	TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, INT4OID

/*
 * When a row is due.  The indexes clerk_invitation_outbox_due and
 * clerk_invitation_outbox_unsettled have the same expression.
 */
#define CLERK_DUE_AT "coalesce(next_attempt_at, send_after)"

extern void clerk_outbox_collect_rows(List **rows, const char *state);

#endif							/* CLERK_OUTBOX_ROW_H */
