/*
 * outbox.c
 *		The table clerk_invitation_outbox: all SQL on it that sending needs.
 *
 * Invariants:
 *
 * 1. A row is sent only after its claim (state "sending") is committed.
 * 2. Only the session that holds the sender's lock changes rows that are
 *	  sending or verifying.
 * 3. Every change by a sender names the state and the number of attempts that
 *	  it has seen; a row that differs is left alone.
 *
 *	  queued ----------> sending			clerk_outbox_claim
 *	  sending ---------> verifying			clerk_outbox_take_over, _settle
 *	  sending ---------> sent, failed, queued	clerk_outbox_settle
 *	  verifying -------> sent, skipped, failed, queued	clerk_outbox_settle
 *	  sending ---------> verifying			clerk_outbox_set_aside
 *	  queued ----------> canceled			by hand, clerk_cancel_invitation()
 *	  failed ----------> queued				by hand, clerk_retry_invitation()
 *	  sending, verifying, queued -> failed, canceled	clerk_abandon_invitation()
 *
 * (outbox/guard.c refuses other changes by hand, outbox/status_statements.c has what
 * happens to a row after it is sent, and outbox/retention.c how it goes.)
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type_d.h"
#include "commands/async.h"
#include "common/server_clock.h"
#include "common/settings.h"
#include "executor/spi.h"
#include "outbox/outbox.h"
#include "outbox/set_aside.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "compat.h"				/* after walsender_private.h */

/* Columns of a row as its sender sees it, in the order of read_row(). */
#define ROW_COLUMNS \
	"o.id, o.attempts, o.organization_id, o.inviter_user_id, o.email_address, " \
	"o.role, o.redirect_url, o.public_metadata, o.private_metadata, " \
	"o.expires_in_days, o.notify, o.first_claimed_at, o.first_claimed_clock, " \
	"o.claimed_at, o.http_status, o.error_code, o.error_message, o.trace_id, " \
	"o.send_alone, o.consecutive_failures"

#define ROW_TYPES \
	INT8OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, \
	JSONBOID, INT4OID, BOOLOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, \
	INT4OID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, INT4OID

/* When a row is due; the index clerk_invitation_outbox_due has the same. */
#define DUE_AT "coalesce(next_attempt_at, send_after)"

/*
 * How far in the future a time may be that was taken from our clock: it is put
 * right now and then.
 */
#define CLOCK_TOLERANCE "interval '1 minute'"

/* What is left alone for now; the parameter is an array of IDs. */
#define NOT_HELD_BACK(parameter) "id <> ALL(" parameter ")"

static ClerkOutboxStatement find_left_behind = {
	.text = "SELECT id FROM ONLY %1$s WHERE state = 'sending' AND " NOT_HELD_BACK("$1"),
	.parameters = 1,
	.types = {INT8ARRAYOID},
	.results = {INT8OID}
};

static ClerkOutboxStatement take_over_rows = {
	.text = "UPDATE ONLY %1$s AS o SET state = 'verifying', next_attempt_at = now(), "
	"claimed_at = clock_timestamp(), consecutive_failures = 0 "
	"FROM (SELECT seen.id FROM unnest($1) AS left_behind (id) "
	"JOIN ONLY %1$s AS seen ON seen.id = left_behind.id AND seen.state = $2 "
	"FOR UPDATE OF seen SKIP LOCKED) AS left_behind "
	"WHERE o.id = left_behind.id",
	.parameters = 2,
	.types = {INT8ARRAYOID, TEXTOID}
};

/*
 * What was stored while the clock was ahead: a row that was enqueued in the
 * future is due as long after its real time as it was meant to be, and no
 * attempt waits longer than the settings have any wait.  When a row was claimed
 * in the future, it was not before it was enqueued.
 */
/*
 * What is put off for longer than this is taken for a date that the user has
 * named, which a wrong clock does not change.
 */
#define DATE_FROM "interval '1 day'"

