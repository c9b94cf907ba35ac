/*
 * delivery.pml
 *		The delivery of the outbox: two rows, two senders, a server and its
 *		synchronous standby, and Clerk.
 *
 * Each comment "STEP name" stands before a step; README.md says which function
 * of src/ it is.  A step is atomic here because it is a transaction there, or
 * because nothing that another process can see happens in between.  All else
 * may be interleaved in any way, and a sender may die between any two steps.
 *
 * What is checked:
 *
 * - None is created twice, none is lost: at no time has Clerk created more
 *	 invitations for our requests to an address than there are rows for it that
 *	 are sent or still open.  So a row never causes a second invitation, and a
 *	 row never ends as failed, skipped or canceled whose invitation exists, or
 *	 comes to exist later.
 * - A row is sent only with an invitation that Clerk created after the row's
 *	 first claim, and that no other row has.
 * - A row is skipped only if somebody else has invited the person.
 * - Nothing is stuck: if faults cease, all rows become final.  (Compiled with
 *	 -DLIVENESS.)
 *
 * Not covered, as docs/outbox.md says, and kept out by these assumptions:
 *
 * - TIMELY: a request arrives at Clerk within clerk_invite.verify_delay after
 *	 its row became "verifying", or never.  That also holds for a process that
 *	 has claimed a row and is about to send it.  See TIME PASSES; -DLATE drops
 *	 the assumption.
 * - SYNCHRONOUS: a standby that is promoted has all that a sender has waited
 *	 for.  So a failover to an asynchronous standby and a restored backup are
 *	 left out; -DASYNCHRONOUS drops the assumption.
 * - LISTED: Clerk's list has every invitation of the person.  It may not after
 *	 the person was removed from the organization; -DREMOVAL drops the
 *	 assumption.
 * - UNAMBIGUOUS: a row is not claimed while the outcome of another row for the
 *	 same person is unknown; -DAMBIGUOUS drops the assumption.
 * - Nobody abandons a row, runs TRUNCATE, or disables the guard; fsync is on.
 *
 * Left out because it decides nothing here: budgets, delays between attempts
 * (a row may be tried again at any time, which includes the right one), the
 * limit of lookups, forms of addresses, and rows that are set aside.
 */

#ifndef MAX_ATTEMPTS
#define MAX_ATTEMPTS 2			/* clerk_invite.max_attempts */
#endif

#define ROWS 2
#define SENDERS 2
#define NOBODY SENDERS			/* has the sender's lock */
#define NONE 7					/* no invitation; no first claim */

/*
 * Two rows for two people of one organization, who may share a bulk request;
 * with -DONE_PERSON, two rows for the same person.
 */
#ifdef ONE_PERSON
#define PEOPLE 1
#define person_of(r) 0
#define INVITATIONS 3			/* one for each row, one by somebody else */
#else
#define PEOPLE 2
#define person_of(r) (r)
#define INVITATIONS 2
#endif

/* The states of a row.  "sent" to "canceled" are final. */
#define QUEUED 0
#define SENDING 1
#define VERIFYING 2
#define SENT 3
#define SKIPPED 4
#define FAILED 5
#define CANCELED 6
#define OVER 7					/* final; nothing can happen to it any more */

/* What error_code says of the last request. */
#define AS_PENDING 1
#define AS_MEMBER 2

/* A row of clerk_invitation_outbox. */
typedef Row {
	unsigned state : 3;
	unsigned attempts : 3;
	unsigned first_claim : 3;	/* invitations that the person had then */
	unsigned invitation : 3;	/* its number among the person's */
	unsigned refused : 2;		/* error_code, of the last request */
	bit send_alone
};

/* The primary's table, and the standby's copy of it. */
Row row[ROWS];
#ifdef STANDBY
Row copy[ROWS];
bit copied = 1;					/* the standby has received all commits */
bit promoted;
#endif

/*
 * The time that has passed since a row became "verifying" (claimed_at): it is
 * to be looked up at once; it was looked up too early, and waits; verify_delay
 * is over.
 */
#define AT_ONCE 0
#define TOO_EARLY 1
#define PASSED 2
byte delay[ROWS];

