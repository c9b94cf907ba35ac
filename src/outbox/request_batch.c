/*
 * request_batch.c
 *		Requests for rows of the outbox: sends many of them, several at a time,
 *		and has each row judged by what came of its request.
 *
 * Sending needs no transaction; judging may read the outbox.
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "clerk/operations.h"
#include "common/settings.h"
#include "miscadmin.h"
#include "outbox/outcome.h"
#include "outbox/request_batch.h"

/* Reasons not to start more of a batch's requests. */
typedef struct Stopped
{
	bool		everything;
	bool		endpoints[CLERK_ENDPOINT_LIST + 1];
} Stopped;

static void start(ClerkBatchEntry *entry);
static void note_start_error(ClerkBatchEntry *entry, MemoryContext caller);
static ClerkListing listing_of(const ClerkOutboxRow *row);
static void start_lookup(ClerkBatchEntry *entry);
static bool is_stopped(const Stopped *stopped, const ClerkBatchEntry *entry);
static void note_end(ClerkBatchEntry *entry, Stopped *stopped);
static void single_outcome(ClerkBatchEntry *entry, ClerkOutboxChange *change);
static void bulk_outcomes(ClerkBatchEntry *entry, ClerkOutboxChange *changes);
static void lookup_outcome(ClerkBatchEntry *entry, ClerkOutboxChange *change,
						   List **adopted);

/*
 * Sends a batch, several requests at a time, but for those that have no rows;
 * returns when nothing is under way.
 */
void
clerk_send_batch(ClerkBatchEntry *entries, int count)
{
	Stopped		stopped = {0};
	int			next = 0;
	int			under_way = 0;

	for (;;)
	{
		for (; next < count && under_way < clerk_max_concurrent_requests; next++)
			if (entries[next].count > 0 && !is_stopped(&stopped, &entries[next]))
			{
				start(&entries[next]);
				under_way++;
			}

		under_way = 0;
		for (int i = 0; i < next; i++)
		{
			if (entries[i].request != NULL &&
				clerk_http_outcome(entries[i].request) == CLERK_HTTP_RUNNING)
				under_way++;
			else
				note_end(&entries[i], &stopped);
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

static void
start(ClerkBatchEntry *entry)
{
	MemoryContext caller = CurrentMemoryContext;
	const ClerkNewInvitation *wanted[CLERK_BULK_MAX];

	for (int i = 0; i < entry->count; i++)
		wanted[i] = &entry->rows[i]->invitation;
	PG_TRY();
	{
		if (entry->endpoint == CLERK_ENDPOINT_LIST)
			start_lookup(entry);
		else if (entry->endpoint == CLERK_ENDPOINT_BULK)
			entry->request = clerk_start_create_bulk(wanted, entry->count,
													 &entry->reservation,
													 &entry->error);
		else
			entry->request = clerk_start_create_invitation(wanted[0],
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
 * libcurl could not make the request, of which nothing was sent: that may be
 * this row's fault.  Any other error would meet all of them, and is raised.
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
 * A page of Clerk's largest size holds all that an address can have.
 *
 * Clerk may keep the address in another form than it was sent, and look for
 * nothing but that.  Then a look finds nothing, and the next request is refused
 * for the invitation that there is: every other attempt's looks ask for the
 * normalized form.
 */
static ClerkListing
listing_of(const ClerkOutboxRow *row)
{
	ClerkListing listing = {
		.organization_id = row->invitation.organization_id,
		.email_address = row->invitation.email_address,
		.limit = CLERK_LIST_MAX
	};

	if (row->progress.attempts % 2 == 0 && clerk_pending_was_said(row))
		listing.email_address = clerk_normalized_text(row->invitation.email_address);
	return listing;
}

static void
start_lookup(ClerkBatchEntry *entry)
{
	ClerkListing listing = listing_of(entry->rows[0]);

	entry->request = clerk_start_list_invitations(&listing, &entry->error);
}

static bool
is_stopped(const Stopped *stopped, const ClerkBatchEntry *entry)
{
	return stopped->everything || stopped->endpoints[entry->endpoint];
}

/* What the end of a request means for those that were not started yet. */
static void
note_end(ClerkBatchEntry *entry, Stopped *stopped)
{
	int			status;

	if (entry->over)
		return;
	entry->over = true;
	if (entry->request == NULL)
	{
		if (entry->error != NULL &&
			entry->error->class == CLERK_ERROR_CONFIGURATION)
			stopped->everything = true;
		return;
	}
	status = clerk_http_status(entry->request);
	if (clerk_http_outcome(entry->request) == CLERK_HTTP_NOT_SENT ||
		clerk_http_outcome(entry->request) == CLERK_HTTP_UNUSABLE ||
		status == 401)
		stopped->everything = true;
	if (status == 429)
		stopped->endpoints[entry->endpoint] = true;
}

/*
 * Fills in what becomes of an entry's rows, in its order, by what came of its
 * request, and settles its reservation.  In a transaction.  "adopted" has the
 * IDs of invitations that rows of the batch get, so that no other row of it gets
 * them, too; it starts as NIL.
 */
void
clerk_batch_entry_outcomes(ClerkBatchEntry *entry, ClerkOutboxChange *changes,
						   List **adopted)
{
	/* A request that was started settles its own when its response is read. */
	if (entry->request == NULL)
		clerk_rate_limit_not_sent(&entry->reservation);
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
	ClerkListing listing = listing_of(entry->rows[0]);
	ClerkInvitationList found;

	/* What the encoding lacks is in texts that nobody looks for here. */
	if (entry->request != NULL &&
		clerk_finish_list_invitations(entry->request, &listing, &found,
									  &entry->error))
		clerk_outcome_lookup(change, entry->request, &found, adopted);
	else if (entry->request == NULL &&
			 entry->error->class == CLERK_ERROR_FINAL)
		clerk_outcome_unsendable(change, entry->error);
	else
		clerk_outcome_error(change, entry->error);
}