#define BRING_BACK(states, early) \
	"UPDATE ONLY %1$s AS o SET " \
	"send_after = CASE WHEN o.send_after - o.enqueued_at <= " DATE_FROM " " \
	"THEN o.send_after - greatest(o.enqueued_at - now(), interval '0') " \
	"ELSE o.send_after END, " \
	"enqueued_at = least(o.enqueued_at, now()), " \
	"claimed_at = least(o.claimed_at, now()), " \
	"first_claimed_at = CASE WHEN o.first_claimed_at > now() " \
	"THEN least(o.enqueued_at, now()) ELSE o.first_claimed_at END, " \
	"next_attempt_at = CASE WHEN o.next_attempt_at > now() + $1 * interval '1 millisecond' " \
	"THEN now() ELSE o.next_attempt_at END " \
	"FROM (SELECT id FROM ONLY %1$s WHERE " states " AND (" early ") " \
	"FOR UPDATE SKIP LOCKED) AS early " \
	"WHERE o.id = early.id"

#define WAITS_TOO_LONG "next_attempt_at > now() + $1 * interval '1 millisecond'"

static ClerkOutboxStatement bring_back_queued = {
	.text = BRING_BACK("state = 'queued' AND " DUE_AT " > now() + " CLOCK_TOLERANCE,
					   "enqueued_at > now() + " CLOCK_TOLERANCE " OR " WAITS_TOO_LONG),
	.parameters = 1,
	.types = {FLOAT8OID},
	.without_triggers = true
};

static ClerkOutboxStatement bring_back_unsettled = {
	.text = BRING_BACK("state IN ('sending', 'verifying')",
					   "claimed_at > now() + " CLOCK_TOLERANCE " OR " WAITS_TOO_LONG),
	.parameters = 1,
	.types = {FLOAT8OID},
	.without_triggers = true
};

static ClerkOutboxStatement find_due = {
	.text = "SELECT id, organization_id, email_address, send_alone, " DUE_AT " "
	"FROM ONLY %1$s WHERE state = 'queued' AND " DUE_AT " <= now() "
	"AND " NOT_HELD_BACK("$2") " ORDER BY " DUE_AT ", id LIMIT $1",
	.parameters = 2,
	.types = {INT4OID, INT8ARRAYOID},
	.results = {INT8OID, TEXTOID, TEXTOID, BOOLOID, TIMESTAMPTZOID}
};

static ClerkOutboxStatement claim_rows = {
	.text = "UPDATE ONLY %1$s AS o "
	"SET state = 'sending', attempts = o.attempts + 1, "
	"claimed_at = due.at, "
	"first_claimed_at = coalesce(o.first_claimed_at, due.at), "
	"first_claimed_clock = CASE WHEN o.first_claimed_at IS NULL THEN $5 "
	"ELSE o.first_claimed_clock END, "
	"consecutive_failures = 0, database_error = NULL "
	"FROM (SELECT seen.id, clock_timestamp() AS at "
	"FROM unnest($1, $2, $3) AS planned (id, organization_id, email_address) "
	"JOIN ONLY %1$s AS seen ON seen.id = planned.id "
	"AND seen.organization_id = planned.organization_id "
	"AND seen.email_address = planned.email_address "
	"WHERE seen.state = $4 AND " DUE_AT " <= now() "
	"FOR UPDATE OF seen SKIP LOCKED) AS due "
	"WHERE o.id = due.id "
	"RETURNING " ROW_COLUMNS,
	.parameters = 5,
	.types = {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT8OID},
	.results = {ROW_TYPES}
};

static ClerkOutboxStatement find_unverified = {
	.text = "SELECT " ROW_COLUMNS " FROM ONLY %1$s AS o WHERE state = 'verifying' "
	"AND " DUE_AT " <= now() AND " NOT_HELD_BACK("$2") " "
	"ORDER BY " DUE_AT ", id LIMIT $1",
	.parameters = 2,
	.types = {INT4OID, INT8ARRAYOID},
	.results = {ROW_TYPES}
};

static ClerkOutboxStatement find_invitation = {
	.text = "SELECT 1 FROM ONLY %1$s WHERE invitation_id = $1",
	.parameters = 1,
	.types = {TEXTOID}
};

#define SETTLE_PARAMETERS 16

