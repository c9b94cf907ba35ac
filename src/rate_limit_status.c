/*
 * rate_limit_status.c
 *		The SQL function that shows Clerk's budgets.
 */
#include "postgres.h"

#include "clerk_api.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "installed_extension.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* The function's columns. */
enum
{
	COLUMN_ENDPOINT,
	COLUMN_REQUESTS_PER_WINDOW,
	COLUMN_USED,
	COLUMN_REMAINING,
	COLUMN_AVAILABLE_AT,
	COLUMN_CLOSED_UNTIL,
	COLUMNS
};

/* What is limited, and its name. */
static const struct
{
	ClerkEndpoint endpoint;
	const char *name;
}			endpoints[] = {
	{CLERK_ENDPOINT_SINGLE, "single"},
	{CLERK_ENDPOINT_BULK, "bulk"},
};

static uint64 chosen_instance(void);
static HeapTuple make_row(TupleDesc descriptor, uint64 instance, int position);

PG_FUNCTION_INFO_V1(clerk_rate_limit_status);

/*
 * clerk_rate_limit_status()
 *		RETURNS TABLE (endpoint text, requests_per_window integer,
 *			used integer, remaining integer, available_at timestamptz,
 *			closed_until timestamptz)
 *
 * Raises 55000 if there is no usable key, 53200 if there is no shared memory.
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
		call->tuple_desc = clerk_result_descriptor(fcinfo, COLUMNS);
		call->user_fctx = palloc(sizeof(uint64));
		*(uint64 *) call->user_fctx = chosen_instance();
		call->max_calls = lengthof(endpoints);
		MemoryContextSwitchTo(caller);
	}

	call = SRF_PERCALL_SETUP();
	if (call->call_cntr >= call->max_calls)
		SRF_RETURN_DONE(call);
	row = make_row(call->tuple_desc, *(uint64 *) call->user_fctx,
				   (int) call->call_cntr);
	SRF_RETURN_NEXT(call, HeapTupleGetDatum(row));
}

/* The one that this session's settings choose. */
static uint64
chosen_instance(void)
{
	uint64		instance;
	ClerkError *error;

	if (!clerk_chosen_instance(&instance, &error))
		ereport(ERROR,
				(errcode(error->sqlstate),
				 errmsg("could not tell the Clerk instance: %s",
						error->summary),
				 error->detail != NULL ? errdetail("%s", error->detail) : 0,
				 error->hint != NULL ? errhint("%s", error->hint) : 0));
	return instance;
}

static HeapTuple
make_row(TupleDesc descriptor, uint64 instance, int position)
{
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS] = {false};
	ClerkBudget budget;

	clerk_rate_limit_look(instance, endpoints[position].endpoint, &budget);
	values[COLUMN_ENDPOINT] = CStringGetTextDatum(endpoints[position].name);
	values[COLUMN_REQUESTS_PER_WINDOW] = Int32GetDatum(budget.limit);
	values[COLUMN_USED] = Int32GetDatum(budget.used);
	values[COLUMN_REMAINING] = Int32GetDatum(budget.remaining);
	values[COLUMN_AVAILABLE_AT] = TimestampTzGetDatum(budget.available_at);
	nulls[COLUMN_AVAILABLE_AT] = (budget.available_at == 0);
	values[COLUMN_CLOSED_UNTIL] = TimestampTzGetDatum(budget.closed_until);
	nulls[COLUMN_CLOSED_UNTIL] = (budget.closed_until == 0);
	return heap_form_tuple(descriptor, values, nulls);
}
