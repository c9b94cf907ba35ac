/*
 * rate_limit.c
 *		Clerk's rate limits: how many requests may be sent now, and when more
 *		may be sent.  Requests are counted in shared memory.
 *
 * Clerk limits the requests of an instance to each endpoint within a time
 * window.  Its documentation does not say whether the window is fixed or
 * slides, nor whether refused requests count.  Here the window slides, which
 * no fixed window can be stricter than, and every request counts that was sent
 * or may have been.
 *
 * A request counts from its reservation on, and leaves the window one window
 * length after its response arrived.  Clerk counts it at some time in between,
 * so a request never leaves our window earlier than Clerk's.
 *
 * Elapsed time is measured by the monotonic clock: if the wall clock is set
 * ahead, no request leaves the window early, and if it is set back, no
 * endpoint is closed longer.  "Our time" is the monotonic clock plus
 * State.clock_offset.  The wall clock is used only for times that are passed
 * in or returned, and to find out how long the server was down.
 *
 * The shared memory comes from the server's spare memory when it is first
 * needed, so that the library works without being preloaded.
 *
 * What must survive a restart of the server is written through to a file
 * (clerk/budget_file.c), which is read when the shared memory is created:
 *
 * - A request is in the file before it is sent.  So however the server ends,
 *	 no request that Clerk has counted is missing.
 * - A reservation that has not been started is not in the file.  So no request
 *	 is counted that was not sent: a sender has up to 40 bulk requests
 *	 reserved, which is 80 % of Clerk's budget, and killing it would lose
 *	 them.
 * - The response to a sender's request is recorded in the file at once.  The
 *	 response to a synchronous call is recorded with the next request, or when
 *	 the process ends, so that the call does not wait for a second system call.
 * - A request without a response in the file was running when the server
 *	 ended.  Its response counts as received when the file is read, or when the
 *	 request's time limit expired, if that was earlier (after 30 s, which is
 *	 0.8 % of Clerk's window of an hour).  For the requests that were running,
 *	 4 % of the budget at most with a sender's default settings, that can be
 *	 too late: less than 0.1 % of a window is lost.
 *
 * If the machine crashes, writes that the kernel has not flushed are lost.
 * Clerk's 429 responses enforce the limit then.
 *
 * test/model/rate_limit.pml is a model of this, in which the steps are called
 * RESERVE, START, RESPOND, RETURN, RELEASE, and LOAD.
 *
 * A standby sends nothing, so it writes nothing.  A file that was copied from
 * another server contains requests that were sent with the same key, which
 * count here, too, or with another key, which do not affect this one.  The
 * requests in an old file have left the window.
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "clerk/budget_file.h"
#include "clerk/rate_limit.h"
#include "clerk/request_window.h"
#include "common/hashfn.h"
#include "common/monotonic_clock.h"
#include "common/settings.h"
#include "common/shared_memory.h"
#include "compat.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#define COUNTED_ENDPOINTS (CLERK_ENDPOINT_BULK + 1)
#define ENDPOINTS (CLERK_ENDPOINT_LIST + 1)

/* More Clerk instances than the databases of one server are likely to use. */
#define INSTANCES 16

/*
 * The number is the version of the memory's layout.
 * clerk_find_shared_memory() adds the size to the name, but two layouts may
 * have the same size.  The file's name has a number of its own, for the layout
 * of Record.
 */
#define SHARED_MEMORY_NAME "clerk_invite rate limit 2"

/*
 * Microseconds by which the wall clock and the monotonic clock may drift apart
 * while a request is running.  At 500 ppm, the maximum that ntpd and chrony
 * slew by default, they take 200 s to drift apart this far.  A larger
 * difference means that the wall clock was set.
 */
#define MAX_CLOCK_DRIFT 100000

/* The budgets of a Clerk instance. */
typedef struct Instance
{
	uint64		name;			/* from clerk_rate_limit_instance() */
	uint64		last_use;		/* value of State.uses; 0: this element is
								 * free */
	ClerkRequestWindow windows[COUNTED_ENDPOINTS];
	int64		closed_until[ENDPOINTS];	/* by our time, after a 429 */
} Instance;

