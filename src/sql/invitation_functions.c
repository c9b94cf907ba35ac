/*
 * invitation_functions.c
 *		The SQL functions for a single invitation: create, get, revoke.
 *
 * They call Clerk within the caller's statement.  Each checks its arguments,
 * starts one operation, waits for it, and turns the outcome into a row or an
 * error.
 *
 * All of them raise the SQLSTATE of the ClerkError if the request fails
 * (clerk/error_rules.c, clerk/request_error.c), 22004 and 22023 for invalid
 * arguments, 22P05 if the database's encoding lacks a character of the
 * response, 25000 in a parallel operation, 55000 without a usable key or with
 * SQL objects that do not match the library, and 57014 when canceled.
 */
#include "postgres.h"

#include "clerk/api_request.h"
#include "clerk/await_request.h"
#include "clerk/operations.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "sql/arguments.h"
#include "sql/result_descriptor.h"
#include "sql/rollback_warning.h"
#include "sql/statement_request.h"

/* Argument positions of clerk_create_organization_invitation(). */
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

/* Argument positions of the functions for an existing invitation. */
enum
{
	ARG_INVITATION_ORG_ID,
	ARG_INVITATION_ID,
	ARG_REQUESTING_USER
};

static ClerkHttpRequest *start_create(const ClerkNewInvitation *wanted,
									  ClerkReservation *reservation);
static TupleDesc cached_descriptor(FunctionCallInfo fcinfo);
pg_noreturn static void raise_create_error(const ClerkNewInvitation *wanted,
										   const ClerkError *error);
pg_noreturn static void raise_invitation_error(const char *action,
											   const char *org_id,
											   const char *invitation_id,
											   const ClerkError *error);

PG_FUNCTION_INFO_V1(clerk_create_organization_invitation);
PG_FUNCTION_INFO_V1(clerk_get_organization_invitation);
PG_FUNCTION_INFO_V1(clerk_revoke_organization_invitation);

/*
 * clerk_create_organization_invitation(org_id text, inviter text, email text,
 *		role text, redirect text, metadata jsonb, private_metadata jsonb,
 *		expires_in_days integer, notify boolean)
 *		RETURNS clerk_organization_invitation
 *
 * Clerk's CreateOrganizationInvitation.  Raises, in addition to the errors
 * listed at the head of this file, 22021 if an argument cannot be converted to
 * UTF-8, 25006 in a read-only transaction, and 53200 without shared memory for
 * the rate limits.
 */
Datum
clerk_create_organization_invitation(PG_FUNCTION_ARGS)
{
	ClerkNewInvitation wanted;
	ClerkInvitation created;
	ClerkHttpRequest *request;
	ClerkReservation reservation;
	ClerkError *error;
	TupleDesc	descriptor;
	bool		notify;

	descriptor = cached_descriptor(fcinfo);
	clerk_prevent_write("clerk_create_organization_invitation()");

	wanted.organization_id = clerk_required_identifier(fcinfo, ARG_ORG_ID, "org_id");
	wanted.inviter_user_id = clerk_optional_text(fcinfo, ARG_INVITER, "inviter",
												 CLERK_MAX_IDENTIFIER);
	wanted.email_address = clerk_required_address(fcinfo, ARG_EMAIL, "email");
	wanted.role = clerk_required_text(fcinfo, ARG_ROLE, "role",
									  CLERK_MAX_IDENTIFIER);
	wanted.redirect_url = clerk_optional_text(fcinfo, ARG_REDIRECT, "redirect",
											  CLERK_MAX_URL);
	wanted.public_metadata = clerk_optional_object(fcinfo, ARG_METADATA, "metadata");
	wanted.private_metadata = clerk_optional_object(fcinfo, ARG_PRIVATE_METADATA,
													"private_metadata");
	wanted.expires_in_days = 0;
	if (!PG_ARGISNULL(ARG_EXPIRES_IN_DAYS))
	{
		wanted.expires_in_days = PG_GETARG_INT32(ARG_EXPIRES_IN_DAYS);
		clerk_check_expires_in_days(wanted.expires_in_days, "expires_in_days");
	}
	wanted.notify = NULL;
	if (!PG_ARGISNULL(ARG_NOTIFY))
	{
		notify = PG_GETARG_BOOL(ARG_NOTIFY);
		wanted.notify = &notify;
	}

	request = start_create(&wanted, &reservation);
	clerk_await(request, CLERK_EFFECT_CREATES);
	if (!clerk_finish_create_invitation(request, &reservation, &created, &error))
		raise_create_error(&wanted, error);
	clerk_http_release(request);

	clerk_warn_on_rollback(clerk_invitation_text(&created, CLERK_INVITATION_ID));
	PG_RETURN_DATUM(HeapTupleGetDatum(clerk_form_invitation(descriptor, &created)));
}