/*
 * Whether a row may have been sent by a claim before its last one: it has an
 * attempt left behind it, or its attempts were counted anew by a retry.
 */
#define WAS_SENT_BEFORE "c.attempts > 0 OR o.first_claimed_at < o.claimed_at"

static ClerkOutboxStatement settle_rows = {
	.text = "UPDATE ONLY %1$s AS o SET state = c.state, attempts = c.attempts, "
	"next_attempt_at = c.next_attempt_at, "
	"first_claimed_at = CASE WHEN " WAS_SENT_BEFORE " THEN o.first_claimed_at END, "
	"first_claimed_clock = CASE WHEN " WAS_SENT_BEFORE " THEN o.first_claimed_clock END, "
	"claimed_at = CASE WHEN c.state = 'verifying' AND c.seen_state = 'sending' "
	"THEN clock_timestamp() ELSE o.claimed_at END, "
	"settled_at = CASE WHEN c.state IN ('sent', 'skipped', 'failed') "
	"THEN clock_timestamp() END, "
	"invitation_id = c.invitation_id, status = c.status, url = c.url, "
	"expires_at = c.expires_at, http_status = c.http_status, "
	"error_code = c.error_code, error_message = c.error_message, "
	"trace_id = c.trace_id, send_alone = c.send_alone, "
	"consecutive_failures = c.consecutive_failures, database_error = NULL "
	"FROM (SELECT c.* FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, "
	"$11, $12, $13, $14, $15, $16) AS c (id, seen_attempts, seen_state, state, "
	"attempts, next_attempt_at, invitation_id, status, url, expires_at, "
	"http_status, error_code, error_message, trace_id, send_alone, "
	"consecutive_failures) "
	"JOIN ONLY %1$s AS seen ON seen.id = c.id "
	"AND seen.attempts = c.seen_attempts AND seen.state = c.seen_state "
	"FOR UPDATE OF seen SKIP LOCKED) AS c "
	"WHERE o.id = c.id "
	"RETURNING o.id",
	.parameters = SETTLE_PARAMETERS,
	.types = {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		INT4ARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID, TEXTARRAYOID,
	TEXTARRAYOID, TEXTARRAYOID, BOOLARRAYOID, INT4ARRAYOID},
	.results = {INT8OID}
};

static ClerkOutboxStatement find_next_due = {
	.text = "SELECT least((SELECT now() FROM ONLY %1$s WHERE state = 'sending' "
	"AND now() > $1 AND " NOT_HELD_BACK("$2") " LIMIT 1), "
	"(SELECT " DUE_AT " FROM ONLY %1$s WHERE state = 'queued' "
	"AND " DUE_AT " > $1 AND " NOT_HELD_BACK("$2") " "
	"ORDER BY " DUE_AT ", id LIMIT 1), "
	"(SELECT " DUE_AT " FROM ONLY %1$s WHERE state = 'verifying' "
	"AND " DUE_AT " > $1 AND " NOT_HELD_BACK("$2") " "
	"ORDER BY " DUE_AT ", id LIMIT 1))",
	.parameters = 2,
	.types = {TIMESTAMPTZOID, INT8ARRAYOID},
	.results = {TIMESTAMPTZOID}
};

static ClerkOutboxStatement count_due_rows = {
	.text = "SELECT least((SELECT count(*) FROM ONLY %1$s WHERE state = 'queued' "
	"AND " DUE_AT " <= now()), $1) + (SELECT count(*) FROM ONLY %1$s "
	"WHERE state = 'verifying' AND " DUE_AT " <= now())",
	.parameters = 1,
	.types = {INT8OID},
	.results = {INT8OID}
};

/* The parameters of settle_rows while they are being filled. */
typedef struct ParameterArrays
{
	Datum	   *elements[SETTLE_PARAMETERS];
	bool	   *nulls[SETTLE_PARAMETERS];
} ParameterArrays;

typedef struct SettledRows
{
	ClerkOutboxChange *changes;
	int			count;
} SettledRows;

/*
 * How the transaction of the last claim waits for synchronous standbys: what
 * synchronous_commit was in it.
 */
static int	claim_wait = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;