/* What a sender is doing. */
#define IDLE 0					/* between passes, or dead */
#define IN_PASS 1				/* between batches */
#define COMMITTING 2			/* the claim waits for the standby */
#define CLAIMED 3				/* the claim is safe */
#define REQUESTING 4			/* POSTs are under way, or have ended */
#define LOOKING 5				/* the same with GETs */

byte doing[SENDERS];
byte lock_of = NOBODY;			/* the sender's lock, outbox/sender_lock.c */
#ifdef STANDBY
byte fenced_out = NOBODY;		/* this sender is on the old primary */
#endif

/* What a request has come to: TRANSIT until Clerk, or the sender, ends it. */
#define TRANSIT 1
#define CREATED 2				/* 2xx */
#define PENDING_ALREADY 3		/* refused: a second pending invitation */
#define MEMBER_ALREADY 4
#define REFUSED 5				/* for good */
#define TRY_LATER 6				/* refused for now */
#define NOT_SENT 7				/* no byte went out; also 429 and 401 */
#define UNKNOWN 8				/* no usable answer */
#define NOT_TO_BLAME 9			/* bulk, refused: another row was named */
#define TO_BE_ALONE 10			/* bulk, refused: this row or none was named */
#define LISTED 11				/* an answer to a lookup */

/* A sender's request for a row; "attempt" is 0 if it has none. */
typedef Request {
	unsigned attempt : 3;		/* as the sender has seen it */
	unsigned answer : 4;
	unsigned listed : 3;		/* invitations that the person had */
	bit pending;				/* ... of which one was pending */
	bit early					/* looked up before verify_delay was over */
};
Request request[SENDERS * ROWS];
bit bulk[SENDERS];				/* both requests are one */

#define of(s, r) request[(s) * ROWS + (r)]

/* Requests that were given up, and may still be on their way to Clerk. */
byte given_up[ROWS];
byte given_up_bulk;

/*
 * Clerk.  A person's invitations are numbered in the order of creation; only
 * the last one can be pending, since Clerk refuses a second one.
 */
byte invitations[PEOPLE];
bit pending[PEOPLE];
bit member[PEOPLE];
byte ours[PEOPLE];				/* created for our requests */
#ifdef REMOVAL
byte unlisted[PEOPLE];			/* so many are gone from the list */
#endif
bit invited[PEOPLE];			/* somebody else has done so */
#define may_be_invited(p) (!pending[p] && !member[p])

#ifdef REMOVAL
#define first_listed(p) unlisted[p]
#else
#define first_listed(p) 0
#endif

/* Afterwards there are no more faults, and nobody else changes anything. */
bit calm;
#ifdef LIVENESS
#define TROUBLE !calm
#else
#define TROUBLE true
#endif

#define is_final(r) (row[r].state >= SENT)
#define may_exist(r) (row[r].state <= SENT || row[r].state == OVER)
#ifdef ONE_PERSON
#define rows_that_count(p) (may_exist(0) + may_exist(1))
#define has_the_other_row(r, i) (row[1 - (r)].invitation == (i))
#else
#define rows_that_count(p) may_exist(p)
#define has_the_other_row(r, i) false
#endif

#ifdef LIVENESS
ltl final { [] (calm -> <> (is_final(0) && is_final(1))) }
#endif

inline check_ledger(p)
{
	assert(ours[p] <= rows_that_count(p))
}

/* A transaction that changes rows is committed, and on the server's disk. */
inline committed()
{
#ifdef STANDBY
	copied = promoted
#else
	skip
#endif
}

/* What a sender that is dead or on an old primary writes, nobody reads. */
#ifdef STANDBY
#define is_fenced_out(s) (fenced_out == (s))
#else
#define is_fenced_out(s) false
#endif

inline no_longer_fenced_out(s)
{
#ifdef STANDBY
	fenced_out = (fenced_out == s -> NOBODY : fenced_out)
#else
	skip
#endif
}

inline forget_request(s, r)
{
	of(s, r).attempt = 0;
	of(s, r).answer = 0;
	of(s, r).listed = 0;
	of(s, r).pending = 0;
	of(s, r).early = 0
}

/* A row that has a request becomes "verifying". */
inline becomes_verifying(r)
{
	row[r].state = VERIFYING;
	delay[r] = AT_ONCE
}

/*
 * Nothing can happen any more to a row that is final, with no request left
 * anywhere.  All such rows look the same, which saves states.
 */