typedef struct State
{
	LWLock		lock;			/* protects the fields below */
	bool		loaded;			/* the file has been read */
	bool		write_failed;	/* the last write to the file failed; has been
								 * logged */
	int64		clock_offset;	/* our time minus the monotonic clock */
	uint64		uses;			/* counts uses, to find the instance used
								 * least recently */
	Instance	instances[INSTANCES];
} State;

/* An instance's record in the file.  "held" is always 0 in it. */
typedef struct Record
{
	int64		time;			/* when it was written, by our time ... */
	TimestampTz clock;			/* ... and by the wall clock */
	Instance	instance;
} Record;

/* A moment by our time and by the wall clock. */
typedef struct Moment
{
	int64		time;
	TimestampTz clock;
} Moment;

/* Requests of this process to an endpoint that are not settled. */
typedef struct Unsettled
{
	uint32		held;			/* reserved, but not started */
	uint32		started;		/* started with a reservation */
	uint32		unreserved;		/* started without a reservation */
} Unsettled;

/* The shared memory; NULL until this process has found it. */
static State *state = NULL;

/*
 * This process's unsettled requests, all of which go to one instance, and
 * whether the file lacks changes that it has made.
 */
static uint64 own_instance;
static Unsettled own[COUNTED_ENDPOINTS];
static bool file_is_stale = false;
static bool callbacks_registered = false;

/* errno to be logged, or 0. */
static int	file_error = 0;

static Moment lock_state(void);
static void unlock_state(void);
static void load(void);
static bool read_record(int number, Record *record);
static void restore_instance(const Record *record, Instance *instance,
							 int64 now);
static void write_through(const Instance *instance, Moment now);
static Instance *find_instance(uint64 name);
static Instance *use_instance(uint64 name);
static bool is_counted(ClerkEndpoint endpoint);
static int	limit_of(ClerkEndpoint endpoint);
static void switch_own_instance(uint64 instance, Moment now);
static bool remove_own(ClerkReservation *reservation,
					   ClerkRequestWindow *window);
static void release_own(ClerkEndpoint endpoint, bool reserved, bool unreserved,
						int64 now);
static void release_all_own(Moment now);
static bool has_unsettled_requests(void);
static void on_transaction_end(XactEvent event, void *arg);
static void on_process_exit(int code, Datum arg);
static int64 arrival_time(const ClerkReservation *reservation,
						  TimestampTz responded_at, Moment now);
static ClerkRequestWindow *window_of(Instance *instance, ClerkEndpoint endpoint,
									 int64 now);
static void get_budget(Instance *instance, ClerkEndpoint endpoint, Moment now,
					   ClerkBudget *budget);

/*
 * Requests the shared memory.  Must be called when the library is loaded; has
 * an effect only if it is preloaded.
 */
void
clerk_rate_limit_request_memory(void)
{
	StaticAssertStmt(sizeof(State) <= CLERK_SHARED_MEMORY_MAX,
					 "the budgets need too much shared memory");
	StaticAssertStmt(sizeof(Record) <= CLERK_BUDGET_RECORD_MAX,
					 "the budgets do not fit into the file");
	clerk_request_shared_memory(sizeof(State));
}

/*
 * Returns a number that identifies the Clerk instance of a secret key at an
 * API URL: a hash from which the key cannot be recovered.  Each key has
 * budgets of its own, since a key does not show which instance it belongs to.
 */
uint64
clerk_rate_limit_instance(const char *api_url, size_t api_url_length,
						  const char *secret_key)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) api_url,
										   (int) api_url_length, 0);

	return hash_bytes_extended((const unsigned char *) secret_key,
							   (int) strlen(secret_key), hash);
}

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
clerk_rate_limit_take(uint64 instance, ClerkEndpoint endpoint, int wanted,
					  ClerkReservation *reservations, TimestampTz *available_at)
{
	Moment		now = lock_state();
	Instance   *entry = use_instance(instance);
	ClerkBudget budget;
	int			granted = 0;

	switch_own_instance(instance, now);
	if (is_counted(endpoint))
		release_own(endpoint, true, false, now.time);
	get_budget(entry, endpoint, now, &budget);
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
	if (is_counted(endpoint))
	{
		window_of(entry, endpoint, now.time)->held += granted;
		own[endpoint].held = granted;
	}
	*available_at = 0;
	if (granted < wanted)
	{
		get_budget(entry, endpoint, now, &budget);
		*available_at = budget.available_at;
	}
	unlock_state();
	return granted;
}

