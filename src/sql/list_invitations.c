/*
 * list_invitations.c
 *		The SQL functions that read lists of invitations, a page at a time, as
 *		rows are asked for.
 *
 * Users call clerk_list_organization_invitations() and its like, which are SQL
 * functions around these.  The planner puts their bodies in their place, so that
 * these are called in a SELECT list even if those are in FROM, where the
 * executor asks a function for all of its rows before it uses the first.
 *
 * What that has for it is that a scan that begins anew, as the inner side of a
 * join, does not call the function again.  So the rows that were read are kept
 * for the rest of the statement, and a list with the same arguments is not
 * asked for twice by one call in it.
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "clerk/await_request.h"
#include "clerk/invitation_pages.h"
#include "common/installed_extension.h"
#include "compat.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "sql/arguments.h"
#include "sql/result_descriptor.h"
#include "sql/statement_request.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

/*
 * Invitations asked for at a time.  With all the metadata that Clerk allows,
 * twice 8 kB, that many stay below the 4 MiB that http/http.c takes of an answer,
 * and a LIMIT of a few rows does not ask for much more than it needs.
 */
#define PAGE_SIZE 200

/* A list that is being read. */
typedef struct Reading
{
	MemoryContext memory;		/* of all this; it ends with the statement */
	const char *failure;		/* what could not be done if Clerk refuses */
	ClerkInvitationPages *pages;
	MemoryContext page_memory;	/* of the page and its request */
	TupleTableSlot *slot;
	Tuplestorestate *rows;		/* that were read */
	MemoryContext rows_memory;
	bool		in_scan;		/* some of them were returned, not all */
} Reading;

static Datum list(FunctionCallInfo fcinfo, const ClerkListing *listing,
				  const char *failure);
static bool is_first_call(FunctionCallInfo fcinfo);
static void check_privilege(FunctionCallInfo fcinfo, const char *name);
static void begin_scan(FunctionCallInfo fcinfo, const ClerkListing *listing,
					   const char *failure);
static Reading *begin_reading(FunctionCallInfo fcinfo,
							  const ClerkListing *listing,
							  const char *failure);
static bool next_row(Reading *reading);
static ClerkInvitation *next_new(Reading *reading);
static void read_page(Reading *reading, const ClerkListing *wanted);
pg_noreturn static void raise_unusable(const Reading *reading, int sqlstate,
									   const char *reason);
static void on_scan_end(Datum arg);
static void on_memory_reset(void *arg);

PG_FUNCTION_INFO_V1(clerk_read_organization_invitations);
PG_FUNCTION_INFO_V1(clerk_read_instance_organization_invitations);

/*
 * clerk_read_organization_invitations(org_id text, status text[], email text)
 *		RETURNS SETOF clerk_organization_invitation
 *
 * Clerk's ListOrganizationInvitations, oldest first.  Raises what
 * clerk/error.c's table says, 22004 and 22023 for arguments that cannot be
 * meant, 25000 in a parallel operation, 42501 for who may not execute
 * clerk_list_organization_invitations().
 */
Datum
clerk_read_organization_invitations(PG_FUNCTION_ARGS)
{
	static const char name[] = "clerk_list_organization_invitations";
	ClerkListing listing = {.limit = PAGE_SIZE};
	const char *failure = NULL;

	if (is_first_call(fcinfo))
	{
		check_privilege(fcinfo, name);
		clerk_require_fit();
		PreventCommandIfParallelMode("clerk_list_organization_invitations()");
		listing.organization_id = clerk_required_identifier(fcinfo, 0, "org_id");
		listing.statuses = clerk_optional_texts(fcinfo, 1, "status");
		listing.email_address = clerk_optional_address(fcinfo, 2, "email");
		failure = psprintf("could not list the invitations of organization \"%s\"",
						   listing.organization_id);
	}
	return list(fcinfo, &listing, failure);
}

/*
 * clerk_read_instance_organization_invitations(status text[], query text)
 *		RETURNS SETOF clerk_organization_invitation
 *
 * Clerk's ListInstanceOrganizationInvitations, oldest first.  Raises as the
 * function above.
 */
Datum
clerk_read_instance_organization_invitations(PG_FUNCTION_ARGS)
{
	static const char name[] = "clerk_list_instance_organization_invitations";
	ClerkListing listing = {.limit = PAGE_SIZE};

	if (is_first_call(fcinfo))
	{
		check_privilege(fcinfo, name);
		clerk_require_fit();
		PreventCommandIfParallelMode("clerk_list_instance_organization_invitations()");
		listing.statuses = clerk_optional_texts(fcinfo, 0, "status");
		listing.query = clerk_optional_text(fcinfo, 1, "query", CLERK_MAX_ADDRESS);
	}
	return list(fcinfo, &listing,
				"could not list the invitations of the Clerk instance");
}

/* Returns the next row, or ends the set; the listing counts in the first call. */
static Datum
list(FunctionCallInfo fcinfo, const ClerkListing *listing, const char *failure)
{
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;
	Reading    *reading;

	if (is_first_call(fcinfo))
		begin_scan(fcinfo, listing, failure);
	reading = fcinfo->flinfo->fn_extra;
	if (next_row(reading))
	{
		set->isDone = ExprMultipleResult;
		return ExecFetchSlotHeapTupleDatum(reading->slot);
	}
	UnregisterExprContextCallback(set->econtext, on_scan_end,
								  PointerGetDatum(reading));
	reading->in_scan = false;
	set->isDone = ExprEndResult;
	PG_RETURN_NULL();
}

