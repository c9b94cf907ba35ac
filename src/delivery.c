/*
 * delivery.c
 *		Sends what is due in the outbox: claim, send, settle.
 *
 * A pass takes rows in waves.  Each wave has three phases, and a memory
 * context that holds its rows, requests and answers:
 *
 * 1. Claim, in a transaction: due rows become "sending".  It is committed to
 *	  disk before anything is sent, so that after a crash nobody takes a row
 *	  for one that was not sent.
 * 2. Send, with no snapshot and no row locked: a request for each row, all at
 *	  once.
 * 3. Settle, in another transaction: what each answer means for its row.
 *
 * Rows whose outcome is unknown, because an answer was lost or a sender died,
 * are "verifying" and get waves of their own, in which phase 2 looks their
 * addresses up.  An invitation that Clerk created since the row was first
 * claimed, and that no other row has, is the row's.  None found is believed
 * only clerk_invite.verify_delay after the request went out.
 *
 * One session of a database sends at a time; see clerk_outbox_lock().
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "clerk_api.h"
#include "clerk_error.h"
#include "compat.h"
#include "delivery.h"
#include "guc.h"
#include "miscadmin.h"
#include "outbox.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* A row of the wave, and its request. */
typedef struct Shipment
{
	ClerkOutboxRow *row;
	ClerkHttpRequest *request;	/* NULL: could not be formed */
	ClerkError *error;			/* then: why */
} Shipment;

/* What one pass has and does. */
typedef struct Pass
{
	const ClerkTransactions *transactions;
	MemoryContext wave;			/* emptied after each wave */
	ClerkDeliveryReport *report;
} Pass;

typedef ClerkHttpRequest *(*StartFunction) (const ClerkOutboxRow *row,
											ClerkError **error);
typedef void (*SettleFunction) (Pass *pass, Shipment *shipment);

static void deliver_locked(Pass *pass, int64 max_invitations);
static int	run_wave(Pass *pass, List *rows, StartFunction start,
					 SettleFunction settle);
static void wait_for_all(Shipment *shipments, int count);
static ClerkHttpRequest *start_sending(const ClerkOutboxRow *row,
									   ClerkError **error);
static ClerkHttpRequest *start_looking_up(const ClerkOutboxRow *row,
										  ClerkError **error);
static void settle_sent(Pass *pass, Shipment *shipment);
static void settle_looked_up(Pass *pass, Shipment *shipment);
static void record(Pass *pass, const ClerkOutboxRow *row,
				   ClerkOutboxChange *change);
static void record_found(Pass *pass, const ClerkOutboxRow *row,
						 const ClerkInvitation *found);
static void record_error(Pass *pass, const ClerkOutboxRow *row,
						 const ClerkError *error);
static void record_not_found(Pass *pass, const ClerkOutboxRow *row);
static ClerkOutboxChange unchanged(const ClerkOutboxRow *row);
static void stop(Pass *pass, const ClerkError *error);
static TimestampTz after_retry_delay(int attempts);
static const ClerkInvitation *own_invitation(const ClerkOutboxRow *row,
											 const ClerkInvitationList *list,
											 TimestampTz since);
static bool is_for(const ClerkInvitation *invitation, const char *address);
static bool any_pending(const ClerkInvitationList *list, const char *address);
static TimestampTz by_clerks_clock(const ClerkHttpRequest *request,
								   TimestampTz ours);
static char *text_of(const ClerkInvitation *invitation,
					 ClerkInvitationField field);

/*
 * Sends what is due in the outbox of this schema, at most so many invitations,
 * and fills in the report.  Must be called outside a transaction, or in one
 * that transactions->commit may end; leaves one begun in the same way.
 *
 * Raises an error if the session is told to stop; what was under way is then
 * verified by the next sender.
 */
void
clerk_deliver(Oid schema, int64 max_invitations,
			  const ClerkTransactions *transactions,
			  ClerkDeliveryReport *report)
{
	Pass		pass;

	memset(report, 0, sizeof(*report));
	pass.transactions = transactions;
	pass.report = report;
	pass.wave = AllocSetContextCreate(CurrentMemoryContext,
									  "clerk_invite wave",
									  ALLOCSET_DEFAULT_SIZES);

	transactions->begin();
	clerk_outbox_find(schema);
	if (!clerk_outbox_lock())
	{
		report->busy = true;
		return;
	}
	PG_TRY();
	{
		clerk_outbox_take_over();
		transactions->commit();
		deliver_locked(&pass, max_invitations);
	}
	PG_FINALLY();
	{
		clerk_outbox_unlock();
	}
	PG_END_TRY();
	MemoryContextDelete(pass.wave);
	transactions->begin();
	report->next_due = clerk_outbox_next_due();
}

