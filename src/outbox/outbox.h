/*
 * outbox.h
 *		The table clerk_invitation_outbox: all SQL on it that sending needs.
 */
#ifndef CLERK_OUTBOX_H
#define CLERK_OUTBOX_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

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

/* A row that is due. */
typedef struct ClerkOutboxDue
{
	int64		id;
	char	   *organization_id;
	char	   *email_address;
	bool		send_alone;
	TimestampTz due_at;
} ClerkOutboxDue;

/* A row as its sender sees it; pointers are NULL for null columns. */
typedef struct ClerkOutboxRow
{
	int64		id;
	int			attempts;		/* with the one that was claimed */
	const char *state;			/* sending or verifying */
	char	   *organization_id;
	char	   *inviter_user_id;
	char	   *email_address;
	char	   *role;
	char	   *redirect_url;
	Jsonb	   *public_metadata;
	Jsonb	   *private_metadata;
	int			expires_in_days;	/* 0: null */
	bool	   *notify;
	TimestampTz first_claimed_at;
	int64		first_claimed_clock;	/* of common/server_clock.h; 0:
										 * unknown */
	TimestampTz claimed_at;
	int			http_status;	/* of the last answer; 0: null */
	char	   *error_code;
	char	   *error_message;
	char	   *trace_id;
	bool		send_alone;
	int			consecutive_failures;
} ClerkOutboxRow;

/* What becomes of a row. */
typedef struct ClerkOutboxChange
{
	const ClerkOutboxRow *row;	/* as its sender has seen it */
	bool		applied;		/* set by clerk_outbox_settle() */
	bool		set_aside;		/* likewise: see outbox/set_aside.c */
	const char *state;
	int			attempts;
	TimestampTz next_attempt_at;	/* 0: none */
	const char *invitation_id;	/* these and the following: NULL is null */
	const char *status;
	const char *url;
	TimestampTz expires_at;		/* 0: null */
	int			http_status;	/* 0: null */
	const char *error_code;
	const char *error_message;
	const char *trace_id;
	bool		send_alone;
	int			consecutive_failures;
} ClerkOutboxChange;

extern void clerk_outbox_take_over(void);
extern int64 clerk_outbox_bring_back(void);
extern int	clerk_outbox_due(int limit, ClerkOutboxDue **due);
extern List *clerk_outbox_claim(const ClerkOutboxDue *const *due, int count);
extern bool clerk_outbox_claim_is_safe(void);
extern List *clerk_outbox_unverified(int limit);
extern bool clerk_outbox_has_invitation(const char *invitation_id);
extern void clerk_outbox_settle(ClerkOutboxChange *changes, int count);
extern TimestampTz clerk_outbox_next_due(TimestampTz after);
extern int64 clerk_outbox_count_due(int64 most_unsent);
extern void clerk_outbox_announce(int64 id, const char *state);

#endif							/* CLERK_OUTBOX_H */
