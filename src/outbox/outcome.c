/*
 * outcome.c
 *		What the end of a request means for a row of the outbox.
 *
 * Only three things are certain: Clerk says that it created the invitation,
 * Clerk refuses, or the request never went out.  All else is unknown, and a
 * row whose outcome is unknown is "verifying" until a look at its address's
 * invitations decides.  It must neither fail nor be sent again before that.
 *
 * An invitation that was created since the row was first claimed, by Clerk's
 * clock, and that no other row has, is the row's, whatever its status now.
 */
#include "postgres.h"

#include "access/xact.h"
#include "clerk/email_address.h"
#include "common/server_clock.h"
#include "common/settings.h"
#include "compat.h"
#include "outbox/outbox.h"
#include "outbox/outcome.h"
#include "utils/timestamp.h"

#define ALREADY_A_MEMBER "already_a_member_in_organization"
#define PENDING_ALREADY "organization_invitation_not_unique"
#define DUPLICATE_RECORD "duplicate_record"

/* What a 404 is about whose path has an organization that Clerk does not have. */
static const char *const organization_not_found[] = {
	"resource_not_found", "organization_not_found_or_unauthorized"
};

/*
 * How often a row shares a request that comes to nothing before it is sent by
 * itself.  Once may be Clerk's own trouble, and a backlog that has met it is
 * gone sooner in bulk; twice may be the fault of another row.
 */
#define SHARED_ATTEMPTS 2

static void outcome_of_failed_lookup(ClerkOutboxChange *change,
									 const ClerkError *error);
static bool is_about_no_organization(const ClerkError *error);
static void outcome_of_missing(ClerkOutboxChange *change);
static void keep_last_failure(ClerkOutboxChange *change);
static void note_failure(ClerkOutboxChange *change, const ClerkError *error);
static void send_again(ClerkOutboxChange *change);
static void nothing_found(ClerkOutboxChange *change);
static bool attempts_are_used_up(const ClerkOutboxRow *row);
static TimestampTz after_retry_delay(int attempts);
static const ClerkInvitation *own_invitation(const ClerkOutboxRow *row,
											 const ClerkInvitationList *found,
											 TimestampTz since,
											 const List *adopted);
static bool is_taken(const char *invitation_id, const List *adopted);
static TimestampTz first_claim_by_clerks_clock(const ClerkOutboxRow *row,
											   const ClerkHttpRequest *request);
static bool filter_decides(const ClerkOutboxRow *row);
static const ClerkInvitation *only_pending(const ClerkInvitationList *found);
static bool any_pending(const ClerkOutboxRow *row,
						const ClerkInvitationList *found);
static bool is_pending(const ClerkInvitation *invitation);
static ClerkLikeness likeness(const ClerkInvitation *invitation,
							  const ClerkOutboxRow *row);

/* The invitation is there, and the row's. */
void
clerk_outcome_created(ClerkOutboxChange *change, const ClerkInvitation *created)
{
	change->progress.state = CLERK_OUTBOX_SENT;
	change->progress.attempts = change->row->progress.attempts;
	change->progress.send_alone = change->row->progress.send_alone;
	change->invitation = created;
}

/*
 * The row's own request has failed.  A row that is verifying stays so, whatever
 * the reason: its outcome is as unknown as before.
 */
void
clerk_outcome_error(ClerkOutboxChange *change, const ClerkError *error)
{
	const ClerkOutboxRow *row = change->row;

	keep_last_failure(change);
	note_failure(change, error);
	if (strcmp(row->progress.state, CLERK_OUTBOX_VERIFYING) == 0)
	{
		outcome_of_failed_lookup(change, error);
		return;
	}
	change->next_attempt_at = after_retry_delay(row->progress.attempts);

	change->progress.state = CLERK_OUTBOX_QUEUED;
	switch (error->class)
	{
		case CLERK_ERROR_FINAL:
			change->progress.state = CLERK_OUTBOX_FAILED;
			break;
		case CLERK_ERROR_EXISTS:
		case CLERK_ERROR_OUTCOME_UNKNOWN:
			/* Look at once: most answers are there. */
			change->progress.state = CLERK_OUTBOX_VERIFYING;
			change->next_attempt_at = GetCurrentTimestamp();
			break;
		case CLERK_ERROR_TRY_LATER:
			if (row->progress.attempts >= clerk_max_attempts)
				change->progress.state = CLERK_OUTBOX_FAILED;
			break;
		case CLERK_ERROR_RATE_LIMITED:
		case CLERK_ERROR_CONFIGURATION:
		case CLERK_ERROR_NOT_SENT:
			/* Nothing is wrong with the row: it was no attempt of its own. */
			send_again(change);
			break;
	}
}