/*
 * Initializes the reservation of a request that is sent whether or not there
 * is budget for it: a user wants it now, and Clerk decides.  The request
 * counts from when it is started.
 */
void
clerk_rate_limit_unreserved(uint64 instance, ClerkEndpoint endpoint,
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
clerk_rate_limit_start(ClerkReservation *reservation)
{
	Moment		now;
	Instance   *entry;
	ClerkRequestWindow *window;

	if (!is_counted(reservation->endpoint))
		return;
	now = lock_state();
	entry = use_instance(reservation->instance);
	switch_own_instance(reservation->instance, now);
	window = window_of(entry, reservation->endpoint, now.time);
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
	write_through(entry, now);
	unlock_state();
}

/*
 * RESPOND: settles the reservation of a started request: its response arrived at
 * "responded_at", or it was canceled then after it had been sent.
 */
void
clerk_rate_limit_responded(ClerkReservation *reservation,
						   TimestampTz responded_at)
{
	Moment		now;
	Instance   *entry;
	ClerkRequestWindow *window;
	uint32	   *bucket;

	if (reservation->state != CLERK_RESERVATION_STARTED)
		return;
	now = lock_state();
	entry = use_instance(reservation->instance);
	window = window_of(entry, reservation->endpoint, now.time);

	/* If it has been released, it has been counted already. */
	if (remove_own(reservation, window))
	{
		bucket = clerk_window_bucket(window, arrival_time(reservation,
														  responded_at, now));
		if (bucket != NULL)
			(*bucket)++;
		if (reservation->reserved)
			write_through(entry, now);
		else
			file_is_stale = true;
	}
	unlock_state();
}

/*
 * RETURN: settles the reservation of a request that certainly was not sent, whether it
 * was started or not: returns it to the budget.
 */
void
clerk_rate_limit_not_sent(ClerkReservation *reservation)
{
	Moment		now;
	bool		started = reservation->state == CLERK_RESERVATION_STARTED;

	if (reservation->state == CLERK_RESERVATION_SETTLED ||
		!is_counted(reservation->endpoint))
		return;
	now = lock_state();
	if (remove_own(reservation, window_of(use_instance(reservation->instance),
										  reservation->endpoint, now.time)) &&
		started)
		file_is_stale = true;
	unlock_state();
}

/*
 * Records that Clerk accepts no requests to this endpoint for the next
 * "seconds" seconds.
 */
void
clerk_rate_limit_close(uint64 instance, ClerkEndpoint endpoint, int seconds)
{
	Moment		now = lock_state();
	Instance   *entry = use_instance(instance);
	int64		until = now.time + seconds * USECS_PER_SEC;

	if (until > entry->closed_until[endpoint])
	{
		entry->closed_until[endpoint] = until;
		write_through(entry, now);
	}
	unlock_state();
}

/* Returns the state of an endpoint in *budget.  Does not change it. */
void
clerk_rate_limit_read(uint64 instance, ClerkEndpoint endpoint,
					  ClerkBudget *budget)
{
	Moment		now = lock_state();
	Instance   *entry = find_instance(instance);
	Instance	unused;

	if (entry == NULL)
	{
		memset(&unused, 0, sizeof(unused));
		entry = &unused;
	}
	get_budget(entry, endpoint, now, budget);
	unlock_state();
}

/*
 * Finds or creates the shared memory and locks it.  Returns the current time.
 * Raises 53200 if there is no shared memory left.
 */
static Moment
lock_state(void)
{
	Moment		now;

	if (state == NULL)
		state = clerk_find_shared_memory(SHARED_MEMORY_NAME, sizeof(State));
	if (state == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not track requests to Clerk"),
				 errdetail("There is not enough shared memory left."),
				 errhint("Add clerk_invite to \"shared_preload_libraries\".")));
	if (!callbacks_registered)
	{
		RegisterXactCallback(on_transaction_end, NULL);
		before_shmem_exit(on_process_exit, (Datum) 0);
		callbacks_registered = true;
	}
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (!state->loaded)
		load();

	/*
	 * Read the clocks under the lock, so that our time never goes back from
	 * one holder of the lock to the next.
	 */
	now.time = clerk_monotonic_microseconds() + state->clock_offset;
	now.clock = GetCurrentTimestamp();
	return now;
}