static bool standbys_are_configured(void);
static int	awaited_position(int level);
static void fill_left_behind(Datum *values, int first, int count,
							 const void *rows);
static void left_behind_failed(int position, const ErrorData *error,
							   const void *rows);
static void fill_due(Datum *values, int first, int count, const void *rows);
static void claim_failed(int position, const ErrorData *error,
						 const void *rows);
static void fill_changes(Datum *values, int first, int count,
						 const void *rows);
static void settling_failed(int position, const ErrorData *error,
							const void *rows);
static void fill_settle_arrays(ParameterArrays *arrays,
							   const ClerkOutboxChange *change, int position);
static bool can_be_accepted(const ClerkOutboxChange *change);
static void collect_ids(void *result);
static void collect_due(void *result);
static void collect_claimed(void *result);
static void collect_unverified(void *result);
static void collect_rows(List **rows, const char *state);
static void collect_settled(void *result);
static void collect_number(void *result);
static ClerkOutboxRow *read_row(HeapTuple tuple, TupleDesc descriptor);

/* Rows that a former sender left in the middle: their outcome is unknown. */
void
clerk_outbox_take_over(void)
{
	List	   *rows = NIL;
	Datum		values[] = {clerk_outbox_held_back()};
	int64	   *ids;
	int			count = 0;
	ListCell   *cell;

	clerk_outbox_run(&find_left_behind, values, NULL, collect_ids, &rows);
	ids = palloc(list_length(rows) * sizeof(int64));
	foreach(cell, rows)
		ids[count++] = *(int64 *) lfirst(cell);
	clerk_outbox_run_rows(&take_over_rows, count, ids, fill_left_behind,
						  left_behind_failed, NULL, NULL);
}

/*
 * Makes rows due that are late because our clock was ahead when they were
 * stored; returns how many there were.
 */
int64
clerk_outbox_bring_back(void)
{
	ClerkOutboxStatement *const statements[] = {
		&bring_back_queued, &bring_back_unsettled
	};
	Datum		values[1];
	uint64		total = 0;

	/* The longest wait has a quarter more; see outbox/outcome.c. */
	values[0] = Float8GetDatum(Max(1.25 * clerk_retry_delay_max,
								   (double) clerk_verify_delay) + 60000.0);
	for (int i = 0; i < (int) lengthof(statements); i++)
	{
		uint64		count;
		ErrorData  *error;

		if (!clerk_outbox_try(statements[i], values, NULL, NULL, &count, &error))
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("could not make invitations due that were stored while the clock was ahead: %s",
							error->message)));
		total += count;
	}
	if (total > 0)
		ereport(LOG,
				(errmsg("made %llu invitations due that were stored while the clock was ahead",
						(unsigned long long) total)));
	return (int64) total;
}

/* Stores the rows that are due, oldest first; returns how many there are. */
int
clerk_outbox_due(int limit, ClerkDueInvitation **due)
{
	Datum		values[] = {Int32GetDatum(limit), clerk_outbox_held_back()};

	*due = palloc(limit * sizeof(ClerkDueInvitation));
	return (int) clerk_outbox_run(&find_due, values, NULL, collect_due, *due);
}

/*
 * Claims those of some rows that still are due: a list of ClerkOutboxRow, in
 * no order, which must not be sent before the transaction has committed and
 * clerk_outbox_claim_is_safe().  A queued row may be changed by hand: one whose
 * organization or address is not what it was does not fit the request that it
 * was meant for, and stays queued.
 */
List *
clerk_outbox_claim(const ClerkDueInvitation *const *due, int count)
{
	List	   *rows = NIL;

	/* A claim that a crash could lose would be no claim. */
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", "on",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	claim_wait = synchronous_commit;
	clerk_outbox_run_rows(&claim_rows, count, due, fill_due, claim_failed,
						  collect_claimed, &rows);
	return rows;
}

/*
 * Whether the last claim, whose transaction has committed, is where it must be.
 * A cancel ends the wait for a synchronous standby, with no more than a WARNING
 * (SyncRepWaitForLSN() in syncrep.c), and what only this server knows would be
 * sent once more by a standby that takes its place.
 *
 * While the configuration is being reloaded, this process and the others may
 * differ on whether there are such standbys.  If in doubt, there are: the claim
 * is made once more then.
 */