/*
 * A look-up has failed.  The row's outcome is as unknown as before, and it is
 * looked up again, each time after a longer wait.  Only an organization that
 * does not exist decides: whatever invitation it had is gone with it.  Should
 * that be due to the key of another Clerk instance, a retry finds the
 * invitation, since what was abandoned keeps the time of its first claim.
 */
static void
outcome_of_failed_lookup(ClerkOutboxChange *change, const ClerkError *error)
{
	const ClerkOutboxRow *row = change->row;

	if (is_about_no_organization(error))
	{
		change->progress.state = CLERK_OUTBOX_FAILED;
		change->progress.error_code = CLERK_OUTBOX_ABANDONED;
		change->progress.error_message =
			psprintf("the outcome was unknown, and the organization no longer exists: %s",
					 change->progress.error_message);
		return;
	}
	/* What it was refused for before decides what a look means. */
	change->progress.error_code = row->progress.error_code;
	change->progress.consecutive_failures = row->progress.consecutive_failures;

	/* Otherwise nothing is wrong with the row. */
	if (error->class != CLERK_ERROR_RATE_LIMITED &&
		error->class != CLERK_ERROR_CONFIGURATION &&
		error->class != CLERK_ERROR_NOT_SENT)
		change->progress.consecutive_failures++;
	change->next_attempt_at = after_retry_delay(Max(change->progress.consecutive_failures, 1));
}

static bool
is_about_no_organization(const ClerkError *error)
{
	if (error->http_status != 404 || error->code == NULL)
		return false;
	for (int i = 0; i < (int) lengthof(organization_not_found); i++)
		if (strcmp(error->code, organization_not_found[i]) == 0)
			return true;
	return false;
}

/*
 * A request that the row shared has failed, perhaps for the sake of another
 * row: that does not end this one's life.
 *
 * A refusal of all for the sake of some created nothing, so that the row is
 * sent again: alone if the refusal names it, and if it names nobody.  After any
 * other failure it is sent with others once more, but its last attempt is its
 * own.
 */
void
clerk_outcome_shared_error(ClerkOutboxChange *change, const ClerkError *error,
						   bool others_named)
{
	bool		named = clerk_error_names(error, change->row->invitation.email_address);
	bool		pending = error->class == CLERK_ERROR_EXISTS &&
	(error->code == NULL || strcmp(error->code, ALREADY_A_MEMBER) != 0);

	clerk_outcome_error(change, error);
	switch (error->class)
	{
		case CLERK_ERROR_FINAL:
		case CLERK_ERROR_EXISTS:
			change->progress.send_alone = named || !others_named;
			if (named && pending)
				break;			/* a look tells whose the pending one is */
			change->progress.state = CLERK_OUTBOX_QUEUED;
			change->next_attempt_at = 0;

			/* It may be another row's: no later look must go by it. */
			change->progress.error_code = NULL;
			break;
		case CLERK_ERROR_TRY_LATER:
			change->progress.state = CLERK_OUTBOX_QUEUED;
			/* FALLTHROUGH */
		case CLERK_ERROR_OUTCOME_UNKNOWN:
			change->progress.send_alone = change->row->progress.attempts >=
				Min(SHARED_ATTEMPTS, clerk_max_attempts - 1);
			break;
		case CLERK_ERROR_RATE_LIMITED:
		case CLERK_ERROR_CONFIGURATION:
		case CLERK_ERROR_NOT_SENT:
			break;
	}
}

/*
 * A bulk request for so many rows was carried out.  An address that the answer
 * lacks, which the documents know no case of, has an unknown outcome.
 */
void
clerk_outcome_bulk(ClerkOutboxChange *changes, int count,
				   const ClerkInvitationList *created)
{
	const char **wanted = palloc(count * sizeof(char *));
	const char **found = palloc(Max(created->count, 1) * sizeof(char *));
	int		   *matches = palloc(count * sizeof(int));

	for (int i = 0; i < count; i++)
		wanted[i] = changes[i].row->invitation.email_address;
	for (int i = 0; i < created->count; i++)
		found[i] = clerk_invitation_text(&created->invitations[i],
										 CLERK_INVITATION_EMAIL_ADDRESS);
	clerk_match_addresses(wanted, count, found, created->count, matches);
	for (int i = 0; i < count; i++)
	{
		if (matches[i] >= 0)
			clerk_outcome_created(&changes[i], &created->invitations[matches[i]]);
		else
			outcome_of_missing(&changes[i]);
	}
}

static void
outcome_of_missing(ClerkOutboxChange *change)
{
	keep_last_failure(change);
	change->progress.state = CLERK_OUTBOX_VERIFYING;
	change->progress.error_message = "Clerk's response to a bulk request does not contain this address";
	change->next_attempt_at = GetCurrentTimestamp();
}

