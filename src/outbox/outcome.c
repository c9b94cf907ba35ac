/*
 * outcome.c
 *		What the result of a request means for a row of the outbox.
 *
 * Only three results are certain: Clerk reports that it created the
 * invitation, Clerk refuses it, or the request was never sent.  In any other
 * case the outcome is unknown, and the row is "verifying" until a lookup of
 * its address's invitations decides.  Until then it must neither fail nor be
 * sent again.
 *
 * An invitation that was created after the row was first claimed, by Clerk's
 * clock, and that belongs to no other row, is the row's, whatever its status
 * is now.  If Clerk's clock was set since then, the claim counts as early as
 * any of the clock's settings has it.
 *
 * Clerk's lists lack the invitations that come from an organization's domain.
 * If Clerk refuses a request because an invitation is pending, and its lists
 * show none that can be the reason, neither at once nor after
 * clerk_invite.verify_delay, then it is such an invitation: Clerk has it
 * already, and would refuse every further request.
 */
#include "postgres.h"

#include "access/xact.h"
#include "clerk/email_address.h"
#include "clerk/remote_clock.h"
#include "common/server_clock.h"
#include "common/settings.h"
#include "compat.h"
#include "outbox/outbox.h"
#include "outbox/outcome.h"
#include "utils/timestamp.h"

#define ALREADY_A_MEMBER "already_a_member_in_organization"
#define PENDING_ALREADY "organization_invitation_not_unique"
#define DUPLICATE_RECORD "duplicate_record"

/*
 * Codes of a 404 response that mean that Clerk does not have the organization
 * in the request's path.
 */
static const char *const organization_not_found[] = {
	"resource_not_found", "organization_not_found_or_unauthorized"
};

/*
 * Number of unsuccessful requests that a row may share before it gets one of
 * its own.  A first failure may be due to Clerk, and a backlog is delivered
 * faster in bulk; a second one may be due to another row.
 */
#define MAX_SHARED_ATTEMPTS 2

/*
 * When an invitation that is the row's can have been created, by Clerk's clock.
 * If that was set since the claim, times before and after that cannot be
 * compared: the earliest claim and the latest lookup count.
 */
typedef struct ClaimTimes
{
	TimestampTz claim;
	TimestampTz lookup;
	bool		clock_was_set;	/* perhaps; then an invitation from the future
								 * may be one from before that */
} ClaimTimes;

/*
 * How much clocks at Clerk may differ, such as the one that invitations are
 * created by and that of its responses, in microseconds.  A minute is far more
 * than clocks of a data center differ.
 */
#define CLOCK_TOLERANCE (60 * USECS_PER_SEC)

static void lookup_error_outcome(ClerkOutboxChange *change,
								 const ClerkError *error);
static bool is_organization_not_found(const ClerkError *error);
static void missing_address_outcome(ClerkOutboxChange *change);
static void keep_last_failure(ClerkOutboxChange *change);
static void note_failure(ClerkOutboxChange *change, const ClerkError *error);
static void undo_claim(ClerkOutboxChange *change);
static TimestampTz trusted_from(const ClerkOutboxRow *row);
static bool is_refused_as_pending(const ClerkOutboxRow *row);
static void empty_lookup_outcome(ClerkOutboxChange *change,
								 bool reason_is_unlisted);
static bool is_reason_unlisted(const ClerkOutboxRow *row,
							   const ClerkInvitationList *found,
							   TimestampTz first_claimed_at);
static bool was_pending_after(const ClerkInvitation *invitation,
							  TimestampTz time);
static bool are_attempts_used_up(const ClerkOutboxRow *row);
static TimestampTz next_retry_time(int attempts);
static const ClerkInvitation *own_invitation(const ClerkOutboxRow *row,
											 const ClerkInvitationList *found,
											 const ClaimTimes *times,
											 const List *adopted);
static bool is_created_since_claim(const ClerkInvitation *invitation,
								   const ClaimTimes *times);
static bool belongs_to_another_row(const char *invitation_id,
								   const List *adopted);
static ClaimTimes claim_by_clerks_clock(const ClerkOutboxRow *row,
										const ClerkHttpRequest *request);
static int64 elapsed_since_claim(const ClerkOutboxRow *row,
								 const ClerkHttpRequest *request);
