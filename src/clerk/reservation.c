/*
 * reservation.c
 *		A request's part of a budget, from before it is sent until its response
 *		has arrived.
 *
 * A request counts from its reservation on, and leaves the window one window
 * length after its response arrived.  Clerk counts it at some time in between,
 * so a request never leaves our window earlier than Clerk's.
 *
 * test/model/rate_limit.pml is a model of this, in which the steps are called
 * RESERVE, START, RESPOND, RETURN, RELEASE, and, in clerk/budget_store.c, LOAD.
 */
#include "postgres.h"

#include "access/xact.h"
#include "clerk/budget_store.h"
#include "clerk/reservation.h"
#include "storage/ipc.h"

/*
 * Microseconds by which the wall clock and the monotonic clock may drift apart
 * while a request is running.  At 500 ppm, the maximum that ntpd and chrony
 * slew by default, they take 200 s to drift apart this far.  A larger
 * difference means that the wall clock was set.
 */
#define MAX_CLOCK_DRIFT 100000

/* Requests of this process to an endpoint that are not settled. */
typedef struct Unsettled
{
	uint32		held;			/* reserved, but not started */
	uint32		started;		/* started with a reservation */
	uint32		unreserved;		/* started without a reservation */
} Unsettled;

/* This process's unsettled requests, all of which go to one instance. */
static uint64 own_instance;
static Unsettled own[CLERK_COUNTED_ENDPOINTS];
static bool callbacks_registered = false;

static ClerkMoment lock_store(void);
static void switch_own_instance(uint64 instance, ClerkMoment now);
static bool remove_own(ClerkReservation *reservation,
					   ClerkRequestWindow *window);
static void release_own(ClerkEndpoint endpoint, bool reserved, bool unreserved,
						int64 now);
static void release_all_own(ClerkMoment now);
static bool has_unsettled_requests(void);
static void on_transaction_end(XactEvent event, void *arg);
static void on_process_exit(int code, Datum arg);
static int64 arrival_time(const ClerkReservation *reservation,
						  TimestampTz responded_at, ClerkMoment now);

/*
 * RESERVE: reserves up to "wanted" requests to an endpoint, and returns how many were
 * granted: the first elements of "reservations".  All sessions of the server
 * share the budget.
 *
 * If fewer than wanted were granted, *available_at is the time at which more
 * will be available, or infinity if the settings allow none.  Otherwise it is
 * 0.
 *
 * Settles the reservations that this process took for the same endpoint
 * earlier.
 *
 * This function and those below raise 53200 if the shared memory cannot be
 * allocated when they are first used.
 */
int
clerk_reservation_take(uint64 instance, ClerkEndpoint endpoint, int wanted,
					   ClerkReservation *reservations,
					   TimestampTz *available_at)
{
	ClerkMoment now = lock_store();
	ClerkInstanceBudgets *entry = clerk_budget_store_use(instance);
	ClerkBudget budget;
	int			granted = 0;

	switch_own_instance(instance, now);
	if (clerk_endpoint_is_counted(endpoint))
		release_own(endpoint, true, false, now.time);
	clerk_endpoint_budget(entry, endpoint, now, &budget);
	if (budget.available_at == 0)
		granted = Min(wanted, budget.remaining);
	for (int i = 0; i < granted; i++)
	{
		reservations[i].state = CLERK_RESERVATION_HELD;
		reservations[i].instance = instance;
		reservations[i].endpoint = endpoint;
		reservations[i].reserved = true;
		reservations[i].clock_offset = now.clock - now.time;
	}
	if (clerk_endpoint_is_counted(endpoint))
	{
		clerk_endpoint_window(entry, endpoint, now.time)->held += granted;
		own[endpoint].held = granted;
	}
	*available_at = 0;
	if (granted < wanted)
	{
		clerk_endpoint_budget(entry, endpoint, now, &budget);
		*available_at = budget.available_at;
	}
	clerk_budget_store_unlock();
	return granted;
}