#ifdef ONE_PERSON
inline forget_row_if_over(r)
{
	skip
}
#else
#ifdef STANDBY
#define may_be_undone copied == 0
#else
#define may_be_undone false
#endif
#define is_over(r) (is_final(r) && row[r].state != OVER && !(may_be_undone) && \
	of(0, r).attempt == 0 && of(1, r).attempt == 0 && \
	given_up[r] == 0 && given_up_bulk == 0)

inline forget_row(x)
{
	x.state = OVER;
	x.attempts = 0;
	x.first_claim = 0;
	x.invitation = 0;
	x.refused = 0;
	x.send_alone = 0
}

inline forget_row_if_over(r)
{
	if
	:: is_over(r) ->
		forget_row(row[r]);
#ifdef STANDBY
		if
		:: !promoted -> forget_row(copy[r])
		:: else
		fi;
#endif
#ifdef REMOVAL
		unlisted[r] = 0;
#endif
		invitations[r] = 0;
		pending[r] = 0;
		member[r] = 0;
		invited[r] = 0;
		ours[r] = 0
	:: else
	fi
}
#endif

/* ---------------------------------------------------------------- senders */

/* Other sessions do not see a claim before its commit has ended. */
#define is_locked_by(s, r) (doing[s] == COMMITTING && of(s, r).attempt > 0 \
	&& !is_fenced_out(s))
#define is_locked(r) (is_locked_by(0, r) || is_locked_by(1, r))

#define is_left_behind(r) (row[r].state == SENDING && !is_locked(r))
#define is_to_be_looked_up(r) (row[r].state == VERIFYING && delay[r] != TOO_EARLY)
/* See UNAMBIGUOUS at the head of this file. */
#if defined(ONE_PERSON) && !defined(AMBIGUOUS)
#define is_due(r) (row[r].state == QUEUED && !is_unknown(1 - (r)))
#define is_unknown(r) (row[r].state == SENDING || row[r].state == VERIFYING)
#else
#define is_due(r) (row[r].state == QUEUED)
#endif
#define is_any_due (is_left_behind(0) || is_left_behind(1) || \
	is_to_be_looked_up(0) || is_to_be_looked_up(1) || is_due(0) || is_due(1))

inline take_over_row(r)
{
	if
	:: is_left_behind(r) -> row[r].refused = 0; becomes_verifying(r)
	:: else
	fi
}

inline lock_and_take_over(s)
{
	/* STEP LOCK */
	lock_of = s;
	doing[s] = IN_PASS;
	/* STEP TAKE OVER */
	if
	:: is_left_behind(0) || is_left_behind(1) ->
		take_over_row(0);
		take_over_row(1);
		committed()
	:: else
	fi
}

/* What was created before a row's first claim makes no difference to it. */
#ifdef ONE_PERSON
#define is_numbered(p) true
inline forget_numbers(r)
{
	skip
}
#else
#define is_numbered(p) (row[p].first_claim != NONE)
inline forget_numbers(r)
{
	invitations[r] = 0
}
#endif

/* STEP CLAIM: a transaction */
inline claim_row(s, r)
{
#ifdef MUTANT_CLAIM_UNCOMMITTED
	of(s, r).attempt = row[r].attempts + 1;
#else
	row[r].state = SENDING;
	row[r].attempts++;
	of(s, r).attempt = row[r].attempts;
#endif
	if
	:: row[r].first_claim == NONE ->
		forget_numbers(r);
		row[r].first_claim = invitations[person_of(r)]
	:: else
	fi
}

inline claim(s)
{
	if
	:: is_due(0) -> claim_row(s, 0)
	:: is_due(1) -> claim_row(s, 1)
#ifndef ONE_PERSON
	:: is_due(0) && is_due(1) && !row[0].send_alone && !row[1].send_alone ->
		claim_row(s, 0); claim_row(s, 1); bulk[s] = 1
#endif
	fi;
	committed();
#ifdef STANDBY
	doing[s] = COMMITTING;
#else
	doing[s] = CLAIMED;
#endif
#ifndef STANDBY
	/* A user's trigger has called pg_advisory_unlock_all(). */
	if
	:: TROUBLE -> lock_of = NOBODY
	:: true
	fi
#endif
}