/*
 * The row's turn did not come.  One that was claimed is as if it had not been;
 * one that was to be looked up was on the wire before, and stays verifying.
 */
void
clerk_outcome_unsent(ClerkOutboxChange *change)
{
	const ClerkOutboxRow *row = change->row;

	keep_last_failure(change);
	if (strcmp(row->progress.state, CLERK_OUTBOX_VERIFYING) == 0)
	{
		change->progress.consecutive_failures = row->progress.consecutive_failures;
		change->next_attempt_at = GetCurrentTimestamp();
		return;
	}
	change->progress.state = CLERK_OUTBOX_QUEUED;
	send_again(change);
}

/*
 * What a look at an address's invitations means.  "adopted" has the IDs that
 * rows were given since the transaction began.
 */
void
clerk_outcome_lookup(ClerkOutboxChange *change, const ClerkHttpRequest *request,
					 const ClerkInvitationList *found, List **adopted)
{
	const ClerkOutboxRow *row = change->row;
	const ClerkInvitation *own;

	own = own_invitation(row, found, first_claim_by_clerks_clock(row, request),
						 *adopted);
	if (own != NULL)
	{
		clerk_outcome_created(change, own);
		*adopted = lappend(*adopted, clerk_invitation_text(own, CLERK_INVITATION_ID));
		return;
	}
	keep_last_failure(change);
	if (any_pending(row, found) ||
		(row->progress.error_code != NULL &&
		 strcmp(row->progress.error_code, ALREADY_A_MEMBER) == 0))
		change->progress.state = CLERK_OUTBOX_SKIPPED;
	else
		nothing_found(change);
}

/*
 * The address cannot be looked up, since it has no form that Clerk could be
 * told.  For the same reason no request for it can have gone out, so nothing is
 * unknown: it was claimed by a sender that died before it could say so.
 */
void
clerk_outcome_unsendable(ClerkOutboxChange *change, const ClerkError *error)
{
	keep_last_failure(change);
	note_failure(change, error);
	change->progress.state = CLERK_OUTBOX_FAILED;
}

/* Whether the row's last request was refused for a pending invitation. */
bool
clerk_pending_was_said(const ClerkOutboxRow *row)
{
	return row->progress.error_code != NULL &&
		(strcmp(row->progress.error_code, PENDING_ALREADY) == 0 ||
		 strcmp(row->progress.error_code, DUPLICATE_RECORD) == 0);
}

/* Whether the change ends the row's life. */
bool
clerk_is_final(const ClerkOutboxChange *change)
{
	return strcmp(change->progress.state, CLERK_OUTBOX_SENT) == 0 ||
		strcmp(change->progress.state, CLERK_OUTBOX_SKIPPED) == 0 ||
		strcmp(change->progress.state, CLERK_OUTBOX_FAILED) == 0;
}

/*
 * There is no invitation for the row.  Believed only when a request given up
 * can no longer be on its way.
 */
static void
nothing_found(ClerkOutboxChange *change)
{
	const ClerkOutboxRow *row = change->row;
	TimestampTz believable = TimestampTzPlusMilliseconds(row->claimed_at,
														 (int64) clerk_verify_delay);

	if (GetCurrentTimestamp() < believable)
	{
		change->progress.state = CLERK_OUTBOX_VERIFYING;
		change->next_attempt_at = believable;
		return;
	}

	/* Its sender died before it could say anything. */
	if (change->progress.error_message == NULL)
		change->progress.error_message = "the request ended without a response, and Clerk has no such invitation";
	if (attempts_are_used_up(row))
		change->progress.state = CLERK_OUTBOX_FAILED;
	else
	{
		change->progress.state = CLERK_OUTBOX_QUEUED;
		change->next_attempt_at = after_retry_delay(row->progress.attempts);
	}
}

/*
 * A row that is to be sent by itself has shared a request before that came to
 * nothing, perhaps by another row's fault: it has an attempt of its own after
 * that one, however few are allowed.
 */
static bool
attempts_are_used_up(const ClerkOutboxRow *row)
{
	return row->progress.attempts >= Max(clerk_max_attempts, row->progress.send_alone ? 2 : 1);
}

/* Leaves the row in its state, with what it says of its last failure. */
static void
keep_last_failure(ClerkOutboxChange *change)
{
	change->progress = change->row->progress;
	change->progress.consecutive_failures = 0;
}

static void
note_failure(ClerkOutboxChange *change, const ClerkError *error)
{
	change->progress.http_status = error->http_status;
	change->progress.error_code = error->code;
	change->progress.error_message = error->said != NULL ?
		psprintf("%s. %s", error->summary, error->said) : error->summary;
	change->progress.trace_id = error->trace_id;
}