/*
 * Initializes the reservation of a request that is sent whether or not there
 * is budget for it: a user wants it now, and Clerk decides.  The request
 * counts from when it is started.
 */
void
clerk_reservation_init_unreserved(uint64 instance, ClerkEndpoint endpoint,
								  ClerkReservation *reservation)
{
	memset(reservation, 0, sizeof(*reservation));
	reservation->instance = instance;
	reservation->endpoint = endpoint;
}

/*
 * START: records that a request starts.  Must be called before any part of it can
 * have been sent.
 */
void
clerk_reservation_start(ClerkReservation *reservation)
{
	ClerkMoment now;
	ClerkInstanceBudgets *entry;
	ClerkRequestWindow *window;

	if (!clerk_endpoint_is_counted(reservation->endpoint))
		return;
	now = lock_store();
	entry = clerk_budget_store_use(reservation->instance);
	switch_own_instance(reservation->instance, now);
	window = clerk_endpoint_window(entry, reservation->endpoint, now.time);
	if (reservation->reserved)
	{
		(void) remove_own(reservation, window);
		own[reservation->endpoint].started++;
	}
	else
	{
		reservation->clock_offset = now.clock - now.time;
		own[reservation->endpoint].unreserved++;
	}
	window->under_way++;
	reservation->state = CLERK_RESERVATION_STARTED;
	clerk_budget_store_write(entry, now);
	clerk_budget_store_unlock();
}

/*
 * RESPOND: settles the reservation of a started request: its response arrived at
 * "responded_at", or it was canceled then after it had been sent.
 */
void
clerk_reservation_responded(ClerkReservation *reservation,
							TimestampTz responded_at)
{
	ClerkMoment now;
	ClerkInstanceBudgets *entry;
	ClerkRequestWindow *window;

	if (reservation->state != CLERK_RESERVATION_STARTED)
		return;
	now = lock_store();
	entry = clerk_budget_store_use(reservation->instance);
	window = clerk_endpoint_window(entry, reservation->endpoint, now.time);

	/* If it has been released, it has been counted already. */
	if (remove_own(reservation, window))
	{
		clerk_window_add(window, arrival_time(reservation, responded_at, now), 1);
		if (reservation->reserved && own[reservation->endpoint].started == 0)
			clerk_budget_store_write(entry, now);
		else
			clerk_budget_store_write_later(reservation->instance);
	}
	clerk_budget_store_unlock();
}

/*
 * RETURN: settles the reservation of a request that certainly was not sent, whether it
 * was started or not: returns it to the budget.
 */
void
clerk_reservation_not_sent(ClerkReservation *reservation)
{
	ClerkMoment now;
	ClerkInstanceBudgets *entry;
	bool		started = reservation->state == CLERK_RESERVATION_STARTED;

	if (reservation->state == CLERK_RESERVATION_SETTLED ||
		!clerk_endpoint_is_counted(reservation->endpoint))
		return;
	now = lock_store();
	entry = clerk_budget_store_use(reservation->instance);
	if (remove_own(reservation, clerk_endpoint_window(entry,
													  reservation->endpoint,
													  now.time)) &&
		started)
		clerk_budget_store_write_later(reservation->instance);
	clerk_budget_store_unlock();
}

/*
 * Locks the budgets, and ensures that what this process leaves unsettled is
 * settled when its transaction or the process ends.  Returns the current time.
 */
static ClerkMoment
lock_store(void)
{
	if (!callbacks_registered)
	{
		RegisterXactCallback(on_transaction_end, NULL);
		before_shmem_exit(on_process_exit, (Datum) 0);
		callbacks_registered = true;
	}
	return clerk_budget_store_lock();
}

/* Makes "instance" the one that this process's requests go to. */
static void
switch_own_instance(uint64 instance, ClerkMoment now)
{
	if (own_instance == instance)
		return;
	release_all_own(now);
	own_instance = instance;
}