/* The claim is on disk, and on the standby if there is one. */
#ifndef STANDBY
#define is_claim_safe true
#elif defined(ASYNCHRONOUS) || defined(MUTANT_STANDBY_NOT_AWAITED)
#define is_claim_safe true
#else
#define is_claim_safe copied
#endif

/* A request ends without having been sent; clerk_outcome_unsent() */
inline do_not_send(s)
{
	of(s, 0).answer = (of(s, 0).attempt > 0 -> NOT_SENT : 0);
	of(s, 1).answer = (of(s, 1).attempt > 0 -> NOT_SENT : 0);
	doing[s] = REQUESTING
}

/* A sender that has lost its lock takes it again, unless another one has it. */
#define can_have_lock(s) (lock_of == s || lock_of == NOBODY)

inline send(s)
{
	/* STEP CHECK LOCK */
	if
	:: is_fenced_out(s) || can_have_lock(s) ->
		lock_of = (is_fenced_out(s) -> lock_of : s);
		/* STEP SEND */
		of(s, 0).answer = (of(s, 0).attempt > 0 -> TRANSIT : 0);
		of(s, 1).answer = (of(s, 1).attempt > 0 -> TRANSIT : 0);
		doing[s] = REQUESTING
	:: else -> do_not_send(s)
	fi
}

#define has_ended(s, r) (of(s, r).answer != TRANSIT)
#define is_posted(s, r) (doing[s] == REQUESTING && of(s, r).answer == TRANSIT)
#define is_asked(s, r) (doing[s] == LOOKING && of(s, r).answer == TRANSIT)
#define have_all_ended(s) (has_ended(s, 0) && has_ended(s, 1))

/* A request may still arrive after its sender gave it up. */
inline give_up(s)
{
	given_up_bulk = given_up_bulk + (bulk[s] && is_posted(s, 0));
	given_up[0] = given_up[0] + (!bulk[s] && is_posted(s, 0));
	given_up[1] = given_up[1] + (!bulk[s] && is_posted(s, 1));
	of(s, 0).answer = (has_ended(s, 0) -> of(s, 0).answer : UNKNOWN);
	of(s, 1).answer = (has_ended(s, 1) -> of(s, 1).answer : UNKNOWN)
}

/* Every change names the attempt and the state that the sender has seen. */
#ifdef MUTANT_NO_FENCE
#define is_as_seen(s, r, seen) true
#elif defined(MUTANT_FENCE_WITHOUT_ATTEMPT)
#define is_as_seen(s, r, seen) (row[r].state == seen)
#else
#define is_as_seen(s, r, seen) \
	(row[r].state == seen && row[r].attempts == of(s, r).attempt)
#endif

byte own;					/* the row's invitation, for becomes_sent() */

inline becomes_sent(r)
{
	row[r].state = SENT;
	row[r].invitation = own;
	assert(own >= row[r].first_claim && own < invitations[person_of(r)]);
	assert(!has_the_other_row(r, own))
}

/* undo_claim(), and what clerk_outbox_settle() does with an unsent row */
inline undo_claim(r)
{
	row[r].state = QUEUED;
	row[r].attempts--;
	if
	:: row[r].attempts == 0 -> row[r].first_claim = NONE; forget_numbers(r)
	:: else
	fi
}

#define are_attempts_used_up(r) \
	(row[r].attempts >= (MAX_ATTEMPTS > 1 + row[r].send_alone -> \
	MAX_ATTEMPTS : 1 + row[r].send_alone))

/* MAX_SHARED_ATTEMPTS of outcome.c is 2 */
#define SHARED (MAX_ATTEMPTS - 1 < 2 -> MAX_ATTEMPTS - 1 : 2)

inline settle_shared_failure(s, r)
{
	if
	:: bulk[s] -> row[r].send_alone = (row[r].attempts >= SHARED)
	:: else
	fi
}