/*
 * Unlocks the shared memory.  A problem with the file is not an error, but is
 * logged once.
 */
static void
unlock_state(void)
{
	int			error = file_error;

	LWLockRelease(&state->lock);
	file_error = 0;
	errno = error;
	if (error != 0)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not access request budget file \"%s\": %m",
						clerk_budget_file_name()),
				 errdetail("The record of the requests that were sent will be lost when the server restarts.")));
}

/*
 * LOAD: fills the shared memory from the file.
 *
 * Our time continues from that of the newest record, advanced by the time that
 * has passed since by the wall clock.  If the wall clock was ahead when the
 * record was written and has been corrected since, no time counts as passed.
 * If it was behind then or is ahead now, requests leave the window too early;
 * nothing can detect that.  Without a record our time starts at the wall
 * clock's time, so that it is never close to 0.
 */
static void
load(void)
{
	TimestampTz clock = GetCurrentTimestamp();
	int64		now = Max(clock, 0);
	int64		newest = -1;
	Record		record;

	for (int i = 0; i < INSTANCES; i++)
	{
		if (read_record(i, &record) && record.time > newest)
		{
			newest = record.time;
			now = record.time + Max(clock - record.clock, 0);
		}
	}
	for (int i = 0; i < INSTANCES; i++)
		if (read_record(i, &record))
			restore_instance(&record, &state->instances[i], now);
	state->clock_offset = now - clerk_monotonic_microseconds();
	state->loaded = true;
}

static bool
read_record(int number, Record *record)
{
	if (clerk_budget_file_read(number, record, sizeof(*record)))
		return true;
	if (errno != 0 && errno != ENOENT)
		file_error = errno;
	return false;
}

/*
 * Restores an instance from its record.  The requests that were running when
 * it was written are over.  If the file was copied from another server, two
 * records may be for the same instance; the one used last is taken.
 */
static void
restore_instance(const Record *record, Instance *instance, int64 now)
{
	int64		responded_at = Min(now, record->time +
								   clerk_request_timeout * INT64CONST(1000));
	Instance   *other = find_instance(record->instance.name);

	if (other != NULL && other->last_use > record->instance.last_use)
		return;
	if (other != NULL)
		memset(other, 0, sizeof(Instance));
	*instance = record->instance;
	state->uses = Max(state->uses, instance->last_use);
	for (int i = 0; i < COUNTED_ENDPOINTS; i++)
	{
		ClerkRequestWindow *window = &instance->windows[i];
		uint32	   *bucket;

		/*
		 * A reload time that another run of the server recorded does not
		 * apply.
		 */
		window->configured_at = 0;
		if (window->width == 0)
			continue;
		clerk_window_advance(window, now);
		bucket = clerk_window_bucket(window, responded_at);
		if (bucket != NULL)
			*bucket += window->under_way;
		window->under_way = 0;
	}
}

/* Writes an instance to the file: see the head of this file. */
static void
write_through(const Instance *instance, Moment now)
{
	Record		record;

	memset(&record, 0, sizeof(record));
	record.time = now.time;
	record.clock = now.clock;
	record.instance = *instance;
	for (int i = 0; i < COUNTED_ENDPOINTS; i++)
		record.instance.windows[i].held = 0;
	if (clerk_budget_file_write((int) (instance - state->instances),
								&record, sizeof(record)))
	{
		state->write_failed = false;
		if (instance->name == own_instance)
			file_is_stale = false;
	}
	else if (!state->write_failed)
	{
		state->write_failed = true;
		file_error = errno;
	}
}

/*
 * Returns NULL if the instance has not been used, or so long ago that another
 * one has replaced it.
 */
static Instance *
find_instance(uint64 name)
{
	for (int i = 0; i < INSTANCES; i++)
		if (state->instances[i].last_use > 0 && state->instances[i].name == name)
			return &state->instances[i];
	return NULL;
}

/* Finds an instance, or replaces the one used least recently. */
static Instance *
use_instance(uint64 name)
{
	Instance   *instance = find_instance(name);

	if (instance == NULL)
	{
		instance = &state->instances[0];
		for (int i = 1; i < INSTANCES; i++)
			if (state->instances[i].last_use < instance->last_use)
				instance = &state->instances[i];
		memset(instance, 0, sizeof(Instance));
		instance->name = name;
	}
	instance->last_use = ++state->uses;
	return instance;
}