bool
clerk_outbox_claim_is_safe(void)
{
	int			wait = awaited_position(claim_wait);
	bool		safe;

	if (wait == SYNC_REP_NO_WAIT || max_wal_senders == 0)
		return true;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	safe = (!standbys_are_configured() && !clerk_standbys_are_awaited()) ||
		WalSndCtl->lsn[wait] >= XactLastCommitEnd;
	LWLockRelease(SyncRepLock);
	return safe;
}

/* By the configuration as this process knows it. */
static bool
standbys_are_configured(void)
{
	return SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0';
}

/* What a standby must have done for a commit with this synchronous_commit. */
static int
awaited_position(int level)
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

/* Rows whose outcome is unknown and that are due to be looked up. */
List *
clerk_outbox_unverified(int limit)
{
	List	   *rows = NIL;
	Datum		values[] = {Int32GetDatum(limit), clerk_outbox_held_back()};

	clerk_outbox_run(&find_unverified, values, NULL, collect_unverified, &rows);
	return rows;
}

/* Whether a row has this invitation. */
bool
clerk_outbox_has_invitation(const char *invitation_id)
{
	Datum		values[] = {CStringGetTextDatum(invitation_id)};

	return clerk_outbox_run(&find_invitation, values, NULL, NULL, NULL) > 0;
}

/*
 * Changes rows, and tells for each change whether it was applied: it is not if
 * the row is no longer as its sender has seen it, or if somebody holds a lock
 * on it.  Nobody may keep a sender waiting, and the next one finds the row as
 * it is.  One that the server refuses to change is set aside.  A row that has no
 * attempt left behind it has not been sent yet: what came before its next claim
 * is not its own.
 */
void
clerk_outbox_settle(ClerkOutboxChange *changes, int count)
{
	SettledRows settled = {changes, count};

	for (int i = 0; i < count; i++)
		changes[i].applied = changes[i].set_aside = false;
	clerk_outbox_run_rows(&settle_rows, count, changes, fill_changes,
						  settling_failed, collect_settled, &settled);
	for (int i = 0; i < count; i++)
		if (changes[i].applied)
			clerk_outbox_announce(changes[i].row->id, changes[i].progress.state);
}

/* Tells who listens that a row has reached a final state. */
void
clerk_outbox_announce(int64 id, const char *state)
{
	char		payload[64];

	if (clerk_notify_channel[0] == '\0' ||
		strcmp(state, CLERK_OUTBOX_QUEUED) == 0 ||
		strcmp(state, CLERK_OUTBOX_VERIFYING) == 0)
		return;
	snprintf(payload, sizeof(payload), "%lld %s", (long long) id, state);
	Async_Notify(clerk_notify_channel, payload);
}

/* One element of each of the statement's parameters. */
static void
fill_settle_arrays(ParameterArrays *arrays, const ClerkOutboxChange *change,
				   int position)
{
	const ClerkOutboxProgress *seen = &change->row->progress;
	const ClerkOutboxProgress *next = &change->progress;
	bool		exists = change->invitation != NULL;
	bool		acceptable = can_be_accepted(change);
	int			parameter = 0;

#define ADD(is_null, datum) \
	(arrays->nulls[parameter][position] = (is_null), \
	 arrays->elements[parameter++][position] = (is_null) ? (Datum) 0 : (datum))
#define ADD_TEXT(string) ADD((string) == NULL, CStringGetTextDatum(string))
#define ADD_FIELD(condition, field) \
	ADD(!(condition) || change->invitation->nulls[field], \
		change->invitation->values[field])

	ADD(false, Int64GetDatum(change->row->id));
	ADD(false, Int32GetDatum(seen->attempts));
	ADD_TEXT(seen->state);
	ADD_TEXT(next->state);
	ADD(false, Int32GetDatum(next->attempts));
	ADD(change->next_attempt_at == 0,
		TimestampTzGetDatum(change->next_attempt_at));
	ADD_FIELD(exists, CLERK_INVITATION_ID);
	ADD_FIELD(exists, CLERK_INVITATION_STATUS);
	ADD_FIELD(acceptable, CLERK_INVITATION_URL);
	ADD_FIELD(exists, CLERK_INVITATION_EXPIRES_AT);
	ADD(next->http_status == 0, Int32GetDatum(next->http_status));
	ADD_TEXT(next->error_code);
	ADD_TEXT(next->error_message);
	ADD_TEXT(next->trace_id);
	ADD(false, BoolGetDatum(next->send_alone));
	ADD(false, Int32GetDatum(next->consecutive_failures));
	Assert(parameter == SETTLE_PARAMETERS);

#undef ADD
#undef ADD_TEXT
#undef ADD_FIELD
}

