/*
 * bulk_invitations.c
 *		The SQL function that creates any number of invitations, now, with bulk
 *		requests.
 *
 * The invitations are cut into batches of as many as Clerk takes at a time, and
 * several batches are under way at a time.  Clerk creates all of a batch or
 * nothing, but there is no such thing for all batches: when one fails, no more
 * are started, those that are under way are waited for, and the error says what
 * there is now.  An invitation is noted for the rollback warning as soon as its
 * ID is known, before anything can go wrong with the rest.
 *
 * A batch whose outcome is unknown keeps its request until the end of the
 * function, so that a statement that is ended while it waits for others tells
 * of it, too.
 */
#include "postgres.h"

#include "clerk/await_request.h"
#include "clerk/email_address.h"
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

/* Invitations that share a request. */
typedef struct Batch
{
	int			first;			/* position of the first one */
	int			count;
	MemoryContext memory;		/* of its request and its answer */
	ClerkHttpRequest *request;
	ClerkReservation reservation;
	bool		over;
	int			created;		/* how many there are at Clerk for certain */
	ClerkError *error;			/* NULL: none */
} Batch;

/* What one call has and does. */
typedef struct Bulk
{
	char	   *organization_id;
	ClerkNewInvitation *wanted;
	int			count;			/* of these */
	TupleDesc	descriptor;
	HeapTuple  *rows;			/* one for each that is wanted; NULL: none yet */
	MemoryContext result_memory;	/* of the rows */
	MemoryContext memory;		/* of everything else */
	uint64		instance;		/* of Clerk's */
	Batch	   *batches;
	int			batch_count;
	int			next;			/* the first batch that was not started */
	Batch	  **slots;			/* those under way, or of unknown outcome */
	int			slot_count;
	bool		failed;			/* a batch has: no more are started */
} Bulk;

/* Invitations at Clerk after a failure. */
typedef struct Tally
{
	int			created;
	int			unknown;		/* created or not */
} Tally;

static HeapTuple *invite_all(FunctionCallInfo fcinfo, uint64 *count);
static void cut_into_batches(Bulk *bulk);
static void send_all(Bulk *bulk);
static bool may_start(const Bulk *bulk);
static void start_next(Bulk *bulk);
static void await_slots(const Bulk *bulk);
static void settle_slots(Bulk *bulk);
static bool any_running(const Bulk *bulk);
static void settle(Bulk *bulk, Batch *batch);
static void take_created(Bulk *bulk, Batch *batch,
						 const ClerkInvitationList *created);
static void match(const Bulk *bulk, const Batch *batch,
				  const ClerkInvitationList *created, int *positions);
static const char *first_missing(const Bulk *bulk, const Batch *batch);
static bool is_unknown(const Batch *batch);
pg_noreturn static void raise_failed(const Bulk *bulk);
static const Batch *worst_batch(const Bulk *bulk);
static Tally tally_of(const Bulk *bulk);
static const char *not_invited(const Bulk *bulk, const Batch *worst);
static void append_named(StringInfo detail, const Bulk *bulk);
static List *named_addresses(const Bulk *bulk, const Batch *batch);

PG_FUNCTION_INFO_V1(clerk_create_organization_invitation_bulk);

/*
 * clerk_create_organization_invitation_bulk(org_id text, invitations jsonb)
 *		RETURNS SETOF clerk_organization_invitation
 *
 * Clerk's CreateOrganizationInvitationBulk, as often as needed.  Rows come in
 * the order of the array.  Everything is sent before the first row is returned,
 * whether the others are asked for or not.
 *
 * Raises what clerk/error.c's table says, 22004, 22021 and 22023 for arguments
 * that cannot be meant, 25006 in a read-only transaction, 25000 in a parallel
 * operation.
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
		call->user_fctx = invite_all(fcinfo, &call->max_calls);
		MemoryContextSwitchTo(caller);
	}

	call = SRF_PERCALL_SETUP();
	if (call->call_cntr >= call->max_calls)
		SRF_RETURN_DONE(call);
	row = ((HeapTuple *) call->user_fctx)[call->call_cntr];
	SRF_RETURN_NEXT(call, HeapTupleGetDatum(row));
}

/* Returns the rows, in the current memory context, and their number. */
static HeapTuple *
invite_all(FunctionCallInfo fcinfo, uint64 *count)
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

	/* What cannot be returned is not asked for. */
	bulk.descriptor = clerk_invitation_descriptor(fcinfo);
	if (bulk.count > 0)
	{
		if (!clerk_chosen_instance(&bulk.instance, &error))
			clerk_raise(error, not_invited(&bulk, NULL));
		cut_into_batches(&bulk);
		send_all(&bulk);
		if (bulk.failed)
			raise_failed(&bulk);
	}
	MemoryContextSwitchTo(bulk.result_memory);
	MemoryContextDelete(bulk.memory);
	*count = bulk.count;
	return bulk.rows;
}

/* A remainder goes in a bulk request, too, even if it is a single invitation. */
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

/* Returns when nothing is under way, and everything was sent or some failed. */
static void
send_all(Bulk *bulk)
{
	do
	{
		while (may_start(bulk))
			start_next(bulk);
		await_slots(bulk);
		settle_slots(bulk);
	} while (may_start(bulk) || any_running(bulk));
}

static bool
any_running(const Bulk *bulk)
{
	for (int i = 0; i < bulk->slot_count; i++)
		if (!bulk->slots[i]->over)
			return true;
	return false;
}

static bool
may_start(const Bulk *bulk)
{
	return !bulk->failed && bulk->next < bulk->batch_count &&
		bulk->slot_count < clerk_max_concurrent_requests;
}

