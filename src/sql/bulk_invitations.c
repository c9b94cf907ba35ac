/*
 * bulk_invitations.c
 *		The SQL function that immediately creates any number of invitations
 *		with bulk requests.
 *
 * The invitations are divided into batches of CLERK_BULK_MAX, the most that
 * Clerk accepts in a request, and several requests run concurrently.  Clerk
 * creates either all or none of the invitations of a request, but there is no
 * such guarantee for several requests.  If a batch fails, no further batch is
 * started, the running ones are completed, and the error reports how many
 * invitations were created.  Each invitation is registered for the rollback
 * warning as soon as its ID is known, before anything else can fail.
 *
 * A batch with an unknown outcome keeps its request until the function ends:
 * if the statement is canceled while it waits for other batches, the warning
 * then covers that request, too.
 */
#include "postgres.h"

#include "clerk/api_request.h"
#include "clerk/await_request.h"
#include "clerk/email_address.h"
#include "clerk/operations.h"
#include "clerk/request_error.h"
#include "common/installed_extension.h"
#include "common/settings.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "outbox/packing.h"
#include "sql/arguments.h"
#include "sql/invitations_argument.h"
#include "sql/result_descriptor.h"
#include "sql/rollback_warning.h"
#include "sql/statement_request.h"
#include "utils/memutils.h"

/* The invitations that share a request. */
typedef struct Batch
{
	int			first;			/* index of the first one in Bulk.wanted */
	int			count;
	MemoryContext memory;		/* for its request and the response */
	ClerkHttpRequest *request;
	ClerkReservation reservation;
	bool		finished;
	int			created;		/* how many certainly exist at Clerk */
	ClerkError *error;			/* NULL if there is none */
} Batch;

/* The state of one call of the function. */
typedef struct Bulk
{
	char	   *organization_id;
	ClerkNewInvitation *wanted;
	int			count;			/* number of invitations in "wanted" */
	TupleDesc	descriptor;
	HeapTuple  *rows;			/* one per element of "wanted"; NULL until
								 * created */
	MemoryContext result_memory;	/* for the rows */
	MemoryContext memory;		/* for everything else */
	uint64		instance;		/* the Clerk instance */
	Batch	   *batches;
	int			batch_count;
	int			next;			/* index of the first batch not yet started */
	Batch	  **slots;			/* running batches, and those with an unknown
								 * outcome */
	int			slot_count;
	bool		failed;			/* a batch failed: start no more */
} Bulk;

/* Numbers of invitations after a failure. */
typedef struct Tally
{
	int			created;
	int			unknown;		/* may or may not have been created */
} Tally;

static HeapTuple *create_invitations(FunctionCallInfo fcinfo, uint64 *count);
static void cut_into_batches(Bulk *bulk);
static void send_batches(Bulk *bulk);
static bool may_start_batch(const Bulk *bulk);
static void start_next_batch(Bulk *bulk);
static void await_batch(const Bulk *bulk);
static void settle_finished_batches(Bulk *bulk);
static bool any_batch_running(const Bulk *bulk);
static void settle_batch(Bulk *bulk, Batch *batch);
static void record_created(Bulk *bulk, Batch *batch,
						   const ClerkInvitationList *created);
static void match_to_wanted(const Bulk *bulk, const Batch *batch,
							const ClerkInvitationList *created, int *positions);
static const char *first_missing(const Bulk *bulk, const Batch *batch);
static bool has_unknown_outcome(const Batch *batch);
pg_noreturn static void raise_failed(const Bulk *bulk);
static const Batch *batch_to_report(const Bulk *bulk);
static Tally count_outcomes(const Bulk *bulk);
static const char *failure_message(const Bulk *bulk, const Batch *reported);
static void append_named_addresses(StringInfo detail, const Bulk *bulk);
static List *named_addresses(const Bulk *bulk, const Batch *batch);

PG_FUNCTION_INFO_V1(clerk_create_organization_invitation_bulk);

/*
 * clerk_create_organization_invitation_bulk(org_id text, invitations jsonb)
 *		RETURNS SETOF clerk_organization_invitation
 *
 * Clerk's CreateOrganizationInvitationBulk, called as often as needed.
 * Returns the invitations in the order of the array.  All of them are sent
 * before the first row is returned, even if the caller (a LIMIT, for example)
 * does not fetch the other rows.
 *
 * Raises the SQLSTATE of the ClerkError for a failed request
 * (clerk/error_rules.c, clerk/request_error.c), 22004, 22021 and 22023 for
 * invalid arguments, 22P05 if the database's encoding lacks a character of the
 * response, 25006 in a read-only transaction, 25000 in a parallel operation,
 * 53200 without shared memory for the rate limits, 55000 without a usable key
 * or with SQL objects that do not match the library, 57014 when canceled.
 */
