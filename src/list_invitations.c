/*
 * list_invitations.c
 *		The SQL functions that list invitations, a page at a time, as rows are
 *		asked for.
 *
 * Clerk's pages are told apart by an offset, and invitations may join or leave
 * the list while it is read, so that an offset does not stay where it was.
 * Whatever happens, an invitation that belongs to the list throughout is
 * returned exactly once:
 *
 * Invitations come in the order of their creation, so that new ones join at
 * the end.  "newest" is the time of creation of the last one read, and this
 * holds: every invitation that is there throughout and was created before
 * "newest" has been read.  The next page is asked for from a little before the
 * end of the last one, and is used only if its first invitation was created
 * before "newest": then all that comes before the page was created before
 * "newest", too, and has been read.  Otherwise invitations have left the list,
 * and the page begins too late: one that begins earlier is asked for.  In a
 * page that is used, those created before "newest" are passed over, and so are
 * those created at that very time that have been read, whose identifiers are
 * kept.  Invitations of the same time may come in another order each time.
 *
 * One that joins the list meanwhile at a place that has been passed, because
 * its status changes, may be returned or not.
 */
#include "postgres.h"

#include "arguments.h"
#include "funcapi.h"
#include "installed_extension.h"
#include "miscadmin.h"
#include "statement_request.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Invitations asked for at a time.  With all the metadata that Clerk allows,
 * twice 8 kB, that many stay below the 4 MiB that http.c takes of an answer.
 */
#define PAGE_SIZE 200

/*
 * How many of them may be known already, as long as none have left the list:
 * more than can share a time of creation, which bulk requests make ten by ten.
 */
#define OVERLAP 20

/*
 * Requests in a row that bring nothing new before we give up.  That many are
 * not needed unless some five thousand invitations, which make 25 pages, leave
 * the list between two requests, and half of them were for nothing.
 */
#define MAX_FRUITLESS 64

/* A list that is being read. */
typedef struct Reading
{
	ClerkListing listing;		/* the next page, if there is one */
	const char *failure;		/* what could not be done if Clerk refuses */
	TupleDesc	descriptor;
	MemoryContext memory;		/* of this struct */
	MemoryContext page_memory;	/* of the page and its request */
	ClerkInvitationList page;
	int			next;			/* the first of the page not looked at yet */
	bool		last;			/* no page follows */
	bool		any;			/* whether "newest" is set */
	TimestampTz newest;
	List	   *ids_of_newest;	/* read, and created at that time */
} Reading;

static Datum list(FunctionCallInfo fcinfo, const ClerkListing *listing,
				  const char *failure);
static Reading *begin_reading(FunctionCallInfo fcinfo, MemoryContext memory,
							  const ClerkListing *listing,
							  const char *failure);
static ClerkInvitation *next_new(Reading *reading);
static void read_page(Reading *reading);
static void fetch(Reading *reading);
static void check_order(const Reading *reading);
static bool begins_too_late(const Reading *reading);
static bool is_new(const Reading *reading, const ClerkInvitation *invitation);
static void note_read(Reading *reading, const ClerkInvitation *invitation);
static TimestampTz created_at(const ClerkInvitation *invitation);
pg_noreturn static void raise_unusable(const Reading *reading, int sqlstate,
									   const char *fault);

PG_FUNCTION_INFO_V1(clerk_list_organization_invitations);
PG_FUNCTION_INFO_V1(clerk_list_instance_organization_invitations);

/*
 * clerk_list_organization_invitations(org_id text, status text[], email text)
 *		RETURNS SETOF clerk_organization_invitation
 *
 * Clerk's ListOrganizationInvitations, oldest first.  Raises what
 * clerk_error.c's table says, 22004 and 22023 for arguments that cannot be
 * meant, 25000 in a parallel operation.
 */
