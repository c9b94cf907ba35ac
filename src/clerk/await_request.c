/*
 * await_request.c
 *		Waits for requests to Clerk, in a statement of the user's.
 */
#include "postgres.h"

#include "clerk/await_request.h"
#include "compat.h"
#include "miscadmin.h"

static int	count_running(ClerkHttpRequest *const *requests, int count);
static void warn_if_about_to_leave(ClerkHttpRequest *const *requests,
								   int count, ClerkEffect effect);
static const char *what_may_be_done(int sent, ClerkEffect effect);

/* Returns when the request is finished; the user may end it before that. */
void
clerk_await(ClerkHttpRequest *request, ClerkEffect effect)
{
	clerk_await_any(&request, 1, effect);
}

/*
 * Returns when one more of the requests is finished, or none is running.  If
 * the user ends it before that, there is a warning about those that had been
 * sent, finished or not: give only those whose outcome is not known.
 */
void
clerk_await_any(ClerkHttpRequest *const *requests, int count,
				ClerkEffect effect)
{
	int			running = count_running(requests, count);

	while (running > 0 && count_running(requests, count) == running)
	{
		warn_if_about_to_leave(requests, count, effect);
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
 * A statement that is ended while Clerk may be at work on its requests leaves
 * something behind, of which PostgreSQL's own message knows nothing.  To be
 * called before CHECK_FOR_INTERRUPTS(), with the requests that were started
 * and not finished.
 */
static void
warn_if_about_to_leave(ClerkHttpRequest *const *requests, int count,
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
			 errdetail("%s", what_may_be_done(sent, effect)),
			 errhint("%s", clerk_error_look_first(effect))));
}

static const char *
what_may_be_done(int sent, ClerkEffect effect)
{
	if (effect == CLERK_EFFECT_REVOKES)
		return "The invitation may have been revoked.";
	if (effect == CLERK_EFFECT_CREATES)
		return "The invitation may have been created.";
	return sent == 1 ? "Its invitations may have been created." :
		"Their invitations may have been created.";
}
