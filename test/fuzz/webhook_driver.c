/*
 * webhook_driver.c
 *		A SQL function that gives mutated webhooks to the code that verifies and
 *		reads Clerk's.
 *
 * A webhook may be accepted or refused, but only one whose signature is right
 * may be accepted, whatever its headers look like.  The body is read in any
 * case, as if whoever knows the secret had sent it.  Errors, memory, and texts
 * are watched as in response_driver.c, in whose library this is.
 */
#include "postgres.h"

#include <sanitizer/common_interface_defs.h>

#include "catalog/pg_type_d.h"
#include "clerk/webhook.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "mutator.h"
#include "outcome_counts.h"

/* As in response_driver.c. */
#define MEMORY_PER_BYTE 100
#define MEMORY_OF_ANY (4 * 1024 * 1024)

/* The webhook that is being read: tells which one ended the process. */
static uint64 current_seed;
static int64 current_webhook;

static const ClerkWebhookSecret secret = {24, "twenty-four secret bytes"};

PG_FUNCTION_INFO_V1(fuzz_webhooks);

static void
tell_webhook(void)
{
	fprintf(stderr, "seed " UINT64_FORMAT ", webhook " INT64_FORMAT "\n",
			current_seed, current_webhook);
}

static void
fail(const char *what)
{
	elog(ERROR, "%s: seed " UINT64_FORMAT ", webhook " INT64_FORMAT, what,
		 current_seed, current_webhook);
}

/* A signature of the body, as it is in a header. */
static char *
signature(const char *id, const char *timestamp, const char *body)
{
	pg_hmac_ctx *context = pg_hmac_create(PG_SHA256);
	bytea	   *digest = palloc(VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	char	   *signed_text = psprintf("%s.%s.%s", id, timestamp, body);
	Datum		encoded;

	SET_VARSIZE(digest, VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	if (pg_hmac_init(context, secret.bytes, secret.length) < 0 ||
		pg_hmac_update(context, (const uint8 *) signed_text, strlen(signed_text)) < 0 ||
		pg_hmac_final(context, (uint8 *) VARDATA(digest), PG_SHA256_DIGEST_LENGTH) < 0)
		elog(ERROR, "could not sign a webhook");
	pg_hmac_free(context);
	encoded = DirectFunctionCall2(binary_encode, PointerGetDatum(digest),
								  CStringGetTextDatum("base64"));
	return psprintf("v1,%s", TextDatumGetCString(encoded));
}

/* The body, if SQL could have it as text; else NULL. */
static char *
as_text(const FuzzText *text)
{
	char	   *body;

	if (memchr(text->data, '\0', text->length) != NULL ||
		!pg_verify_mbstr(GetDatabaseEncoding(), text->data, text->length, true))
		return NULL;
	body = palloc(text->length + 1);
	memcpy(body, text->data, text->length);
	body[text->length] = '\0';
	return body;
}

/* Headers as JSON, with usual or unusual values, half of them changed. */
static char *
headers_for(FuzzRandom *random, const char *body)
{
	static const char *const prefixes[] = {"svix-", "webhook-", "Svix-", "SVIX-"};
	static const char *const ids[] = {"msg_1", "", "a.b", "msg_\\u00e4", "x y"};
	static const pg_time_t distances[] = {
		0, 0, 0, -299, 299, -301, 301, -1000000000, PG_INT32_MAX
	};
	const char *prefix = prefixes[fuzz_random(random, lengthof(prefixes))];
	const char *id = ids[fuzz_random(random, 3) == 0 ? fuzz_random(random, lengthof(ids)) : 0];
	char	   *timestamp = psprintf(INT64_FORMAT, (int64)
									 (timestamptz_to_time_t(GetCurrentTimestamp()) +
									  distances[fuzz_random(random, lengthof(distances))]));
	char	   *right = signature(id, timestamp, body);
	char	   *json = psprintf("{\"%sid\":\"%s\",\"%stimestamp\":\"%s\",\"%ssignature\":\"%s%s\"}",
								prefix, id, prefix, timestamp, prefix,
								fuzz_random(random, 3) == 0 ? "v1,AAAA v2,x " : "", right);
	FuzzText	original = {json, strlen(json)};
	FuzzText	changed;
	char	   *headers;

	if (fuzz_random(random, 2) == 0)
		return json;
	changed = fuzz_mutated(random, &original, &original, true);
	headers = as_text(&changed);
	free(changed.data);
	return headers;
}

static void
check_text(const char *text)
{
	if (!pg_verify_mbstr(GetDatabaseEncoding(), text, strlen(text), true))
		fail("text that is invalid in the database's encoding");
}

/* Whether a webhook with these headers is Clerk's; counts why not. */
static void
verify(Jsonb *headers, char *body)
{
	ClerkWebhookHeaders found;
	TimestampTz sent_at;
	const ClerkWebhookRefusal *refusal = clerk_webhook_headers(headers, &found);
	bool		is_right;

	if (refusal == NULL)
		refusal = clerk_webhook_time(&found, GetCurrentTimestamp(), &sent_at);
	if (refusal != NULL)
	{
		fuzz_count(refusal->message);
		return;
	}
	check_text(found.id);
	is_right = strstr(found.signatures, signature(found.id, found.timestamp, body)) != NULL;
	refusal = clerk_webhook_verify(&found, body, &secret, 1);
	if (refusal == NULL && !is_right)
		fail("a forged webhook");
	fuzz_count(refusal == NULL ? "verified" : refusal->message);
}

static void
read_body(char *body)
{
	ClerkWebhookEvent event;
	const ClerkWebhookRefusal *refusal = clerk_webhook_read(body, &event);

	if (refusal != NULL)
		fuzz_count(refusal->message);
	else if (event.status == NULL)
		fuzz_count("an event of another type");
	else
	{
		check_text(event.invitation_id);
		fuzz_count(event.status);
	}
}

static void
read_webhook(FuzzRandom *random, const FuzzText *bodies, int body_count,
			 size_t *length)
{
	FuzzText	changed = fuzz_mutated(random, &bodies[fuzz_random(random, body_count)],
									   &bodies[fuzz_random(random, body_count)], true);
	char	   *body = as_text(&changed);
	char	   *headers;

	*length = changed.length;
	free(changed.data);
	if (body == NULL)
	{
		fuzz_count("a body that SQL cannot have");
		return;
	}
	headers = headers_for(random, body);
	if (headers != NULL)
	{
		*length += strlen(headers);
		verify(DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(headers))),
			   body);
	}
	read_body(body);
}

