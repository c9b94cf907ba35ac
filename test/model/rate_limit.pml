/*
 * rate_limit.pml
 *		The budget of an endpoint: sessions that share it, a sliding window, and
 *		crashes.
 *
 * Each comment "STEP name" stands before a step; README.md says which function
 * of src/ it is.  A step is atomic here because it holds the lock of the
 * shared memory there.  Sessions may end, and the server may crash, between
 * any two steps, also while requests are reserved or running.
 *
 * What is checked: in no window does Clerk count more requests than the
 * budget, however it counts.  A request that was sent counts when it reaches
 * Clerk, which is at any time between its start and its response.
 *
 * Time passes in ticks, forever.  The window is WINDOW ticks long, and has
 * BUCKETS buckets of WIDTH ticks: one more than the window is long, as in
 * clerk/request_window.c, where it has 128 buckets of 1/127 of its length.
 * Two requests in ticks that are WINDOW apart may be less than a window apart,
 * so Clerk's window has one tick more.
 *
 * Kept out by assumption, as src/clerk/rate_limit.c says:
 *
 * - A request whose session has ended reaches Clerk in the same tick, or
 *	 never.
 * - A request ends, one way or another, within clerk_invite.request_timeout.
 * - The machine does not crash, so the file has what was written to it.
 * - The synchronous functions are not used: their requests are counted, but
 *	 sent whether or not there is budget for them.
 */

#define SESSIONS 3
#define BUDGET 3
#define WIDTH 2
#define BUCKETS 3
#define WINDOW (WIDTH * (BUCKETS - 1))
#define TIMEOUT 2				/* ticks */
#define OLD 9					/* ticks: all has left the window */

/* Of the shared memory: a window of clerk/request_window.c. */
byte bucket[BUCKETS];			/* the newest first */
bit latest[BUCKETS];			/* the tick of its latest response */
byte under_way;
byte held;
bit tick_of_bucket;				/* how much of the newest bucket has passed */

/* The same in the file, which has no "held", and its age in ticks. */
byte file_bucket[BUCKETS];
bit file_latest[BUCKETS];
byte file_under_way;
byte file_age = OLD;

/* A session's requests: those that it holds, and the one that it has started. */
#define NOT_STARTED 0
#define STARTED 1				/* has not reached Clerk */
#define COUNTED 2				/* has */
byte holds[SESSIONS];
byte request[SESSIONS];
byte age[SESSIONS];				/* of the request, in ticks */
byte abandoned;					/* their sessions have ended */

/* What Clerk has counted in each tick, the newest first. */
byte clerk[WINDOW + 1];

#define counted_by_clerk (clerk[0] + clerk[1] + clerk[2] + clerk[3] + clerk[4])

/*
 * The oldest bucket has left the window when the tick of its latest response
 * has: clerk_window_advance()
 */
#if defined(MUTANT_LEAVES_EARLY)
#define in_window (bucket[0] + bucket[1])
#elif defined(MUTANT_LEAVES_IN_ITS_TICK)
#define in_window (bucket[0] + bucket[1] + (tick_of_bucket >= latest[2] -> 0 : bucket[2]))
#else
#define in_window (bucket[0] + bucket[1] + (tick_of_bucket > latest[2] -> 0 : bucket[2]))
#endif

#ifdef MUTANT_HELD_NOT_COUNTED
#define used (in_window + under_way)
#else
#define used (in_window + under_way + held)
#endif

/* write_through() */
inline write_file()
{
	file_bucket[0] = bucket[0];
	file_bucket[1] = bucket[1];
	file_bucket[2] = bucket[2];
	file_latest[0] = latest[0];
	file_latest[1] = latest[1];
	file_latest[2] = latest[2];
	file_under_way = under_way;
	file_age = 0
}

/* The bucket of a time so many ticks ago, and its tick of that bucket */
#define bucket_of(ago) \
	((ago) > tick_of_bucket -> ((ago) - tick_of_bucket + 1) / WIDTH : 0)
#define tick_of(ago) ((ago + tick_of_bucket) % WIDTH)

/* Responses that arrived in this tick of this bucket: clerk_window_add() */
#ifdef MUTANT_FIRST_INSTEAD_OF_LATEST
#define is_latest(b, tick, count) (bucket[b] == 0 && (count) > 0)
#else
#define is_latest(b, tick, count) ((tick) > latest[b] && (count) > 0)
#endif
#define add(b, tick, count) \
	latest[b] = (is_latest(b, tick, count) -> (tick) : latest[b]); \
	bucket[b] = bucket[b] + (count)

/* A bucket begins, with the next element of each array. */
#define shift(array) array[2] = array[1]; array[1] = array[0]; array[0] = 0

inline end_request(s)
{
	request[s] = NOT_STARTED;
	age[s] = 0
}

/* What a request that has left its session does is up to the network. */
inline abandon_request(s)
{
	abandoned = abandoned + (request[s] == STARTED);
	end_request(s)
}

