/*
 * worker_status.c
 *		The SQL function that tells what the background workers do.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "installed_extension.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "worker_slots.h"

/* The function's columns. */
enum
{
	COLUMN_DATABASE,
	COLUMN_PID,
	COLUMN_STATE,
	COLUMN_STARTED_AT,
	COLUMN_NEXT_RUN_AT,
	COLUMN_LAST_ERROR,
	COLUMNS
};

static const char *const state_names[] = {
	[CLERK_WORKER_WANTED] = "wanted",
	[CLERK_WORKER_STARTING] = "starting",
	[CLERK_WORKER_RESTARTING] = "restarting",
	[CLERK_WORKER_SENDING] = "sending",
	[CLERK_WORKER_WAITING] = "waiting",
};

static HeapTuple make_row(TupleDesc descriptor,
						  const ClerkWorkerStatus *status);

PG_FUNCTION_INFO_V1(clerk_worker_status);

/*
 * clerk_worker_status()
 *		RETURNS TABLE (database name, pid integer, state text,
 *			started_at timestamptz, next_run_at timestamptz, last_error text)
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
		call->tuple_desc = clerk_result_descriptor(fcinfo, COLUMNS);
		if (clerk_worker_slots_attach())
			call->max_calls = clerk_worker_list(&list);
		call->user_fctx = list;
		MemoryContextSwitchTo(caller);
	}

	call = SRF_PERCALL_SETUP();
	if (call->call_cntr >= call->max_calls)
		SRF_RETURN_DONE(call);
	row = make_row(call->tuple_desc,
				   &((ClerkWorkerStatus *) call->user_fctx)[call->call_cntr]);
	SRF_RETURN_NEXT(call, HeapTupleGetDatum(row));
}

static HeapTuple
make_row(TupleDesc descriptor, const ClerkWorkerStatus *status)
{
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS] = {false};
	char	   *database = get_database_name(status->database);
	NameData	name;			/* a tuple takes all of its bytes */

	/* NULL if it was dropped since. */
	nulls[COLUMN_DATABASE] = (database == NULL);
	if (database != NULL)
		namestrcpy(&name, database);
	values[COLUMN_DATABASE] = NameGetDatum(&name);
	nulls[COLUMN_PID] = (status->pid == 0);
	values[COLUMN_PID] = Int32GetDatum(status->pid);
	values[COLUMN_STATE] = CStringGetTextDatum(state_names[status->state]);
	values[COLUMN_STARTED_AT] = TimestampTzGetDatum(status->started_at);
	nulls[COLUMN_NEXT_RUN_AT] = (status->next_run_at == 0);
	values[COLUMN_NEXT_RUN_AT] = TimestampTzGetDatum(status->next_run_at);
	nulls[COLUMN_LAST_ERROR] = (status->last_error[0] == '\0');
	values[COLUMN_LAST_ERROR] = CStringGetTextDatum(status->last_error);
	return heap_form_tuple(descriptor, values, nulls);
}
