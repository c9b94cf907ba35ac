/*
 * rate_limit_driver.c
 *		SQL functions for src/rate_limit.c itself, with a clock that a test
 *		sets and a window of its own.
 *
 * It contains that file once more, on the same shared memory, and is to be
 * linked with -Bsymbolic to use its own copy.  The budgets are the settings of
 * the library, which must have been loaded before.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

static TimestampTz driver_now(void);

#define GetCurrentTimestamp() driver_now()
#include "../src/shared_memory.c"
#include "../src/rate_limit.c"
#undef GetCurrentTimestamp

PG_MODULE_MAGIC;

int			clerk_single_requests_per_hour;
int			clerk_bulk_requests_per_hour;
int			clerk_rate_limit_window = 3600000;

static TimestampTz clock_stands_at = 0;	/* 0: it is the real one */
static ClerkTicket ticket;
static TimestampTz available_at;

static TimestampTz
driver_now(void)
{
	return clock_stands_at != 0 ? clock_stands_at : GetCurrentTimestamp();
}

static int
setting(const char *name)
{
	return pg_strtoint32(GetConfigOption(name, false, false));
}

PG_FUNCTION_INFO_V1(driver_set_clock);
PG_FUNCTION_INFO_V1(driver_set_window);
PG_FUNCTION_INFO_V1(driver_instance);
PG_FUNCTION_INFO_V1(driver_use_up_memory);
PG_FUNCTION_INFO_V1(driver_take);
PG_FUNCTION_INFO_V1(driver_available_at);
PG_FUNCTION_INFO_V1(driver_count);
PG_FUNCTION_INFO_V1(driver_answered);
PG_FUNCTION_INFO_V1(driver_give_back);
PG_FUNCTION_INFO_V1(driver_close);
PG_FUNCTION_INFO_V1(driver_used);
PG_FUNCTION_INFO_V1(driver_closed_until);

/* (timestamptz) */
Datum
driver_set_clock(PG_FUNCTION_ARGS)
{
	clock_stands_at = PG_GETARG_TIMESTAMPTZ(0);
	PG_RETURN_VOID();
}

/* (integer): milliseconds, for this session */
Datum
driver_set_window(PG_FUNCTION_ARGS)
{
	clerk_rate_limit_window = PG_GETARG_INT32(0);
	PG_RETURN_VOID();
}

/* (api_url text, key text) RETURNS bigint */
Datum
driver_instance(PG_FUNCTION_ARGS)
{
	char	   *url = text_to_cstring(PG_GETARG_TEXT_PP(0));

	PG_RETURN_INT64((int64) clerk_rate_limit_instance(url, strlen(url),
													  text_to_cstring(PG_GETARG_TEXT_PP(1))));
}

/* (): all that the server has to spare, until it restarts */
Datum
driver_use_up_memory(PG_FUNCTION_ARGS)
{
	while (ShmemAllocNoError(1024) != NULL)
		;
	PG_RETURN_VOID();
}

/* (instance bigint, endpoint integer, wanted integer) RETURNS integer */
Datum
driver_take(PG_FUNCTION_ARGS)
{
	clerk_single_requests_per_hour = setting("clerk_invite.single_requests_per_hour");
	clerk_bulk_requests_per_hour = setting("clerk_invite.bulk_requests_per_hour");
	PG_RETURN_INT32(clerk_rate_limit_take((uint64) PG_GETARG_INT64(0),
										  (ClerkEndpoint) PG_GETARG_INT32(1),
										  PG_GETARG_INT32(2),
										  &ticket, &available_at));
}

/* () RETURNS timestamptz: what the last take said; NULL: nothing */
Datum
driver_available_at(PG_FUNCTION_ARGS)
{
	if (available_at == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(available_at);
}

/* (instance bigint, endpoint integer) */
Datum
driver_count(PG_FUNCTION_ARGS)
{
	clerk_rate_limit_count((uint64) PG_GETARG_INT64(0),
						   (ClerkEndpoint) PG_GETARG_INT32(1), &ticket);
	PG_RETURN_VOID();
}

/* (answered_at timestamptz): one request of what was taken last */
Datum
driver_answered(PG_FUNCTION_ARGS)
{
	clerk_rate_limit_answered(&ticket, PG_GETARG_TIMESTAMPTZ(0));
	PG_RETURN_VOID();
}

/* (count integer): of what was taken last */
Datum
driver_give_back(PG_FUNCTION_ARGS)
{
	clerk_rate_limit_give_back(&ticket, PG_GETARG_INT32(0));
	PG_RETURN_VOID();
}

/* (instance bigint, endpoint integer, until timestamptz) */
Datum
driver_close(PG_FUNCTION_ARGS)
{
	clerk_rate_limit_close((uint64) PG_GETARG_INT64(0),
						   (ClerkEndpoint) PG_GETARG_INT32(1),
						   PG_GETARG_TIMESTAMPTZ(2));
	PG_RETURN_VOID();
}

/* (instance bigint, endpoint integer) RETURNS integer */
Datum
driver_used(PG_FUNCTION_ARGS)
{
	ClerkBudget budget;

	clerk_rate_limit_look((uint64) PG_GETARG_INT64(0),
						  (ClerkEndpoint) PG_GETARG_INT32(1), &budget);
	PG_RETURN_INT32(budget.used);
}

/* (instance bigint, endpoint integer) RETURNS timestamptz; NULL: it is open */
Datum
driver_closed_until(PG_FUNCTION_ARGS)
{
	ClerkBudget budget;

	clerk_rate_limit_look((uint64) PG_GETARG_INT64(0),
						  (ClerkEndpoint) PG_GETARG_INT32(1), &budget);
	if (budget.closed_until == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(budget.closed_until);
}