static void
deliver_locked(Pass *pass, int64 max_invitations)
{
	int			unverified;
	int			claimed;

	do
	{
		MemoryContext caller = MemoryContextSwitchTo(pass->wave);
		List	   *rows;

		CHECK_FOR_INTERRUPTS();
		pass->transactions->begin();
		rows = clerk_outbox_unverified(clerk_max_concurrent_requests);
		pass->transactions->commit();
		unverified = run_wave(pass, rows, start_looking_up, settle_looked_up);

		claimed = 0;
		if (pass->report->stopped_by == NULL && max_invitations > 0)
		{
			pass->transactions->begin();
			rows = clerk_outbox_claim((int) Min(clerk_max_concurrent_requests,
												max_invitations));
			pass->transactions->commit();
			claimed = run_wave(pass, rows, start_sending, settle_sent);
			max_invitations -= claimed;
		}
		MemoryContextSwitchTo(caller);
	} while (pass->report->stopped_by == NULL && unverified + claimed > 0);
}

/* Sends a request for each row and settles it; returns how many there were. */
static int
run_wave(Pass *pass, List *rows, StartFunction start, SettleFunction settle)
{
	int			count = list_length(rows);
	Shipment   *shipments = palloc0(Max(count, 1) * sizeof(Shipment));
	ListCell   *cell;
	int			i = 0;

	foreach(cell, rows)
	{
		Shipment   *shipment = &shipments[i++];

		shipment->row = lfirst(cell);
		shipment->request = start(shipment->row, &shipment->error);
	}
	wait_for_all(shipments, count);

	if (count > 0)
	{
		pass->transactions->begin();
		for (i = 0; i < count; i++)
			settle(pass, &shipments[i]);
		pass->transactions->commit();
	}
	MemoryContextReset(pass->wave);
	return count;
}

static void
wait_for_all(Shipment *shipments, int count)
{
	for (int i = 0; i < count; i++)
		while (shipments[i].request != NULL &&
			   clerk_http_outcome(shipments[i].request) == CLERK_HTTP_RUNNING)
		{
			CHECK_FOR_INTERRUPTS();
			clerk_http_wait(-1);
		}
}

static ClerkHttpRequest *
start_sending(const ClerkOutboxRow *row, ClerkError **error)
{
	ClerkNewInvitation wanted;

	wanted.organization_id = row->organization_id;
	wanted.email_address = row->email_address;
	wanted.role = row->role;
	wanted.inviter_user_id = row->inviter_user_id;
	wanted.redirect_url = row->redirect_url;
	wanted.public_metadata = row->public_metadata;
	wanted.private_metadata = row->private_metadata;
	wanted.expires_in_days = row->expires_in_days;
	wanted.notify = row->notify;
	return clerk_start_create_invitation(&wanted, error);
}

static ClerkHttpRequest *
start_looking_up(const ClerkOutboxRow *row, ClerkError **error)
{
	return clerk_start_list_invitations(row->organization_id,
										row->email_address, error);
}

static void
settle_sent(Pass *pass, Shipment *shipment)
{
	ClerkInvitation created;

	if (shipment->request == NULL)
		record_error(pass, shipment->row, shipment->error);
	else if (clerk_finish_create_invitation(shipment->request, &created,
											&shipment->error))
		record_found(pass, shipment->row, &created);
	else
		record_error(pass, shipment->row, shipment->error);
}

/* What a look at the address's invitations means for a row. */
static void
settle_looked_up(Pass *pass, Shipment *shipment)
{
	const ClerkOutboxRow *row = shipment->row;
	const ClerkInvitation *own;
	ClerkInvitationList list;
	ClerkOutboxChange change;

	if (shipment->request == NULL ||
		!clerk_finish_list_invitations(shipment->request, &list,
									   &shipment->error))
	{
		record_error(pass, row, shipment->error);
		return;
	}

	own = own_invitation(row, &list,
						 by_clerks_clock(shipment->request,
										 row->first_claimed_at));
	if (own != NULL)
		record_found(pass, row, own);
	else if (any_pending(&list, row->email_address) ||
			 (row->error_code != NULL &&
			  strcmp(row->error_code, "already_a_member_in_organization") == 0))
	{
		change = unchanged(row);
		change.state = CLERK_OUTBOX_SKIPPED;
		record(pass, row, &change);
	}
	else
		record_not_found(pass, row);
}

