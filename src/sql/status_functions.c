/*
 * status_functions.c
 *		The SQL functions for monitoring: the state of the workers, and the
 *		remaining rate-limit budgets.
 *
 * All of them raise 55000 if their result does not have the columns that this
 * library returns.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "clerk/api_request.h"
#include "clerk/rate_limit.h"
#include "commands/dbcommands.h"
#include "common/settings.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "sql/result_descriptor.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "worker/slots.h"

/* Result columns of clerk_worker_status(). */
enum
{
	WORKER_DATABASE,
	WORKER_PID,
	WORKER_STATE,
	WORKER_STARTED_AT,
	WORKER_NEXT_RUN_AT,
	WORKER_LAST_ERROR,
	WORKER_COLUMNS
};

static const char *const state_names[] = {
	[CLERK_WORKER_WANTED] = "wanted",
	[CLERK_WORKER_STARTING] = "starting",
	[CLERK_WORKER_RESTARTING] = "restarting",
	[CLERK_WORKER_SENDING] = "sending",
	[CLERK_WORKER_WAITING] = "waiting",
};

/* Result columns of clerk_rate_limit_status(). */
enum
{
	LIMIT_ENDPOINT,
	LIMIT_REQUESTS_PER_WINDOW,
	LIMIT_USED,
	LIMIT_REMAINING,
	LIMIT_AVAILABLE_AT,
	LIMIT_CLOSED_UNTIL,
	LIMIT_COLUMNS
};

/* The endpoints with a budget, and their names in the result. */
static const struct
{
	ClerkEndpoint endpoint;
	const char *name;
}			endpoints[] = {
	{CLERK_ENDPOINT_SINGLE, "single"},
	{CLERK_ENDPOINT_BULK, "bulk"},
};

#define VIEW "clerk_invitation_progress"

/* Result columns of clerk_invitation_progress_limits(). */
enum
{
	PROGRESS_SINGLE_LIMIT,
	PROGRESS_SINGLE_LEFT,
	PROGRESS_BULK_LIMIT,
	PROGRESS_BULK_LEFT,
	PROGRESS_MORE_AT,
	PROGRESS_LIMIT_WINDOW,
	PROGRESS_COLUMNS
};

static HeapTuple make_worker_row(TupleDesc descriptor,
								 const ClerkWorkerStatus *status);
static uint64 require_instance(void);
static HeapTuple make_limit_row(TupleDesc descriptor, uint64 instance, int position);
static void check_privilege(Oid schema);
static void fill_progress_columns(uint64 instance, Datum *values, bool *nulls);
static int	available_now(const ClerkBudget *budget);
static Datum limit_window(void);

PG_FUNCTION_INFO_V1(clerk_worker_status);

/*
 * clerk_worker_status()
 *		RETURNS TABLE (database name, pid integer, state text,
 *			started_at timestamptz, next_run_at timestamptz, last_error text)
 *
 * Returns a row for each database that has a background worker or waits for
 * one.  If there is no shared memory left, returns no rows, with a WARNING.
 */
Datum
clerk_worker_status(PG_FUNCTION_ARGS)
{
	FuncCallContext *call;
	HeapTuple	row;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext caller;
		ClerkWorkerStatus *list = NULL;

		call = SRF_FIRSTCALL_INIT();
		caller = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		call->tuple_desc = clerk_result_descriptor(fcinfo, WORKER_COLUMNS);
		if (clerk_worker_slots_attach())
			call->max_calls = clerk_worker_list(&list);
		call->user_fctx = list;
		MemoryContextSwitchTo(caller);
	}

	call = SRF_PERCALL_SETUP();
	if (call->call_cntr >= call->max_calls)
		SRF_RETURN_DONE(call);
	row = make_worker_row(call->tuple_desc,
						  &((ClerkWorkerStatus *) call->user_fctx)[call->call_cntr]);
	SRF_RETURN_NEXT(call, HeapTupleGetDatum(row));
}

