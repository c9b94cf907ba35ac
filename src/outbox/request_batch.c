/*
 * request_batch.c
 *		Makes requests for rows of the outbox, several at a time, and
 *		determines the outcome of each row from the result of its request.
 *
 * Sending needs no transaction; determining outcomes does, as it may read the
 * outbox.
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "clerk/operations.h"
#include "clerk/remote_clock.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "miscadmin.h"
#include "outbox/lookup_outcome.h"
#include "outbox/outcome.h"
#include "outbox/request_batch.h"
#include "utils/timestamp.h"

/*
 * Milliseconds in which requests may be started after a claim, however short
 * clerk_invite.verify_delay is, so that every claim leads to some.
 */
#define MIN_CLAIM_LIFETIME 1000

/* Why no more requests of a batch are started. */
typedef struct StopState
{
	bool		everything;
	bool		endpoints[CLERK_ENDPOINT_LIST + 1];
} StopState;

static bool is_claim_too_old(const ClerkClaimTime *claimed);
static void start_request(ClerkBatchEntry *entry);
static void note_start_error(ClerkBatchEntry *entry, MemoryContext caller);
static ClerkListing lookup_listing(const ClerkOutboxRow *row);
static void start_lookup(ClerkBatchEntry *entry);
static bool is_stopped(const StopState *stopped, const ClerkBatchEntry *entry);
static void note_completion(ClerkBatchEntry *entry, StopState *stopped);
static void single_outcome(ClerkBatchEntry *entry, ClerkOutboxChange *change);
static void bulk_outcomes(ClerkBatchEntry *entry, ClerkOutboxChange *changes);
static void lookup_outcome(ClerkBatchEntry *entry, ClerkOutboxChange *change,
						   List **adopted);

/* Must be called before the transaction that claims the rows. */
ClerkClaimTime
clerk_claim_time_now(void)
{
	ClerkClaimTime now = {GetCurrentTimestamp(), clerk_monotonic_microseconds()};

	return now;
}

/*
 * SEND: sends the requests of a batch that have rows, at most
 * clerk_invite.max_concurrent_requests at a time.  Returns when none is
 * running; those that were not started because the batch was stopped, or
 * because the claim is too old, have neither a request nor an error.
 * "claimed" is NULL for lookups.  Needs no transaction.
 *
 * Raises 57014 or 57P01 if the session is told to stop, and any error that
 * would meet every request.
 */
void
clerk_send_batch(ClerkBatchEntry *entries, int count,
				 const ClerkClaimTime *claimed)
{
	StopState	stopped = {0};
	int			next = 0;
	int			under_way = 0;

	for (;;)
	{
		for (; next < count && under_way < clerk_max_concurrent_requests; next++)
			if (entries[next].count > 0 &&
				!is_stopped(&stopped, &entries[next]) &&
				!is_claim_too_old(claimed))
			{
				start_request(&entries[next]);
				under_way++;
			}

		under_way = 0;
		for (int i = 0; i < next; i++)
		{
			if (entries[i].request != NULL &&
				clerk_http_outcome(entries[i].request) == CLERK_HTTP_RUNNING)
				under_way++;
			else
				note_completion(&entries[i], &stopped);
		}
		if (under_way == 0 && next == count)
			break;
		if (under_way == clerk_max_concurrent_requests || next == count)
		{
			CHECK_FOR_INTERRUPTS();
			clerk_http_wait(-1);
		}
	}
}

/*
 * Whether another sender may have sent the rows meanwhile.  After a failover,
 * the new primary looks up the rows that it finds claimed, and sends them
 * again if clerk_invite.verify_delay after its promotion Clerk still has no
 * invitation.  A process of the old primary that was stopped during that time
 * (SIGSTOP, a suspended machine) must not go on where it was.  If it claims
 * the rows once more instead, it finds out whether its server is still the
 * primary, provided that claims wait for a synchronous standby.
 *
 * The monotonic clock may stop while the machine sleeps, and the wall clock
 * may be set back; neither shows too much, unless the wall clock was set
 * ahead.
 */
static bool
is_claim_too_old(const ClerkClaimTime *claimed)
{
	int64		elapsed;

	if (claimed == NULL)
		return false;
	elapsed = Max(GetCurrentTimestamp() - claimed->wall,
				  clerk_monotonic_microseconds() - claimed->monotonic);
	return elapsed / 1000 > Max(clerk_verify_delay, MIN_CLAIM_LIFETIME);
}

static void
start_request(ClerkBatchEntry *entry)
{
	MemoryContext caller = CurrentMemoryContext;
	const ClerkNewInvitation *invitations[CLERK_BULK_MAX];

	for (int i = 0; i < entry->count; i++)
		invitations[i] = &entry->rows[i]->invitation;
	entry->started_at = GetCurrentTimestamp();
	PG_TRY();
	{
		if (entry->endpoint == CLERK_ENDPOINT_LIST)
			start_lookup(entry);
		else if (entry->endpoint == CLERK_ENDPOINT_BULK)
			entry->request = clerk_start_create_bulk(invitations, entry->count,
													 &entry->reservation,
													 &entry->error);
		else
			entry->request = clerk_start_create_invitation(invitations[0],
														   &entry->reservation,
														   &entry->error);
	}
	PG_CATCH();
	{
		note_start_error(entry, caller);
	}
	PG_END_TRY();
}

/*
 * libcurl could not create the request, so nothing was sent.  That may be due
 * to this row.  Any other error would meet all rows, and is raised again.
 */