/* The invitation is there, and the row's. */
static void
record_found(Pass *pass, const ClerkOutboxRow *row,
			 const ClerkInvitation *found)
{
	ClerkOutboxChange change;

	memset(&change, 0, sizeof(change));
	change.state = CLERK_OUTBOX_SENT;
	change.attempts = row->attempts;
	change.invitation_id = text_of(found, CLERK_INVITATION_ID);
	change.status = text_of(found, CLERK_INVITATION_STATUS);
	change.url = text_of(found, CLERK_INVITATION_URL);
	if (!found->nulls[CLERK_INVITATION_EXPIRES_AT])
		change.expires_at = DatumGetTimestampTz(found->values[CLERK_INVITATION_EXPIRES_AT]);
	record(pass, row, &change);
}

/*
 * A request has failed.  A row that is verifying stays so, whatever the reason:
 * its outcome is as unknown as before.
 */
static void
record_error(Pass *pass, const ClerkOutboxRow *row, const ClerkError *error)
{
	ClerkOutboxChange change = unchanged(row);
	bool		verifying = strcmp(row->state, CLERK_OUTBOX_VERIFYING) == 0;

	if (!verifying)
		change.error_code = error->code;
	change.http_status = error->http_status;
	change.error_message = error->said != NULL ?
		psprintf("%s. %s", error->summary, error->said) : error->summary;
	change.trace_id = error->trace_id;
	change.state = verifying ? CLERK_OUTBOX_VERIFYING : CLERK_OUTBOX_QUEUED;
	change.next_attempt_at = after_retry_delay(row->attempts);

	switch (error->class)
	{
		case CLERK_ERROR_FINAL:
			if (!verifying)
				change.state = CLERK_OUTBOX_FAILED;
			break;
		case CLERK_ERROR_EXISTS:
		case CLERK_ERROR_OUTCOME_UNKNOWN:
			/* Look at once: most answers are there. */
			change.state = CLERK_OUTBOX_VERIFYING;
			if (!verifying)
				change.next_attempt_at = GetCurrentTimestamp();
			break;
		case CLERK_ERROR_TRY_LATER:
			if (!verifying && row->attempts >= clerk_max_attempts)
				change.state = CLERK_OUTBOX_FAILED;
			break;
		case CLERK_ERROR_RATE_LIMITED:
			if (error->retry_after > 0)
				change.next_attempt_at =
					TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												error->retry_after * (int64) 1000);
			/* FALLTHROUGH */
		case CLERK_ERROR_CONFIGURATION:
		case CLERK_ERROR_NOT_SENT:
			/* Nothing is wrong with the row: it was no attempt of its own. */
			if (!verifying)
				change.attempts = row->attempts - 1;
			stop(pass, error);
			break;
	}
	record(pass, row, &change);
}

/*
 * There is no invitation for the row.  Believed only when a request given up
 * can no longer be on its way.
 */
static void
record_not_found(Pass *pass, const ClerkOutboxRow *row)
{
	ClerkOutboxChange change = unchanged(row);
	TimestampTz believable = TimestampTzPlusMilliseconds(row->claimed_at,
														 (int64) clerk_verify_delay);

	if (GetCurrentTimestamp() < believable)
	{
		change.state = CLERK_OUTBOX_VERIFYING;
		change.next_attempt_at = believable;
	}
	else if (row->attempts >= clerk_max_attempts)
		change.state = CLERK_OUTBOX_FAILED;
	else
	{
		change.state = CLERK_OUTBOX_QUEUED;
		change.next_attempt_at = after_retry_delay(row->attempts);
	}
	record(pass, row, &change);
}

/* A change that keeps what the row says of its last failure. */
static ClerkOutboxChange
unchanged(const ClerkOutboxRow *row)
{
	ClerkOutboxChange change;

	memset(&change, 0, sizeof(change));
	change.state = row->state;
	change.attempts = row->attempts;
	change.http_status = row->http_status;
	change.error_code = row->error_code;
	change.error_message = row->error_message;
	change.trace_id = row->trace_id;
	return change;
}

static void
record(Pass *pass, const ClerkOutboxRow *row, ClerkOutboxChange *change)
{
	bool		final = true;

