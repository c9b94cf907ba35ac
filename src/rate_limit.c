/*
 * rate_limit.c
 *		Clerk's budgets of requests, counted in shared memory: "now, or when?"
 *
 * Clerk limits the requests of an instance to each endpoint in a window of
 * time.  It is not documented whether the window slides, and whether refused
 * requests count.  Here it slides, which no fixed window can be stricter than,
 * and every request counts that was sent, or may have been.
 *
 * A request is reserved when it starts, and when its answer arrives its count
 * moves to that moment.  Clerk counts it at some time in between: so its place
 * is never free earlier here than there.
 *
 * The counts are kept in a ring of BUCKETS buckets, each as long as the window
 * divided by BUCKETS - 1, and a bucket counts until the whole of it has left
 * the window.  So a place is free again less than 1/127 of the window (0.8 %)
 * later than it could be, and never too early.
 *
 * The memory is taken from what the server has to spare when it is first
 * needed, so that the library works without being preloaded.  A restart of the
 * server forgets the counts.
 */
#include "postgres.h"

#include <limits.h>

#include "common/hashfn.h"
#include "compat.h"
#include "guc.h"
#include "rate_limit.h"
#include "shared_memory.h"
#include "utils/timestamp.h"

#define BUCKETS 128
#define COUNTED_ENDPOINTS (CLERK_ENDPOINT_BULK + 1)
#define ENDPOINTS (CLERK_ENDPOINT_LIST + 1)

/* More Clerk instances than databases of one server are likely to use. */
#define INSTANCES 16

/* With the number of the layout; the size need not tell one from another. */
#define SHARED_MEMORY_NAME "clerk_invite rate limit 1"

/*
 * Requests to an endpoint, by time.  Bucket number N, of which counts[N %
 * BUCKETS] is the content, holds those from N * width to (N + 1) * width; the
 * ring has the newest bucket and those before it.
 */
typedef struct Ring
{
	int64		width;			/* of a bucket: microseconds */
	int64		newest;			/* number of the newest bucket */
	uint32		counts[BUCKETS];
} Ring;

/* From a 429's Retry-After. */
typedef struct Closure
{
	TimestampTz begin;
	TimestampTz end;
} Closure;

/* The budgets of an instance of Clerk's. */
typedef struct Instance
{
	uint64		name;			/* from clerk_rate_limit_instance() */
	uint64		last_use;		/* by State.uses; 0: there is none */
	Ring		rings[COUNTED_ENDPOINTS];
	Closure		closures[ENDPOINTS];
} Instance;

typedef struct State
{
	LWLock		lock;			/* protects all that follows */
	uint64		uses;			/* counts them, to find what is not used */
	Instance	instances[INSTANCES];
} State;

/* Of this process: the shared memory, once it is known. */
static State *state = NULL;

static void lock_state(void);
static void unlock_state(void);
static Instance *find_instance(uint64 name);
static Instance *use_instance(uint64 name);
static bool is_counted(ClerkEndpoint endpoint);
static int	limit_of(ClerkEndpoint endpoint);
static Ring *ring_at(Instance *instance, ClerkEndpoint endpoint,
					 TimestampTz now);
static void make_all_newest(Ring *ring, int64 width, int64 newest);
static int64 bucket_width(void);
static int64 bucket_number(TimestampTz time, int64 width);
static uint32 *bucket_at(Ring *ring, TimestampTz time);
static int64 sum(const Ring *ring);
static TimestampTz when_gone(const Ring *ring, int64 count);
static TimestampTz closed_until(Instance *instance, ClerkEndpoint endpoint,
								TimestampTz now);
static void reserve(Instance *instance, ClerkEndpoint endpoint,
					TimestampTz now, int count, ClerkTicket *ticket);
static void assess(Instance *instance, ClerkEndpoint endpoint,
				   TimestampTz now, ClerkBudget *budget);

