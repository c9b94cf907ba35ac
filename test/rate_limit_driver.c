/*
 * rate_limit_driver.c
 *		SQL functions that call src/clerk/rate_limit.c and reservation.c
 *		directly, with clocks that a test sets and with a window of its own.
 *
 * This library contains its own copy of these files and of those below them,
 * which works on the same shared memory.  It must be linked with -Bsymbolic so
 * that it calls its own copy.  The budgets are the settings of the extension's
 * library, which must have been loaded before.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

/* The times here are not the server's, so leave the server's file alone. */
#undef PGSTAT_STAT_PERMANENT_DIRECTORY
#define PGSTAT_STAT_PERMANENT_DIRECTORY "pg_stat_tmp"

static TimestampTz driver_now(void);
static int64 driver_monotonic(void);

/* PgReloadTime as this session sees it. */
static TimestampTz reloaded_at = 0;

#include "../src/common/monotonic_clock.c"
#define GetCurrentTimestamp() driver_now()
#define clerk_monotonic_microseconds() driver_monotonic()
#define PgReloadTime reloaded_at
#include "../src/common/shared_memory.c"
#include "../src/clerk/budget_file.c"
#include "../src/clerk/request_window.c"
#include "../src/clerk/instance_budgets.c"
#include "../src/clerk/budget_store.c"
#include "../src/clerk/rate_limit.c"
#include "../src/clerk/reservation.c"
#undef GetCurrentTimestamp
#undef clerk_monotonic_microseconds

PG_MODULE_MAGIC;

int			clerk_single_requests_per_hour;
int			clerk_bulk_requests_per_hour;
int			clerk_rate_limit_window = 3600000;
int			clerk_request_timeout = 30000;

/* The time at which both clocks stand still; 0: they are the real clocks. */
static TimestampTz stopped_at = 0;

/* Microseconds by which the wall clock is ahead of that. */
static int64 clock_step = 0;

/* The reservations taken last, and those started since without one. */
static ClerkReservation *reservations = NULL;
static int	reservation_count = 0;
static int	reservation_room = 0;
static TimestampTz available_at;

static TimestampTz
driver_now(void)
{
	return (stopped_at != 0 ? stopped_at : GetCurrentTimestamp()) +
		clock_step;
}

/*
 * The monotonic clock, with readings such that "our time" starts at the wall
 * clock's time.  The two differ as soon as the wall clock alone is set.
 */
static int64
driver_monotonic(void)
{
	static int64 base = -1;

	if (stopped_at == 0)
		return clerk_monotonic_microseconds();
	if (base < 0)
		base = state->loaded ? state->clock_offset : 0;
	return stopped_at - base;
}

static void
make_room(int count)
{
	if (reservation_room >= count)
		return;
	reservation_room = 2 * count;
	reservations = realloc(reservations,
						   reservation_room * sizeof(ClerkReservation));
	if (reservations == NULL)
		elog(FATAL, "out of memory");
}

static int
setting(const char *name)
{
	return pg_strtoint32(GetConfigOption(name, false, false));
}

PG_FUNCTION_INFO_V1(driver_set_clock);
PG_FUNCTION_INFO_V1(driver_step_clock);
PG_FUNCTION_INFO_V1(driver_set_window);
PG_FUNCTION_INFO_V1(driver_set_reload_time);
PG_FUNCTION_INFO_V1(driver_instance);
PG_FUNCTION_INFO_V1(driver_use_up_memory);
PG_FUNCTION_INFO_V1(driver_find_memory);
PG_FUNCTION_INFO_V1(driver_restart);
PG_FUNCTION_INFO_V1(driver_reserve);
PG_FUNCTION_INFO_V1(driver_start);
PG_FUNCTION_INFO_V1(driver_take);
PG_FUNCTION_INFO_V1(driver_available_at);
PG_FUNCTION_INFO_V1(driver_count);
PG_FUNCTION_INFO_V1(driver_answered);
PG_FUNCTION_INFO_V1(driver_give_back);
PG_FUNCTION_INFO_V1(driver_not_sent);
PG_FUNCTION_INFO_V1(driver_close);
PG_FUNCTION_INFO_V1(driver_used);
PG_FUNCTION_INFO_V1(driver_closed_until);