	if (strcmp(change->state, CLERK_OUTBOX_SENT) == 0)
		pass->report->sent++;
	else if (strcmp(change->state, CLERK_OUTBOX_SKIPPED) == 0)
		pass->report->skipped++;
	else if (strcmp(change->state, CLERK_OUTBOX_FAILED) == 0)
		pass->report->failed++;
	else
	{
		pass->report->postponed++;
		final = false;
	}
	if (final)
		change->next_attempt_at = 0;
	if (!clerk_outbox_settle(row, change))
		ereport(LOG,
				(errmsg("invitation %lld of the outbox is locked, or was changed while it was being sent",
						(long long) row->id)));
}

/* Ends the pass after this wave; the report outlives the wave's memory. */
static void
stop(Pass *pass, const ClerkError *error)
{
	MemoryContext caller;
	ClerkError *copy;

	if (pass->report->stopped_by != NULL)
		return;
	caller = MemoryContextSwitchTo(MemoryContextGetParent(pass->wave));
	copy = palloc(sizeof(ClerkError));
	*copy = *error;
	copy->code = error->code ? pstrdup(error->code) : NULL;
	copy->param_name = error->param_name ? pstrdup(error->param_name) : NULL;
	copy->trace_id = error->trace_id ? pstrdup(error->trace_id) : NULL;
	copy->said = error->said ? pstrdup(error->said) : NULL;
	copy->summary = pstrdup(error->summary);
	copy->detail = error->detail ? pstrdup(error->detail) : NULL;
	copy->hint = error->hint ? pstrdup(error->hint) : NULL;
	pass->report->stopped_by = copy;
	MemoryContextSwitchTo(caller);
}

/* Doubles with each attempt; up to a quarter more keeps rows from marching. */
static TimestampTz
after_retry_delay(int attempts)
{
	double		delay = clerk_retry_delay;

	for (int i = 1; i < attempts && delay < clerk_retry_delay_max; i++)
		delay *= 2;
	delay = Min(delay, clerk_retry_delay_max);
	delay *= 1 + clerk_random_fraction() / 4;
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) delay);
}

/* The invitation in the list that must be the row's own; NULL if none is. */
static const ClerkInvitation *
own_invitation(const ClerkOutboxRow *row, const ClerkInvitationList *list,
			   TimestampTz since)
{
	for (int i = 0; i < list->count; i++)
	{
		const ClerkInvitation *invitation = &list->invitations[i];

		if (is_for(invitation, row->email_address) &&
			!invitation->nulls[CLERK_INVITATION_CREATED_AT] &&
			DatumGetTimestampTz(invitation->values[CLERK_INVITATION_CREATED_AT]) >= since &&
			!clerk_outbox_has_invitation(text_of(invitation, CLERK_INVITATION_ID)))
			return invitation;
	}
	return NULL;
}

static bool
any_pending(const ClerkInvitationList *list, const char *address)
{
	for (int i = 0; i < list->count; i++)
	{
		const char *status = text_of(&list->invitations[i],
									 CLERK_INVITATION_STATUS);

		if (is_for(&list->invitations[i], address) &&
			status != NULL && strcmp(status, "pending") == 0)
			return true;
	}
	return false;
}

/* Clerk's filter may be wider; it compares addresses without their case. */
static bool
is_for(const ClerkInvitation *invitation, const char *address)
{
	const char *found = text_of(invitation, CLERK_INVITATION_EMAIL_ADDRESS);

	return found != NULL &&
		strcmp(str_tolower(found, strlen(found), DEFAULT_COLLATION_OID),
			   str_tolower(address, strlen(address), DEFAULT_COLLATION_OID)) == 0;
}

/*
 * A time of ours by Clerk's clock, as its answer tells it.  The Date header is
 * cut off to the second and as old as its way here: the result is early by
 * that, never late, so that what was created after the time is never taken for
 * older.
 */
static TimestampTz
by_clerks_clock(const ClerkHttpRequest *request, TimestampTz ours)
{
	pg_time_t	date = clerk_http_date(request);

	if (date == 0)
		return ours;
	return ours + (time_t_to_timestamptz(date) - clerk_http_answered_at(request));
}

static char *
text_of(const ClerkInvitation *invitation, ClerkInvitationField field)
{
	return invitation->nulls[field] ? NULL :
		TextDatumGetCString(invitation->values[field]);
}