/* Asks for the memory; to be called when the library is loaded. */
void
clerk_rate_limit_request_memory(void)
{
	StaticAssertStmt(sizeof(State) <= CLERK_SHARED_MEMORY_MAX,
					 "the budgets need too much shared memory");
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
 * the server, and returns how many it has got.  If these are fewer than
 * wanted, *available_at is the time when there will be more, or infinity if
 * the settings do not allow any; otherwise it is 0.
 *
 * This and the functions below raise 53200 if there is no shared memory left
 * when they are first used.
 */
int
clerk_rate_limit_take(uint64 instance, ClerkEndpoint endpoint, int wanted,
					  ClerkTicket *ticket, TimestampTz *available_at)
{
	Instance   *used;
	TimestampTz now;
	ClerkBudget budget;
	int			granted = 0;

	lock_state();
	now = GetCurrentTimestamp();
	used = use_instance(instance);
	assess(used, endpoint, now, &budget);
	if (budget.available_at == 0)
		granted = Min(wanted, budget.remaining);
	reserve(used, endpoint, now, granted, ticket);
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
 * Reserves one request whether or not there is budget for it: somebody wants
 * it to go out now, and Clerk decides.
 */
void
clerk_rate_limit_count(uint64 instance, ClerkEndpoint endpoint,
					   ClerkTicket *ticket)
{
	lock_state();
	reserve(use_instance(instance), endpoint, GetCurrentTimestamp(), 1, ticket);
	unlock_state();
}

/*
 * One request of the ticket was answered at this time, or given up after it
 * had been sent.
 */
void
clerk_rate_limit_answered(const ClerkTicket *ticket, TimestampTz answered_at)
{
	Ring	   *ring;
	uint32	   *bucket;

	if (!is_counted(ticket->endpoint))
		return;
	lock_state();
	ring = ring_at(use_instance(ticket->instance), ticket->endpoint,
				   GetCurrentTimestamp());

	/*
	 * If the reservation is not there, it has left the window, or been moved
	 * by make_all_newest(): then the request may count twice for a while.
	 */
	bucket = bucket_at(ring, ticket->taken_at);
	if (bucket != NULL && *bucket > 0)
		(*bucket)--;
	bucket = bucket_at(ring, answered_at);
	if (bucket != NULL)
		(*bucket)++;
	unlock_state();
}

/* So many requests of the ticket have certainly not been sent. */
void
clerk_rate_limit_give_back(const ClerkTicket *ticket, int count)
{
	uint32	   *bucket;

	if (!is_counted(ticket->endpoint))
		return;
	lock_state();
	bucket = bucket_at(ring_at(use_instance(ticket->instance),
							   ticket->endpoint, GetCurrentTimestamp()),
					   ticket->taken_at);
	if (bucket != NULL)
		*bucket -= Min(*bucket, (uint32) count);
	unlock_state();
}

/* Clerk takes no request to this endpoint until then. */
void
clerk_rate_limit_close(uint64 instance, ClerkEndpoint endpoint,
					   TimestampTz until)
{
	Instance   *used;
	TimestampTz now;

	lock_state();
	now = GetCurrentTimestamp();
	used = use_instance(instance);
	if (until > Max(now, closed_until(used, endpoint, now)))
	{
		used->closures[endpoint].begin = now;
		used->closures[endpoint].end = until;
	}
	unlock_state();
}

/* Tells the state of an endpoint, without a change to it. */
void
clerk_rate_limit_look(uint64 instance, ClerkEndpoint endpoint,
					  ClerkBudget *budget)
{
	Instance   *known;
	Instance	unused;

	lock_state();
	known = find_instance(instance);
	if (known == NULL)
	{
		memset(&unused, 0, sizeof(unused));
		known = &unused;
	}
	assess(known, endpoint, GetCurrentTimestamp(), budget);
	unlock_state();
}

/* Finds or makes the shared memory, and locks it. */
static void
lock_state(void)
{
	if (state == NULL)
		state = clerk_find_shared_memory(SHARED_MEMORY_NAME, sizeof(State));
	if (state == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("requests to Clerk cannot be counted"),
				 errdetail("There is not enough shared memory left."),
				 errhint("Add clerk_invite to \"shared_preload_libraries\".")));
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
}

static void
unlock_state(void)
{
	LWLockRelease(&state->lock);
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

/*
 * A counted endpoint's ring, moved on to this time.  "now" must have been
 * taken under the lock, so that it goes back only if the clock does.
 */
static Ring *
ring_at(Instance *instance, ClerkEndpoint endpoint, TimestampTz now)
{
	Ring	   *ring = &instance->rings[endpoint];
	int64		width = bucket_width();
	int64		newest = bucket_number(now, width);

	/* A clock that is put right now and then may stand in the bucket before. */
	if (ring->width != width || ring->newest > newest + 1)
		make_all_newest(ring, width, newest);
	else if (newest - ring->newest >= BUCKETS)
	{
		memset(ring->counts, 0, sizeof(ring->counts));
		ring->newest = newest;
	}
	else
		while (ring->newest < newest)
			ring->counts[++ring->newest % BUCKETS] = 0;
	return ring;
}

/*
 * The clock was set back, or clerk_invite.rate_limit_window changed: the
 * buckets do not tell any more how old a request is.  All count as made now,
 * which at worst is a window too long.
 */
static void
make_all_newest(Ring *ring, int64 width, int64 newest)
{
	int64		count = sum(ring);

	memset(ring->counts, 0, sizeof(ring->counts));
	ring->width = width;
	ring->newest = newest;
	ring->counts[newest % BUCKETS] = (uint32) Min(count, PG_UINT32_MAX);
}

/* Microseconds.  BUCKETS - 1 of them are at least a window. */
static int64
bucket_width(void)
{
	int64		window = clerk_rate_limit_window * INT64CONST(1000);

	return (window + BUCKETS - 2) / (BUCKETS - 1);
}

/* A clock that stands before 2000 was not set: it is taken to stand still. */
static int64
bucket_number(TimestampTz time, int64 width)
{
	return Max(time, 0) / width;
}

/* The bucket of a time, which is not in the future; NULL if it is too old. */
static uint32 *
bucket_at(Ring *ring, TimestampTz time)
{
	int64		number = Min(bucket_number(time, ring->width), ring->newest);

	return number > ring->newest - BUCKETS ?
		&ring->counts[number % BUCKETS] : NULL;
}

static int64
sum(const Ring *ring)
{
	int64		count = 0;

	for (int i = 0; i < BUCKETS; i++)
		count += ring->counts[i];
	return count;
}

/* The time when so many of the ring's requests will have left the window. */
static TimestampTz
when_gone(const Ring *ring, int64 count)
{
	int64		number = Max(ring->newest - BUCKETS + 1, 0);

	while (number < ring->newest &&
		   (count -= ring->counts[number % BUCKETS]) > 0)
		number++;
	return (number + BUCKETS) * ring->width;
}

/* 0 if the endpoint is open. */
static TimestampTz
closed_until(Instance *instance, ClerkEndpoint endpoint, TimestampTz now)
{
	Closure    *closure = &instance->closures[endpoint];

	/* If the clock was set back, it begins again, and is no longer. */
	if (now < closure->begin)
	{
		closure->end -= closure->begin - now;
		closure->begin = now;
	}
	return closure->end > now ? closure->end : 0;
}

static void
reserve(Instance *instance, ClerkEndpoint endpoint, TimestampTz now, int count,
		ClerkTicket *ticket)
{
	ticket->instance = instance->name;
	ticket->endpoint = endpoint;
	ticket->taken_at = now;
	if (is_counted(endpoint))
		*bucket_at(ring_at(instance, endpoint, now), now) += count;
}

static void
assess(Instance *instance, ClerkEndpoint endpoint, TimestampTz now,
	   ClerkBudget *budget)
{
	Ring	   *ring = NULL;
	int64		used = 0;

	if (is_counted(endpoint))
	{
		ring = ring_at(instance, endpoint, now);
		used = sum(ring);
	}
	budget->limit = limit_of(endpoint);
	budget->used = (int) Min(used, INT_MAX);
	budget->remaining = Max(budget->limit - budget->used, 0);
	budget->closed_until = closed_until(instance, endpoint, now);
	budget->available_at = budget->closed_until;
	if (budget->limit == 0)
		budget->available_at = DT_NOEND;
	else if (budget->remaining == 0)
		budget->available_at = Max(budget->available_at,
								   when_gone(ring, used - budget->limit + 1));
}
