/*
 * list_invitations.c
 *		The SQL functions that read lists of invitations, one page at a time
 *		as rows are fetched.
 *
 * The executor materializes all rows of a function in FROM before it returns
 * the first.  To avoid reading the whole list for a LIMIT, the functions that
 * users call, clerk_list_organization_invitations() and
 * clerk_list_instance_organization_invitations(), are SQL functions whose
 * SELECT list calls the functions in this file.  The planner inlines them, and
 * then the executor fetches rows one by one.
 *
 * Materialization has one advantage: a rescan, for example of the inner side
 * of a join, does not call the function again.  To keep it, the rows that were
 * read are stored until the end of the statement, and each call site reads a
 * list with the same arguments only once.
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "clerk/await_request.h"
#include "clerk/invitation_pages.h"
#include "clerk/operations.h"
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
 * Invitations per page.  With twice 8 kB of metadata each, the most that Clerk
 * allows, a page stays below the 4 MiB limit on responses (http/transfer.c),
 * and a LIMIT of a few rows does not read much more than it needs.
 */
#define PAGE_SIZE 200

/* The state of reading one list, kept in fn_extra. */
typedef struct Reading
{
	MemoryContext memory;		/* for everything but the rows; lasts for the
								 * statement */
	const char *failure;		/* primary error message if Clerk refuses */
	ClerkInvitationPages *pages;
	MemoryContext page_memory;	/* for the current page and its request */
	TupleTableSlot *slot;
	Tuplestorestate *rows;		/* all rows read so far */
	MemoryContext rows_memory;
	bool		in_scan;		/* a scan has begun and has not reached the
								 * end */
} Reading;

static Datum return_next_row(FunctionCallInfo fcinfo,
							 const ClerkListing *listing, const List *statuses,
							 const char *failure);
static bool is_first_call(FunctionCallInfo fcinfo);
static void check_privilege(FunctionCallInfo fcinfo, const char *name);
static void begin_scan(FunctionCallInfo fcinfo, const ClerkListing *listing,
					   const List *statuses, const char *failure);
static Reading *begin_reading(FunctionCallInfo fcinfo,
							  const ClerkListing *listing,
							  const List *statuses, const char *failure);
static bool fetch_next_row(Reading *reading);
static ClerkInvitation *next_unread_invitation(Reading *reading);
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
 * Clerk's ListOrganizationInvitations, oldest first.
 *
 * Raises the SQLSTATE of the ClerkError if a request fails
 * (clerk/error_rules.c, clerk/request_error.c), 0A000 where no set is
 * accepted, 22004, 22021 and 22023 for invalid arguments, 22P05 if the
 * database's encoding lacks a character of the response, 08006 if the response
 * is not a list as documented, 25000 in a parallel operation, 42501 if the
 * user lacks EXECUTE privilege on clerk_list_organization_invitations(), 55000
 * without a usable key or with SQL objects that do not match the library,
 * 57014 when canceled.
 */
Datum
clerk_read_organization_invitations(PG_FUNCTION_ARGS)
{
	static const char name[] = "clerk_list_organization_invitations";
	ClerkListing listing = {.limit = PAGE_SIZE};
	List	   *statuses = NIL;
	const char *failure = NULL;

	if (is_first_call(fcinfo))
	{
		check_privilege(fcinfo, name);
		clerk_require_fit();
		PreventCommandIfParallelMode("clerk_list_organization_invitations()");
		listing.organization_id = clerk_required_identifier(fcinfo, 0, "org_id");
		statuses = clerk_optional_statuses(fcinfo, 1, "status");
		listing.email_address = clerk_optional_address(fcinfo, 2, "email");
		failure = psprintf("could not list the invitations of organization \"%s\"",
						   listing.organization_id);
	}
	return return_next_row(fcinfo, &listing, statuses, failure);
}

/*
 * clerk_read_instance_organization_invitations(status text[], query text)
 *		RETURNS SETOF clerk_organization_invitation
 *
 * Clerk's ListInstanceOrganizationInvitations, oldest first.  Raises the same
 * errors as clerk_read_organization_invitations(); the privilege is that on
 * clerk_list_instance_organization_invitations().
 */
Datum
clerk_read_instance_organization_invitations(PG_FUNCTION_ARGS)
{
	static const char name[] = "clerk_list_instance_organization_invitations";
	ClerkListing listing = {.limit = PAGE_SIZE};
	List	   *statuses = NIL;

	if (is_first_call(fcinfo))
	{
		check_privilege(fcinfo, name);
		clerk_require_fit();
		PreventCommandIfParallelMode("clerk_list_instance_organization_invitations()");
		statuses = clerk_optional_statuses(fcinfo, 0, "status");
		listing.query = clerk_optional_text(fcinfo, 1, "query", CLERK_MAX_ADDRESS);
	}
	return return_next_row(fcinfo, &listing, statuses,
						   "could not list the invitations of the Clerk instance");
}

/*
 * Returns the next row or ends the set.  "listing", "statuses" and "failure"
 * are used only by the first call of a scan.
 */