/* (timestamptz): stops both clocks at this time */
Datum
driver_set_clock(PG_FUNCTION_ARGS)
{
	stopped_at = PG_GETARG_TIMESTAMPTZ(0);
	PG_RETURN_VOID();
}

/*
 * (integer): sets the wall clock alone ahead by so many seconds, or back if
 * negative
 */
Datum
driver_step_clock(PG_FUNCTION_ARGS)
{
	clock_step += PG_GETARG_INT32(0) * USECS_PER_SEC;
	PG_RETURN_VOID();
}

/*
 * (integer): sets the window's length in milliseconds for this session, which
 * has reloaded its configuration now
 */
Datum
driver_set_window(PG_FUNCTION_ARGS)
{
	clerk_rate_limit_window = PG_GETARG_INT32(0);
	reloaded_at = driver_now();
	PG_RETURN_VOID();
}

/*
 * (timestamptz): sets the time at which this session has reloaded its
 * configuration
 */
Datum
driver_set_reload_time(PG_FUNCTION_ARGS)
{
	reloaded_at = PG_GETARG_TIMESTAMPTZ(0);
	PG_RETURN_VOID();
}

/* (api_url text, key text) RETURNS bigint: the number of the Clerk instance */
Datum
driver_instance(PG_FUNCTION_ARGS)
{
	char	   *url = text_to_cstring(PG_GETARG_TEXT_PP(0));

	PG_RETURN_INT64((int64) clerk_rate_limit_instance(url, strlen(url),
													  text_to_cstring(PG_GETARG_TEXT_PP(1))));
}

/*
 * (): uses up all the server's spare shared memory, until the server restarts
 */
Datum
driver_use_up_memory(PG_FUNCTION_ARGS)
{
	while (ShmemAllocNoError(1024) != NULL)
		;
	PG_RETURN_VOID();
}

/*
 * (holds integer) RETURNS integer: requests shared memory that is not
 * available while interrupts are held off "holds" times; returns by how much
 * that changes the interrupt holdoff counts, which should be 0
 */
Datum
driver_find_memory(PG_FUNCTION_ARGS)
{
	uint32		interrupts = InterruptHoldoffCount;
	uint32		cancels = QueryCancelHoldoffCount;
	int			holds = PG_GETARG_INT32(0);
	int			change;

	InterruptHoldoffCount += holds;
	QueryCancelHoldoffCount += holds;
	if (clerk_find_shared_memory("clerk_invite driver", 16 * 1024 * 1024) != NULL)
		elog(ERROR, "the server has this much memory to spare");
	change = (int) (InterruptHoldoffCount - interrupts - holds) +
		(int) (QueryCancelHoldoffCount - cancels - holds);
	InterruptHoldoffCount = interrupts;
	QueryCancelHoldoffCount = cancels;
	PG_RETURN_INT32(change);
}

/*
 * (): clears the shared memory as a crash does, and what this session knows of
 * it
 */
Datum
driver_restart(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	(void) clerk_budget_store_lock();
	memset((char *) state + sizeof(LWLock), 0, sizeof(State) - sizeof(LWLock));
	memset(own, 0, sizeof(own));
	file_is_stale = false;
	clerk_budget_store_unlock();
	PG_RETURN_VOID();
}

/*
 * (instance bigint, endpoint integer, wanted integer) RETURNS integer: takes
 * reservations; returns how many were granted
 */
Datum
driver_reserve(PG_FUNCTION_ARGS)
{
	clerk_single_requests_per_hour = setting("clerk_invite.single_requests_per_hour");
	clerk_bulk_requests_per_hour = setting("clerk_invite.bulk_requests_per_hour");
	make_room(PG_GETARG_INT32(2));
	reservation_count = clerk_reservation_take((uint64) PG_GETARG_INT64(0),
											   (ClerkEndpoint) PG_GETARG_INT32(1),
											   PG_GETARG_INT32(2),
											   reservations, &available_at);
	PG_RETURN_INT32(reservation_count);
}

