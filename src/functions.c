/*
 * functions.c
 *		The synchronous SQL functions: they call Clerk now, inside the caller's
 *		statement.
 *
 * Each checks its arguments, starts one operation, waits for it, and turns
 * the outcome into a row or an error.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "clerk_api.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "rollback_warning.h"
#include "utils/builtins.h"

/* Positions of clerk_create_organization_invitation()'s arguments. */
enum
{
	ARG_ORG_ID,
	ARG_INVITER,
	ARG_EMAIL,
	ARG_ROLE,
	ARG_REDIRECT,
	ARG_METADATA,
	ARG_PRIVATE_METADATA,
	ARG_EXPIRES_IN_DAYS,
	ARG_NOTIFY
};

/* Clerk's limits for expires_in_days. */
#define MIN_EXPIRES_IN_DAYS 1
#define MAX_EXPIRES_IN_DAYS 365

static void refuse_where_nothing_may_be_written(const char *function);
static char *required_text(FunctionCallInfo fcinfo, int position,
						   const char *name);
static char *optional_text(FunctionCallInfo fcinfo, int position,
						   const char *name);
static Jsonb *optional_object(FunctionCallInfo fcinfo, int position,
							  const char *name);
static int	optional_expires_in_days(FunctionCallInfo fcinfo, int position);
static void check_text(const char *value, const char *name);
static void check_identifier(const char *value, const char *name);
static void check_email(const char *email);
static ClerkHttpRequest *start(const ClerkNewInvitation *wanted,
							   ClerkTicket *ticket);
static void wait_for_answer(ClerkHttpRequest *request);
static void warn_if_about_to_leave(const ClerkHttpRequest *request);
static TupleDesc invitation_descriptor(FunctionCallInfo fcinfo);
pg_noreturn static void raise_not_invited(const ClerkNewInvitation *wanted,
										  const ClerkError *error);

PG_FUNCTION_INFO_V1(clerk_create_organization_invitation);

/*
 * clerk_create_organization_invitation(org_id text, inviter text, email text,
 *		role text, redirect text, metadata jsonb, private_metadata jsonb,
 *		expires_in_days integer, notify boolean)
 *		RETURNS clerk_organization_invitation
 *
 * Clerk's CreateOrganizationInvitation.  Raises what clerk_error.c's table
 * says, 22004 and 22023 for arguments that cannot be meant, 25006 in a
 * read-only transaction, 25000 in a parallel operation.
 */
Datum
clerk_create_organization_invitation(PG_FUNCTION_ARGS)
{
	ClerkNewInvitation wanted;
	ClerkInvitation created;
	ClerkHttpRequest *request;
	ClerkTicket ticket;
	ClerkError *error;
	TupleDesc	descriptor;
	bool		notify;

	refuse_where_nothing_may_be_written("clerk_create_organization_invitation()");

	wanted.organization_id = required_text(fcinfo, ARG_ORG_ID, "org_id");
	check_identifier(wanted.organization_id, "org_id");
	wanted.inviter_user_id = optional_text(fcinfo, ARG_INVITER, "inviter");
	wanted.email_address = required_text(fcinfo, ARG_EMAIL, "email");
	check_email(wanted.email_address);
	wanted.role = required_text(fcinfo, ARG_ROLE, "role");
	wanted.redirect_url = optional_text(fcinfo, ARG_REDIRECT, "redirect");
	wanted.public_metadata = optional_object(fcinfo, ARG_METADATA, "metadata");
	wanted.private_metadata = optional_object(fcinfo, ARG_PRIVATE_METADATA,
											  "private_metadata");
	wanted.expires_in_days = optional_expires_in_days(fcinfo, ARG_EXPIRES_IN_DAYS);
	wanted.notify = NULL;
	if (!PG_ARGISNULL(ARG_NOTIFY))
	{
		notify = PG_GETARG_BOOL(ARG_NOTIFY);
		wanted.notify = &notify;
	}

	/* What cannot be returned is not asked for. */
	descriptor = invitation_descriptor(fcinfo);
	request = start(&wanted, &ticket);
	wait_for_answer(request);
	if (!clerk_finish_create_invitation(request, &ticket, &created, &error))
		raise_not_invited(&wanted, error);
	clerk_http_release(request);

	clerk_warn_on_rollback(TextDatumGetCString(created.values[CLERK_INVITATION_ID]));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(descriptor,
													  created.values,
													  created.nulls)));
}

/*
 * An invitation is a write, if not one to this database: it has no place
 * where the server refuses writes.
 */
static void
refuse_where_nothing_may_be_written(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

static char *
required_text(FunctionCallInfo fcinfo, int position, const char *name)
{
	char	   *value;

	if (PG_ARGISNULL(position))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name)));
	value = text_to_cstring(PG_GETARG_TEXT_PP(position));
	check_text(value, name);
	return value;
}

static char *
optional_text(FunctionCallInfo fcinfo, int position, const char *name)
{
	return PG_ARGISNULL(position) ? NULL :
		required_text(fcinfo, position, name);
}