static void add_claim_time(ClaimTimes *times, TimestampTz claim);
static bool is_filter_trusted(const ClerkOutboxRow *row);
static const ClerkInvitation *sole_pending(const ClerkInvitationList *found);
static bool any_pending(const ClerkOutboxRow *row,
						const ClerkInvitationList *found);
static bool is_pending(const ClerkInvitation *invitation);
static ClerkLikeness address_likeness(const ClerkInvitation *invitation,
									  const ClerkOutboxRow *row);

/* Clerk created this invitation for the row.  The change refers to it. */
void
clerk_outcome_created(ClerkOutboxChange *change, const ClerkInvitation *created)
{
	change->progress.state = CLERK_OUTBOX_SENT;
	change->progress.attempts = change->row->progress.attempts;
	change->progress.send_alone = change->row->progress.send_alone;
	change->invitation = created;
}

/*
 * A request for only this row has failed.  A row that is verifying remains so
 * in any case, since its outcome is as unknown as before.
 */
void
clerk_outcome_error(ClerkOutboxChange *change, const ClerkError *error)
{
	const ClerkOutboxRow *row = change->row;

	keep_last_failure(change);
	note_failure(change, error);
	if (strcmp(row->progress.state, CLERK_OUTBOX_VERIFYING) == 0)
	{
		lookup_error_outcome(change, error);
		return;
	}
	change->next_attempt_at = next_retry_time(row->progress.attempts);

	change->progress.state = CLERK_OUTBOX_QUEUED;
	switch (error->class)
	{
		case CLERK_ERROR_FINAL:
			change->progress.state = CLERK_OUTBOX_FAILED;
			break;
		case CLERK_ERROR_EXISTS:
		case CLERK_ERROR_OUTCOME_UNKNOWN:
			/* Look it up at once: most responses arrive. */
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
			/* Not the row's fault: do not count the attempt. */
			undo_claim(change);
			break;
	}
}

/*
 * A lookup has failed.  The row's outcome is as unknown as before; it is
 * looked up again, each time after a longer delay.  The exception is an
 * organization that does not exist: any invitation of the row was deleted with
 * it.  If Clerk reports that only because the key is of another Clerk
 * instance, a retry still finds the invitation, since abandoned rows keep the
 * time of their first claim.
 */
static void
lookup_error_outcome(ClerkOutboxChange *change, const ClerkError *error)
{
	const ClerkOutboxRow *row = change->row;

	if (is_organization_not_found(error))
	{
		change->progress.state = CLERK_OUTBOX_FAILED;
		change->progress.error_code = CLERK_OUTBOX_ABANDONED;
		change->progress.error_message =
			psprintf("the outcome was unknown, and the organization no longer exists: %s",
					 change->progress.error_message);
		return;
	}

	/*
	 * How to read a later lookup depends on the earlier refusal, so keep its
	 * code.
	 */
	change->progress.error_code = row->progress.error_code;
	change->progress.consecutive_failures = row->progress.consecutive_failures;

	/* Other classes are not the row's fault. */
	if (error->class != CLERK_ERROR_RATE_LIMITED &&
		error->class != CLERK_ERROR_CONFIGURATION &&
		error->class != CLERK_ERROR_NOT_SENT)
		change->progress.consecutive_failures++;
	change->next_attempt_at = next_retry_time(Max(change->progress.consecutive_failures, 1));
}

static bool
is_organization_not_found(const ClerkError *error)
{
	if (error->http_status != 404 || error->code == NULL)
		return false;
	for (int i = 0; i < (int) lengthof(organization_not_found); i++)
		if (strcmp(error->code, organization_not_found[i]) == 0)
			return true;
	return false;
}

/*
 * A bulk request that the row shared with others has failed, perhaps because
 * of another row, so the row itself does not fail.  "any_named" is whether the
 * error names the address of any row of the request.
 *
 * If Clerk refuses a bulk request because of some of its rows, it creates none
 * of the invitations, and the row is sent again: by itself if the refusal
 * names it, or if it names no row.  After any other failure the row shares one
 * more request; its last attempt is its own.
 */