Datum
clerk_list_organization_invitations(PG_FUNCTION_ARGS)
{
	ClerkListing listing = {0};
	const char *failure = NULL;

	if (SRF_IS_FIRSTCALL())
	{
		clerk_require_fit();
		PreventCommandIfParallelMode("clerk_list_organization_invitations()");
		listing.organization_id = clerk_required_identifier(fcinfo, 0, "org_id");
		listing.statuses = clerk_optional_texts(fcinfo, 1, "status");
		listing.email_address = clerk_optional_text(fcinfo, 2, "email");
		failure = psprintf("could not list the invitations of organization \"%s\"",
						   listing.organization_id);
	}
	return list(fcinfo, &listing, failure);
}

/*
 * clerk_list_instance_organization_invitations(status text[], query text)
 *		RETURNS SETOF clerk_organization_invitation
 *
 * Clerk's ListInstanceOrganizationInvitations, oldest first.  Raises as the
 * function above.
 */
Datum
clerk_list_instance_organization_invitations(PG_FUNCTION_ARGS)
{
	ClerkListing listing = {0};

	if (SRF_IS_FIRSTCALL())
	{
		clerk_require_fit();
		PreventCommandIfParallelMode("clerk_list_instance_organization_invitations()");
		listing.statuses = clerk_optional_texts(fcinfo, 0, "status");
		listing.query = clerk_optional_text(fcinfo, 1, "query");
	}
	return list(fcinfo, &listing,
				"could not list the invitations of the Clerk instance");
}

/* Returns the next row, or ends the set; the listing counts in the first call. */
static Datum
list(FunctionCallInfo fcinfo, const ClerkListing *listing, const char *failure)
{
	FuncCallContext *call;
	Reading    *reading;
	ClerkInvitation *invitation;
	HeapTuple	row;

	if (SRF_IS_FIRSTCALL())
	{
		call = SRF_FIRSTCALL_INIT();
		call->user_fctx = begin_reading(fcinfo, call->multi_call_memory_ctx,
										listing, failure);
	}
	call = SRF_PERCALL_SETUP();
	reading = call->user_fctx;
	invitation = next_new(reading);
	if (invitation == NULL)
		SRF_RETURN_DONE(call);
	row = clerk_form_invitation(reading->descriptor, invitation);
	SRF_RETURN_NEXT(call, HeapTupleGetDatum(row));
}

