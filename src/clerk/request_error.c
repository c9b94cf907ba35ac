/*
 * request_error.c
 *		Why a finished request has failed: makes a ClerkError from the result
 *		of its transfer and from Clerk's response.
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
 * Returns why a finished request has failed.  "effect" is what the request
 * changes at Clerk if it is executed: unless that is CLERK_EFFECT_NONE, a lost
 * or unexpected response leaves the outcome unknown (08007).
 *
 * Raises XX000 if the request is still running.
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
		case CLERK_HTTP_COMPLETED:
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
 * Returns the error that Clerk reports success but its response cannot be
 * read.  "reason" is a phrase that says why.  "id" is the invitation's ID in
 * the response, or NULL if there is none; in that case the response may not be
 * Clerk's at all.
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
	error->clerk_message = psprintf("The response does not match Clerk's documentation: %s",
									reason);
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
	error->hint = clerk_error_retry_hint(effect);
}

/* Sets what a response with an HTTP status from 400 to 499 means. */
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

/*
 * The hint does not say that a bulk request created nothing, since earlier
 * bulk requests of the same call may have created invitations.
 */
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