/* The url of an invitation that is no longer pending is of no use. */
static bool
can_be_accepted(const ClerkOutboxChange *change)
{
	const char *status;

	if (change->invitation == NULL)
		return false;
	status = clerk_invitation_text(change->invitation, CLERK_INVITATION_STATUS);
	return status == NULL || strcmp(status, CLERK_INVITATION_PENDING) == 0;
}

/*
 * The earliest time after the given one at which a row is due; 0 if there is
 * none.  One that is sending, and was left so by its sender, is due now.
 */
TimestampTz
clerk_outbox_next_due(TimestampTz after)
{
	Datum		values[] = {TimestampTzGetDatum(after), clerk_outbox_held_back()};
	int64		due_at = 0;

	clerk_outbox_run(&find_next_due, values, NULL, collect_number, &due_at);
	return (TimestampTz) due_at;
}

/* How many rows are due now, of which at most so many are yet to be sent. */
int64
clerk_outbox_count_due(int64 most_unsent)
{
	Datum		values[] = {Int64GetDatum(most_unsent)};
	int64		count = 0;

	clerk_outbox_run(&count_due_rows, values, NULL, collect_number, &count);
	return count;
}

static void
fill_left_behind(Datum *values, int first, int count, const void *rows)
{
	const int64 *ids = rows;
	Datum	   *elements = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = Int64GetDatum(ids[first + i]);
	values[0] = clerk_outbox_array(elements, NULL, count, INT8OID);
	values[1] = CStringGetTextDatum(CLERK_OUTBOX_SENDING);
}

static void
left_behind_failed(int position, const ErrorData *error, const void *rows)
{
	const int64 *ids = rows;

	clerk_outbox_set_aside(ids[position], CLERK_OUTBOX_SENDING, error, NULL);
}

static void
fill_due(Datum *values, int first, int count, const void *rows)
{
	const ClerkDueInvitation *const *due = rows;
	Datum	   *ids = palloc(count * sizeof(Datum));
	Datum	   *organization_ids = palloc(count * sizeof(Datum));
	Datum	   *addresses = palloc(count * sizeof(Datum));

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
}

static void
claim_failed(int position, const ErrorData *error, const void *rows)
{
	const ClerkDueInvitation *const *due = rows;

	clerk_outbox_set_aside(due[position]->id, CLERK_OUTBOX_QUEUED, error, NULL);
}

static void
fill_changes(Datum *values, int first, int count, const void *rows)
{
	const ClerkOutboxChange *changes = rows;
	ParameterArrays arrays;

	for (int i = 0; i < SETTLE_PARAMETERS; i++)
	{
		arrays.elements[i] = palloc(count * sizeof(Datum));
		arrays.nulls[i] = palloc0(count * sizeof(bool));
	}
	for (int i = 0; i < count; i++)
		fill_settle_arrays(&arrays, &changes[first + i], i);
	for (int i = 0; i < SETTLE_PARAMETERS; i++)
		values[i] = clerk_outbox_array(arrays.elements[i], arrays.nulls[i], count,
									   get_element_type(settle_rows.types[i]));
}

static void
settling_failed(int position, const ErrorData *error, const void *rows)
{
	ClerkOutboxChange *change = &((ClerkOutboxChange *) rows)[position];

	clerk_outbox_set_aside(change->row->id, change->row->progress.state, error,
						   can_be_accepted(change) ?
						   clerk_invitation_text(change->invitation,
												 CLERK_INVITATION_URL) : NULL);
	change->set_aside = true;
}