/* Errors about the data are as good as results; headers may be no JSON. */
static void
watch_webhook(FuzzRandom *random, const FuzzText *bodies, int body_count)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreateInternal(caller, "fuzz", 1024, 1024, 1024);
	size_t		length = 0;
	Size		memory;

	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		read_webhook(random, bodies, body_count, &length);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		/* The server's jsonb refuses escapes if the encoding is SQL_ASCII. */
		if (error->sqlerrcode != ERRCODE_FEATURE_NOT_SUPPORTED &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
		{
			tell_webhook();
			ReThrowError(error);
		}
		FlushErrorState();
		fuzz_count(psprintf("raised %s", unpack_sql_state(error->sqlerrcode)));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	memory = MemoryContextMemAllocated(context, true);
	if (memory > MEMORY_OF_ANY + MEMORY_PER_BYTE * length)
		fail(psprintf("%zu bytes of memory for a webhook of %zu bytes", memory, length));
	MemoryContextDelete(context);
}

/*
 * (bodies bytea[], seed bigint, first bigint, webhooks bigint) RETURNS text
 *
 * Reads so many webhooks, changed from these bodies, with numbers from "first"
 * on; the seed and its number decide what a webhook becomes.  Returns lines of a
 * count and an outcome.
 */
Datum
fuzz_webhooks(PG_FUNCTION_ARGS)
{
	int64		first = PG_GETARG_INT64(2);
	int64		wanted = PG_GETARG_INT64(3);
	Datum	   *values;
	FuzzText   *bodies;
	int			body_count;
	StringInfoData lines;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), BYTEAOID, -1, false, 'i',
					  &values, NULL, &body_count);
	bodies = palloc(body_count * sizeof(FuzzText));
	for (int i = 0; i < body_count; i++)
	{
		bytea	   *value = DatumGetByteaPP(values[i]);

		bodies[i] = fuzz_copy(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
	}
	__sanitizer_set_death_callback(tell_webhook);
	current_seed = PG_GETARG_INT64(1);
	fuzz_forget_counts();
	for (current_webhook = first; current_webhook < first + wanted; current_webhook++)
	{
		FuzzRandom	random = current_seed * UINT64_C(1000003) + current_webhook;

		CHECK_FOR_INTERRUPTS();
		watch_webhook(&random, bodies, body_count);
	}
	initStringInfo(&lines);
	fuzz_append_counts(&lines, "webhook: ");
	for (int i = 0; i < body_count; i++)
		free(bodies[i].data);
	PG_RETURN_TEXT_P(cstring_to_text(lines.data));
}
