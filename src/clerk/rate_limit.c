/*
 * rate_limit.c
 *		Clerk's budgets of requests, counted in shared memory: "now, or when?"
 *
 * Clerk limits the requests of an instance to each endpoint in a window of
 * time.  It is not documented whether the window slides, and whether refused
 * requests count.  Here it slides, which no fixed window can be stricter than,
 * and every request counts that was sent, or may have been.
 *
 * A request counts from when it is reserved, and leaves the window a window
 * after its answer arrived.  Clerk counts it at some time in between: so its
 * place is never free earlier here than there.
 *
 * Time passes by a monotonic clock: a clock of day that is put ahead frees
 * nothing early, and one that is put back closes nothing for longer.  What it
 * shows is needed only where a time is given or returned, and to know how long
 * the server was down.
 *
 * The memory is taken from what the server has to spare when it is first
 * needed, so that the library works without being preloaded.
 *
 * What a restart of the server must not forget is written through to a file
 * (clerk/budget_file.c), which is read when the memory is made:
 *
 * - A request is in the file before it goes out.  So however the server ends,
 *	 no request that Clerk has counted is missing.
 * - A request that was only reserved is not.  So none is counted that nobody
 *	 sent: a sender that is killed has 40 reserved, 80 % of Clerk's budget of
 *	 bulk requests.
 * - The answer to a sender's request is in the file at once.  The answer to a
 *	 synchronous call, which shall not wait for a second system call, gets
 *	 there with the next request, or when the process ends.
 * - A request without an answer in the file was under way when the server
 *	 ended, and counts as answered when the file is read, but no later than its
 *	 own time limit allows (30 s of Clerk's hour, 0.8 %).  That can be too late
 *	 for as many requests as were under way at a time, 4 % of the budget at the
 *	 most that a sender has by default: so less than 0.1 % of a window is lost.
 *
 * A machine that crashes loses what its kernel has not written yet; then
 * Clerk's 429 is what holds.
 *
 * On a standby nothing is sent, so nothing is written.  A file that was copied
 * from another server has requests that were sent with the same key, which
 * count rightly here, or with another one, which do not count.  One that is
 * old has nothing that is still in the window.
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

/* More Clerk instances than databases of one server are likely to use. */
#define INSTANCES 16

/*
 * With the number of the layout; the size need not tell one from another.  The
 * file's name has a number, too, for the layout of Record.
 */
#define SHARED_MEMORY_NAME "clerk_invite rate limit 2"

/*
 * Microseconds by which the two clocks may drift apart while a request is
 * under way: one that is slowed down or sped up by 500 ppm, as ntpd and chrony
 * do at most by default, takes 200 s for it.  What is more was a step.
 */
#define DRIFT 100000

/* The budgets of an instance of Clerk's. */
typedef struct Instance
{
	uint64		name;			/* from clerk_rate_limit_instance() */
	uint64		last_use;		/* by State.uses; 0: there is none */
	ClerkRequestWindow windows[COUNTED_ENDPOINTS];
	int64		closed_until[ENDPOINTS];	/* by a 429's Retry-After */
} Instance;

typedef struct State
{
	LWLock		lock;			/* protects all that follows */
	bool		loaded;			/* from the file */
	bool		write_failed;	/* and that was logged */
	int64		clock_offset;	/* our time is the monotonic clock's, and this */
	uint64		uses;			/* counts them, to find what is not used */
	Instance	instances[INSTANCES];
} State;

/* What the file has of an instance, whose "held" is 0 there. */
typedef struct Record
{
	int64		time;			/* when it was written, by our time ... */
	TimestampTz clock;			/* ... and by the clock of day */
	Instance	instance;
} Record;

/* The same moment by our time and by the clock of day. */
typedef struct Moment
{
	int64		time;
	TimestampTz clock;
} Moment;

/* What this process has not settled yet of an endpoint's requests. */
typedef struct Unsettled
{
	uint32		held;			/* reserved, and not started */
	uint32		started;		/* after they were reserved */
	uint32		counted;		/* started without being reserved */
} Unsettled;

