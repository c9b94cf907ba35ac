/*
 * response_driver.c
 *		A SQL function that gives mutated responses to the code that reads
 *		Clerk's.
 *
 * The library contains all of src/, built with AddressSanitizer and
 * UndefinedBehaviorSanitizer; its own copy of http.c is in this file, since a
 * response has to be put where libcurl's callbacks put it.
 *
 * A response may be read or refused, but the decoder must not crash, keep
 * memory, use more than in proportion to the response, return text that is
 * invalid in the database's encoding, let the secret key into a message, or
 * raise an error other than about the data.
 */
#include "postgres.h"

#include <sanitizer/common_interface_defs.h>

#include "../../src/http/http.c"

#include "catalog/pg_type_d.h"
#include "clerk/email_address.h"
#include "clerk/invitation_pages.h"
#include "clerk/json_reader.h"
#include "clerk/operations.h"
#include "common/settings.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "sql/statement_request.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "mutator.h"
#include "outcome_counts.h"

/* The corpus has it where the fake Clerk repeats the key. */
#define KEY "sk_test_fuzz"

/* Pages of a list that are read one after another. */
#define MAX_PAGES 6

/*
 * Memory that a response may take until its request is released: in proportion
 * to its size, as many small values of a jsonb take it, and what any response
 * may take, as a long list of empty objects.
 */
#define MEMORY_PER_BYTE 100
#define MEMORY_OF_ANY (4 * 1024 * 1024)

/* Time that a response may take, in proportion to its size, in milliseconds. */
#define MILLISECONDS_PER_KILOBYTE 5.0
#define MILLISECONDS_OF_ANY 2000.0

/*
 * Responses after which caches are full, and by how much the process's memory
 * may grow in the rest: the allocators of the server and of glibc are not
 * exact.
 */
#define WARM_UP 5000
#define MAX_GROWTH (64 * 1024)

typedef enum Operation
{
	OPERATION_CREATE,
	OPERATION_BULK,
	OPERATION_GET,
	OPERATION_REVOKE,
	OPERATION_LIST
} Operation;

/* A response as the fake Clerk gives it. */
typedef struct Sample
{
	Operation	operation;
	int			status;
	FuzzText	headers;
	FuzzText	body;
} Sample;

static Sample *samples;
static int	sample_count;

/* The response that is being read: tells which one ended the process. */
static uint64 current_seed;
static int64 current_response;

static Size most_memory;
static size_t most_memory_length;
static double most_time;

/* From AddressSanitizer's allocator_interface.h, which gcc does not install. */
extern size_t __sanitizer_get_current_allocated_bytes(void);

PG_FUNCTION_INFO_V1(fuzz_responses);

static void
tell_response(void)
{
	fprintf(stderr, "seed " UINT64_FORMAT ", response " INT64_FORMAT "\n",
			current_seed, current_response);
}

/* Ends the run; the message tells how to make the response again. */
static void
fail(const char *what)
{
	elog(ERROR, "%s: seed " UINT64_FORMAT ", response " INT64_FORMAT, what,
		 current_seed, current_response);
}

static Operation
operation_named(const char *name)
{
	static const char *const names[] = {"create", "bulk", "get", "revoke", "list"};

	for (int i = 0; i < (int) lengthof(names); i++)
		if (strcmp(names[i], name) == 0)
			return (Operation) i;
	elog(ERROR, "no operation \"%s\"", name);
}

static FuzzText
text_of(Datum bytes)
{
	bytea	   *value = DatumGetByteaPP(bytes);

	return fuzz_copy(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
}

/* Takes the corpus from the function's arguments. */
static void
read_samples(FunctionCallInfo fcinfo)
{
	Datum	   *operations;
	Datum	   *statuses;
	Datum	   *headers;
	Datum	   *bodies;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, 'i',
					  &operations, NULL, &sample_count);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT4OID, 4, true, 'i',
					  &statuses, NULL, &sample_count);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), BYTEAOID, -1, false, 'i',
					  &headers, NULL, &sample_count);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(3), BYTEAOID, -1, false, 'i',
					  &bodies, NULL, &sample_count);
	samples = palloc(sample_count * sizeof(Sample));
	for (int i = 0; i < sample_count; i++)
	{
		samples[i].operation = operation_named(TextDatumGetCString(operations[i]));
		samples[i].status = DatumGetInt32(statuses[i]);
		samples[i].headers = text_of(headers[i]);
		samples[i].body = text_of(bodies[i]);
	}
}