void
clerk_outcome_shared_error(ClerkOutboxChange *change, const ClerkError *error,
						   bool any_named)
{
	bool		named = clerk_error_names(error, change->row->invitation.email_address);
	bool		pending = error->class == CLERK_ERROR_EXISTS &&
	(error->code == NULL || strcmp(error->code, ALREADY_A_MEMBER) != 0);

	clerk_outcome_error(change, error);
	switch (error->class)
	{
		case CLERK_ERROR_FINAL:
		case CLERK_ERROR_EXISTS:
			change->progress.send_alone = named || !any_named;
			if (named && pending)
				break;			/* a lookup shows whose it is */
			change->progress.state = CLERK_OUTBOX_QUEUED;
			change->next_attempt_at = 0;

			/*
			 * The code may be about another row; later lookups must not go by
			 * it.
			 */
			change->progress.error_code = NULL;
			break;
		case CLERK_ERROR_TRY_LATER:
			change->progress.state = CLERK_OUTBOX_QUEUED;
			pg_fallthrough;
		case CLERK_ERROR_OUTCOME_UNKNOWN:
			change->progress.send_alone = change->row->progress.attempts >=
				Min(MAX_SHARED_ATTEMPTS, clerk_max_attempts - 1);
			break;
		case CLERK_ERROR_RATE_LIMITED:
		case CLERK_ERROR_CONFIGURATION:
		case CLERK_ERROR_NOT_SENT:
			break;
	}
}

/*
 * Clerk carried out a bulk request for these rows, and created these
 * invitations.  The outcome is unknown for a row whose address the response
 * lacks; Clerk's documentation describes no such case.
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
			missing_address_outcome(&changes[i]);
	}
}

static void
missing_address_outcome(ClerkOutboxChange *change)
{
	keep_last_failure(change);
	change->progress.state = CLERK_OUTBOX_VERIFYING;
	change->progress.http_status = 0;
	change->progress.error_code = NULL;
	change->progress.trace_id = NULL;
	change->progress.error_message = "Clerk's response to a bulk request does not contain this address";
	change->next_attempt_at = GetCurrentTimestamp();
}

/*
 * The row's request was not started.  A claimed row returns to the queue as if
 * it had not been claimed.  A row that was to be looked up stays verifying,
 * since an earlier request for it may have been sent.
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
	undo_claim(change);
}

/*
 * SETTLE LOOKUP: a lookup that started at "asked_at" succeeded; "found" are
 * the invitations that Clerk has for the row's address.  "adopted" is a list of
 * the IDs of invitations that rows have been given in this transaction; this
 * function may append one.  Must be called in a transaction; raises the errors
 * of clerk_outbox_run().
 */
void
clerk_outcome_lookup(ClerkOutboxChange *change, const ClerkHttpRequest *request,
					 TimestampTz asked_at, const ClerkInvitationList *found,
					 List **adopted)
{
	const ClerkOutboxRow *row = change->row;
	ClaimTimes	times = claim_by_clerks_clock(row, request);
	const ClerkInvitation *own = own_invitation(row, found, &times, *adopted);
	bool		member = row->progress.error_code != NULL &&
	strcmp(row->progress.error_code, ALREADY_A_MEMBER) == 0;
	bool		answered = member || is_refused_as_pending(row);
	bool		accepted = asked_at >= trusted_from(row);

	if (own != NULL)
	{
		clerk_outcome_created(change, own);
		*adopted = lappend(*adopted, clerk_invitation_text(own, CLERK_INVITATION_ID));
		return;
	}
	keep_last_failure(change);

	/*
	 * A request that has no answer may still arrive, and be carried out if
	 * the other invitation is revoked before.
	 */
	if ((member || any_pending(row, found)) && (answered || accepted))
		change->progress.state = CLERK_OUTBOX_SKIPPED;
	else if (accepted)
		empty_lookup_outcome(change,
							 is_reason_unlisted(row, found, times.claim));
	else
	{
		change->progress.state = CLERK_OUTBOX_VERIFYING;
		change->next_attempt_at = trusted_from(row);
	}
}

/*
 * The address cannot be looked up, since it cannot be converted to what Clerk
 * expects.  For the same reason, no request for it can have been sent, so the
 * outcome is known: the row's sender died before it could record that.
 */
void
clerk_outcome_unsendable(ClerkOutboxChange *change, const ClerkError *error)
{
	keep_last_failure(change);
	note_failure(change, error);
	change->progress.state = CLERK_OUTBOX_FAILED;
}

/*
 * Returns the form of the row's address by which to look it up.
 *
 * Clerk may store an address in another form than it was sent, and find it
 * only in that form.  Then a lookup finds nothing, and the next request is
 * refused because of the pending invitation.  After such a refusal, the
 * lookups of every second attempt use the normalized form.
 */