/* STEP SETTLE: what the answer to a POST means for a row, outcome.c */
inline settle_row(s, r)
{
#ifdef MUTANT_CLAIM_UNCOMMITTED
	row[r].attempts = of(s, r).attempt;
#endif
	if
	:: of(s, r).answer == CREATED -> own = of(s, r).listed - 1; becomes_sent(r)
	:: of(s, r).answer == PENDING_ALREADY ->
		row[r].send_alone = row[r].send_alone | bulk[s];
		row[r].refused = AS_PENDING;
		becomes_verifying(r)
	:: of(s, r).answer == MEMBER_ALREADY ->
		row[r].refused = AS_MEMBER;
		becomes_verifying(r)
	:: of(s, r).answer == UNKNOWN ->
		settle_shared_failure(s, r);
		becomes_verifying(r)
	:: of(s, r).answer == REFUSED -> row[r].state = FAILED
	:: of(s, r).answer == TRY_LATER ->
		settle_shared_failure(s, r);
		row[r].state = (row[r].attempts >= MAX_ATTEMPTS && !bulk[s] -> FAILED : QUEUED)
	:: of(s, r).answer == NOT_SENT -> undo_claim(r)
	:: of(s, r).answer == NOT_TO_BLAME -> row[r].state = QUEUED
	:: of(s, r).answer == TO_BE_ALONE ->
		row[r].state = QUEUED;
		row[r].send_alone = 1
	fi;
	committed();
	check_ledger(person_of(r))
}

/* own_invitation(): which invitations a lookup counts */
#ifdef MUTANT_PENDING_ONLY
#define counts(s, r, i) (of(s, r).pending && (i) == of(s, r).listed - 1)
#else
#define counts(s, r, i) true
#endif
#define is_own(s, r, i) ((i) < of(s, r).listed && (i) >= row[r].first_claim \
	&& (i) >= first_listed(person_of(r)) && counts(s, r, i) && !has_the_other_row(r, i))
#define any_own(s, r) (is_own(s, r, 0) || is_own(s, r, 1) || is_own(s, r, 2))

/* Of several, the first one in Clerk's list, which is the newest. */
#define first_own(s, r) (is_own(s, r, 2) -> 2 : (is_own(s, r, 1) -> 1 : 0))

/* empty_lookup_outcome() */
#ifdef MUTANT_EMPTY_BELIEVED
#define is_believed(s, r) true
#elif defined(MUTANT_DELAY_AT_SETTLE)
#define is_believed(s, r) (delay[r] == PASSED)
#else
#define is_believed(s, r) (!of(s, r).early)
#endif

/*
 * Somebody else's invitation is pending, or the person is a member.  If that
 * is not why Clerk refused the request, the request may still arrive, and be
 * carried out if the other invitation is revoked before.
 */
#define is_anothers(s, r) (of(s, r).pending || row[r].refused == AS_MEMBER)
#ifdef MUTANT_SKIPPED_AT_ONCE
#define may_be_skipped(s, r) true
#else
#define may_be_skipped(s, r) (row[r].refused || is_believed(s, r))
#endif

/* STEP SETTLE LOOKUP: what the answer to a lookup means for a row, lookup_outcome.c */
inline settle_lookup(s, r)
{
	if
	:: of(s, r).answer != LISTED	/* stays as it is */
	:: of(s, r).answer == LISTED && any_own(s, r) -> own = first_own(s, r); becomes_sent(r)
	:: of(s, r).answer == LISTED && !any_own(s, r) ->
		if
		:: is_anothers(s, r) && may_be_skipped(s, r) ->
			row[r].state = SKIPPED;
			assert(invited[person_of(r)] || PEOPLE == 1 && ours[0] > 0)
		:: !is_anothers(s, r) && is_believed(s, r) ->
			row[r].state = (are_attempts_used_up(r) -> FAILED : QUEUED)
		:: else -> delay[r] = (delay[r] == AT_ONCE -> TOO_EARLY : delay[r])
		fi
	fi;
	if
	:: row[r].state != VERIFYING -> row[r].refused = 0; delay[r] = AT_ONCE
	:: else
	fi;
	committed();
	check_ledger(person_of(r))
}

inline settle_change(s, r)
{
	if
	:: is_fenced_out(s) || of(s, r).attempt == 0
	:: else ->
		if
		:: doing[s] == LOOKING && is_as_seen(s, r, VERIFYING) -> settle_lookup(s, r)
#ifdef MUTANT_CLAIM_UNCOMMITTED
		:: doing[s] == REQUESTING && row[r].state == QUEUED -> settle_row(s, r)
#else
		:: doing[s] == REQUESTING && is_as_seen(s, r, SENDING) -> settle_row(s, r)
#endif
		:: else					/* fenced off */
		fi
	fi;
	forget_request(s, r)
}