static void
note_start_error(ClerkBatchEntry *entry, MemoryContext caller)
{
	ErrorData  *error;

	MemoryContextSwitchTo(caller);
	error = CopyErrorData();
	if (error->sqlerrcode != ERRCODE_EXTERNAL_ROUTINE_EXCEPTION)
		PG_RE_THROW();
	FlushErrorState();
	entry->request = NULL;
	entry->error = palloc0(sizeof(ClerkError));
	entry->error->class = CLERK_ERROR_TRY_LATER;
	entry->error->sqlstate = error->sqlerrcode;
	entry->error->summary = error->message;
	entry->error->detail = error->detail;
}

/*
 * How to look up a row's address.  A page of the maximum size has room for all
 * invitations of an address.
 */
static ClerkListing
lookup_listing(const ClerkOutboxRow *row)
{
	ClerkListing listing = {
		.organization_id = row->invitation.organization_id,
		.email_address = clerk_lookup_address(row),
		.limit = CLERK_LIST_MAX
	};

	return listing;
}

static void
start_lookup(ClerkBatchEntry *entry)
{
	ClerkListing listing = lookup_listing(entry->rows[0]);

	entry->request = clerk_start_list_invitations(&listing, &entry->error);
}

static bool
is_stopped(const StopState *stopped, const ClerkBatchEntry *entry)
{
	return stopped->everything || stopped->endpoints[entry->endpoint];
}

/*
 * Determines whether the end of a request stops the rest of the batch: 429
 * stops requests to the same endpoint; a rejected key and requests that cannot
 * be sent stop all.
 */
static void
note_completion(ClerkBatchEntry *entry, StopState *stopped)
{
	int			status;

	if (entry->finished)
		return;
	entry->finished = true;
	if (entry->request == NULL)
	{
		if (entry->error != NULL &&
			entry->error->class == CLERK_ERROR_CONFIGURATION)
			stopped->everything = true;
		return;
	}
	clerk_remote_clock_note(entry->request);
	status = clerk_http_status(entry->request);
	if (clerk_http_outcome(entry->request) == CLERK_HTTP_NOT_SENT ||
		clerk_http_outcome(entry->request) == CLERK_HTTP_UNUSABLE ||
		status == 401)
		stopped->everything = true;
	if (status == 429)
		stopped->endpoints[entry->endpoint] = true;
}

/*
 * Fills in the changes of an entry's rows, in the same order, from the result
 * of its request, and settles its reservation.  Must be called in a
 * transaction; raises the errors of clerk_outbox_run().
 *
 * "adopted" points to a list, initially NIL, of the IDs of invitations that
 * rows of the batch are given, so that no two rows are given the same one.
 */
void
clerk_batch_entry_outcomes(ClerkBatchEntry *entry, ClerkOutboxChange *changes,
						   List **adopted)
{
	/*
	 * A request that was started settles its reservation when its response is
	 * read.
	 */
	if (entry->request == NULL)
		clerk_reservation_not_sent(&entry->reservation);
	if (entry->request == NULL && entry->error == NULL)
	{
		for (int i = 0; i < entry->count; i++)
			clerk_outcome_unsent(&changes[i]);
		return;
	}
	if (entry->endpoint == CLERK_ENDPOINT_LIST)
		lookup_outcome(entry, &changes[0], adopted);
	else if (entry->endpoint == CLERK_ENDPOINT_BULK)
		bulk_outcomes(entry, changes);
	else
		single_outcome(entry, &changes[0]);
}

static void
single_outcome(ClerkBatchEntry *entry, ClerkOutboxChange *change)
{
	ClerkInvitation *created = palloc(sizeof(ClerkInvitation));

	if (entry->request != NULL &&
		clerk_finish_create_invitation(entry->request, &entry->reservation,
									   created, &entry->error))
		clerk_outcome_created(change, created);
	else
		clerk_outcome_error(change, entry->error);
}

static void
bulk_outcomes(ClerkBatchEntry *entry, ClerkOutboxChange *changes)
{
	ClerkInvitationList created;
	bool		any_named = false;

	if (entry->request != NULL &&
		clerk_finish_create_bulk(entry->request, &entry->reservation,
								 &created, &entry->error))
	{
		clerk_outcome_bulk(changes, entry->count, &created);
		return;
	}
	for (int i = 0; i < entry->count; i++)
		if (clerk_error_names(entry->error, entry->rows[i]->invitation.email_address))
			any_named = true;
	for (int i = 0; i < entry->count; i++)
	{
		if (entry->count == 1)
			clerk_outcome_error(&changes[i], entry->error);
		else
			clerk_outcome_shared_error(&changes[i], entry->error, any_named);
	}
}

static void
lookup_outcome(ClerkBatchEntry *entry, ClerkOutboxChange *change, List **adopted)
{
	ClerkListing listing = lookup_listing(entry->rows[0]);
	ClerkInvitationList found;

	/*
	 * Characters that the database's encoding lacks are "?" in the response.
	 * The texts compared here are not affected.
	 */
	if (entry->request != NULL &&
		clerk_finish_list_invitations(entry->request, &listing, &found,
									  &entry->error))
		clerk_outcome_lookup(change, entry->request, entry->started_at, &found,
							 adopted);
	else if (entry->request == NULL &&
			 entry->error->class == CLERK_ERROR_FINAL)
		clerk_outcome_unsendable(change, entry->error);
	else
		clerk_outcome_error(change, entry->error);
}