const char *
clerk_lookup_address(const ClerkOutboxRow *row)
{
	const char *address = row->invitation.email_address;

	return row->progress.attempts % 2 == 0 && is_refused_as_pending(row) ?
		clerk_normalized_text(address) : address;
}

/* Returns whether the change leads to a final state. */
bool
clerk_is_final(const ClerkOutboxChange *change)
{
	return strcmp(change->progress.state, CLERK_OUTBOX_SENT) == 0 ||
		strcmp(change->progress.state, CLERK_OUTBOX_SKIPPED) == 0 ||
		strcmp(change->progress.state, CLERK_OUTBOX_FAILED) == 0;
}

/*
 * Whether Clerk refused the row's last request because an invitation is
 * pending.
 */
static bool
is_refused_as_pending(const ClerkOutboxRow *row)
{
	return row->progress.error_code != NULL &&
		(strcmp(row->progress.error_code, PENDING_ALREADY) == 0 ||
		 strcmp(row->progress.error_code, DUPLICATE_RECORD) == 0);
}

/*
 * Returns the time from which on a lookup that does not find the row's
 * invitation is accepted: after clerk_invite.verify_delay an abandoned request
 * can no longer arrive at Clerk.  What counts is when the lookup started, since
 * a request that arrives later is not in its response.
 */
static TimestampTz
trusted_from(const ClerkOutboxRow *row)
{
	return TimestampTzPlusMilliseconds(row->claimed_at, (int64) clerk_verify_delay);
}

/* A lookup that is accepted found no invitation for the row. */
static void
empty_lookup_outcome(ClerkOutboxChange *change, bool reason_is_unlisted)
{
	const ClerkOutboxRow *row = change->row;

	if (reason_is_unlisted)
	{
		change->progress.state = CLERK_OUTBOX_SKIPPED;
		return;
	}

	/* The sender died before it could record a reason. */
	if (change->progress.error_message == NULL)
		change->progress.error_message = "the request ended without a response, and Clerk has no such invitation";
	if (are_attempts_used_up(row))
		change->progress.state = CLERK_OUTBOX_FAILED;
	else
	{
		change->progress.state = CLERK_OUTBOX_QUEUED;
		change->next_attempt_at = next_retry_time(row->progress.attempts);
	}
}

/*
 * Whether Clerk refused the row's last request because of an invitation that
 * its lists lack; "found" is what they have for the row's address, of which
 * nothing is pending.
 *
 * The reason may have been an invitation that was accepted, revoked or expired
 * only since then, and Clerk may have needed a moment to notice.  Then another
 * request may succeed.
 *
 * If the address has another normalized form, only lookups of both forms show
 * what Clerk has.  The row's own invitation is not missed: its request was
 * followed by a lookup of the address as it was sent.
 */
static bool
is_reason_unlisted(const ClerkOutboxRow *row, const ClerkInvitationList *found,
				   TimestampTz first_claimed_at)
{
	const char *address = row->invitation.email_address;
	TimestampTz since = TimestampTzPlusMilliseconds(first_claimed_at,
													-(int64) clerk_verify_delay);

	if (!is_refused_as_pending(row))
		return false;
	for (int i = 0; i < found->count; i++)
		if (was_pending_after(&found->invitations[i], since))
			return false;
	return strcmp(clerk_lookup_address(row), clerk_normalized_text(address)) == 0 ||
		are_attempts_used_up(row);
}

/*
 * Whether an invitation may have been pending after a time by Clerk's clock,
 * although it is not now.
 */
static bool
was_pending_after(const ClerkInvitation *invitation, TimestampTz time)
{
	const char *status = clerk_invitation_text(invitation, CLERK_INVITATION_STATUS);
	TimestampTz expires_at = DT_NOBEGIN;

	if (status == NULL || invitation->nulls[CLERK_INVITATION_UPDATED_AT])
		return true;

	/* The update of an invitation may not be due to its expiration. */
	if (strcmp(status, "expired") == 0)
	{
		if (invitation->nulls[CLERK_INVITATION_EXPIRES_AT])
			return true;
		expires_at = DatumGetTimestampTz(invitation->values[CLERK_INVITATION_EXPIRES_AT]);
	}
	return expires_at >= time ||
		DatumGetTimestampTz(invitation->values[CLERK_INVITATION_UPDATED_AT]) >= time;
}