/* A transaction; the pass ends if another session has become the sender. */
inline settle(s)
{
	settle_change(s, 0);
	settle_change(s, 1);
	bulk[s] = 0;
	doing[s] = (lock_of == s && !is_fenced_out(s) -> IN_PASS : IDLE);
	no_longer_fenced_out(s);
	forget_row_if_over(0);
	forget_row_if_over(1)
}

/* STEP LOOK UP: a GET for each row that is due for it */
inline look_up_row(s, r)
{
	of(s, r).attempt = row[r].attempts;
	of(s, r).answer = TRANSIT;
	of(s, r).early = (delay[r] != PASSED)
}

inline look_up(s)
{
	if
	:: is_to_be_looked_up(0) -> look_up_row(s, 0)
	:: is_to_be_looked_up(1) -> look_up_row(s, 1)
#ifdef ONE_PERSON
	:: is_to_be_looked_up(0) && is_to_be_looked_up(1) -> look_up_row(s, 0); look_up_row(s, 1)
#endif
	fi;
	doing[s] = LOOKING
}

/* The end of a process: its requests remain on their way. */
inline die(s)
{
	give_up(s);
	forget_request(s, 0);
	forget_request(s, 1);
	bulk[s] = 0;
	doing[s] = IDLE;
	lock_of = (lock_of == s && !is_fenced_out(s) -> NOBODY : lock_of);
	no_longer_fenced_out(s);
	forget_row_if_over(0);
	forget_row_if_over(1)
}

/*
 * An idle sender is like the other one, so sender 0 is the first to begin a
 * pass.
 */
#define may_begin(s) (lock_of == NOBODY && is_any_due && \
	doing[s] == IDLE && (s == 0 || doing[0] != IDLE))
#define is_looking_due (is_to_be_looked_up(0) || is_to_be_looked_up(1))
#define is_waiting(s) (doing[s] == REQUESTING || doing[s] == LOOKING)

proctype Sender(byte s)
{
end:
	do
	:: d_step { may_begin(s) -> lock_and_take_over(s) }
	:: atomic { doing[s] == IN_PASS && is_looking_due -> look_up(s) }
	:: atomic { doing[s] == IN_PASS && (is_due(0) || is_due(1)) -> claim(s) }
	:: d_step { doing[s] == COMMITTING && is_claim_safe -> doing[s] = CLAIMED }
	:: d_step { doing[s] == CLAIMED -> send(s) }
	:: d_step { is_waiting(s) && have_all_ended(s) -> settle(s) }
	/* STEP UNLOCK: rows left behind wait for the next pass. */
	:: d_step { doing[s] == IN_PASS &&
		(TROUBLE || !(is_looking_due || is_due(0) || is_due(1))) ->
		lock_of = NOBODY; doing[s] = IDLE }

	/* The wait for the standby is canceled: stop_without_standby(). */
	:: d_step { doing[s] == COMMITTING && TROUBLE -> do_not_send(s) }
	/* A time limit, or a connection that is lost. */
	:: d_step { is_waiting(s) && !have_all_ended(s) && TROUBLE -> give_up(s) }
	/* SIGKILL, a crash of the server, or an end of the machine. */
	:: d_step { doing[s] != IDLE && TROUBLE -> die(s) }
	od
}

/* ------------------------------------------------------------------ Clerk */

inline create(p)
{
	invitations[p]++;
	assert(invitations[p] <= INVITATIONS);
	pending[p] = 1;
	ours[p]++;
	check_ledger(p)
}

/* An answer that nobody receives is an answer all the same. */
inline answer_or_lose(s, r, a)
{
	if
	:: of(s, r).answer = a; of(s, r).listed = (a == CREATED -> invitations[person_of(r)] : 0)
	:: TROUBLE -> of(s, r).answer = UNKNOWN
	fi
}

inline process_single(s, r)
{
	if
	:: pending[person_of(r)] -> answer_or_lose(s, r, PENDING_ALREADY)
	:: member[person_of(r)] -> answer_or_lose(s, r, MEMBER_ALREADY)
	:: may_be_invited(person_of(r)) -> create(person_of(r)); answer_or_lose(s, r, CREATED)
	:: may_be_invited(person_of(r)) -> of(s, r).answer = REFUSED
	:: of(s, r).answer = TRY_LATER
	:: TROUBLE -> of(s, r).answer = NOT_SENT
	fi
}