/* At its old place in the queue, as if it had not been claimed. */
static void
send_again(ClerkOutboxChange *change)
{
	change->progress.attempts = change->row->progress.attempts - 1;
	change->next_attempt_at = 0;
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

/*
 * The invitation that must be the row's own; NULL if none is.  Of several the
 * one whose address is the closest.
 */
static const ClerkInvitation *
own_invitation(const ClerkOutboxRow *row, const ClerkInvitationList *found,
			   TimestampTz since, const List *adopted)
{
	const ClerkInvitation *own = NULL;
	ClerkLikeness closest = CLERK_ADDRESS_OTHER;
	const ClerkInvitation *meant = filter_decides(row) ? only_pending(found) : NULL;

	for (int i = 0; i < found->count; i++)
	{
		const ClerkInvitation *invitation = &found->invitations[i];

		if ((likeness(invitation, row) > closest ||
			 (own == NULL && invitation == meant)) &&
			!invitation->nulls[CLERK_INVITATION_CREATED_AT] &&
			DatumGetTimestampTz(invitation->values[CLERK_INVITATION_CREATED_AT]) >= since &&
			!is_taken(clerk_invitation_text(invitation, CLERK_INVITATION_ID), adopted))
		{
			own = invitation;
			closest = likeness(invitation, row);
		}
	}
	return own;
}

/* The one that is pending, if there is but one. */
static const ClerkInvitation *
only_pending(const ClerkInvitationList *found)
{
	const ClerkInvitation *pending = NULL;

	for (int i = 0; i < found->count; i++)
		if (is_pending(&found->invitations[i]))
		{
			if (pending != NULL)
				return NULL;
			pending = &found->invitations[i];
		}
	return pending;
}

static bool
is_taken(const char *invitation_id, const List *adopted)
{
	const ListCell *cell;

	foreach(cell, adopted)
		if (strcmp(lfirst(cell), invitation_id) == 0)
		return true;
	return clerk_outbox_has_invitation(invitation_id);
}

/*
 * Whether what Clerk's filter finds for the row's address is for that, whatever
 * address it has itself: the filter may be wider.  It is if Clerk has said that
 * one is pending for the address; and it is better believed when no attempt is
 * left that Clerk could say so to.
 */
static bool
filter_decides(const ClerkOutboxRow *row)
{
	return clerk_pending_was_said(row) || attempts_are_used_up(row);
}

/* Whether the row's address has a pending invitation. */
static bool
any_pending(const ClerkOutboxRow *row, const ClerkInvitationList *found)
{
	bool		decides = filter_decides(row);

	for (int i = 0; i < found->count; i++)
		if (is_pending(&found->invitations[i]) &&
			(decides || likeness(&found->invitations[i], row) != CLERK_ADDRESS_OTHER))
			return true;
	return false;
}

static bool
is_pending(const ClerkInvitation *invitation)
{
	const char *status = clerk_invitation_text(invitation, CLERK_INVITATION_STATUS);

	return status != NULL && strcmp(status, CLERK_INVITATION_PENDING) == 0;
}

/* What the invitation's address has of the row's. */
static ClerkLikeness
likeness(const ClerkInvitation *invitation, const ClerkOutboxRow *row)
{
	return clerk_address_likeness(clerk_invitation_text(invitation,
														CLERK_INVITATION_EMAIL_ADDRESS),
								  row->invitation.email_address);
}

/*
 * When the row was first claimed, by Clerk's clock: its time in the answer's
 * Date header, less what has passed since.  The header is cut off to the second
 * and as old as its way here: the result is early by that, never late, so that
 * what was created after the claim is never taken for older.
 *
 * How much time has passed is told by two clocks of ours.  One can be set, and
 * if it was set back, too little seems to have passed; the other one cannot, but
 * may have stood still with the machine, and does not know of other runs of the
 * server.  Neither tells too much unless the first one was set ahead.  So the
 * larger of the two counts.
 */
static TimestampTz
first_claim_by_clerks_clock(const ClerkOutboxRow *row,
							const ClerkHttpRequest *request)
{
	TimestampTz answered_at = clerk_http_answered_at(request);
	int64		passed = answered_at - row->first_claimed_at;
	pg_time_t	date = clerk_http_date(request);

	if (row->first_claimed_clock != 0)
		passed = Max(passed,
					 clerk_server_clock_elapsed(row->first_claimed_clock,
												clerk_http_answered_clock(request)) * 1000);
	return (date == 0 ? answered_at : time_t_to_timestamptz(date)) - passed;
}