/*
 * clerk_get_organization_invitation(org_id text, invitation_id text)
 *		RETURNS clerk_organization_invitation
 *
 * Clerk's GetOrganizationInvitation.  Raises the errors listed at the head of
 * this file.  It changes nothing, so it is allowed in a read-only transaction.
 */
Datum
clerk_get_organization_invitation(PG_FUNCTION_ARGS)
{
	static const char action[] = "get";
	ClerkInvitation invitation;
	ClerkHttpRequest *request;
	ClerkError *error;
	TupleDesc	descriptor;
	char	   *org_id;
	char	   *invitation_id;

	descriptor = cached_descriptor(fcinfo);
	PreventCommandIfParallelMode("clerk_get_organization_invitation()");
	org_id = clerk_required_identifier(fcinfo, ARG_INVITATION_ORG_ID, "org_id");
	invitation_id = clerk_required_identifier(fcinfo, ARG_INVITATION_ID,
											  "invitation_id");

	request = clerk_start_get_invitation(org_id, invitation_id, &error);
	if (request == NULL)
		raise_invitation_error(action, org_id, invitation_id, error);
	clerk_await(request, CLERK_EFFECT_NONE);
	if (!clerk_finish_get_invitation(request, &invitation, &error))
		raise_invitation_error(action, org_id, invitation_id, error);
	clerk_http_release(request);
	PG_RETURN_DATUM(HeapTupleGetDatum(clerk_form_invitation(descriptor, &invitation)));
}

/*
 * clerk_revoke_organization_invitation(org_id text, invitation_id text,
 *		requesting_user text)
 *		RETURNS clerk_organization_invitation
 *
 * Clerk's RevokeOrganizationInvitation.  Raises, in addition to the errors
 * listed at the head of this file, 22021 if an argument cannot be converted to
 * UTF-8, and 25006 in a read-only transaction.
 */
Datum
clerk_revoke_organization_invitation(PG_FUNCTION_ARGS)
{
	static const char action[] = "revoke";
	ClerkInvitation revoked;
	ClerkHttpRequest *request;
	ClerkError *error;
	TupleDesc	descriptor;
	char	   *org_id;
	char	   *invitation_id;
	char	   *requesting_user;

	descriptor = cached_descriptor(fcinfo);
	clerk_prevent_write("clerk_revoke_organization_invitation()");
	org_id = clerk_required_identifier(fcinfo, ARG_INVITATION_ORG_ID, "org_id");
	invitation_id = clerk_required_identifier(fcinfo, ARG_INVITATION_ID,
											  "invitation_id");
	requesting_user = clerk_optional_text(fcinfo, ARG_REQUESTING_USER,
										  "requesting_user",
										  CLERK_MAX_IDENTIFIER);

	request = clerk_start_revoke_invitation(org_id, invitation_id,
											requesting_user, &error);
	if (request == NULL)
		raise_invitation_error(action, org_id, invitation_id, error);
	clerk_await(request, CLERK_EFFECT_REVOKES);
	if (!clerk_finish_revoke_invitation(request, &revoked, &error))
		raise_invitation_error(action, org_id, invitation_id, error);
	clerk_http_release(request);
	PG_RETURN_DATUM(HeapTupleGetDatum(clerk_form_invitation(descriptor, &revoked)));
}

/*
 * Starts the request.  It counts toward the rate limit, but is not held back:
 * the user wants it now, and Clerk decides whether to accept it.
 */
static ClerkHttpRequest *
start_create(const ClerkNewInvitation *wanted, ClerkReservation *reservation)
{
	ClerkHttpRequest *request;
	ClerkError *error;
	uint64		instance;

	if (!clerk_chosen_instance(&instance, &error))
		raise_create_error(wanted, error);
	clerk_reservation_init_unreserved(instance, CLERK_ENDPOINT_SINGLE, reservation);
	request = clerk_start_create_invitation(wanted, reservation, &error);
	if (request == NULL)
		raise_create_error(wanted, error);
	return request;
}

/*
 * Returns the descriptor of the result type.  It is cached for the statement,
 * since it would otherwise be looked up for each row.
 */
static TupleDesc
cached_descriptor(FunctionCallInfo fcinfo)
{
	MemoryContext caller;

	if (fcinfo->flinfo->fn_extra == NULL)
	{
		caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
		fcinfo->flinfo->fn_extra = clerk_invitation_descriptor(fcinfo);
		MemoryContextSwitchTo(caller);
	}
	return fcinfo->flinfo->fn_extra;
}

static void
raise_create_error(const ClerkNewInvitation *wanted, const ClerkError *error)
{
	clerk_raise(error,
				psprintf("could not invite \"%s\" to organization \"%s\"",
						 wanted->email_address, wanted->organization_id));
}

static void
raise_invitation_error(const char *action, const char *org_id,
					   const char *invitation_id,
					   const ClerkError *error)
{
	clerk_raise(error,
				psprintf("could not %s invitation \"%s\" of organization \"%s\"",
						 action, invitation_id, org_id));
}