static Reading *
begin_reading(FunctionCallInfo fcinfo, MemoryContext memory,
			  const ClerkListing *listing, const char *failure)
{
	MemoryContext caller = MemoryContextSwitchTo(memory);
	Reading    *reading = palloc0(sizeof(Reading));
	ListCell   *cell;

#define COPY(string) ((string) == NULL ? NULL : pstrdup(string))

	reading->listing.organization_id = COPY(listing->organization_id);
	reading->listing.email_address = COPY(listing->email_address);
	reading->listing.query = COPY(listing->query);
	foreach(cell, listing->statuses)
		reading->listing.statuses = lappend(reading->listing.statuses,
											pstrdup(lfirst(cell)));
	reading->listing.oldest_first = true;
	reading->listing.limit = PAGE_SIZE;
	reading->failure = COPY(failure);

#undef COPY

	reading->descriptor = clerk_invitation_descriptor(fcinfo);
	reading->memory = memory;
	reading->page_memory = AllocSetContextCreate(memory, "clerk_invite page",
												 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(caller);
	return reading;
}

/* The next invitation that was not returned yet; NULL at the end. */
static ClerkInvitation *
next_new(Reading *reading)
{
	for (int fruitless = 0; fruitless < MAX_FRUITLESS; fruitless++)
	{
		while (reading->next < reading->page.count)
		{
			ClerkInvitation *invitation = &reading->page.invitations[reading->next++];

			if (is_new(reading, invitation))
			{
				note_read(reading, invitation);
				return invitation;
			}
		}
		if (reading->last)
			return NULL;
		read_page(reading);
	}
	raise_unusable(reading, ERRCODE_CONNECTION_FAILURE,
				   "its pages do not go on: they bring nothing new");
}

/* Reads the next page that can be used. */
static void
read_page(Reading *reading)
{
	ClerkListing *listing = &reading->listing;
	const int64 end = listing->offset;
	int64		overlap = OVERLAP;

	if (end > 0)
		listing->offset = Max(end - overlap, 0);
	for (;;)
	{
		fetch(reading);
		if (!begins_too_late(reading))
			break;
		overlap *= 2;
		listing->offset = Max(end - overlap, 0);
	}

	/*
	 * A page that is not full is the last one, unless Clerk has made all
	 * pages smaller than was asked for.
	 */
	listing->offset += reading->page.count;
	reading->last = reading->page.count < PAGE_SIZE &&
		(reading->page.count == 0 ||
		 listing->offset >= reading->page.total_count);
}

/* Reads the page at the listing's offset. */
static void
fetch(Reading *reading)
{
	MemoryContext caller;
	ClerkHttpRequest *request;
	ClerkError *error;

	MemoryContextReset(reading->page_memory);
	reading->page.count = 0;
	reading->next = 0;
	caller = MemoryContextSwitchTo(reading->page_memory);
	request = clerk_start_list_invitations(&reading->listing, &error);
	if (request == NULL)
		clerk_raise(error, reading->failure);
	clerk_await(request, CLERK_EFFECT_NONE);
	if (!clerk_finish_list_invitations(request, &reading->listing,
									   &reading->page, &error))
		clerk_raise(error, reading->failure);
	clerk_http_release(request);
	MemoryContextSwitchTo(caller);

	if (!reading->page.legible)
		raise_unusable(reading, ERRCODE_UNTRANSLATABLE_CHARACTER,
					   clerk_json_fault_text(CLERK_JSON_UNTRANSLATABLE));
	check_order(reading);
}

/* All that is said above rests on the order. */
static void
check_order(const Reading *reading)
{
	const ClerkInvitationList *page = &reading->page;

	for (int i = 0; i < page->count; i++)
	{
		if (page->invitations[i].nulls[CLERK_INVITATION_CREATED_AT])
			raise_unusable(reading, ERRCODE_CONNECTION_FAILURE,
						   "\"created_at\" is missing");
		if (i > 0 &&
			created_at(&page->invitations[i]) < created_at(&page->invitations[i - 1]))
			raise_unusable(reading, ERRCODE_CONNECTION_FAILURE,
						   "it is not in the order that was asked for");
	}
}

/* Whether there may be something before the page that was not read. */
static bool
begins_too_late(const Reading *reading)
{
	if (reading->listing.offset == 0)
		return false;
	return reading->page.count == 0 ||
		created_at(&reading->page.invitations[0]) >= reading->newest;
}

static bool
is_new(const Reading *reading, const ClerkInvitation *invitation)
{
	const TimestampTz created = created_at(invitation);
	const char *id;
	ListCell   *cell;

	if (!reading->any || created > reading->newest)
		return true;
	if (created < reading->newest)
		return false;
	id = clerk_invitation_text(invitation, CLERK_INVITATION_ID);
	foreach(cell, reading->ids_of_newest)
		if (strcmp(lfirst(cell), id) == 0)
		return false;
	return true;
}

static void
note_read(Reading *reading, const ClerkInvitation *invitation)
{
	MemoryContext caller = MemoryContextSwitchTo(reading->memory);

	if (!reading->any || created_at(invitation) > reading->newest)
	{
		list_free_deep(reading->ids_of_newest);
		reading->ids_of_newest = NIL;
		reading->newest = created_at(invitation);
		reading->any = true;
	}
	reading->ids_of_newest = lappend(reading->ids_of_newest,
									 clerk_invitation_text(invitation,
														   CLERK_INVITATION_ID));
	MemoryContextSwitchTo(caller);
}

static TimestampTz
created_at(const ClerkInvitation *invitation)
{
	return DatumGetTimestampTz(invitation->values[CLERK_INVITATION_CREATED_AT]);
}

/* Clerk's answers are good, but not as a list; "fault" says why. */
static void
raise_unusable(const Reading *reading, int sqlstate, const char *fault)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s: the answer of Clerk cannot be read", reading->failure),
			 errdetail("The answer is not as documented: %s.", fault)));
}