Datum
clerk_create_organization_invitation_bulk(PG_FUNCTION_ARGS)
{
	FuncCallContext *call;
	HeapTuple	row;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext caller;

		clerk_require_fit();
		clerk_prevent_write("clerk_create_organization_invitation_bulk()");
		call = SRF_FIRSTCALL_INIT();
		caller = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		call->user_fctx = create_invitations(fcinfo, &call->max_calls);
		MemoryContextSwitchTo(caller);
	}

	call = SRF_PERCALL_SETUP();
	if (call->call_cntr >= call->max_calls)
		SRF_RETURN_DONE(call);
	row = ((HeapTuple *) call->user_fctx)[call->call_cntr];
	SRF_RETURN_NEXT(call, HeapTupleGetDatum(row));
}

/*
 * Creates all invitations.  Returns the rows, in the current memory context,
 * and sets *count to their number.
 */
static HeapTuple *
create_invitations(FunctionCallInfo fcinfo, uint64 *count)
{
	Bulk		bulk = {.result_memory = CurrentMemoryContext};
	ClerkError *error;

	bulk.memory = AllocSetContextCreate(bulk.result_memory, "clerk_invite bulk",
										ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(bulk.memory);
	bulk.organization_id = clerk_required_identifier(fcinfo, 0, "org_id");
	bulk.count = clerk_required_invitations(fcinfo, 1, "invitations",
											bulk.organization_id,
											&bulk.wanted);
	bulk.rows = MemoryContextAllocZero(bulk.result_memory,
									   Max(bulk.count, 1) * sizeof(HeapTuple));

	/* Check the result type before anything is sent. */
	bulk.descriptor = clerk_invitation_descriptor(fcinfo);
	if (bulk.count > 0)
	{
		if (!clerk_chosen_instance(&bulk.instance, &error))
			clerk_raise(error, failure_message(&bulk, NULL));
		cut_into_batches(&bulk);
		send_batches(&bulk);
		if (bulk.failed)
			raise_failed(&bulk);
	}
	MemoryContextSwitchTo(bulk.result_memory);
	MemoryContextDelete(bulk.memory);
	*count = bulk.count;
	return bulk.rows;
}

/*
 * Divides the invitations into batches.  The last one is sent as a bulk
 * request even if it has only one invitation.
 */
static void
cut_into_batches(Bulk *bulk)
{
	bulk->batch_count = (bulk->count + CLERK_BULK_MAX - 1) / CLERK_BULK_MAX;
	bulk->batches = palloc0(bulk->batch_count * sizeof(Batch));
	for (int i = 0; i < bulk->batch_count; i++)
	{
		Batch	   *batch = &bulk->batches[i];

		batch->first = i * CLERK_BULK_MAX;
		batch->count = Min(CLERK_BULK_MAX, bulk->count - batch->first);
	}
	bulk->slots = palloc(clerk_max_concurrent_requests * sizeof(Batch *));
}

/*
 * Sends the batches.  On return no request is running, and either all batches
 * were sent or one has failed.
 */
static void
send_batches(Bulk *bulk)
{
	do
	{
		while (may_start_batch(bulk))
			start_next_batch(bulk);
		await_batch(bulk);
		settle_finished_batches(bulk);
	} while (may_start_batch(bulk) || any_batch_running(bulk));
}

static bool
any_batch_running(const Bulk *bulk)
{
	for (int i = 0; i < bulk->slot_count; i++)
		if (!bulk->slots[i]->finished)
			return true;
	return false;
}

static bool
may_start_batch(const Bulk *bulk)
{
	return !bulk->failed && bulk->next < bulk->batch_count &&
		bulk->slot_count < clerk_max_concurrent_requests;
}

/*
 * Starts the next batch.  It counts toward the rate limit, but is not held
 * back: the user wants it now, and Clerk decides whether to accept it.
 */
static void
start_next_batch(Bulk *bulk)
{
	Batch	   *batch = &bulk->batches[bulk->next++];
	const ClerkNewInvitation *wanted[CLERK_BULK_MAX];

	batch->memory = AllocSetContextCreate(bulk->memory, "clerk_invite batch",
										  ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(batch->memory);
	clerk_reservation_init_unreserved(bulk->instance, CLERK_ENDPOINT_BULK,
									  &batch->reservation);
	for (int i = 0; i < batch->count; i++)
		wanted[i] = &bulk->wanted[batch->first + i];
	batch->request = clerk_start_create_bulk(wanted, batch->count,
											 &batch->reservation, &batch->error);
	MemoryContextSwitchTo(bulk->memory);
	if (batch->request != NULL)
		bulk->slots[bulk->slot_count++] = batch;
	else
		bulk->failed = true;
}

/*
 * Waits until one more running batch is finished.  The user can cancel the
 * wait.
 */
static void
await_batch(const Bulk *bulk)
{
	ClerkHttpRequest **requests = palloc(Max(bulk->slot_count, 1) *
										 sizeof(ClerkHttpRequest *));

	for (int i = 0; i < bulk->slot_count; i++)
		requests[i] = bulk->slots[i]->request;
	clerk_await_any(requests, bulk->slot_count, CLERK_EFFECT_CREATES_SEVERAL);
	pfree(requests);
}

/*
 * Processes the batches that are finished, and frees their slots and memory
 * unless their outcome is unknown.
 */
static void
settle_finished_batches(Bulk *bulk)
{
	int			kept = 0;

	for (int i = 0; i < bulk->slot_count; i++)
	{
		Batch	   *batch = bulk->slots[i];

		if (!batch->finished &&
			clerk_http_outcome(batch->request) != CLERK_HTTP_RUNNING)
			settle_batch(bulk, batch);
		if (!batch->finished || has_unknown_outcome(batch))
			bulk->slots[kept++] = batch;
		else
			MemoryContextDelete(batch->memory);
	}
	bulk->slot_count = kept;
}

/* Reads the response of a finished batch: fills in its rows or its error. */
static void
settle_batch(Bulk *bulk, Batch *batch)
{
	ClerkInvitationList created;

	MemoryContextSwitchTo(batch->memory);
	batch->finished = true;
	if (clerk_finish_create_bulk(batch->request, &batch->reservation, &created,
								 &batch->error))
		record_created(bulk, batch, &created);
	MemoryContextSwitchTo(bulk->memory);
	if (batch->error != NULL)
	{
		batch->error = clerk_error_copy(batch->error);
		bulk->failed = true;
	}
}

/*
 * Records the invitations of a successful response.  If they are not exactly
 * those that were requested, the response is treated as unreadable.
 */
static void
record_created(Bulk *bulk, Batch *batch, const ClerkInvitationList *created)
{
	const char *reason = NULL;
	int		   *positions;

	for (int i = 0; i < created->count; i++)
		clerk_warn_on_rollback(clerk_invitation_text(&created->invitations[i],
													 CLERK_INVITATION_ID));
	if (!created->lossless)
	{
		batch->created = Min(created->count, batch->count);
		batch->error = clerk_error_unreadable(batch->request,
											  CLERK_EFFECT_CREATES_SEVERAL,
											  clerk_json_error_text(CLERK_JSON_UNTRANSLATABLE),
											  NULL);
		batch->error->sqlstate = ERRCODE_UNTRANSLATABLE_CHARACTER;
		batch->error->hint = NULL;
		return;
	}

	positions = palloc(Max(created->count, 1) * sizeof(int));
	match_to_wanted(bulk, batch, created, positions);
	for (int i = 0; i < created->count; i++)
	{
		if (positions[i] < 0)
		{
			reason = "it contains an invitation that was not requested";
			continue;
		}
		MemoryContextSwitchTo(bulk->result_memory);
		bulk->rows[positions[i]] = clerk_form_invitation(bulk->descriptor,
														 &created->invitations[i]);
		MemoryContextSwitchTo(batch->memory);
		batch->created++;
	}
	if (batch->created < batch->count)
		reason = psprintf("it does not contain \"%s\"", first_missing(bulk, batch));
	if (reason != NULL)
		batch->error = clerk_error_unreadable(batch->request,
											  CLERK_EFFECT_CREATES_SEVERAL,
											  reason, NULL);
}

/*
 * Sets positions[i] to the index in Bulk.wanted of created->invitations[i], or
 * to -1 if it was not requested.
 */
static void
match_to_wanted(const Bulk *bulk, const Batch *batch,
				const ClerkInvitationList *created, int *positions)
{
	const char **found = palloc(Max(created->count, 1) * sizeof(char *));
	const char *wanted[CLERK_BULK_MAX] = {0};
	int			matches[CLERK_BULK_MAX];

	for (int i = 0; i < created->count; i++)
	{
		found[i] = clerk_invitation_text(&created->invitations[i],
										 CLERK_INVITATION_EMAIL_ADDRESS);
		positions[i] = -1;
	}
	for (int i = 0; i < batch->count; i++)
		wanted[i] = bulk->wanted[batch->first + i].email_address;
	clerk_match_addresses(wanted, batch->count, found, created->count, matches);
	for (int i = 0; i < batch->count; i++)
		if (matches[i] >= 0)
			positions[matches[i]] = batch->first + i;
}

/* Returns the first address of a batch that has no row.  There must be one. */
static const char *
first_missing(const Bulk *bulk, const Batch *batch)
{
	int			position = batch->first;

	while (bulk->rows[position] != NULL)
		position++;
	return bulk->wanted[position].email_address;
}

/* Whether it is unknown if some of the batch's invitations were created. */
static bool
has_unknown_outcome(const Batch *batch)
{
	return batch->error != NULL &&
		batch->error->class == CLERK_ERROR_OUTCOME_UNKNOWN &&
		batch->created < batch->count;
}

/*
 * Raises the error after a batch has failed: the reason, the addresses that
 * Clerk names, and how many invitations exist now.
 */
static void
raise_failed(const Bulk *bulk)
{
	const Batch *reported = batch_to_report(bulk);
	ClerkError	error = *reported->error;
	Tally		tally = count_outcomes(bulk);
	StringInfoData detail;

	initStringInfo(&detail);
	if (error.detail != NULL)
		appendStringInfo(&detail, "%s ", error.detail);
	append_named_addresses(&detail, bulk);
	if (tally.created == 0 && tally.unknown == 0)
		appendStringInfoString(&detail, "Nothing was created.");
	else
		appendStringInfo(&detail,
						 "Invitations created, which remain: %d; possibly created: %d; not created: %d.",
						 tally.created, tally.unknown,
						 bulk->count - tally.created - tally.unknown);
	error.detail = detail.data;
	if (tally.created > 0 && tally.unknown == 0)
		error.hint = psprintf("%s%sWhen you try again, omit the invitations that were created.",
							  error.hint != NULL ? error.hint : "",
							  error.hint != NULL ? " " : "");
	clerk_raise(&error, failure_message(bulk, reported));
}

/*
 * Returns the batch whose error is raised: the first one with an unknown
 * outcome, which the caller most needs to know about, or else the first one
 * that failed.
 */
static const Batch *
batch_to_report(const Bulk *bulk)
{
	const Batch *reported = NULL;

	for (int i = 0; i < bulk->next; i++)
	{
		const Batch *batch = &bulk->batches[i];

		if (has_unknown_outcome(batch))
			return batch;
		if (reported == NULL && batch->error != NULL)
			reported = batch;
	}
	return reported;
}

static Tally
count_outcomes(const Bulk *bulk)
{
	Tally		tally = {0};

	for (int i = 0; i < bulk->next; i++)
	{
		const Batch *batch = &bulk->batches[i];

		tally.created += batch->created;
		if (has_unknown_outcome(batch))
			tally.unknown += batch->count - batch->created;
	}
	return tally;
}

/*
 * Returns the primary message: what failed.  It names the address if the
 * failure concerns only one.  "reported" is NULL if the failure concerns all
 * invitations.
 */
static const char *
failure_message(const Bulk *bulk, const Batch *reported)
{
	List	   *named = reported == NULL ? NIL : named_addresses(bulk, reported);

	if (bulk->count > 1 && list_length(named) != 1)
		return psprintf("could not invite %d addresses to organization \"%s\"",
						bulk->count, bulk->organization_id);
	return psprintf("could not invite \"%s\" to organization \"%s\"",
					named != NIL ? (char *) linitial(named) :
					bulk->wanted[0].email_address,
					bulk->organization_id);
}

/* Appends the addresses that Clerk's error responses name, if any. */
static void
append_named_addresses(StringInfo detail, const Bulk *bulk)
{
	const char *separator = "Addresses named by Clerk: ";

	for (int i = 0; i < bulk->next; i++)
	{
		ListCell   *cell;

		foreach(cell, named_addresses(bulk, &bulk->batches[i]))
		{
			appendStringInfo(detail, "%s\"%s\"", separator, (char *) lfirst(cell));
			separator = ", ";
		}
	}
	if (separator[0] == ',')
		appendStringInfoString(detail, ". ");
}

/* Returns those addresses of a batch that its error names. */
static List *
named_addresses(const Bulk *bulk, const Batch *batch)
{
	List	   *named = NIL;

	if (batch->error == NULL)
		return NIL;
	for (int i = batch->first; i < batch->first + batch->count; i++)
		if (clerk_error_names(batch->error, bulk->wanted[i].email_address))
			named = lappend(named, bulk->wanted[i].email_address);
	return named;
}