static Jsonb *
optional_object(FunctionCallInfo fcinfo, int position, const char *name)
{
	Jsonb	   *value;

	if (PG_ARGISNULL(position))
		return NULL;
	value = PG_GETARG_JSONB_P(position);
	if (!JB_ROOT_IS_OBJECT(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a JSON object", name)));
	return value;
}

/* 0 if the argument is null. */
static int
optional_expires_in_days(FunctionCallInfo fcinfo, int position)
{
	int			days;

	if (PG_ARGISNULL(position))
		return 0;
	days = PG_GETARG_INT32(position);
	if (days < MIN_EXPIRES_IN_DAYS || days > MAX_EXPIRES_IN_DAYS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be between %d and %d",
						"expires_in_days",
						MIN_EXPIRES_IN_DAYS, MAX_EXPIRES_IN_DAYS)));
	return days;
}

/*
 * No identifier, address, role or URL is empty or has a control character in
 * it.  Line breaks come from careless imports; they are named to help.
 */
static void
check_text(const char *value, const char *name)
{
	if (value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", name)));
	for (const char *c = value; *c != '\0'; c++)
		if ((unsigned char) *c < ' ' || *c == 0x7F)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not contain a line break or another control character",
							name)));
}

static void
check_identifier(const char *value, const char *name)
{
	if (!clerk_is_identifier(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is not a Clerk identifier: \"%s\"",
						name, value),
				 errdetail("Clerk's identifiers consist of letters, digits, underscores and hyphens.")));
}

/* Only Clerk knows which addresses it takes; these it never does. */
static void
check_email(const char *email)
{
	if (strchr(email, '@') == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is not an e-mail address: \"%s\"",
						"email", email)));
}

/* The user wants it now: it counts, but whether it may be is left to Clerk. */
static ClerkHttpRequest *
start(const ClerkNewInvitation *wanted, ClerkTicket *ticket)
{
	ClerkHttpRequest *request;
	ClerkError *error;
	uint64		instance;

	if (!clerk_chosen_instance(&instance, &error))
		raise_not_invited(wanted, error);
	clerk_rate_limit_count(instance, CLERK_ENDPOINT_SINGLE, ticket);
	request = clerk_start_create_invitation(wanted, &error);
	if (request == NULL)
	{
		clerk_rate_limit_give_back(ticket, 1);
		raise_not_invited(wanted, error);
	}
	return request;
}

/* Returns when the request is finished; the user may end it before that. */
static void
wait_for_answer(ClerkHttpRequest *request)
{
	while (clerk_http_outcome(request) == CLERK_HTTP_RUNNING)
	{
		warn_if_about_to_leave(request);
		CHECK_FOR_INTERRUPTS();
		clerk_http_wait(-1);
	}
}

/*
 * A statement that is ended while Clerk may be at work on its request leaves
 * something behind, of which PostgreSQL's own message knows nothing.
 */
static void
warn_if_about_to_leave(const ClerkHttpRequest *request)
{
	if ((QueryCancelPending || ProcDiePending || clerk_transaction_timeout_pending()) &&
		INTERRUPTS_CAN_BE_PROCESSED() &&
		clerk_http_was_sent(request))
		ereport(WARNING,
				(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
				 errmsg("the request to Clerk had been sent already"),
				 errdetail("The invitation may have been created."),
				 errhint("%s", CLERK_HINT_LOOK_FIRST)));
}

/*
 * The result type's descriptor, looked up through the function's own entry in
 * the catalog: no search_path comes into it.  Kept for the statement, since
 * the lookup would be done for every row.
 */
static TupleDesc
invitation_descriptor(FunctionCallInfo fcinfo)
{
	TupleDesc	descriptor = fcinfo->flinfo->fn_extra;
	MemoryContext caller;

	if (descriptor != NULL)
		return descriptor;

	caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE ||
		!clerk_fits_invitation(descriptor))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the library of clerk_invite does not fit the extension's SQL objects"),
				 errhint("Run ALTER EXTENSION clerk_invite UPDATE, and do not alter the type clerk_organization_invitation.")));
	descriptor = BlessTupleDesc(CreateTupleDescCopy(descriptor));
	MemoryContextSwitchTo(caller);
	fcinfo->flinfo->fn_extra = descriptor;
	return descriptor;
}

static void
raise_not_invited(const ClerkNewInvitation *wanted, const ClerkError *error)
{
	ereport(ERROR,
			(errcode(error->sqlstate),
			 errmsg("could not invite \"%s\" to organization \"%s\": %s",
					wanted->email_address, wanted->organization_id,
					error->summary),
			 error->detail != NULL ? errdetail("%s", error->detail) : 0,
			 error->hint != NULL ? errhint("%s", error->hint) : 0,
			 error->code != NULL ?
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, error->code) : 0,
			 error->param_name != NULL ?
			 err_generic_string(PG_DIAG_COLUMN_NAME, error->param_name) : 0));
}