/* A list of pointers to them. */
static void
collect_ids(void *result)
{
	List	  **ids = result;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		int64	   *id = palloc(sizeof(int64));
		bool		isnull;

		*id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										  SPI_tuptable->tupdesc, 1, &isnull));
		*ids = lappend(*ids, id);
	}
}

static void
collect_due(void *result)
{
	ClerkDueInvitation *due = result;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	descriptor = SPI_tuptable->tupdesc;
		bool		isnull;

		due[i].id = DatumGetInt64(SPI_getbinval(tuple, descriptor, 1, &isnull));
		due[i].organization_id = SPI_getvalue(tuple, descriptor, 2);
		due[i].email_address = SPI_getvalue(tuple, descriptor, 3);
		due[i].send_alone = DatumGetBool(SPI_getbinval(tuple, descriptor, 4,
													   &isnull));
		due[i].due_at = DatumGetTimestampTz(SPI_getbinval(tuple, descriptor, 5,
														  &isnull));
	}
}

static void
collect_claimed(void *result)
{
	collect_rows(result, CLERK_OUTBOX_SENDING);
}

static void
collect_unverified(void *result)
{
	collect_rows(result, CLERK_OUTBOX_VERIFYING);
}

static void
collect_rows(List **rows, const char *state)
{
	List	   *read = NIL;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ClerkOutboxRow *row = read_row(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc);

		row->progress.state = state;
		read = lappend(read, row);
	}
	/* None of a statement that fails while it is being read. */
	*rows = list_concat(*rows, read);
}

/* The statement tells which rows it has changed, in any order. */
static void
collect_settled(void *result)
{
	SettledRows *settled = result;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc,
													 1, &isnull));

		for (int j = 0; j < settled->count; j++)
			if (settled->changes[j].row->id == id)
				settled->changes[j].applied = true;
	}
}

/* A number, or a time; it stays as it is if the statement gave null. */
static void
collect_number(void *result)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull);

	if (!isnull)
		*(int64 *) result = DatumGetInt64(value);
}

/* Columns are in the order of ROW_COLUMNS. */
static ClerkOutboxRow *
read_row(HeapTuple tuple, TupleDesc descriptor)
{
	ClerkOutboxRow *row = palloc0(sizeof(ClerkOutboxRow));
	int			column = 0;
	bool		isnull;
	Datum		value;

#define NEXT() (value = SPI_getbinval(tuple, descriptor, ++column, &isnull))
#define NEXT_TEXT() (NEXT(), isnull ? NULL : TextDatumGetCString(value))
#define NEXT_JSONB() (NEXT(), isnull ? NULL : DatumGetJsonbPCopy(value))

	row->id = DatumGetInt64(NEXT());
	row->progress.attempts = DatumGetInt32(NEXT());
	row->invitation.organization_id = NEXT_TEXT();
	row->invitation.inviter_user_id = NEXT_TEXT();
	row->invitation.email_address = NEXT_TEXT();
	row->invitation.role = NEXT_TEXT();
	row->invitation.redirect_url = NEXT_TEXT();
	row->invitation.public_metadata = NEXT_JSONB();
	row->invitation.private_metadata = NEXT_JSONB();
	NEXT();
	row->invitation.expires_in_days = isnull ? 0 : DatumGetInt32(value);
	NEXT();
	if (!isnull)
	{
		row->invitation.notify = palloc(sizeof(bool));
		*row->invitation.notify = DatumGetBool(value);
	}
	NEXT();
	row->first_claimed_at = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->first_claimed_clock = isnull ? 0 : DatumGetInt64(value);
	NEXT();
	row->claimed_at = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->progress.http_status = isnull ? 0 : DatumGetInt32(value);
	row->progress.error_code = NEXT_TEXT();
	row->progress.error_message = NEXT_TEXT();
	row->progress.trace_id = NEXT_TEXT();
	row->progress.send_alone = DatumGetBool(NEXT());
	row->progress.consecutive_failures = DatumGetInt32(NEXT());
	return row;
}