static HeapTuple
make_worker_row(TupleDesc descriptor, const ClerkWorkerStatus *status)
{
	Datum		values[WORKER_COLUMNS];
	bool		nulls[WORKER_COLUMNS] = {false};
	char	   *database = get_database_name(status->database);
	NameData	name;			/* heap_form_tuple() copies all NAMEDATALEN
								 * bytes */

	/* NULL if the database has been dropped. */
	nulls[WORKER_DATABASE] = (database == NULL);
	if (database != NULL)
		namestrcpy(&name, database);
	values[WORKER_DATABASE] = NameGetDatum(&name);
	nulls[WORKER_PID] = (status->pid == 0);
	values[WORKER_PID] = Int32GetDatum(status->pid);
	values[WORKER_STATE] = CStringGetTextDatum(state_names[status->state]);
	values[WORKER_STARTED_AT] = TimestampTzGetDatum(status->started_at);
	nulls[WORKER_NEXT_RUN_AT] = (status->next_run_at == 0);
	values[WORKER_NEXT_RUN_AT] = TimestampTzGetDatum(status->next_run_at);
	nulls[WORKER_LAST_ERROR] = (status->last_error[0] == '\0');
	values[WORKER_LAST_ERROR] = CStringGetTextDatum(status->last_error);
	return heap_form_tuple(descriptor, values, nulls);
}

PG_FUNCTION_INFO_V1(clerk_rate_limit_status);

/*
 * clerk_rate_limit_status()
 *		RETURNS TABLE (endpoint text, requests_per_window integer,
 *			used integer, remaining integer, available_at timestamptz,
 *			closed_until timestamptz)
 *
 * Raises 55000 without a usable key, 53200 without shared memory for the rate
 * limits.
 */
Datum
clerk_rate_limit_status(PG_FUNCTION_ARGS)
{
	FuncCallContext *call;
	HeapTuple	row;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext caller;

		call = SRF_FIRSTCALL_INIT();
		caller = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		call->tuple_desc = clerk_result_descriptor(fcinfo, LIMIT_COLUMNS);
		call->user_fctx = palloc(sizeof(uint64));
		*(uint64 *) call->user_fctx = require_instance();
		call->max_calls = lengthof(endpoints);
		MemoryContextSwitchTo(caller);
	}

	call = SRF_PERCALL_SETUP();
	if (call->call_cntr >= call->max_calls)
		SRF_RETURN_DONE(call);
	row = make_limit_row(call->tuple_desc, *(uint64 *) call->user_fctx,
						 (int) call->call_cntr);
	SRF_RETURN_NEXT(call, HeapTupleGetDatum(row));
}

/*
 * Returns the Clerk instance that this session's settings choose.  Raises
 * 55000 if there is no usable key.
 */
static uint64
require_instance(void)
{
	uint64		instance;
	ClerkError *error;

	if (!clerk_chosen_instance(&instance, &error))
		ereport(ERROR,
				(errcode(error->sqlstate),
				 errmsg("could not identify the Clerk instance: %s",
						error->summary),
				 error->detail != NULL ? errdetail("%s", error->detail) : 0,
				 error->hint != NULL ? errhint("%s", error->hint) : 0));
	return instance;
}

static HeapTuple
make_limit_row(TupleDesc descriptor, uint64 instance, int position)
{
	Datum		values[LIMIT_COLUMNS];
	bool		nulls[LIMIT_COLUMNS] = {false};
	ClerkBudget budget;

	clerk_rate_limit_read(instance, endpoints[position].endpoint, &budget);
	values[LIMIT_ENDPOINT] = CStringGetTextDatum(endpoints[position].name);
	values[LIMIT_REQUESTS_PER_WINDOW] = Int32GetDatum(budget.limit);
	values[LIMIT_USED] = Int32GetDatum(budget.used);
	values[LIMIT_REMAINING] = Int32GetDatum(budget.remaining);
	values[LIMIT_AVAILABLE_AT] = TimestampTzGetDatum(budget.available_at);
	nulls[LIMIT_AVAILABLE_AT] = (budget.available_at == 0);
	values[LIMIT_CLOSED_UNTIL] = TimestampTzGetDatum(budget.closed_until);
	nulls[LIMIT_CLOSED_UNTIL] = (budget.closed_until == 0);
	return heap_form_tuple(descriptor, values, nulls);
}