/* Most samples are errors, but a success has more to read. */
static const Sample *
any_sample(FuzzRandom *random)
{
	bool		success = fuzz_random(random, 3) != 0;
	const Sample *sample;

	for (int i = 0; i < 20; i++)
	{
		sample = &samples[fuzz_random(random, sample_count)];
		if (!success || sample->status < 300)
			break;
	}
	return sample;
}

/*
 * Replaces the response of a request, whose memory is exactly as large as the
 * response and the NUL byte behind it.
 */
static void
set_buffer(ClerkByteBuffer *buffer, FuzzText text)
{
	free(buffer->data);
	buffer->data = malloc(text.length + 1);
	if (buffer->data == NULL)
		elog(ERROR, "out of memory");
	memcpy(buffer->data, text.data, text.length);
	buffer->data[text.length] = '\0';
	buffer->length = text.length;
	buffer->capacity = text.length + 1;
	free(text.data);
}

static int
mutated_status(FuzzRandom *random, int status)
{
	static const int statuses[] = {
		0, 100, 199, 200, 201, 204, 299, 300, 307, 399, 400, 401, 402, 403, 404,
		409, 410, 413, 415, 422, 429, 499, 500, 502, 503, 599, 600, 999
	};

	return fuzz_random(random, 8) != 0 ? status :
		statuses[fuzz_random(random, lengthof(statuses))];
}

static curl_off_t
mutated_retry_after(FuzzRandom *random)
{
	static const curl_off_t seconds[] = {
		0, 1, 60, 3600, 86401, INT_MAX, (curl_off_t) INT_MAX + 1, PG_INT64_MAX,
		-1, PG_INT64_MIN
	};

	return seconds[fuzz_random(random, lengthof(seconds))];
}

/* A request to Clerk that has not been sent. */
static ClerkHttpRequest *
prepared_request(void)
{
	static const char *const headers[] = {"Accept: application/json", NULL};
	const ClerkHttpSpec spec = {
		.url = "http://127.0.0.1/",
		.bearer_token = KEY,
		.headers = headers,
		.ca_file = "",
		.proxy = "",
		.connect_timeout = 1000,
		.request_timeout = 1000
	};
	ClerkHttpRequest *request = new_request();

	if (!clerk_transfer_prepare(&request->entry.transfer, &spec, true, NULL,
								false, NULL))
		elog(ERROR, "could not prepare a request");
	return request;
}

/*
 * Ends the request with a changed response.  A few end without one.  Returns
 * the size of the response.
 */
static size_t
respond(FuzzRandom *random, ClerkHttpRequest *request, const Sample *sample)
{
	ClerkTransfer *transfer = &request->entry.transfer;
	const Sample *donor = any_sample(random);

	transfer->outcome = CLERK_HTTP_COMPLETED;
	transfer->status = mutated_status(random, sample->status);
	transfer->retry_after = mutated_retry_after(random);
	transfer->response_time = GetCurrentTimestamp();
	set_buffer(&transfer->response_body,
			   fuzz_mutated(random, &sample->body, &donor->body, true));
	set_buffer(&transfer->response_headers,
			   fuzz_mutated(random, &sample->headers, &donor->headers, false));
	if (fuzz_random(random, 200) == 0)
	{
		transfer->outcome = fuzz_random(random, 2) == 0 ? CLERK_HTTP_LOST :
			CLERK_HTTP_NOT_SENT;
		transfer->status = 0;
		strlcpy(transfer->error, "the connection was closed",
				sizeof(transfer->error));
	}
	return transfer->response_body.length + transfer->response_headers.length;
}

static void
check_text(const char *text)
{
	if (text == NULL)
		return;
	if (!pg_verify_mbstr(GetDatabaseEncoding(), text, strlen(text), true))
		fail("text that is invalid in the database's encoding");
}

static void
check_message(const char *text)
{
	check_text(text);
	if (text != NULL && strstr(text, KEY) != NULL)
		fail("the secret key in a message");
}

