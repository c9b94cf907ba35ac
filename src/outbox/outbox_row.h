/*
 * outbox_row.h
 *		A row of the outbox as its sender sees it, and what becomes of it.
 */
#ifndef CLERK_OUTBOX_ROW_H
#define CLERK_OUTBOX_ROW_H

#include "clerk/invitation_json.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

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

/* Columns of a row as its sender sees it, in the order of clerk_outbox_collect_rows(). */
#define CLERK_ROW_COLUMNS \
	"o.id, o.attempts, o.organization_id, o.inviter_user_id, o.email_address, " \
	"o.role, o.redirect_url, o.public_metadata, o.private_metadata, " \
	"o.expires_in_days, o.notify, o.first_claimed_at, o.first_claimed_clock, " \
	"o.claimed_at, o.http_status, o.error_code, o.error_message, o.trace_id, " \
	"o.send_alone, o.consecutive_failures"

#define CLERK_ROW_TYPES \
	INT8OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, \
	JSONBOID, INT4OID, BOOLOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, \
	INT4OID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, INT4OID

/* When a row is due; the index clerk_invitation_outbox_due has the same. */
#define CLERK_DUE_AT "coalesce(next_attempt_at, send_after)"

extern void clerk_outbox_collect_rows(List **rows, const char *state);

#endif							/* CLERK_OUTBOX_ROW_H */