/*
 * All or nothing.  A refusal names those who are pending or those who are
 * members already, or nobody.
 */
#ifndef ONE_PERSON
inline process_bulk(s)
{
	if
	:: may_be_invited(0) && may_be_invited(1) ->
		create(0); create(1);
		if
		:: true -> answer_or_lose(s, 0, CREATED); answer_or_lose(s, 1, CREATED)
		:: TROUBLE -> of(s, 0).answer = UNKNOWN; of(s, 1).answer = UNKNOWN
		fi
	:: pending[0] || pending[1] ->
		of(s, 0).answer = (pending[0] -> PENDING_ALREADY : NOT_TO_BLAME);
		of(s, 1).answer = (pending[1] -> PENDING_ALREADY : NOT_TO_BLAME)
	:: member[0] || member[1] ->
		of(s, 0).answer = (member[0] -> TO_BE_ALONE : NOT_TO_BLAME);
		of(s, 1).answer = (member[1] -> TO_BE_ALONE : NOT_TO_BLAME)
	:: of(s, 0).answer = TO_BE_ALONE; of(s, 1).answer = NOT_TO_BLAME
	:: of(s, 0).answer = NOT_TO_BLAME; of(s, 1).answer = TO_BE_ALONE
	:: of(s, 0).answer = TO_BE_ALONE; of(s, 1).answer = TO_BE_ALONE
	:: of(s, 0).answer = TRY_LATER; of(s, 1).answer = TRY_LATER
	:: TROUBLE -> of(s, 0).answer = UNKNOWN; of(s, 1).answer = UNKNOWN
	:: TROUBLE -> of(s, 0).answer = NOT_SENT; of(s, 1).answer = NOT_SENT
	fi
}
#endif

inline process_lookup(s, r)
{
	if
	:: of(s, r).answer = LISTED;
		of(s, r).listed = invitations[person_of(r)];
		of(s, r).pending = pending[person_of(r)]
	:: TROUBLE -> of(s, r).answer = UNKNOWN; of(s, r).early = 0
	fi
}

proctype Clerk()
{
end:
	do
	:: atomic { is_posted(0, 0) && !bulk[0] -> process_single(0, 0) }
	:: atomic { is_posted(0, 1) && !bulk[0] -> process_single(0, 1) }
	:: atomic { is_posted(1, 0) && !bulk[1] -> process_single(1, 0) }
	:: atomic { is_posted(1, 1) && !bulk[1] -> process_single(1, 1) }
#ifndef ONE_PERSON
	:: atomic { is_posted(0, 0) && bulk[0] -> process_bulk(0) }
	:: atomic { is_posted(1, 0) && bulk[1] -> process_bulk(1) }
#endif
	:: atomic { is_asked(0, 0) -> process_lookup(0, 0) }
	:: atomic { is_asked(0, 1) -> process_lookup(0, 1) }
	:: atomic { is_asked(1, 0) -> process_lookup(1, 0) }
	:: atomic { is_asked(1, 1) -> process_lookup(1, 1) }
	od
}

/* ------------------------------------------------------- the network, time */

inline arrive(p)
{
	if
	:: may_be_invited(p) -> create(p)
	:: else
	fi
}

inline arrive_bulk()
{
#ifdef ONE_PERSON
	skip
#else
	if
	:: may_be_invited(0) && may_be_invited(1) -> create(0); create(1)
	:: else
	fi
#endif
}

/* ARRIVE LATE: Clerk carries a request out, or it never arrives. */
proctype Network()
{
end:
	do
	:: atomic { given_up[0] > 0 ->
		given_up[0]--; if :: arrive(person_of(0)) :: true fi; forget_row_if_over(0) }
	:: atomic { given_up[1] > 0 ->
		given_up[1]--; if :: arrive(person_of(1)) :: true fi; forget_row_if_over(1) }
	:: atomic { given_up_bulk > 0 ->
		given_up_bulk--; if :: arrive_bulk() :: true fi;
		forget_row_if_over(0); forget_row_if_over(1) }
	od
}

/* Whether a request for the row is on its way to Clerk, or is about to be. */
#define has_request(s, r) (of(s, r).attempt > 0 && \
	(doing[s] == CLAIMED || is_posted(s, r)))
#define is_on_its_way(r) (given_up[r] > 0 || given_up_bulk > 0 || \
	has_request(0, r) || has_request(1, r))