/* Of this process: the shared memory, once it is known. */
static State *state = NULL;

/* Of this process: requests to an instance, and whether the file lacks any. */
static uint64 own_instance;
static Unsettled own[COUNTED_ENDPOINTS];
static bool own_unwritten = false;
static bool watching_own = false;

/* Of this process: errno, if it is to be logged that the file has none. */
static int	file_error = 0;

static Moment lock_state(void);
static void unlock_state(void);
static void load(void);
static bool read_record(int number, Record *record);
static void take_over(const Record *record, Instance *instance, int64 now);
static void write_through(const Instance *instance, Moment now);
static Instance *find_instance(uint64 name);
static Instance *use_instance(uint64 name);
static bool is_counted(ClerkEndpoint endpoint);
static int	limit_of(ClerkEndpoint endpoint);
static void own_requests_to(uint64 instance, Moment now);
static bool settle_own(ClerkReservation *reservation, ClerkRequestWindow *window);
static void give_up_own(ClerkEndpoint endpoint, bool reserved, bool counted,
						int64 now);
static void give_up_all(Moment now);
static bool owns_any(void);
static void at_transaction_end(XactEvent event, void *arg);
static void at_exit(int code, Datum arg);
static int64 time_of_answer(const ClerkReservation *reservation, TimestampTz answered_at,
							Moment now);
static ClerkRequestWindow *window_of(Instance *instance, ClerkEndpoint endpoint,
									 int64 now);
static void assess(Instance *instance, ClerkEndpoint endpoint, Moment now,
				   ClerkBudget *budget);

/* Asks for the memory; to be called when the library is loaded. */
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
 * A name for the instance of Clerk's that this key belongs to at this address:
 * a hash, from which the key cannot be found.  Each key has budgets of its
 * own, since it does not tell which instance it belongs to.
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
 * Reserves up to "wanted" requests to an endpoint, at once for all sessions of
 * the server, and returns how many it has got: the first of the array's
 * reservations.  If these are fewer than wanted, *available_at is the time when
 * there will be more, or infinity if the settings do not allow any; otherwise
 * it is 0.
 *
 * Whatever this process has taken of the endpoint's before is over.
 *
 * This and the functions below raise 53200 if there is no shared memory left
 * when they are first used.
 */
int
clerk_rate_limit_take(uint64 instance, ClerkEndpoint endpoint, int wanted,
					  ClerkReservation *reservations, TimestampTz *available_at)
{
	Moment		now = lock_state();
	Instance   *used = use_instance(instance);
	ClerkBudget budget;
	int			granted = 0;

	own_requests_to(instance, now);
	if (is_counted(endpoint))
		give_up_own(endpoint, true, false, now.time);
	assess(used, endpoint, now, &budget);
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
		window_of(used, endpoint, now.time)->held += granted;
		own[endpoint].held = granted;
	}
	*available_at = 0;
	if (granted < wanted)
	{
		assess(used, endpoint, now, &budget);
		*available_at = budget.available_at;
	}
	unlock_state();
	return granted;
}

/*
 * For a request that goes out whether or not there is budget for it: somebody
 * wants it now, and Clerk decides.  It is counted when it is started.
 */
void
clerk_rate_limit_unreserved(uint64 instance, ClerkEndpoint endpoint,
							ClerkReservation *reservation)
{
	memset(reservation, 0, sizeof(*reservation));
	reservation->instance = instance;
	reservation->endpoint = endpoint;
}

/* The request goes out; to be called before any of it can have been sent. */
void
clerk_rate_limit_start(ClerkReservation *reservation)
{
	Moment		now;
	Instance   *used;
	ClerkRequestWindow *window;

	if (!is_counted(reservation->endpoint))
		return;
	now = lock_state();
	used = use_instance(reservation->instance);
	own_requests_to(reservation->instance, now);
	window = window_of(used, reservation->endpoint, now.time);
	if (reservation->reserved)
	{
		(void) settle_own(reservation, window);
		own[reservation->endpoint].started++;
	}
	else
	{
		reservation->clock_offset = now.clock - now.time;
		own[reservation->endpoint].counted++;
	}
	window->under_way++;
	reservation->state = CLERK_RESERVATION_STARTED;
	write_through(used, now);
	unlock_state();
}

