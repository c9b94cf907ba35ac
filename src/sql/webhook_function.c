/*
 * webhook_function.c
 *		The SQL function that receives Clerk's webhooks.
 */
#include "postgres.h"

#include "clerk/webhook.h"
#include "common/settings.h"
#include "fmgr.h"
#include "outbox/outbox.h"
#include "outbox/outbox_statement.h"
#include "outbox/status_statements.h"
#include "outbox/webhook_receipts.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

static void raise_if_refused(const ClerkWebhookRefusal *refusal);
static const char *apply(char *body);

PG_FUNCTION_INFO_V1(clerk_receive_webhook);

/*
 * clerk_receive_webhook(body text, headers jsonb) RETURNS text
 *
 * "body" is what was received, unchanged.  "headers" is an object whose fields
 * are header names, in any case, and whose values are strings.  Returns what
 * was done:
 *
 * - updated: a row of the outbox has the new status
 * - unchanged: a row of the outbox had it already, or a final one
 * - unknown: the outbox has no row with the invitation
 * - ignored: the event is not about an invitation
 * - duplicate: this webhook has been received before
 *
 * Raises PT400 if the arguments are not a webhook, PT401 if it is not signed
 * with a configured secret, is more than five minutes old, or is a copy of one
 * that was received, 55000 if no secret is configured, and any error of the
 * UPDATE, including those of user triggers.
 */
Datum
clerk_receive_webhook(PG_FUNCTION_ARGS)
{
	Oid			schema = get_func_namespace(fcinfo->flinfo->fn_oid);
	const ClerkWebhookSecret *secrets;
	const char *reason;
	int			count = clerk_webhook_secrets(&secrets, &reason);
	ClerkWebhookHeaders headers;
	TimestampTz sent_at;
	char	   *body;

	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot verify webhooks"),
				 errdetail_internal("%s", reason),
				 errhint("Check \"clerk_invite.webhook_secret_file\".")));
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		raise_if_refused(&clerk_webhook_incomplete);
	body = text_to_cstring(PG_GETARG_TEXT_PP(0));
	raise_if_refused(clerk_webhook_headers(PG_GETARG_JSONB_P(1), &headers));
	raise_if_refused(clerk_webhook_time(&headers, GetCurrentTimestamp(), &sent_at));
	raise_if_refused(clerk_webhook_verify(&headers, body, secrets, count));
	switch (clerk_note_webhook(schema, headers.id, sent_at))
	{
		case CLERK_RECEIPT_FIRST:
			break;
		case CLERK_RECEIPT_AGAIN:
			PG_RETURN_TEXT_P(cstring_to_text("duplicate"));
		case CLERK_RECEIPT_COPY:
			raise_if_refused(&clerk_webhook_copied);
	}
	clerk_outbox_find(schema);
	PG_RETURN_TEXT_P(cstring_to_text(apply(body)));
}

static void
raise_if_refused(const ClerkWebhookRefusal *refusal)
{
	if (refusal != NULL)
		ereport(ERROR,
				(errcode(refusal->sqlstate),
				 errmsg_internal("%s", refusal->message),
				 refusal->detail == NULL ? 0 :
				 errdetail_internal("%s", refusal->detail)));
}

/* Does what the event asks for, and returns what that was. */
static const char *
apply(char *body)
{
	ClerkWebhookEvent event;

	raise_if_refused(clerk_webhook_read(body, &event));
	if (event.status == NULL)
		return "ignored";
	if (clerk_outbox_set_status(event.invitation_id, event.status))
		return "updated";
	return clerk_outbox_has_invitation(event.invitation_id) ? "unchanged" : "unknown";
}