static bool
is_counted(ClerkEndpoint endpoint)
{
	return endpoint < COUNTED_ENDPOINTS;
}

static int
limit_of(ClerkEndpoint endpoint)
{
	switch (endpoint)
	{
		case CLERK_ENDPOINT_SINGLE:
			return clerk_single_requests_per_hour;
		case CLERK_ENDPOINT_BULK:
			return clerk_bulk_requests_per_hour;
		case CLERK_ENDPOINT_LIST:
			break;
	}
	return INT_MAX;
}

/* Makes "instance" the one that this process's requests go to. */
static void
switch_own_instance(uint64 instance, Moment now)
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
	Instance   *instance = find_instance(own_instance);
	uint32		over = 0;

	if (instance != NULL)
	{
		ClerkRequestWindow *window = window_of(instance, endpoint, now);

		if (reserved)
		{
			window->held -= Min(window->held, unsettled->held);
			over += unsettled->started;
		}
		if (unreserved)
			over += unsettled->unreserved;
		over = Min(over, window->under_way);
		window->under_way -= over;
		*clerk_window_bucket(window, now) += over;
		file_is_stale |= over > 0;
	}
	if (reserved)
		unsettled->held = unsettled->started = 0;
	if (unreserved)
		unsettled->unreserved = 0;
}

/* Releases all requests of this process, and writes that to the file. */
static void
release_all_own(Moment now)
{
	Instance   *instance = find_instance(own_instance);

	for (int i = 0; i < COUNTED_ENDPOINTS; i++)
		release_own(i, true, true, now.time);
	if (file_is_stale && instance != NULL)
		write_through(instance, now);
	file_is_stale = false;
}

static bool
has_unsettled_requests(void)
{
	for (int i = 0; i < COUNTED_ENDPOINTS; i++)
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
	Moment		now;

	(void) arg;
	if (!has_unsettled_requests() || (event != XACT_EVENT_COMMIT &&
									  event != XACT_EVENT_PREPARE && !failed))
		return;
	now = lock_state();
	for (int i = 0; i < COUNTED_ENDPOINTS; i++)
		release_own(i, failed, true, now.time);
	unlock_state();
}

static void
on_process_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	if (!has_unsettled_requests() && !file_is_stale)
		return;
	release_all_own(lock_state());
	unlock_state();
}

/*
 * When a response arrived, by our time.  If the wall clock has been set since
 * the request's reservation was taken or started, the time cannot be
 * converted, and the response counts as received now.
 */
static int64
arrival_time(const ClerkReservation *reservation, TimestampTz responded_at,
			 Moment now)
{
	int64		clock_offset = now.clock - now.time;
	int64		clock_step = clock_offset - reservation->clock_offset;

	if (clock_step > MAX_CLOCK_DRIFT || clock_step < -MAX_CLOCK_DRIFT)
		return now.time;
	return Min(responded_at - clock_offset, now.time);
}

/* Returns the window of a counted endpoint, advanced to "now". */
static ClerkRequestWindow *
window_of(Instance *instance, ClerkEndpoint endpoint, int64 now)
{
	ClerkRequestWindow *window = &instance->windows[endpoint];

	clerk_window_configure(window, now);
	return window;
}

/* Computes the state of an endpoint. */
static void
get_budget(Instance *instance, ClerkEndpoint endpoint, Moment now,
		   ClerkBudget *budget)
{
	int64		until = instance->closed_until[endpoint];
	int64		used = 0;
	ClerkRequestWindow *window = NULL;

	if (is_counted(endpoint))
	{
		window = window_of(instance, endpoint, now.time);
		used = clerk_window_sum(window) + window->under_way + window->held;
	}
	budget->limit = limit_of(endpoint);
	budget->used = (int) Min(used, INT_MAX);
	budget->remaining = Max(budget->limit - budget->used, 0);
	budget->closed_until = until > now.time ? now.clock + (until - now.time) : 0;
	budget->available_at = budget->closed_until;
	if (budget->limit == 0)
		budget->available_at = DT_NOEND;
	else if (budget->remaining == 0)
	{
		until = Max(until, clerk_window_expiry_time(window,
													used - budget->limit + 1));
		budget->available_at = now.clock + (until - now.time);
	}
}