/*
 * The request was started, and was answered at this time, or given up after it
 * had been sent.
 */
void
clerk_rate_limit_answered(ClerkReservation *reservation,
						  TimestampTz answered_at)
{
	Moment		now;
	Instance   *used;
	ClerkRequestWindow *window;
	uint32	   *bucket;

	if (reservation->state != CLERK_RESERVATION_STARTED)
		return;
	now = lock_state();
	used = use_instance(reservation->instance);
	window = window_of(used, reservation->endpoint, now.time);

	/* If it was given up, it has been counted. */
	if (settle_own(reservation, window))
	{
		bucket = clerk_window_bucket(window, time_of_answer(reservation, answered_at, now));
		if (bucket != NULL)
			(*bucket)++;
		if (reservation->reserved)
			write_through(used, now);
		else
			own_unwritten = true;
	}
	unlock_state();
}

/*
 * The request has certainly not been sent, whether it was started or not: its
 * share of the budget is given back.
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
	if (settle_own(reservation, window_of(use_instance(reservation->instance),
										  reservation->endpoint, now.time)) &&
		started)
		own_unwritten = true;
	unlock_state();
}

/* Clerk takes no request to this endpoint for so many seconds from now. */
void
clerk_rate_limit_close(uint64 instance, ClerkEndpoint endpoint, int seconds)
{
	Moment		now = lock_state();
	Instance   *used = use_instance(instance);
	int64		until = now.time + seconds * USECS_PER_SEC;

	if (until > used->closed_until[endpoint])
	{
		used->closed_until[endpoint] = until;
		write_through(used, now);
	}
	unlock_state();
}

/* Tells the state of an endpoint, without a change to it. */
void
clerk_rate_limit_read(uint64 instance, ClerkEndpoint endpoint,
					  ClerkBudget *budget)
{
	Moment		now = lock_state();
	Instance   *known = find_instance(instance);
	Instance	unused;

	if (known == NULL)
	{
		memset(&unused, 0, sizeof(unused));
		known = &unused;
	}
	assess(known, endpoint, now, budget);
	unlock_state();
}

/* Finds or makes the shared memory, and locks it; returns the time. */
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
	if (!watching_own)
	{
		RegisterXactCallback(at_transaction_end, NULL);
		before_shmem_exit(at_exit, (Datum) 0);
		watching_own = true;
	}
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (!state->loaded)
		load();

	/* Under the lock, so that it does not go back from one to the next. */
	now.time = clerk_monotonic_microseconds() + state->clock_offset;
	now.clock = GetCurrentTimestamp();
	return now;
}

/* What went wrong with the file is nobody's error, and said once. */
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
 * Fills the memory from the file.
 *
 * Our time goes on from that of the newest record, by as much as the clock of
 * day says that has passed since.  If that clock was ahead then, and has been
 * put right, no time has passed.  If it was behind, or is ahead now, what was
 * counted is forgotten early: nobody can tell.  Without a record our time
 * begins as the clock of day, so that it is never near 0.
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
			take_over(&record, &state->instances[i], now);
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
 * What was under way when the record was written is over.  The record may be
 * of another server, so that its instance has another one already, too.
 */
static void
take_over(const Record *record, Instance *instance, int64 now)
{
	int64		answered_at = Min(now, record->time +
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

		/* The server's configuration has been read since. */
		window->configured_at = 0;
		if (window->width == 0)
			continue;
		clerk_window_advance(window, now);
		bucket = clerk_window_bucket(window, answered_at);
		if (bucket != NULL)
			*bucket += window->under_way;
		window->under_way = 0;
	}
}

/* Has the file know what an instance's memory says; see above. */
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
			own_unwritten = false;
	}
	else if (!state->write_failed)
	{
		state->write_failed = true;
		file_error = errno;
	}
}