/* Whether this call is to return the first row of a scan. */
static bool
is_first_call(FunctionCallInfo fcinfo)
{
	const Reading *reading = fcinfo->flinfo->fn_extra;

	return reading == NULL || !reading->in_scan;
}

/*
 * Everybody may call the functions of this file, so that a right to execute
 * those around them is enough: it is asked for here.
 */
static void
check_privilege(FunctionCallInfo fcinfo, const char *name)
{
	Oid			function = fcinfo->flinfo->fn_oid;
	Oid		   *types;
	int			count;
	List	   *qualified;
	Oid			asked_for;
	AclResult	result;

	(void) get_func_signature(function, &types, &count);
	qualified = list_make2(makeString(get_namespace_name(get_func_namespace(function))),
						   makeString(pstrdup(name)));
	asked_for = LookupFuncName(qualified, count, types, false);
	result = clerk_function_aclcheck(asked_for, GetUserId());
	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, name);
}

/* From the first row, whether it was read already or not. */
static void
begin_scan(FunctionCallInfo fcinfo, const ClerkListing *listing,
		   const char *failure)
{
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;
	Reading    *reading = fcinfo->flinfo->fn_extra;

	if (set == NULL || !IsA(set, ReturnSetInfo) ||
		(set->allowedModes & SFRM_ValuePerCall) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	if (reading != NULL && clerk_pages_are_of(reading->pages, listing))
		tuplestore_rescan(reading->rows);
	else
	{
		fcinfo->flinfo->fn_extra = NULL;
		if (reading != NULL)
			MemoryContextDelete(reading->memory);
		reading = begin_reading(fcinfo, listing, failure);
		fcinfo->flinfo->fn_extra = reading;
	}

	/* A scan may end before its last row, and another one begin. */
	RegisterExprContextCallback(set->econtext, on_scan_end,
								PointerGetDatum(reading));
	reading->in_scan = true;
}

static Reading *
begin_reading(FunctionCallInfo fcinfo, const ClerkListing *listing,
			  const char *failure)
{
	MemoryContext memory = AllocSetContextCreate(fcinfo->flinfo->fn_mcxt,
												 "clerk_invite list",
												 ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(memory);
	MemoryContextCallback *callback = palloc0(sizeof(*callback));
	Reading    *reading = palloc0(sizeof(Reading));

	reading->memory = memory;
	reading->failure = pstrdup(failure);
	reading->pages = clerk_pages_begin(listing);
	reading->page_memory = AllocSetContextCreate(memory, "clerk_invite page",
												 ALLOCSET_DEFAULT_SIZES);
	reading->slot = MakeSingleTupleTableSlot(clerk_invitation_descriptor(fcinfo),
											 &TTSOpsMinimalTuple);

	/*
	 * These have to be ended, and what is below "memory" goes before that can
	 * happen.  A file that they may have must not be the transaction's, which
	 * closes its files even before.
	 */
	reading->rows_memory = AllocSetContextCreate(TopMemoryContext,
												 "clerk_invite list rows",
												 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(reading->rows_memory);
	reading->rows = tuplestore_begin_heap(false, true, work_mem);
	callback->func = on_memory_reset;
	callback->arg = reading;
	MemoryContextRegisterResetCallback(memory, callback);
	MemoryContextSwitchTo(caller);
	return reading;
}

/* Puts the next row into the slot; false at the end. */
static bool
next_row(Reading *reading)
{
	MemoryContext caller = MemoryContextSwitchTo(reading->memory);
	ClerkInvitation *invitation;
	HeapTuple	row;
	bool		was_read;

	/* The slot may get a row of its own, from a file. */
	was_read = tuplestore_gettupleslot(reading->rows, true, false,
									   reading->slot);
	MemoryContextSwitchTo(caller);
	if (was_read)
		return true;
	invitation = next_new(reading);
	if (invitation == NULL)
		return false;

	/* The store is at its end, and stays there. */
	row = clerk_form_invitation(reading->slot->tts_tupleDescriptor, invitation);
	tuplestore_puttuple(reading->rows, row);
	ExecForceStoreHeapTuple(row, reading->slot, true);
	return true;
}

/* The next invitation that was not read yet; NULL at the end. */
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
	const char *reason;

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
					   clerk_json_error_text(CLERK_JSON_UNTRANSLATABLE));
	reason = clerk_pages_take(reading->pages, &page);
	if (reason != NULL)
		raise_unusable(reading, ERRCODE_CONNECTION_FAILURE, reason);
}

/* Clerk's answers are good, but not as a list; "reason" says why. */
static void
raise_unusable(const Reading *reading, int sqlstate, const char *reason)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s: could not read the response from Clerk", reading->failure),
			 errdetail("The response does not match Clerk's documentation: %s.", reason)));
}

static void
on_scan_end(Datum arg)
{
	Reading    *reading = (Reading *) DatumGetPointer(arg);

	reading->in_scan = false;
}

static void
on_memory_reset(void *arg)
{
	Reading    *reading = arg;

	tuplestore_end(reading->rows);
	MemoryContextDelete(reading->rows_memory);
}