proctype Session(byte s)
{
	byte granted;

end:
	do
	/* STEP RESERVE: a sender's batch takes one request or more */
#ifdef MUTANT_CHECKED_WITHOUT_LOCK
	:: atomic { holds[s] == 0 && request[s] == NOT_STARTED && used < BUDGET -> skip };
		atomic { holds[s] = 1; held++ }
#else
	:: d_step { holds[s] == 0 && request[s] == NOT_STARTED && used < BUDGET ->
		holds[s] = 1; held++ }
	:: d_step { holds[s] == 0 && request[s] == NOT_STARTED && used + 1 < BUDGET ->
		holds[s] = 2; held = held + 2 }
#endif
	/* STEP START: before anything of the request is sent */
	:: d_step { holds[s] > 0 && request[s] == NOT_STARTED ->
		holds[s]--; held--;
#ifdef MUTANT_COUNTS_FROM_START
		add(0, tick_of_bucket, 1);
#else
		under_way++;
#endif
		request[s] = STARTED;
#ifndef MUTANT_FILE_AFTER_SENDING
		write_file()
#endif
		}
	/* STEP RESPOND: a response, or the time limit */
	:: d_step { request[s] == COUNTED ->
#ifndef MUTANT_COUNTS_FROM_START
		under_way--; add(0, tick_of_bucket, 1);
#endif
		end_request(s); write_file() }
	:: d_step { request[s] == STARTED ->
#ifndef MUTANT_COUNTS_FROM_START
		under_way--; add(0, tick_of_bucket, 1);
#endif
		abandon_request(s); write_file() }
	/* STEP RETURN: certainly not sent */
	:: d_step { request[s] == NOT_STARTED && holds[s] > 0 -> holds[s]--; held-- }
#ifndef MUTANT_COUNTS_FROM_START
	:: d_step { request[s] == STARTED -> under_way--; end_request(s) }
#endif
	/* STEP RELEASE: the transaction fails, or the session ends */
	:: d_step { holds[s] > 0 || request[s] != NOT_STARTED ->
		held = held - holds[s];
		holds[s] = 0;
#ifndef MUTANT_COUNTS_FROM_START
		if
		:: request[s] != NOT_STARTED ->
			under_way--;
#ifndef MUTANT_ENDED_IS_NOT_SENT
			add(0, tick_of_bucket, 1)
#endif
		:: else
		fi;
#endif
		abandon_request(s) }
	od
}

inline reaches_clerk(s)
{
	request[s] = COUNTED;
	clerk[0]++;
	assert(counted_by_clerk <= BUDGET)
}

#define are_in_time (age[0] < TIMEOUT && age[1] < TIMEOUT && age[2] < TIMEOUT)

/* Clerk, the network, the clock, and the server's own end */
proctype World()
{
	byte n;

end:
	do
	:: d_step { request[0] == STARTED -> reaches_clerk(0) }
	:: d_step { request[1] == STARTED -> reaches_clerk(1) }
	:: d_step { request[2] == STARTED -> reaches_clerk(2) }
	:: atomic { abandoned > 0 -> abandoned--;
		if
		:: clerk[0]++; assert(counted_by_clerk <= BUDGET)
		:: true
		fi }

	/* A tick */
	:: d_step { abandoned == 0 && are_in_time ->
		for (n : 0 .. SESSIONS - 1) {
			age[n] = age[n] + (request[n] != NOT_STARTED)
		}
		n = 0;
		clerk[4] = clerk[3];
		clerk[3] = clerk[2];
		clerk[2] = clerk[1];
		clerk[1] = clerk[0];
		clerk[0] = 0;
		file_age = (file_age < OLD -> file_age + 1 : OLD);
		tick_of_bucket = !tick_of_bucket;
		if
		:: tick_of_bucket == 0 ->
			shift(bucket);
			shift(latest);
			shift(file_bucket);
			shift(file_latest)
		:: else
		fi }

	/*
	 * The server crashes, and with it all sessions and the shared memory.
	 *
	 * STEP LOAD: requests that were running count as received now, or when
	 * their time limit expired
	 */
	:: d_step {
		for (n : 0 .. SESSIONS - 1) {
			abandon_request(n);
			holds[n] = 0
		}
		held = 0;
		bucket[0] = file_bucket[0];
		bucket[1] = file_bucket[1];
		bucket[2] = file_bucket[2];
		latest[0] = file_latest[0];
		latest[1] = file_latest[1];
		latest[2] = file_latest[2];
		n = (file_age > TIMEOUT -> file_age - TIMEOUT : 0);
		if
		:: bucket_of(n) < BUCKETS ->
			add(bucket_of(n), tick_of(n), file_under_way)
		:: else
		fi;
		n = 0;
		under_way = 0 }
	od
}

init
{
	byte s;

	atomic {
		for (s : 0 .. SESSIONS - 1) {
			run Session(s)
		}
		s = 0;
		run World()
	}
}