/* NULL if it has not been used, or not for long. */
static Instance *
find_instance(uint64 name)
{
	for (int i = 0; i < INSTANCES; i++)
		if (state->instances[i].last_use > 0 && state->instances[i].name == name)
			return &state->instances[i];
	return NULL;
}

/* Finds it, or takes the place of the one that was not used for longest. */
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

/* From now on this process's requests are to that instance. */
static void
own_requests_to(uint64 instance, Moment now)
{
	if (own_instance == instance)
		return;
	give_up_all(now);
	own_instance = instance;
}

/*
 * Takes a request out of those that are not settled yet.  False if it is not
 * among them, because it was given up.
 */
static bool
settle_own(ClerkReservation *reservation, ClerkRequestWindow *window)
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
			&unsettled->started : &unsettled->counted;
	reservation->state = CLERK_RESERVATION_SETTLED;
	if (reservation->instance != own_instance || *count == 0)
		return false;
	*count -= 1;
	*total -= Min(*total, 1);
	return true;
}

/*
 * This process will not settle its requests any more, those that were reserved
 * or those that were only counted.  Those that were started may have arrived
 * at Clerk by now.
 */
static void
give_up_own(ClerkEndpoint endpoint, bool reserved, bool counted, int64 now)
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
		if (counted)
			over += unsettled->counted;
		over = Min(over, window->under_way);
		window->under_way -= over;
		*clerk_window_bucket(window, now) += over;
		own_unwritten |= over > 0;
	}
	if (reserved)
		unsettled->held = unsettled->started = 0;
	if (counted)
		unsettled->counted = 0;
}

/* The same for all of them, and the file is to know. */
static void
give_up_all(Moment now)
{
	Instance   *instance = find_instance(own_instance);

	for (int i = 0; i < COUNTED_ENDPOINTS; i++)
		give_up_own(i, true, true, now.time);
	if (own_unwritten && instance != NULL)
		write_through(instance, now);
	own_unwritten = false;
}

static bool
owns_any(void)
{
	for (int i = 0; i < COUNTED_ENDPOINTS; i++)
		if (own[i].held > 0 || own[i].started > 0 || own[i].counted > 0)
			return true;
	return false;
}

/*
 * A synchronous call does not outlive its transaction, a sender's pass does if
 * it goes well.  Writes nothing: a commit should not be held up any more, and
 * the file has these requests as under way.
 */
static void
at_transaction_end(XactEvent event, void *arg)
{
	bool		failed = event == XACT_EVENT_ABORT;
	Moment		now;

	(void) arg;
	if (!owns_any() || (event != XACT_EVENT_COMMIT &&
						event != XACT_EVENT_PREPARE && !failed))
		return;
	now = lock_state();
	for (int i = 0; i < COUNTED_ENDPOINTS; i++)
		give_up_own(i, failed, true, now.time);
	unlock_state();
}

static void
at_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	if (!owns_any() && !own_unwritten)
		return;
	give_up_all(lock_state());
	unlock_state();
}

/*
 * When an answer arrived, by our time.  If the clock of day has been set since
 * the request was reserved, that cannot be told: then it has arrived just now.
 */
static int64
time_of_answer(const ClerkReservation *reservation, TimestampTz answered_at, Moment now)
{
	int64		clock_offset = now.clock - now.time;
	int64		set_by = clock_offset - reservation->clock_offset;

	if (set_by > DRIFT || set_by < -DRIFT)
		return now.time;
	return Min(answered_at - clock_offset, now.time);
}

/* A counted endpoint's window, moved on to this time. */
static ClerkRequestWindow *
window_of(Instance *instance, ClerkEndpoint endpoint, int64 now)
{
	ClerkRequestWindow *window = &instance->windows[endpoint];

	clerk_window_configure(window, now);
	return window;
}

static void
assess(Instance *instance, ClerkEndpoint endpoint, Moment now,
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
		until = Max(until, clerk_window_when_gone(window, used - budget->limit + 1));
		budget->available_at = now.clock + (until - now.time);
	}
}