/* What SQL could see of an invitation. */
static void
check_invitation(const ClerkInvitation *invitation)
{
	for (int i = 0; i < CLERK_INVITATION_FIELDS; i++)
	{
		if (invitation->nulls[i])
			continue;
		switch (i)
		{
			case CLERK_INVITATION_PUBLIC_METADATA:
			case CLERK_INVITATION_PRIVATE_METADATA:
			case CLERK_INVITATION_PUBLIC_INVITER_DATA:
			case CLERK_INVITATION_PUBLIC_ORGANIZATION_DATA:
				check_text(DatumGetCString(DirectFunctionCall1(jsonb_out,
															   invitation->values[i])));
				break;
			case CLERK_INVITATION_CREATED_AT:
			case CLERK_INVITATION_UPDATED_AT:
			case CLERK_INVITATION_EXPIRES_AT:
				(void) DirectFunctionCall1(timestamptz_out, invitation->values[i]);
				break;
			default:
				check_text(TextDatumGetCString(invitation->values[i]));
				break;
		}
	}
	if (invitation->nulls[CLERK_INVITATION_ID])
		fail("an invitation without an ID");
}

static Jsonb *
jsonb_or_null(const ClerkInvitation *invitation, ClerkInvitationField field)
{
	return invitation->nulls[field] ? NULL :
		DatumGetJsonbP(invitation->values[field]);
}

/* Invites somebody again with what was read: the request must be JSON. */
static void
check_request(const ClerkInvitation *invitation)
{
	bool		notify = !invitation->nulls[CLERK_INVITATION_URL];
	ClerkNewInvitation wanted = {
		.email_address = clerk_invitation_text(invitation, CLERK_INVITATION_EMAIL_ADDRESS),
		.role = clerk_invitation_text(invitation, CLERK_INVITATION_ROLE),
		.inviter_user_id = clerk_invitation_text(invitation, CLERK_INVITATION_INVITER_ID),
		.redirect_url = clerk_invitation_text(invitation, CLERK_INVITATION_URL),
		.public_metadata = jsonb_or_null(invitation, CLERK_INVITATION_PUBLIC_METADATA),
		.private_metadata = jsonb_or_null(invitation, CLERK_INVITATION_PRIVATE_METADATA),
		.expires_in_days = invitation->nulls[CLERK_INVITATION_EXPIRES_AT] ? 0 : 30,
		.notify = &notify
	};
	char	   *json = clerk_new_invitation_json(&wanted);
	ClerkJsonError json_error;

	check_text(json);
	if (clerk_json_parse(json, strlen(json), &json_error) == NULL)
		fail("a request that is not JSON");
}

/* What an error becomes in a statement, an outbox row, and a log. */
static void
check_error(FuzzRandom *random, const ClerkError *error)
{
	static const char *const addresses[] = {
		"ann@example.com", "a@b", "\"a b\"@example.com", "bob.smith+tag@gmail.com"
	};
	MemoryContext caller = CurrentMemoryContext;
	const ClerkError *copy = clerk_error_copy(error);
	char		name[16];

	check_message(copy->code);
	check_message(copy->param_name);
	check_message(copy->trace_id);
	check_message(copy->clerk_message);
	check_message(copy->summary);
	check_message(copy->detail);
	check_message(copy->hint);
	check_text(copy->addresses_text);
	(void) clerk_error_names(copy, addresses[fuzz_random(random, lengthof(addresses))]);
	PG_TRY();
	{
		clerk_raise(error, "could not fuzz");
	}
	PG_CATCH();
	{
		ErrorData  *raised;

		MemoryContextSwitchTo(caller);
		raised = CopyErrorData();
		FlushErrorState();
		check_message(raised->message);
		check_message(raised->detail);
		check_message(raised->hint);
		if (raised->sqlerrcode != error->sqlstate)
			fail("an error that is raised with another SQLSTATE");
	}
	PG_END_TRY();
	snprintf(name, sizeof(name), "error %s", unpack_sql_state(error->sqlstate));
	fuzz_count(name);
}