/*
 * Removes a request from those that this process has not settled.  Returns
 * false if it is not among them because it has been released.
 */
static bool
remove_own(ClerkReservation *reservation, ClerkRequestWindow *window)
{
	Unsettled  *unsettled = &own[reservation->endpoint];
	uint32	   *total = &window->under_way;
	uint32	   *count;

	if (reservation->state == CLERK_RESERVATION_HELD)
	{
		count = &unsettled->held;
		total = &window->held;
	}
	else
		count = reservation->reserved ?
			&unsettled->started : &unsettled->unreserved;
	reservation->state = CLERK_RESERVATION_SETTLED;
	if (reservation->instance != own_instance || *count == 0)
		return false;
	*count -= 1;
	*total -= Min(*total, 1);
	return true;
}

/*
 * RELEASE: settles this process's requests to an endpoint without knowing how they
 * ended.  "reserved" and "unreserved" choose those with and those without a
 * reservation.  Those that were started count as sent at "now", since they may
 * have reached Clerk.
 */
static void
release_own(ClerkEndpoint endpoint, bool reserved, bool unreserved, int64 now)
{
	Unsettled  *unsettled = &own[endpoint];
	ClerkInstanceBudgets *instance = clerk_budget_store_find(own_instance);
	uint32		over = 0;

	if (instance != NULL)
	{
		ClerkRequestWindow *window = clerk_endpoint_window(instance, endpoint, now);

		if (reserved)
		{
			window->held -= Min(window->held, unsettled->held);
			over += unsettled->started;
		}
		if (unreserved)
			over += unsettled->unreserved;
		over = Min(over, window->under_way);
		window->under_way -= over;
		clerk_window_add(window, now, over);
		if (over > 0)
			clerk_budget_store_write_later(own_instance);
	}
	if (reserved)
		unsettled->held = unsettled->started = 0;
	if (unreserved)
		unsettled->unreserved = 0;
}

/* Releases all requests of this process, and writes that to the file. */
static void
release_all_own(ClerkMoment now)
{
	for (int i = 0; i < CLERK_COUNTED_ENDPOINTS; i++)
		release_own(i, true, true, now.time);
	clerk_budget_store_write_deferred(now);
}

static bool
has_unsettled_requests(void)
{
	for (int i = 0; i < CLERK_COUNTED_ENDPOINTS; i++)
		if (own[i].held > 0 || own[i].started > 0 || own[i].unreserved > 0)
			return true;
	return false;
}

/*
 * A synchronous call ends with its transaction.  A sender's requests end with
 * it only if the transaction fails.  Does not write to the file, which already
 * counts these requests as running, because that would only delay the commit.
 */
static void
on_transaction_end(XactEvent event, void *arg)
{
	bool		failed = event == XACT_EVENT_ABORT;
	ClerkMoment now;

	(void) arg;
	if (!has_unsettled_requests() || (event != XACT_EVENT_COMMIT &&
									  event != XACT_EVENT_PREPARE && !failed))
		return;
	now = lock_store();
	for (int i = 0; i < CLERK_COUNTED_ENDPOINTS; i++)
		release_own(i, failed, true, now.time);
	clerk_budget_store_unlock();
}

static void
on_process_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	if (!has_unsettled_requests() && !clerk_budget_store_is_stale())
		return;
	release_all_own(lock_store());
	clerk_budget_store_unlock();
}

/*
 * When a response arrived, by our time.  If the wall clock has been set since
 * the request's reservation was taken or started, the time cannot be
 * converted, and the response counts as received now.
 */
static int64
arrival_time(const ClerkReservation *reservation, TimestampTz responded_at,
			 ClerkMoment now)
{
	int64		clock_offset = now.clock - now.time;
	int64		clock_step = clock_offset - reservation->clock_offset;

	if (clock_step > MAX_CLOCK_DRIFT || clock_step < -MAX_CLOCK_DRIFT)
		return now.time;
	return Min(responded_at - clock_offset, now.time);
}
