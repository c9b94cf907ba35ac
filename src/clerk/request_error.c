/*
 * request_error.c
 *		What went wrong with a request that is over: from the result of its
 *		transport and Clerk's response to a ClerkError.
 */
#include "postgres.h"

#include "clerk/error_response.h"
#include "clerk/error_rules.h"
#include "clerk/request_error.h"

#define SQLSTATE_NOT_SENT ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION
#define SQLSTATE_READ_FAILED ERRCODE_CONNECTION_FAILURE
#define SQLSTATE_OUTCOME_UNKNOWN ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN

static void outcome_unknown(ClerkError *error, ClerkEffect effect);
static void interpret_refusal(ClerkError *error, ClerkEffect effect);
static const char *try_again_hint(int seconds, ClerkEffect effect);

/*
 * Why a request did not succeed.  If it would have changed something at Clerk,
 * losing its answer leaves the outcome unknown.
 */
ClerkError *
clerk_error_from_request(const ClerkHttpRequest *request, ClerkEffect effect)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	switch (clerk_http_outcome(request))
	{
		case CLERK_HTTP_RUNNING:
			elog(ERROR, "request is still running");
			break;
		case CLERK_HTTP_UNUSABLE:
			return clerk_error_unusable_address(clerk_http_error(request));
		case CLERK_HTTP_NOT_SENT:
			error->class = CLERK_ERROR_NOT_SENT;
			error->sqlstate = SQLSTATE_NOT_SENT;
			error->summary = "could not connect to Clerk";
			error->detail = psprintf("Reason: %s.", clerk_http_error(request));
			error->hint = effect == CLERK_EFFECT_CREATES_SEVERAL ?
				"It is safe to try again." :
				"Nothing was sent. It is safe to try again.";
			return error;
		case CLERK_HTTP_LOST:
			outcome_unknown(error, effect);
			error->summary = "no response received from Clerk";
			error->detail = psprintf("Reason: %s.", clerk_http_error(request));
			return error;
		case CLERK_HTTP_ANSWERED:
			break;
	}

	clerk_error_read_response(request, error);
	if (error->http_status < 400 || error->http_status > 499)
	{
		outcome_unknown(error, effect);
		error->summary = error->http_status >= 500 ?
			"Clerk returned a server error" : "unexpected response from Clerk";
	}
	else
		interpret_refusal(error, effect);
	error->detail = clerk_error_describe(request, error);
	return error;
}

/*
 * Clerk said that it has done what was asked, but in words that cannot be
 * used; "reason" says why.  "id" is the identifier found in the answer, or
 * NULL: then it is not certain that this was Clerk's answer at all.
 */
ClerkError *
clerk_error_unreadable(const ClerkHttpRequest *request, ClerkEffect effect,
					   const char *reason, const char *id)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->http_status = clerk_http_status(request);
	error->trace_id = clerk_error_trace_id(request);
	outcome_unknown(error, effect);
	error->summary = "could not read the response from Clerk";
	error->said = psprintf("The response does not match Clerk's documentation: %s", reason);
	error->detail = clerk_error_describe(request, error);
	if (id != NULL && effect != CLERK_EFFECT_NONE)
		error->hint = psprintf("Clerk has %s the invitation \"%s\". Do not try again.",
							   effect == CLERK_EFFECT_REVOKES ? "revoked" : "created",
							   id);
	return error;
}

static void
outcome_unknown(ClerkError *error, ClerkEffect effect)
{
	error->class = CLERK_ERROR_OUTCOME_UNKNOWN;
	error->sqlstate = effect == CLERK_EFFECT_NONE ?
		SQLSTATE_READ_FAILED : SQLSTATE_OUTCOME_UNKNOWN;
	error->hint = clerk_error_look_first(effect);
}

/* What an answer from 400 to 499 means. */
static void
interpret_refusal(ClerkError *error, ClerkEffect effect)
{
	const ClerkErrorRule *rule =
	clerk_find_error_rule(effect, error->http_status, error->code);

	error->class = rule->class;
	error->sqlstate = rule->sqlstate;
	error->summary = rule->summary;
	error->hint = rule->hint;
	if (error->class == CLERK_ERROR_RATE_LIMITED ||
		error->class == CLERK_ERROR_TRY_LATER)
		error->hint = try_again_hint(error->retry_after, effect);
	else if (rule->http_status == 0 && rule->code == NULL &&
			 error->param_name != NULL)
		error->summary = psprintf("Clerk rejected parameter \"%s\"",
								  error->param_name);
}

/* A bulk request may have had others before it: what they created is not said. */
static const char *
try_again_hint(int seconds, ClerkEffect effect)
{
	const char *done = effect == CLERK_EFFECT_CREATES ?
	"Nothing was created. " : "";

	if (seconds <= 0)
		return psprintf("%sTry again later.", done);
	return psprintf("%sTry again in %d %s.", done, seconds,
					seconds == 1 ? "second" : "seconds");
}