static void
read_one(FuzzRandom *random, ClerkHttpRequest *request, Operation operation)
{
	ClerkReservation reservation = {0};
	ClerkInvitation invitation;
	ClerkError *error = NULL;
	bool		read;

	switch (operation)
	{
		case OPERATION_CREATE:
			read = clerk_finish_create_invitation(request, &reservation,
												  &invitation, &error);
			break;
		case OPERATION_GET:
			read = clerk_finish_get_invitation(request, &invitation, &error);
			break;
		default:
			read = clerk_finish_revoke_invitation(request, &invitation, &error);
			break;
	}
	if (!read)
	{
		check_error(random, error);
		return;
	}
	check_invitation(&invitation);
	check_request(&invitation);
	fuzz_count("one invitation");
}

/* As outbox/ does it: whose invitation is whose? */
static void
match_addresses(const ClerkInvitationList *list)
{
	static const char *const wanted[] = {
		"ann@example.com", "bob@example.com", "a\tb@example.com"
	};
	const char **found = palloc(Max(list->count, 1) * sizeof(char *));
	int			matches[lengthof(wanted)];

	for (int i = 0; i < list->count; i++)
		found[i] = clerk_invitation_text(&list->invitations[i],
										 CLERK_INVITATION_EMAIL_ADDRESS);
	clerk_match_addresses(wanted, lengthof(wanted), found, list->count, matches);
	for (int i = 0; i < (int) lengthof(wanted); i++)
		if (matches[i] >= list->count)
			fail("a match that is not in the list");
}

static void
check_list(const ClerkInvitationList *list)
{
	for (int i = 0; i < list->count; i++)
		check_invitation(&list->invitations[i]);
	if (list->total_count < -1)
		fail("a negative count");
}

static void
read_bulk(FuzzRandom *random, ClerkHttpRequest *request)
{
	ClerkReservation reservation = {0};
	ClerkInvitationList list;
	ClerkError *error = NULL;

	if (!clerk_finish_create_bulk(request, &reservation, &list, &error))
	{
		check_error(random, error);
		return;
	}
	check_list(&list);
	match_addresses(&list);
	fuzz_count("bulk invitations");
}

/* Reads pages until the list ends or a page cannot be used; counts them. */
static int
read_list(FuzzRandom *random, ClerkHttpRequest *request, const Sample *sample,
		  size_t *length)
{
	ClerkListing listing = {
		.organization_id = fuzz_random(random, 2) == 0 ? "org_test" : NULL,
		.email_address = "ann@example.com",
		.limit = 1 + fuzz_random(random, 4),
	};
	List	   *statuses = fuzz_random(random, 2) == 0 ? list_make1("pending") :
	list_make2("pending", "accepted");
	ClerkInvitationPages *pages = clerk_pages_begin(&listing, statuses);
	int			read = 0;

	while (read < MAX_PAGES)
	{
		const ClerkListing *wanted = clerk_pages_wanted(pages);
		ClerkInvitationList list;
		ClerkInvitation *invitation;
		ClerkError *error = NULL;
		const char *reason;

		if (wanted == NULL)
			break;
		if (wanted->offset < 0)
			fail("a negative offset");
		if (!clerk_pages_are_of(pages, &listing, statuses))
			fail("pages of another list");
		if (read++ > 0)
			*length += respond(random, request,
							   fuzz_random(random, 4) == 0 ? any_sample(random) : sample);
		if (!clerk_finish_list_invitations(request, wanted, &list, &error))
		{
			check_error(random, error);
			break;
		}
		check_list(&list);
		reason = clerk_pages_take(pages, &list);
		if (reason != NULL)
		{
			check_message(reason);
			fuzz_count("unusable page");
			break;
		}
		while ((invitation = clerk_pages_next(pages)) != NULL)
			check_invitation(invitation);
		if (clerk_pages_left(pages) < 0)
			fail("a negative number of pages");
		clerk_pages_set_size(pages, 1 + fuzz_random(random, 4));
		fuzz_count("page");
	}
	return read;
}

/* Reads a changed response, or several; returns how many. */
static int
read_response(FuzzRandom *random, ClerkHttpRequest *request, size_t *length)
{
	const Sample *sample = any_sample(random);
	int			read = 1;

	*length = respond(random, request, sample);
	switch (sample->operation)
	{
		case OPERATION_BULK:
			read_bulk(random, request);
			break;
		case OPERATION_LIST:
			read = read_list(random, request, sample, length);
			break;
		default:
			read_one(random, request, sample->operation);
			break;
	}
	return read;
}

