/*
 * list_invitations.c
 *		The SQL functions that list invitations, a page at a time, as rows are
 *		asked for.
 */
#include "postgres.h"

#include "arguments.h"
#include "funcapi.h"
#include "installed_extension.h"
#include "invitation_pages.h"
#include "miscadmin.h"
#include "statement_request.h"
#include "utils/memutils.h"

/*
 * Invitations asked for at a time.  With all the metadata that Clerk allows,
 * twice 8 kB, that many stay below the 4 MiB that http.c takes of an answer,
 * and a LIMIT of a few rows does not ask for much more than it needs.
 */
#define PAGE_SIZE 200

/* A list that is being read. */
typedef struct Reading
{
	ClerkInvitationPages *pages;
	const char *failure;		/* what could not be done if Clerk refuses */
	TupleDesc	descriptor;
	MemoryContext page_memory;	/* of the page and its request */
} Reading;

static Datum list(FunctionCallInfo fcinfo, const ClerkListing *listing,
				  const char *failure);
static Reading *begin_reading(FunctionCallInfo fcinfo, MemoryContext memory,
							  const ClerkListing *listing,
							  const char *failure);
static ClerkInvitation *next_new(Reading *reading);
static void read_page(Reading *reading, const ClerkListing *wanted);
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
	ClerkListing listing = {.limit = PAGE_SIZE};
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
	ClerkListing listing = {.limit = PAGE_SIZE};

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

	reading->pages = clerk_pages_begin(listing);
	reading->failure = failure == NULL ? NULL : pstrdup(failure);
	reading->descriptor = clerk_invitation_descriptor(fcinfo);
	reading->page_memory = AllocSetContextCreate(memory, "clerk_invite page",
												 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(caller);
	return reading;
}

/* The next invitation that was not returned yet; NULL at the end. */
static ClerkInvitation *
next_new(Reading *reading)
{
	ClerkInvitation *invitation;
	const ClerkListing *wanted;

	while ((invitation = clerk_pages_next(reading->pages)) == NULL &&
		   (wanted = clerk_pages_wanted(reading->pages)) != NULL)
		read_page(reading, wanted);
	return invitation;
}

static void
read_page(Reading *reading, const ClerkListing *wanted)
{
	MemoryContext caller;
	ClerkHttpRequest *request;
	ClerkInvitationList page;
	ClerkError *error;
	const char *fault;

	MemoryContextReset(reading->page_memory);
	caller = MemoryContextSwitchTo(reading->page_memory);
	request = clerk_start_list_invitations(wanted, &error);
	if (request == NULL)
		clerk_raise(error, reading->failure);
	clerk_await(request, CLERK_EFFECT_NONE);
	if (!clerk_finish_list_invitations(request, wanted, &page, &error))
		clerk_raise(error, reading->failure);
	clerk_http_release(request);
	MemoryContextSwitchTo(caller);

	if (!page.legible)
		raise_unusable(reading, ERRCODE_UNTRANSLATABLE_CHARACTER,
					   clerk_json_fault_text(CLERK_JSON_UNTRANSLATABLE));
	fault = clerk_pages_take(reading->pages, &page);
	if (fault != NULL)
		raise_unusable(reading, ERRCODE_CONNECTION_FAILURE, fault);
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
