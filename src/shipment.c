/*
 * shipment.c
 *		Requests for rows of the outbox: sends many of them, several at a time,
 *		and has each row judged by what came of its request.
 *
 * Sending needs no transaction; judging may read the outbox.
 */
#include "postgres.h"

#include "clerk_api.h"
#include "email_address.h"
#include "guc.h"
#include "miscadmin.h"
#include "shipment.h"
#include "verdict.h"

/* Reasons not to start more of a wave's requests. */
typedef struct Halt
{
	bool		everything;
	bool		endpoints[CLERK_ENDPOINT_LIST + 1];
} Halt;

static void start(ClerkShipment *shipment);
static void note_start_error(ClerkShipment *shipment, MemoryContext caller);
static ClerkListing listing_of(const ClerkOutboxRow *row);
static void start_look(ClerkShipment *shipment);
static bool is_halted(const Halt *halt, const ClerkShipment *shipment);
static void note_end(ClerkShipment *shipment, Halt *halt);
static void judge_single(ClerkShipment *shipment, ClerkOutboxChange *change);
static void judge_bulk(ClerkShipment *shipment, ClerkOutboxChange *changes);
static void judge_look(ClerkShipment *shipment, ClerkOutboxChange *change,
					   List **adopted);

/* Sends a wave, several requests at a time; returns when nothing is under way. */
void
clerk_ship(ClerkShipment *shipments, int count)
{
	Halt		halt = {0};
	int			next = 0;
	int			under_way = 0;

	for (;;)
	{
		for (; next < count && under_way < clerk_max_concurrent_requests; next++)
			if (!is_halted(&halt, &shipments[next]))
			{
				start(&shipments[next]);
				under_way++;
			}

		under_way = 0;
		for (int i = 0; i < next; i++)
		{
			if (shipments[i].request != NULL &&
				clerk_http_outcome(shipments[i].request) == CLERK_HTTP_RUNNING)
				under_way++;
			else
				note_end(&shipments[i], &halt);
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
start(ClerkShipment *shipment)
{
	MemoryContext caller = CurrentMemoryContext;
	ClerkNewInvitation wanted[CLERK_BULK_MAX];

	for (int i = 0; i < shipment->count; i++)
	{
		const ClerkOutboxRow *row = shipment->rows[i];

		wanted[i].organization_id = row->organization_id;
		wanted[i].email_address = row->email_address;
		wanted[i].role = row->role;
		wanted[i].inviter_user_id = row->inviter_user_id;
		wanted[i].redirect_url = row->redirect_url;
		wanted[i].public_metadata = row->public_metadata;
		wanted[i].private_metadata = row->private_metadata;
		wanted[i].expires_in_days = row->expires_in_days;
		wanted[i].notify = row->notify;
	}
	PG_TRY();
	{
		if (shipment->endpoint == CLERK_ENDPOINT_LIST)
			start_look(shipment);
		else if (shipment->endpoint == CLERK_ENDPOINT_BULK)
			shipment->request = clerk_start_create_bulk(wanted, shipment->count,
														&shipment->error);
		else
			shipment->request = clerk_start_create_invitation(&wanted[0],
															  &shipment->error);
	}
	PG_CATCH();
	{
		note_start_error(shipment, caller);
	}
	PG_END_TRY();
	if (shipment->ticket == NULL)
		return;

	/* Should this process be killed in between, one request is not counted. */
	if (shipment->request == NULL)
		clerk_rate_limit_give_back(shipment->ticket, 1);
	else
		clerk_rate_limit_start(shipment->ticket);
}

/*
 * libcurl could not make the request, of which nothing was sent: that may be
 * this row's fault.  Any other error would meet all of them, and is raised.
 */
static void
note_start_error(ClerkShipment *shipment, MemoryContext caller)
{
	ErrorData  *error;

	MemoryContextSwitchTo(caller);
	error = CopyErrorData();
	if (error->sqlerrcode != ERRCODE_EXTERNAL_ROUTINE_EXCEPTION)
		PG_RE_THROW();
	FlushErrorState();
	shipment->request = NULL;
	shipment->error = palloc0(sizeof(ClerkError));
	shipment->error->class = CLERK_ERROR_TRY_LATER;
	shipment->error->sqlstate = error->sqlerrcode;
	shipment->error->summary = error->message;
	shipment->error->detail = error->detail;
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
		.organization_id = row->organization_id,
		.email_address = row->email_address,
		.limit = CLERK_LIST_MAX
	};

	if (row->attempts % 2 == 0 && clerk_pending_was_said(row))
		listing.email_address = clerk_normalized_text(row->email_address);
	return listing;
}

static void
start_look(ClerkShipment *shipment)
{
	ClerkListing listing = listing_of(shipment->rows[0]);

	shipment->request = clerk_start_list_invitations(&listing, &shipment->error);
}

static bool
is_halted(const Halt *halt, const ClerkShipment *shipment)
{
	return halt->everything || halt->endpoints[shipment->endpoint];
}

/* What the end of a request means for those that were not started yet. */
static void
note_end(ClerkShipment *shipment, Halt *halt)
{
	int			status;

	if (shipment->over)
		return;
	shipment->over = true;
	if (shipment->request == NULL)
	{
		if (shipment->error != NULL &&
			shipment->error->class == CLERK_ERROR_CONFIGURATION)
			halt->everything = true;
		return;
	}
	status = clerk_http_status(shipment->request);
	if (clerk_http_outcome(shipment->request) == CLERK_HTTP_NOT_SENT ||
		clerk_http_outcome(shipment->request) == CLERK_HTTP_UNUSABLE ||
		status == 401)
		halt->everything = true;
	if (status == 429)
		halt->endpoints[shipment->endpoint] = true;
}

/*
 * Fills in what becomes of a shipment's rows, in its order, by what came of its
 * request.  In a transaction.  "adopted" has the IDs that rows of the wave get,
 * so that no other row of it gets them, too; it starts as NIL.
 */
void
clerk_judge_shipment(ClerkShipment *shipment, ClerkOutboxChange *changes,
					 List **adopted)
{
	if (shipment->request == NULL && shipment->error == NULL)
	{
		for (int i = 0; i < shipment->count; i++)
			clerk_judge_unsent(&changes[i]);
		if (shipment->ticket != NULL)
			clerk_rate_limit_give_back(shipment->ticket, 1);
		return;
	}
	if (shipment->endpoint == CLERK_ENDPOINT_LIST)
		judge_look(shipment, &changes[0], adopted);
	else if (shipment->endpoint == CLERK_ENDPOINT_BULK)
		judge_bulk(shipment, changes);
	else
		judge_single(shipment, &changes[0]);
}

static void
judge_single(ClerkShipment *shipment, ClerkOutboxChange *change)
{
	ClerkInvitation created;

	if (shipment->request != NULL &&
		clerk_finish_create_invitation(shipment->request, shipment->ticket,
									   &created, &shipment->error))
		clerk_judge_created(change, &created);
	else
		clerk_judge_error(change, shipment->error);
}

static void
judge_bulk(ClerkShipment *shipment, ClerkOutboxChange *changes)
{
	ClerkInvitationList created;
	bool		any_named = false;

	if (shipment->request != NULL &&
		clerk_finish_create_bulk(shipment->request, shipment->ticket,
								 &created, &shipment->error))
	{
		clerk_judge_bulk(changes, shipment->count, &created);
		return;
	}
	for (int i = 0; i < shipment->count; i++)
		if (clerk_error_names(shipment->error, shipment->rows[i]->email_address))
			any_named = true;
	for (int i = 0; i < shipment->count; i++)
	{
		if (shipment->count == 1)
			clerk_judge_error(&changes[i], shipment->error);
		else
			clerk_judge_shared_error(&changes[i], shipment->error, any_named);
	}
}

static void
judge_look(ClerkShipment *shipment, ClerkOutboxChange *change, List **adopted)
{
	ClerkListing listing = listing_of(shipment->rows[0]);
	ClerkInvitationList found;

	/* What the encoding lacks is in texts that nobody looks for here. */
	if (shipment->request != NULL &&
		clerk_finish_list_invitations(shipment->request, &listing, &found,
									  &shipment->error))
		clerk_judge_look(change, shipment->request, &found, adopted);
	else if (shipment->request == NULL &&
			 shipment->error->class == CLERK_ERROR_FINAL)
		clerk_judge_unsendable(change, shipment->error);
	else
		clerk_judge_error(change, shipment->error);
}