#ifdef LATE
#define is_timely(r) true
#else
#define is_timely(r) !is_on_its_way(r)
#endif

/* clerk_invite.verify_delay has passed since the row became "verifying". */
proctype Time()
{
end:
	do
	:: d_step { row[0].state == VERIFYING && delay[0] != PASSED && is_timely(0) -> delay[0] = PASSED }
	:: d_step { row[1].state == VERIFYING && delay[1] != PASSED && is_timely(1) -> delay[1] = PASSED }
	od
}

/* ------------------------------------------------------------ the standby */

#ifdef STANDBY
inline copy_row(to, from)
{
	to.state = from.state;
	to.attempts = from.attempts;
	to.first_claim = from.first_claim;
	to.invitation = from.invitation;
	to.refused = from.refused;
	to.send_alone = from.send_alone
}

inline forget_copy(r)
{
	copy[r].state = 0;
	copy[r].attempts = 0;
	copy[r].first_claim = 0;
	copy[r].invitation = 0;
	copy[r].refused = 0;
	copy[r].send_alone = 0
}

#define may_still_send(s) (is_posted(s, 0) || is_posted(s, 1) || can_have_lock(s) && \
	(doing[s] == CLAIMED || doing[s] == COMMITTING && is_claim_safe))

inline live_on(s)
{
	fenced_out = s;
	doing[s] = (doing[s] == COMMITTING -> CLAIMED : doing[s])
}

proctype Standby()
{
end:
	do
	:: d_step { !copied && !promoted ->
		copy_row(copy[0], row[0]); copy_row(copy[1], row[1]); copied = 1;
		forget_row_if_over(0); forget_row_if_over(1) }
	/*
	 * A sender whose claim is safe may live on, on the old primary, and send;
	 * nothing that it writes counts any more.  All others die.
	 */
	:: atomic { !promoted && TROUBLE ->
		if
		:: may_still_send(0) -> die(1); live_on(0)
		:: may_still_send(1) -> die(0); live_on(1)
		:: die(0); die(1)
		fi;
		d_step {
			lock_of = NOBODY;
			copy_row(row[0], copy[0]); copy_row(row[1], copy[1]);
			forget_copy(0); forget_copy(1);
			promoted = 1; copied = 1;
			forget_row_if_over(0);
			forget_row_if_over(1)
		} }
	od
}
#endif

/* ----------------------------------------------------------- other people */


#ifdef ONE_PERSON
#define is_over_for(p) false
#else
#define is_over_for(p) (row[p].state == OVER)
#endif
#define may_change(p) (TROUBLE && !is_over_for(p))

inline cancel(r)
{
	row[r].state = CANCELED;
	committed();
	check_ledger(person_of(r));
	forget_row_if_over(r)
}

proctype Others(byte p)
{
end:
	do
	/* The person accepts. */
	:: d_step { pending[p] && may_change(p) -> pending[p] = 0; member[p] = 1 }
	/* Somebody revokes the invitation, or it expires. */
	:: d_step { pending[p] && may_change(p) -> pending[p] = 0 }
	/* Somebody else invites the person. */
	:: d_step { may_be_invited(p) && !invited[p] && may_change(p) ->
		invited[p] = 1; pending[p] = 1; invitations[p] = invitations[p] + is_numbered(p) }
#ifdef REMOVAL
	:: d_step { member[p] && may_change(p) -> member[p] = 0; unlisted[p] = invitations[p] }
#endif
	/* The user cancels a row; the guard allows that while it is queued. */
	:: d_step { row[0].state == QUEUED && TROUBLE -> cancel(0) }
	:: d_step { row[1].state == QUEUED && TROUBLE -> cancel(1) }
#ifdef LIVENESS
	:: d_step { !calm -> calm = 1 }
#endif
	od
}

init
{
	byte r;

	atomic {
		for (r : 0 .. ROWS - 1) {
			row[r].first_claim = NONE;
			row[r].invitation = NONE;
#ifdef STANDBY
			copy[r].first_claim = NONE;
			copy[r].invitation = NONE;
#endif
		}
		r = 0;
		run Sender(0);
		run Sender(1);
		run Clerk();
		run Network();
		run Time();
#ifdef STANDBY
		run Standby();
#endif
		run Others(0)
	}
}