/*
 * Whether the row must not be sent again.  A row that is to be sent by itself
 * has shared an unsuccessful request before, perhaps because of another row:
 * it gets one attempt of its own, however few are allowed.
 */
static bool
are_attempts_used_up(const ClerkOutboxRow *row)
{
	return row->progress.attempts >= Max(clerk_max_attempts, row->progress.send_alone ? 2 : 1);
}

/* Keeps the row's state and its last failure. */
static void
keep_last_failure(ClerkOutboxChange *change)
{
	change->progress = change->row->progress;
	change->progress.consecutive_failures = 0;
}

/* Records the reason of a failure. */
static void
note_failure(ClerkOutboxChange *change, const ClerkError *error)
{
	change->progress.http_status = error->http_status;
	change->progress.error_code = error->code;
	change->progress.error_message = error->clerk_message != NULL ?
		psprintf("%s. %s", error->summary, error->clerk_message) : error->summary;
	change->progress.trace_id = error->trace_id;
}

/*
 * Returns the row to its old place in the queue, as if it had not been
 * claimed.
 */
static void
undo_claim(ClerkOutboxChange *change)
{
	change->progress.attempts = change->row->progress.attempts - 1;
	change->next_attempt_at = 0;
}

/*
 * Exponential backoff from clerk_invite.retry_delay up to retry_delay_max,
 * with up to 25 % jitter.
 */
static TimestampTz
next_retry_time(int attempts)
{
	double		delay = clerk_retry_delay;

	for (int i = 1; i < attempts && delay < clerk_retry_delay_max; i++)
		delay *= 2;
	delay = Min(delay, clerk_retry_delay_max);
	delay *= 1 + clerk_random_fraction() / 4;
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) delay);
}

/*
 * Returns the invitation that is certainly the row's; NULL if there is none.
 * If there are several, the one whose address is most similar counts, and of
 * these the newest.  The list has the newest first, unless Clerk's clock was
 * set; one that is pending is the newest in any case, since Clerk creates none
 * while one is pending.
 */
static const ClerkInvitation *
own_invitation(const ClerkOutboxRow *row, const ClerkInvitationList *found,
			   const ClaimTimes *times, const List *adopted)
{
	const ClerkInvitation *own = NULL;
	ClerkLikeness closest = CLERK_ADDRESS_OTHER;
	const ClerkInvitation *from_filter = is_filter_trusted(row) ?
	sole_pending(found) : NULL;

	for (int i = 0; i < found->count; i++)
	{
		const ClerkInvitation *invitation = &found->invitations[i];

		if ((address_likeness(invitation, row) > closest ||
			 (own == NULL && invitation == from_filter) ||
			 (own != NULL && address_likeness(invitation, row) == closest &&
			  is_pending(invitation) && !is_pending(own))) &&
			is_created_since_claim(invitation, times) &&
			!belongs_to_another_row(clerk_invitation_text(invitation, CLERK_INVITATION_ID),
									adopted))
		{
			own = invitation;
			closest = address_likeness(invitation, row);
		}
	}
	return own;
}

/*
 * Whether the invitation was created between the row's claim and the lookup,
 * by any setting that Clerk's clock may have had since.
 *
 * An invitation from the future was created before the clock was set back.  If
 * that may have been since the claim, it counts, since a row that misses its
 * own invitation would be sent twice.
 */
static bool
is_created_since_claim(const ClerkInvitation *invitation, const ClaimTimes *times)
{
	TimestampTz created_at;

	if (invitation->nulls[CLERK_INVITATION_CREATED_AT])
		return false;
	created_at = DatumGetTimestampTz(invitation->values[CLERK_INVITATION_CREATED_AT]);
	return created_at >= times->claim &&
		(times->clock_was_set || created_at <= times->lookup);
}

/* Returns the pending invitation if there is exactly one; else NULL. */
static const ClerkInvitation *
sole_pending(const ClerkInvitationList *found)
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

/*
 * Whether a row has this invitation, in the table or by a change of this
 * transaction.
 */
static bool
belongs_to_another_row(const char *invitation_id, const List *adopted)
{
	const ListCell *cell;

	foreach(cell, adopted)
		if (strcmp(lfirst(cell), invitation_id) == 0)
		return true;
	return clerk_outbox_has_invitation(invitation_id);
}