static Datum
return_next_row(FunctionCallInfo fcinfo, const ClerkListing *listing,
				const List *statuses, const char *failure)
{
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;
	Reading    *reading;

	if (is_first_call(fcinfo))
		begin_scan(fcinfo, listing, statuses, failure);
	reading = fcinfo->flinfo->fn_extra;
	if (fetch_next_row(reading))
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

/* Whether this call returns the first row of a scan. */
static bool
is_first_call(FunctionCallInfo fcinfo)
{
	const Reading *reading = fcinfo->flinfo->fn_extra;

	return reading == NULL || !reading->in_scan;
}

/*
 * Raises 42501 unless the user may execute the function of this name, which is
 * the one that users call.  EXECUTE on the functions in this file is granted
 * to PUBLIC, so that the privilege on that function is sufficient.
 */
static void
check_privilege(FunctionCallInfo fcinfo, const char *name)
{
	Oid			function = fcinfo->flinfo->fn_oid;
	Oid		   *types;
	int			count;
	List	   *qualified;
	Oid			wrapper;
	AclResult	result;

	(void) get_func_signature(function, &types, &count);
	qualified = list_make2(makeString(get_namespace_name(get_func_namespace(function))),
						   makeString(pstrdup(name)));
	wrapper = LookupFuncName(qualified, count, types, false);
	result = clerk_function_aclcheck(wrapper, GetUserId());
	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, name);
}

/*
 * Begins a scan at the first row, with the stored rows if the arguments are
 * the same.
 */
static void
begin_scan(FunctionCallInfo fcinfo, const ClerkListing *listing,
		   const List *statuses, const char *failure)
{
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;
	Reading    *reading = fcinfo->flinfo->fn_extra;

	if (set == NULL || !IsA(set, ReturnSetInfo) ||
		(set->allowedModes & SFRM_ValuePerCall) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	if (reading != NULL &&
		clerk_pages_are_of(reading->pages, listing, statuses))
		tuplestore_rescan(reading->rows);
	else
	{
		fcinfo->flinfo->fn_extra = NULL;
		if (reading != NULL)
			MemoryContextDelete(reading->memory);
		reading = begin_reading(fcinfo, listing, statuses, failure);
		fcinfo->flinfo->fn_extra = reading;
	}

	/* The scan may be abandoned before its last row and another one begin. */
	RegisterExprContextCallback(set->econtext, on_scan_end,
								PointerGetDatum(reading));
	reading->in_scan = true;
}

static Reading *
begin_reading(FunctionCallInfo fcinfo, const ClerkListing *listing,
			  const List *statuses, const char *failure)
{
	MemoryContext memory = AllocSetContextCreate(fcinfo->flinfo->fn_mcxt,
												 "clerk_invite list",
												 ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(memory);
	MemoryContextCallback *callback = palloc0(sizeof(*callback));
	Reading    *reading = palloc0(sizeof(Reading));

	reading->memory = memory;
	reading->failure = pstrdup(failure);
	reading->pages = clerk_pages_begin(listing, statuses);
	reading->page_memory = AllocSetContextCreate(memory, "clerk_invite page",
												 ALLOCSET_DEFAULT_SIZES);
	reading->slot = MakeSingleTupleTableSlot(clerk_invitation_descriptor(fcinfo),
											 &TTSOpsMinimalTuple);

	/*
	 * tuplestore_end() must be called to release a temporary file, but the
	 * children of "memory" are deleted before its reset callback is called.
	 * So the rows need a context outside of it.  interXact is true because
	 * the files of a transaction are closed even earlier.
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

/* Puts the next row into the slot.  Returns false at the end of the list. */
static bool
fetch_next_row(Reading *reading)
{
	MemoryContext caller = MemoryContextSwitchTo(reading->memory);
	ClerkInvitation *invitation;
	HeapTuple	row;
	bool		stored;

	/*
	 * The slot may own a tuple that is read from a temporary file, so switch
	 * to a context that lasts as long as the slot.
	 */
	stored = tuplestore_gettupleslot(reading->rows, true, false,
									 reading->slot);
	MemoryContextSwitchTo(caller);
	if (stored)
		return true;
	invitation = next_unread_invitation(reading);
	if (invitation == NULL)
		return false;

	/*
	 * The read position is at the end of the store, and stays there when a
	 * row is added.
	 */
	row = clerk_form_invitation(reading->slot->tts_tupleDescriptor, invitation);
	tuplestore_puttuple(reading->rows, row);
	ExecForceStoreHeapTuple(row, reading->slot, true);
	return true;
}

/* Returns the next invitation that is not in the store, or NULL at the end. */
static ClerkInvitation *
next_unread_invitation(Reading *reading)
{
	ClerkInvitation *invitation;
	const ClerkListing *wanted;

	while ((invitation = clerk_pages_next(reading->pages)) == NULL &&
		   (wanted = clerk_pages_wanted(reading->pages)) != NULL)
		read_page(reading, wanted);
	return invitation;
}

/* Requests a page and reads the response.  Raises an error if that fails. */
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

	if (!page.lossless)
		raise_unusable(reading, ERRCODE_UNTRANSLATABLE_CHARACTER,
					   clerk_json_error_text(CLERK_JSON_UNTRANSLATABLE));
	reason = clerk_pages_take(reading->pages, &page);
	if (reason != NULL)
		raise_unusable(reading, ERRCODE_CONNECTION_FAILURE, reason);
}

/*
 * Raises an error for a successful response that is not a valid list page;
 * "reason" says why.
 */
static void
raise_unusable(const Reading *reading, int sqlstate, const char *reason)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s: could not read the response from Clerk", reading->failure),
			 errdetail("The response does not match Clerk's documentation: %s.", reason)));
}

/* Expression context callback: the executor ends the scan. */
static void
on_scan_end(Datum arg)
{
	Reading    *reading = (Reading *) DatumGetPointer(arg);

	reading->in_scan = false;
}

/* Reset callback of Reading.memory. */
static void
on_memory_reset(void *arg)
{
	Reading    *reading = arg;

	tuplestore_end(reading->rows);
	MemoryContextDelete(reading->rows_memory);
}