/*
 * Returns the first reservation in this state.  If there is none, returns a
 * settled one.
 */
static ClerkReservation *
next_reservation(ClerkReservationState state)
{
	static ClerkReservation none;

	for (int i = 0; i < reservation_count; i++)
		if (reservations[i].state == state)
			return &reservations[i];
	return &none;
}

/* (count integer): starts so many of the reservations taken last */
Datum
driver_start(PG_FUNCTION_ARGS)
{
	for (int i = 0; i < PG_GETARG_INT32(0); i++)
		clerk_reservation_start(next_reservation(CLERK_RESERVATION_HELD));
	PG_RETURN_VOID();
}

/*
 * (instance bigint, endpoint integer, wanted integer) RETURNS integer: takes
 * reservations and starts those granted; returns how many were granted
 */
Datum
driver_take(PG_FUNCTION_ARGS)
{
	int			granted = DatumGetInt32(driver_reserve(fcinfo));

	for (int i = 0; i < granted; i++)
		clerk_reservation_start(&reservations[i]);
	PG_RETURN_INT32(granted);
}

/*
 * () RETURNS timestamptz: *available_at of the last clerk_reservation_take();
 * NULL if that was 0
 */
Datum
driver_available_at(PG_FUNCTION_ARGS)
{
	if (available_at == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(available_at);
}

/*
 * (instance bigint, endpoint integer): starts a request without a reservation
 */
Datum
driver_count(PG_FUNCTION_ARGS)
{
	make_room(reservation_count + 1);
	clerk_reservation_init_unreserved((uint64) PG_GETARG_INT64(0),
									  (ClerkEndpoint) PG_GETARG_INT32(1),
									  &reservations[reservation_count]);
	clerk_reservation_start(&reservations[reservation_count++]);
	PG_RETURN_VOID();
}

/*
 * (count integer, responded_at timestamptz): settles so many started requests
 * as completed
 */
Datum
driver_answered(PG_FUNCTION_ARGS)
{
	for (int i = 0; i < PG_GETARG_INT32(0); i++)
		clerk_reservation_responded(next_reservation(CLERK_RESERVATION_STARTED),
									PG_GETARG_TIMESTAMPTZ(1));
	PG_RETURN_VOID();
}

/*
 * (count integer): settles so many reservations that were not started as not
 * sent
 */
Datum
driver_give_back(PG_FUNCTION_ARGS)
{
	for (int i = 0; i < PG_GETARG_INT32(0); i++)
		clerk_reservation_not_sent(next_reservation(CLERK_RESERVATION_HELD));
	PG_RETURN_VOID();
}

/* (count integer): settles so many started requests as not sent */
Datum
driver_not_sent(PG_FUNCTION_ARGS)
{
	for (int i = 0; i < PG_GETARG_INT32(0); i++)
		clerk_reservation_not_sent(next_reservation(CLERK_RESERVATION_STARTED));
	PG_RETURN_VOID();
}

/* (instance bigint, endpoint integer, seconds integer): closes an endpoint */
Datum
driver_close(PG_FUNCTION_ARGS)
{
	clerk_rate_limit_close((uint64) PG_GETARG_INT64(0),
						   (ClerkEndpoint) PG_GETARG_INT32(1),
						   PG_GETARG_INT32(2));
	PG_RETURN_VOID();
}

/*
 * (instance bigint, endpoint integer) RETURNS integer: requests in the window
 */
Datum
driver_used(PG_FUNCTION_ARGS)
{
	ClerkBudget budget;

	clerk_rate_limit_read((uint64) PG_GETARG_INT64(0),
						  (ClerkEndpoint) PG_GETARG_INT32(1), &budget);
	PG_RETURN_INT32(budget.used);
}

/*
 * (instance bigint, endpoint integer) RETURNS timestamptz: NULL if not closed
 */
Datum
driver_closed_until(PG_FUNCTION_ARGS)
{
	ClerkBudget budget;

	clerk_rate_limit_read((uint64) PG_GETARG_INT64(0),
						  (ClerkEndpoint) PG_GETARG_INT32(1), &budget);
	if (budget.closed_until == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(budget.closed_until);
}
