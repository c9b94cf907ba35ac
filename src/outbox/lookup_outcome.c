/*
 * lookup_outcome.c
 *		What the invitations that a lookup found mean for a row of the outbox.
 *
 * An invitation that was created after the row was first claimed, by Clerk's
 * clock, and that belongs to no other row, is the row's, whatever its status
 * is now.
 *
 * Clerk's lists lack the invitations that come from an organization's domain.
 * If Clerk refuses a request because an invitation is pending, and its lists
 * show none that can be the reason, neither at once nor after
 * clerk_invite.verify_delay, then it is such an invitation: Clerk has it
 * already, and would refuse every further request.
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "common/settings.h"
#include "outbox/creation_window.h"
#include "outbox/lookup_outcome.h"
#include "outbox/outbox.h"
#include "outbox/outcome.h"
#include "utils/timestamp.h"

static bool is_refused_as_pending(const ClerkOutboxRow *row);
static TimestampTz trusted_from(const ClerkOutboxRow *row);
static void empty_lookup_outcome(ClerkOutboxChange *change,
								 bool reason_is_unlisted);
static bool is_reason_unlisted(const ClerkOutboxRow *row,
							   const ClerkInvitationList *found,
							   TimestampTz first_claimed_at);
static bool was_pending_after(const ClerkInvitation *invitation,
							  TimestampTz time);
static bool are_attempts_used_up(const ClerkOutboxRow *row);
static const ClerkInvitation *own_invitation(const ClerkOutboxRow *row,
											 const ClerkInvitationList *found,
											 const ClerkCreationWindow *window,
											 const List *adopted);
static const ClerkInvitation *sole_pending(const ClerkInvitationList *found);
static bool belongs_to_another_row(const char *invitation_id,
								   const List *adopted);
static bool is_filter_trusted(const ClerkOutboxRow *row);
static bool any_pending(const ClerkOutboxRow *row,
						const ClerkInvitationList *found);
static bool is_pending(const ClerkInvitation *invitation);
static ClerkLikeness address_likeness(const ClerkInvitation *invitation,
									  const ClerkOutboxRow *row);

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
	ClerkCreationWindow window = clerk_creation_window(row, request);
	const ClerkInvitation *own = own_invitation(row, found, &window, *adopted);
	bool		member = row->progress.error_code != NULL &&
	strcmp(row->progress.error_code, CLERK_CODE_ALREADY_A_MEMBER) == 0;
	bool		answered = member || is_refused_as_pending(row);
	bool		accepted = asked_at >= trusted_from(row);

	if (own != NULL)
	{
		clerk_outcome_created(change, own);
		*adopted = lappend(*adopted, clerk_invitation_text(own, CLERK_INVITATION_ID));
		return;
	}
	clerk_keep_last_failure(change);

	/*
	 * A request that has no answer may still arrive, and be carried out if
	 * the other invitation is revoked before.
	 */
	if ((member || any_pending(row, found)) && (answered || accepted))
		change->progress.state = CLERK_OUTBOX_SKIPPED;
	else if (accepted)
		empty_lookup_outcome(change,
							 is_reason_unlisted(row, found, window.earliest));
	else
	{
		change->progress.state = CLERK_OUTBOX_VERIFYING;
		change->next_attempt_at = trusted_from(row);
	}
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

/*
 * Whether Clerk refused the row's last request because an invitation is
 * pending.
 */
static bool
is_refused_as_pending(const ClerkOutboxRow *row)
{
	return row->progress.error_code != NULL &&
		(strcmp(row->progress.error_code, CLERK_CODE_PENDING_ALREADY) == 0 ||
		 strcmp(row->progress.error_code, CLERK_CODE_DUPLICATE_RECORD) == 0);
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
		change->next_attempt_at = clerk_next_retry_time(row->progress.attempts);
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

/*
 * Returns the invitation that is certainly the row's; NULL if there is none.
 * If there are several, the one whose address is most similar counts, and of
 * these the newest.  The list has the newest first, unless Clerk's clock was
 * set; one that is pending is the newest in any case, since Clerk creates none
 * while one is pending.
 */
static const ClerkInvitation *
own_invitation(const ClerkOutboxRow *row, const ClerkInvitationList *found,
			   const ClerkCreationWindow *window, const List *adopted)
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
			clerk_is_created_within(invitation, window) &&
			!belongs_to_another_row(clerk_invitation_text(invitation, CLERK_INVITATION_ID),
									adopted))
		{
			own = invitation;
			closest = address_likeness(invitation, row);
		}
	}
	return own;
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