/*
 * The same in a context of its own, with a look at what it costs.  Errors
 * about the data are as good as results.
 */
static int
watch_response(FuzzRandom *random, ClerkHttpRequest *request)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile int read = 1;
	size_t		length = 0;
	instr_time	start;
	instr_time	took;
	Size		memory;
	MemoryContext context;

	/*
	 * With blocks so small that chunks of more than a hundred bytes have one
	 * of their own, which the sanitizer guards.  The server keeps the blocks
	 * of deleted contexts with usual sizes, such as 0 in the place of the
	 * first 1024, with the zones that were poisoned in them.
	 */
	context = AllocSetContextCreateInternal(caller, "fuzz", 1024, 1024, 1024);
	INSTR_TIME_SET_CURRENT(start);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		read = read_response(random, request, &length);
	}
	PG_CATCH();
	{
		ErrorData  *error;
		char		name[48];

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
		{
			tell_response();
			ReThrowError(error);
		}
		FlushErrorState();
		snprintf(name, sizeof(name), "raised %s",
				 unpack_sql_state(error->sqlerrcode));
		fuzz_count(name);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	INSTR_TIME_SET_CURRENT(took);
	INSTR_TIME_SUBTRACT(took, start);
	most_time = Max(most_time, INSTR_TIME_GET_MILLISEC(took));
	memory = MemoryContextMemAllocated(context, true);
	if (memory > most_memory)
	{
		most_memory = memory;
		most_memory_length = length;
	}
	if (memory > MEMORY_OF_ANY + MEMORY_PER_BYTE * length)
		fail(psprintf("%zu bytes of memory for a response of %zu bytes", memory,
					  length));
	if (INSTR_TIME_GET_MILLISEC(took) > MILLISECONDS_OF_ANY +
		MILLISECONDS_PER_KILOBYTE * length / 1024)
		fail(psprintf("%.0f milliseconds for a response of %zu bytes",
					  INSTR_TIME_GET_MILLISEC(took), length));
	MemoryContextDelete(context);
	return read;
}

/* Returns the outcomes and their counts, a line each. */
static char *
report(int64 growth)
{
	StringInfoData lines;

	initStringInfo(&lines);
	fuzz_append_counts(&lines, "");
	appendStringInfo(&lines, "= growth " INT64_FORMAT " bytes\n", growth);
	appendStringInfo(&lines, "= most memory %zu bytes, for %zu bytes\n",
					 most_memory, most_memory_length);
	appendStringInfo(&lines, "= longest %.0f ms\n", most_time);
	return lines.data;
}

/*
 * (operations text[], statuses integer[], headers bytea[], bodies bytea[],
 * seed bigint, first bigint, responses bigint) RETURNS text
 *
 * Reads so many responses, changed from those in the arrays, with numbers from
 * "first" on; the seed and its number decide what a response becomes.  Returns
 * lines of a count and an outcome, and lines of figures.
 */
Datum
fuzz_responses(PG_FUNCTION_ARGS)
{
	int64		first = PG_GETARG_INT64(5);
	int64		wanted = PG_GETARG_INT64(6);
	int64		read = 0;
	int64		memory = -1;
	int64		growth = 0;
	ClerkHttpRequest *request = prepared_request();

	read_samples(fcinfo);
	__sanitizer_set_death_callback(tell_response);
	current_seed = PG_GETARG_INT64(4);
	fuzz_forget_counts();
	for (current_response = first; read < wanted; current_response++)
	{
		FuzzRandom	random = current_seed * UINT64_C(1000003) + current_response;

		CHECK_FOR_INTERRUPTS();
		read += watch_response(&random, request);
		if (memory < 0 && read >= WARM_UP)
			memory = __sanitizer_get_current_allocated_bytes();
	}
	set_buffer(&request->entry.transfer.response_body, fuzz_copy("", 0));
	set_buffer(&request->entry.transfer.response_headers, fuzz_copy("", 0));
	if (memory >= 0)
		growth = (int64) __sanitizer_get_current_allocated_bytes() - memory;
	if (growth > MAX_GROWTH)
		elog(ERROR, "the process has grown by " INT64_FORMAT " bytes over "
			 INT64_FORMAT " responses", growth, read);
	PG_RETURN_TEXT_P(cstring_to_text(report(growth)));
}