/*
 * Whether all invitations that Clerk's filter finds for the row's address
 * count as being for that address, even if theirs differs.  The filter may
 * match more than the address.  It is trusted if Clerk has reported that an
 * invitation for the address is pending, and also if the row has no attempt
 * left in which Clerk could report that.
 */
static bool
is_filter_trusted(const ClerkOutboxRow *row)
{
	return is_refused_as_pending(row) || are_attempts_used_up(row);
}

/* Whether an invitation for the row's address is pending. */
static bool
any_pending(const ClerkOutboxRow *row, const ClerkInvitationList *found)
{
	bool		filter_trusted = is_filter_trusted(row);

	for (int i = 0; i < found->count; i++)
		if (is_pending(&found->invitations[i]) &&
			(filter_trusted ||
			 address_likeness(&found->invitations[i], row) != CLERK_ADDRESS_OTHER))
			return true;
	return false;
}

static bool
is_pending(const ClerkInvitation *invitation)
{
	const char *status = clerk_invitation_text(invitation, CLERK_INVITATION_STATUS);

	return status != NULL && strcmp(status, CLERK_INVITATION_PENDING) == 0;
}

/* How similar the invitation's address is to the row's. */
static ClerkLikeness
address_likeness(const ClerkInvitation *invitation, const ClerkOutboxRow *row)
{
	return clerk_address_likeness(clerk_invitation_text(invitation,
														CLERK_INVITATION_EMAIL_ADDRESS),
								  row->invitation.email_address);
}

/*
 * Returns the times of the row's claim and of the lookup by Clerk's clock.  The
 * first claim is the time in the response's Date header, minus the time that
 * has elapsed since the claim.  The header is truncated to the second and has
 * aged on its way here, so the result is early by that, never late: an
 * invitation created after the claim is never taken for an older one.
 *
 * This assumes that Clerk's clock was not set since the claim.  The last claim
 * has the time as it was known then, and clerk/remote_clock.c knows what
 * responses have shown in the meantime, for an invitation that was created
 * before the clock was set.
 */
static ClaimTimes
claim_by_clerks_clock(const ClerkOutboxRow *row, const ClerkHttpRequest *request)
{
	ClaimTimes	times;
	int64		elapsed = elapsed_since_claim(row, request);
	pg_time_t	date = clerk_http_date(request);
	int64		age = clerk_server_clock_elapsed(clerk_http_response_clock(request),
												 clerk_server_clock()) * 1000;
	TimestampTz now[CLERK_CLOCK_SETTINGS];
	int			settings;

	times.lookup = date != 0 ? time_t_to_timestamptz(date) :
		clerk_http_response_time(request);
	times.claim = times.lookup - elapsed;
	times.clock_was_set = row->claimed_clerk_clock == 0 ||
		row->claimed_clerk_clock < times.claim - CLOCK_TOLERANCE ||
		row->claimed_clerk_clock > times.lookup + CLOCK_TOLERANCE;
	times.lookup += CLOCK_TOLERANCE;
	settings = clerk_remote_clock_settings(elapsed + age, now);
	for (int i = 0; i < settings; i++)
		add_claim_time(&times, now[i] - elapsed - age);
	if (row->claimed_clerk_clock != 0)
		times.claim = Min(times.claim, row->claimed_clerk_clock);
	return times;
}

/*
 * Returns the time from the row's first claim to the response, in microseconds.
 *
 * It is measured by two clocks.  The wall clock can be set; if it was set back,
 * it shows too little.  The monotonic clock (common/server_clock.h) cannot be
 * set, but may stop while the machine sleeps, and does not know times from
 * before a server restart.  Neither shows too much unless the wall clock was
 * set ahead.  Therefore the larger value counts.
 */
static int64
elapsed_since_claim(const ClerkOutboxRow *row, const ClerkHttpRequest *request)
{
	int64		elapsed = clerk_http_response_time(request) - row->first_claimed_at;

	if (row->first_claimed_clock != 0)
		elapsed = Max(elapsed,
					  clerk_server_clock_elapsed(row->first_claimed_clock,
												 clerk_http_response_clock(request)) * 1000);
	return elapsed;
}

/* The first claim by another setting that Clerk's clock may have had. */
static void
add_claim_time(ClaimTimes *times, TimestampTz claim)
{
	if (claim < times->claim - CLOCK_TOLERANCE ||
		claim > times->claim + CLOCK_TOLERANCE)
		times->clock_was_set = true;
	times->claim = Min(times->claim, claim);
}
