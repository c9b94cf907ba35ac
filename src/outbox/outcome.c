/*
 * outcome.c
 *		What the end of a request means for a row of the outbox.
 *
 * Only three results are certain: Clerk reports that it created the
 * invitation, Clerk refuses it, or the request was never sent.  In any other
 * case the outcome is unknown, and the row is "verifying" until a lookup of
 * its address's invitations decides (outbox/lookup_outcome.c).  Until then it
 * must neither fail nor be sent again.
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "common/settings.h"
#include "compat.h"
#include "outbox/outcome.h"
#include "utils/timestamp.h"

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

static void lookup_error_outcome(ClerkOutboxChange *change,
								 const ClerkError *error);
static bool is_organization_not_found(const ClerkError *error);
static void missing_address_outcome(ClerkOutboxChange *change);
static void note_failure(ClerkOutboxChange *change, const ClerkError *error);
static void undo_claim(ClerkOutboxChange *change);

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

	clerk_keep_last_failure(change);
	note_failure(change, error);
	if (strcmp(row->progress.state, CLERK_OUTBOX_VERIFYING) == 0)
	{
		lookup_error_outcome(change, error);
		return;
	}
	change->next_attempt_at = clerk_next_retry_time(row->progress.attempts);

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
	change->next_attempt_at = clerk_next_retry_time(Max(change->progress.consecutive_failures, 1));
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
	(error->code == NULL || strcmp(error->code, CLERK_CODE_ALREADY_A_MEMBER) != 0);

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
	clerk_keep_last_failure(change);
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

	clerk_keep_last_failure(change);
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
 * The address cannot be looked up, since it cannot be converted to what Clerk
 * expects.  For the same reason, no request for it can have been sent, so the
 * outcome is known: the row's sender died before it could record that.
 */
void
clerk_outcome_unsendable(ClerkOutboxChange *change, const ClerkError *error)
{
	clerk_keep_last_failure(change);
	note_failure(change, error);
	change->progress.state = CLERK_OUTBOX_FAILED;
}

/* Returns whether the change leads to a final state. */
bool
clerk_is_final(const ClerkOutboxChange *change)
{
	return strcmp(change->progress.state, CLERK_OUTBOX_SENT) == 0 ||
		strcmp(change->progress.state, CLERK_OUTBOX_SKIPPED) == 0 ||
		strcmp(change->progress.state, CLERK_OUTBOX_FAILED) == 0;
}

/* Keeps the row's state and its last failure. */
void
clerk_keep_last_failure(ClerkOutboxChange *change)
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
TimestampTz
clerk_next_retry_time(int attempts)
{
	double		delay = clerk_retry_delay;

	for (int i = 1; i < attempts && delay < clerk_retry_delay_max; i++)
		delay *= 2;
	delay = Min(delay, clerk_retry_delay_max);
	delay *= 1 + clerk_random_fraction() / 4;
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) delay);
}