PG_FUNCTION_INFO_V1(clerk_invitation_progress_limits);

/*
 * clerk_invitation_progress_limits()
 *		RETURNS (single_limit integer, single_left integer,
 *			bulk_limit integer, bulk_left integer, more_at timestamptz,
 *			limit_window interval)
 *
 * All columns are NULL without a usable key.  Raises 42501 if the user has no
 * SELECT privilege on the view, 53200 without shared memory for the rate
 * limits.
 */
Datum
clerk_invitation_progress_limits(PG_FUNCTION_ARGS)
{
	TupleDesc	descriptor = clerk_result_descriptor(fcinfo, PROGRESS_COLUMNS);
	Datum		values[PROGRESS_COLUMNS];
	bool		nulls[PROGRESS_COLUMNS];
	uint64		instance;
	ClerkError *error;

	check_privilege(get_func_namespace(fcinfo->flinfo->fn_oid));
	memset(nulls, true, sizeof(nulls));
	if (clerk_chosen_instance(&instance, &error))
		fill_progress_columns(instance, values, nulls);
	return HeapTupleGetDatum(heap_form_tuple(descriptor, values, nulls));
}

/*
 * Raises 42501 unless the user may read the view.  A view reads tables with
 * the rights of its owner, but calls functions with the rights of the user.
 * Therefore EXECUTE on this function is granted to PUBLIC, and it checks the
 * privilege on the view itself.  As for a SELECT, the privilege on some of the
 * columns is enough.
 */
static void
check_privilege(Oid schema)
{
	Oid			view = get_relname_relid(VIEW, schema);

	if (pg_class_aclcheck(view, GetUserId(), ACL_SELECT) != ACLCHECK_OK &&
		pg_attribute_aclcheck_all(view, GetUserId(), ACL_SELECT,
								  ACLMASK_ANY) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_VIEW, VIEW);
}

static void
fill_progress_columns(uint64 instance, Datum *values, bool *nulls)
{
	ClerkBudget singles;
	ClerkBudget bulks;

	clerk_rate_limit_read(instance, CLERK_ENDPOINT_SINGLE, &singles);
	clerk_rate_limit_read(instance, CLERK_ENDPOINT_BULK, &bulks);
	memset(nulls, false, PROGRESS_COLUMNS * sizeof(bool));
	values[PROGRESS_SINGLE_LIMIT] = Int32GetDatum(singles.limit);
	values[PROGRESS_SINGLE_LEFT] = Int32GetDatum(available_now(&singles));
	values[PROGRESS_BULK_LIMIT] = Int32GetDatum(bulks.limit);
	values[PROGRESS_BULK_LEFT] = Int32GetDatum(available_now(&bulks));
	values[PROGRESS_MORE_AT] = TimestampTzGetDatum(Min(singles.available_at,
													   bulks.available_at));
	nulls[PROGRESS_MORE_AT] = (singles.available_at == 0 || bulks.available_at == 0);
	values[PROGRESS_LIMIT_WINDOW] = limit_window();
}

/*
 * Returns the number of requests that can be sent now.  It is 0 while Clerk
 * has closed the endpoint, whatever the budget says.
 */
static int
available_now(const ClerkBudget *budget)
{
	return budget->available_at == 0 ? budget->remaining : 0;
}

static Datum
limit_window(void)
{
	Interval   *window = palloc0(sizeof(Interval));

	window->time = clerk_rate_limit_window * INT64CONST(1000);
	return IntervalPGetDatum(window);
}
