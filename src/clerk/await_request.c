/*
 * await_request.c
 *		Waits for requests to Clerk within a user's statement.
 */
#include "postgres.h"

#include "clerk/await_request.h"
#include "compat.h"
#include "miscadmin.h"

static int	count_running(ClerkHttpRequest *const *requests, int count);
static void warn_before_interrupt(ClerkHttpRequest *const *requests,
								  int count, ClerkEffect effect);
static const char *possible_effect(int sent, ClerkEffect effect);

/*
 * Waits until the request is finished.  "effect" is what the request changes
 * at Clerk.
 *
 * Raises what CHECK_FOR_INTERRUPTS() raises when the user cancels the
 * statement or ends the session, and what clerk_http_wait() raises.
 */
void
clerk_await(ClerkHttpRequest *request, ClerkEffect effect)
{
	clerk_await_any(&request, 1, effect);
}

/*
 * Waits until at least one more of the requests has finished.  Returns at once
 * if none of them is running.
 *
 * Raises errors as clerk_await() does.  If the statement is interrupted, a
 * warning (08007) first reports how many of the requests had been sent,
 * whether they are finished or not.  So pass only requests whose outcome the
 * caller has not recorded yet.
 */
void
clerk_await_any(ClerkHttpRequest *const *requests, int count,
				ClerkEffect effect)
{
	int			running = count_running(requests, count);

	while (running > 0 && count_running(requests, count) == running)
	{
		warn_before_interrupt(requests, count, effect);
		CHECK_FOR_INTERRUPTS();
		clerk_http_wait(-1);
	}
}

static int
count_running(ClerkHttpRequest *const *requests, int count)
{
	int			running = 0;

	for (int i = 0; i < count; i++)
		if (clerk_http_outcome(requests[i]) == CLERK_HTTP_RUNNING)
			running++;
	return running;
}

/*
 * Raises the warning of clerk_await_any() if CHECK_FOR_INTERRUPTS() is about
 * to end the statement.  Clerk may be processing its requests at this time, or
 * may have done so, which PostgreSQL's own message does not mention.
 */
static void
warn_before_interrupt(ClerkHttpRequest *const *requests, int count,
					  ClerkEffect effect)
{
	int			sent = 0;

	if (effect == CLERK_EFFECT_NONE || !INTERRUPTS_CAN_BE_PROCESSED() ||
		!(QueryCancelPending || ProcDiePending ||
		  clerk_transaction_timeout_pending()))
		return;
	for (int i = 0; i < count; i++)
		if (clerk_http_was_sent(requests[i]))
			sent++;
	if (sent == 0)
		return;
	ereport(WARNING,
			(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
			 sent == 1 ?
			 errmsg("the request to Clerk had already been sent") :
			 errmsg("%d requests to Clerk had already been sent", sent),
			 errdetail("%s", possible_effect(sent, effect)),
			 errhint("%s", clerk_error_retry_hint(effect))));
}

static const char *
possible_effect(int sent, ClerkEffect effect)
{
	if (effect == CLERK_EFFECT_REVOKES)
		return "The invitation may have been revoked.";
	if (effect == CLERK_EFFECT_CREATES)
		return "The invitation may have been created.";
	return sent == 1 ? "Its invitations may have been created." :
		"Their invitations may have been created.";
}