/* The user wants it now: it counts, but whether it may be is left to Clerk. */
static void
start_next(Bulk *bulk)
{
	Batch	   *batch = &bulk->batches[bulk->next++];
	const ClerkNewInvitation *wanted[CLERK_BULK_MAX];

	batch->memory = AllocSetContextCreate(bulk->memory, "clerk_invite batch",
										  ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(batch->memory);
	clerk_rate_limit_unreserved(bulk->instance, CLERK_ENDPOINT_BULK,
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

/* Waits until one more is finished; the user may end it before that. */
static void
await_slots(const Bulk *bulk)
{
	ClerkHttpRequest **requests = palloc(Max(bulk->slot_count, 1) *
										 sizeof(ClerkHttpRequest *));

	for (int i = 0; i < bulk->slot_count; i++)
		requests[i] = bulk->slots[i]->request;
	clerk_await_any(requests, bulk->slot_count, CLERK_EFFECT_CREATES_SEVERAL);
	pfree(requests);
}

/* Deals with those that are finished; frees their slots and their memory. */
static void
settle_slots(Bulk *bulk)
{
	int			kept = 0;

	for (int i = 0; i < bulk->slot_count; i++)
	{
		Batch	   *batch = bulk->slots[i];

		if (!batch->over &&
			clerk_http_outcome(batch->request) != CLERK_HTTP_RUNNING)
			settle(bulk, batch);
		if (!batch->over || is_unknown(batch))
			bulk->slots[kept++] = batch;
		else
			MemoryContextDelete(batch->memory);
	}
	bulk->slot_count = kept;
}

static void
settle(Bulk *bulk, Batch *batch)
{
	ClerkInvitationList created;

	MemoryContextSwitchTo(batch->memory);
	batch->over = true;
	if (clerk_finish_create_bulk(batch->request, &batch->reservation, &created,
								 &batch->error))
		take_created(bulk, batch, &created);
	MemoryContextSwitchTo(bulk->memory);
	if (batch->error != NULL)
	{
		batch->error = clerk_error_copy(batch->error);
		bulk->failed = true;
	}
}

/*
 * Clerk says that it has created the batch.  An answer that is not about
 * exactly what was asked for is one that cannot be read.
 */
static void
take_created(Bulk *bulk, Batch *batch, const ClerkInvitationList *created)
{
	const char *reason = NULL;
	int		   *positions;

	for (int i = 0; i < created->count; i++)
		clerk_warn_on_rollback(clerk_invitation_text(&created->invitations[i],
													 CLERK_INVITATION_ID));
	if (!created->legible)
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
	match(bulk, batch, created, positions);
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

/* Which of the wanted each invitation is; -1: none. */
static void
match(const Bulk *bulk, const Batch *batch, const ClerkInvitationList *created,
	  int *positions)
{
	const char **found = palloc(Max(created->count, 1) * sizeof(char *));
	const char *wanted[CLERK_BULK_MAX];
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

/* The first address of a batch without a row, of which there must be one. */
static const char *
first_missing(const Bulk *bulk, const Batch *batch)
{
	int			position = batch->first;

	while (bulk->rows[position] != NULL)
		position++;
	return bulk->wanted[position].email_address;
}

/* Whether some of the batch may have been created or not. */
static bool
is_unknown(const Batch *batch)
{
	return batch->error != NULL &&
		batch->error->class == CLERK_ERROR_OUTCOME_UNKNOWN &&
		batch->created < batch->count;
}

/* Some batches failed: says why, whom it concerns, and what there is now. */
static void
raise_failed(const Bulk *bulk)
{
	const Batch *worst = worst_batch(bulk);
	ClerkError	error = *worst->error;
	Tally		tally = tally_of(bulk);
	StringInfoData detail;

	initStringInfo(&detail);
	if (error.detail != NULL)
		appendStringInfo(&detail, "%s ", error.detail);
	append_named(&detail, bulk);
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
	clerk_raise(&error, not_invited(bulk, worst));
}

/*
 * The batch whose error is raised: the first of unknown outcome, since that is
 * what the caller must know before anything else, or else the first that failed.
 */
static const Batch *
worst_batch(const Bulk *bulk)
{
	const Batch *worst = NULL;

	for (int i = 0; i < bulk->next; i++)
	{
		const Batch *batch = &bulk->batches[i];

		if (is_unknown(batch))
			return batch;
		if (worst == NULL && batch->error != NULL)
			worst = batch;
	}
	return worst;
}

static Tally
tally_of(const Bulk *bulk)
{
	Tally		tally = {0};

	for (int i = 0; i < bulk->next; i++)
	{
		const Batch *batch = &bulk->batches[i];

		tally.created += batch->created;
		if (is_unknown(batch))
			tally.unknown += batch->count - batch->created;
	}
	return tally;
}

/*
 * What could not be done.  Names the address that it is about, if there is but
 * one.  "worst" is NULL if it is about all.
 */
static const char *
not_invited(const Bulk *bulk, const Batch *worst)
{
	List	   *named = worst == NULL ? NIL : named_addresses(bulk, worst);

	if (bulk->count > 1 && list_length(named) != 1)
		return psprintf("could not invite %d addresses to organization \"%s\"",
						bulk->count, bulk->organization_id);
	return psprintf("could not invite \"%s\" to organization \"%s\"",
					named != NIL ? (char *) linitial(named) :
					bulk->wanted[0].email_address,
					bulk->organization_id);
}

/* Says which addresses Clerk's refusals are about, as far as they do. */
static void
append_named(StringInfo detail, const Bulk *bulk)
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

/* Those addresses of a batch that its error names. */
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
