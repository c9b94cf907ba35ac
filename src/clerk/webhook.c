/*
 * webhook.c
 *		Clerk's webhooks: whether one is Clerk's, and what it tells.
 *
 * Svix delivers them, by the rules of Standard Webhooks: the signature is the
 * HMAC-SHA256 of the id, the time and the body, and the secret is known to
 * Clerk and to us.
 *
 * The SQLSTATEs of refusals are those that PostgREST turns into the status of
 * its response: the three digits after "PT".  A sender of webhooks repeats what
 * is not answered with 2xx.
 */
#include "postgres.h"

#include "clerk/api_path.h"
#include "clerk/json_reader.h"
#include "clerk/webhook.h"
#include "common/base64.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define ERRCODE_BAD_REQUEST MAKE_SQLSTATE('P', 'T', '4', '0', '0')
#define ERRCODE_UNAUTHORIZED MAKE_SQLSTATE('P', 'T', '4', '0', '1')

/* The version of signatures by HMAC-SHA256. */
#define SIGNATURE_PREFIX "v1,"

/* Characters of a signature in base64: four for every three bytes begun. */
#define SIGNATURE_LENGTH ((PG_SHA256_DIGEST_LENGTH + 2) / 3 * 4)

/* Digits of a time in seconds; more would be more than 30,000 years. */
#define MAX_TIME_DIGITS 12

static const struct
{
	const char *type;
	const char *status;
}			event_types[] = {
	{"organizationInvitation.created", "pending"},
	{"organizationInvitation.accepted", "accepted"},
	{"organizationInvitation.revoked", "revoked"}
};

/* The body or the headers are missing. */
const ClerkWebhookRefusal clerk_webhook_incomplete = {
	ERRCODE_BAD_REQUEST, "webhook has no body or no headers", NULL
};

/* It was received before, with the same time or a later one. */
const ClerkWebhookRefusal clerk_webhook_copied = {
	ERRCODE_UNAUTHORIZED, "webhook has been received before",
	"Whoever sends a webhook again, signs it with the time at which that is."
};

static const ClerkWebhookRefusal headers_malformed = {
	ERRCODE_BAD_REQUEST, "webhook headers are not a JSON object", NULL
};
static const ClerkWebhookRefusal headers_missing = {
	ERRCODE_BAD_REQUEST, "webhook has no usable signature headers",
	"The headers svix-id, svix-timestamp, and svix-signature, or those that begin with \"webhook-\", are required."
};
static const ClerkWebhookRefusal time_malformed = {
	ERRCODE_BAD_REQUEST, "webhook timestamp is not a number of seconds", NULL
};
static const ClerkWebhookRefusal time_off = {
	ERRCODE_UNAUTHORIZED, "webhook timestamp is more than five minutes from the server's time",
	"It may be a copy of an old webhook, or a clock may be wrong."
};
static const ClerkWebhookRefusal body_unencodable = {
	ERRCODE_BAD_REQUEST, "webhook cannot be converted to UTF-8", NULL
};
static const ClerkWebhookRefusal not_signed = {
	ERRCODE_UNAUTHORIZED, "webhook signature does not match",
	"The body must be passed as it was received, byte for byte, and the secret must be that of this endpoint."
};
static const ClerkWebhookRefusal body_malformed = {
	ERRCODE_BAD_REQUEST, "webhook body is not a Clerk event", NULL
};

static char *header_text(const JsonbValue *value);
static bool is_header(const JsonbValue *key, const char *prefix,
					  const char *name);
static bool compute_signature(const ClerkWebhookHeaders *headers,
							  const char *utf8, size_t length,
							  const ClerkWebhookSecret *secret,
							  char *signature);
static bool has_signature(const char *signatures, const char *expected);
static bool is_same(const char *a, const char *b);
static char *string_value(const ClerkJsonValue *value);

/*
 * Finds the three headers in an object of header names, in any case, and
 * values; a value may also be an array of one string.
 */
const ClerkWebhookRefusal *
clerk_webhook_headers(Jsonb *headers, ClerkWebhookHeaders *found)
{
	static const char *const prefixes[] = {"svix-", "webhook-"};
	ClerkWebhookHeaders sets[lengthof(prefixes)] = {{NULL}};
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(headers))
		return &headers_malformed;
	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&iterator, &value, true);
		for (int i = 0; i < (int) lengthof(prefixes); i++)
		{
			if (is_header(&key, prefixes[i], "id"))
				sets[i].id = header_text(&value);
			else if (is_header(&key, prefixes[i], "timestamp"))
				sets[i].timestamp = header_text(&value);
			else if (is_header(&key, prefixes[i], "signature"))
				sets[i].signatures = header_text(&value);
		}
	}
	for (int i = 0; i < (int) lengthof(prefixes); i++)
	{
		*found = sets[i];
		if (found->id != NULL && found->id[0] != '\0' &&
			found->timestamp != NULL && found->signatures != NULL)
			return NULL;
	}
	return &headers_missing;
}

/* Returns NULL if the value is not one string. */
static char *
header_text(const JsonbValue *value)
{
	const JsonbValue *string = value;

	if (value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data) &&
		JsonContainerSize(value->val.binary.data) == 1)
		string = getIthJsonbValueFromContainer(value->val.binary.data, 0);
	if (string->type != jbvString)
		return NULL;
	return pnstrdup(string->val.string.val, string->val.string.len);
}

static bool
is_header(const JsonbValue *key, const char *prefix, const char *name)
{
	int			prefix_length = strlen(prefix);

	return key->val.string.len == prefix_length + (int) strlen(name) &&
		pg_strncasecmp(key->val.string.val, prefix, prefix_length) == 0 &&
		pg_strncasecmp(key->val.string.val + prefix_length, name, strlen(name)) == 0;
}

/* Stores when the webhook was sent, which must be about "now". */
const ClerkWebhookRefusal *
clerk_webhook_time(const ClerkWebhookHeaders *headers, TimestampTz now,
				   TimestampTz *sent_at)
{
	size_t		length = strlen(headers->timestamp);
	int64		seconds = 0;

	if (length == 0 || length > MAX_TIME_DIGITS)
		return &time_malformed;
	for (const char *c = headers->timestamp; *c != '\0'; c++)
	{
		if (*c < '0' || *c > '9')
			return &time_malformed;
		seconds = 10 * seconds + (*c - '0');
	}
	*sent_at = time_t_to_timestamptz((pg_time_t) seconds);
	if (*sent_at < now - CLERK_WEBHOOK_TOLERANCE * USECS_PER_SEC ||
		*sent_at > now + CLERK_WEBHOOK_TOLERANCE * USECS_PER_SEC)
		return &time_off;
	return NULL;
}

/*
 * Whether one of the signatures was made with one of the secrets.  "body" is in
 * the database's encoding; what was signed is UTF-8, as all JSON on the
 * network.
 */
const ClerkWebhookRefusal *
clerk_webhook_verify(const ClerkWebhookHeaders *headers, char *body,
					 const ClerkWebhookSecret *secrets, int count)
{
	size_t		length;
	const char *utf8 = clerk_json_to_wire(body, &length);
	bool		found = false;

	if (utf8 == NULL)
		return &body_unencodable;
	for (int i = 0; i < count; i++)
	{
		char		expected[SIGNATURE_LENGTH + 1];

		if (compute_signature(headers, utf8, length, &secrets[i], expected) &&
			has_signature(headers->signatures, expected))
			found = true;
	}
	return found ? NULL : &not_signed;
}

/*
 * Computes what the webhook's signature must be, a string of SIGNATURE_LENGTH
 * characters.  Returns false if the header's id is not ASCII, which no id of
 * Svix is, so that it need not be converted.  Raises an internal error if the
 * library that computes it fails.
 */
static bool
compute_signature(const ClerkWebhookHeaders *headers, const char *utf8,
				  size_t length, const ClerkWebhookSecret *secret,
				  char *signature)
{
	unsigned char digest[PG_SHA256_DIGEST_LENGTH];
	pg_hmac_ctx *context;
	bool		computed;

	for (const char *c = headers->id; *c != '\0'; c++)
		if (IS_HIGHBIT_SET(*c))
			return false;
	context = pg_hmac_create(PG_SHA256);
	if (context == NULL)
		elog(ERROR, "out of memory");
	computed = pg_hmac_init(context, secret->bytes, secret->length) == 0 &&
		pg_hmac_update(context, (const uint8 *) headers->id, strlen(headers->id)) == 0 &&
		pg_hmac_update(context, (const uint8 *) ".", 1) == 0 &&
		pg_hmac_update(context, (const uint8 *) headers->timestamp,
					   strlen(headers->timestamp)) == 0 &&
		pg_hmac_update(context, (const uint8 *) ".", 1) == 0 &&
		pg_hmac_update(context, (const uint8 *) utf8, length) == 0 &&
		pg_hmac_final(context, digest, sizeof(digest)) == 0;
	pg_hmac_free(context);
	if (!computed ||
		pg_b64_encode((void *) digest, sizeof(digest), signature,
					  SIGNATURE_LENGTH) != SIGNATURE_LENGTH)
		elog(ERROR, "could not compute the signature of a webhook");
	signature[SIGNATURE_LENGTH] = '\0';
	return true;
}

/*
 * Whether the signature is in a header such as "v1,abc= v1,def=".  Signatures
 * of other versions are ignored.
 */
static bool
has_signature(const char *signatures, const char *expected)
{
	bool		found = false;
	size_t		prefix = strlen(SIGNATURE_PREFIX);

	while (*(signatures += strspn(signatures, " ")) != '\0')
	{
		size_t		length = strcspn(signatures, " ");

		if (length == prefix + SIGNATURE_LENGTH &&
			strncmp(signatures, SIGNATURE_PREFIX, prefix) == 0 &&
			is_same(signatures + prefix, expected))
			found = true;
		signatures += length;
	}
	return found;
}

/*
 * Whether two signatures are the same.  Takes the same time wherever they
 * differ, so that nobody can find one character by character.  They are
 * compared as they are written: a decoder would accept several spellings.
 */
static bool
is_same(const char *a, const char *b)
{
	volatile unsigned char difference = 0;

	for (int i = 0; i < SIGNATURE_LENGTH; i++)
		difference |= (unsigned char) a[i] ^ (unsigned char) b[i];
	return difference == 0;
}

/* Reads a body that is known to be Clerk's. */
const ClerkWebhookRefusal *
clerk_webhook_read(const char *body, ClerkWebhookEvent *event)
{
	static const char *const names[] = {"type", "data"};
	static const char *const data_names[] = {"id"};
	ClerkJsonValue values[lengthof(names)];
	ClerkJsonValue id;
	ClerkJsonError json_error;
	const char *type;

	event->status = NULL;
	if (!clerk_json_read_object(body, strlen(body), names, lengthof(names), values,
								&json_error))
		return &body_malformed;
	type = string_value(&values[0]);
	if (type == NULL)
		return &body_malformed;
	for (int i = 0; i < (int) lengthof(event_types); i++)
		if (strcmp(type, event_types[i].type) == 0)
			event->status = event_types[i].status;
	if (event->status == NULL)
		return NULL;
	if (values[1].kind != CLERK_JSON_OTHER ||
		!clerk_json_read_object(values[1].source, values[1].length, data_names, 1,
								&id, &json_error))
		return &body_malformed;
	event->invitation_id = string_value(&id);
	if (event->invitation_id == NULL || !clerk_is_identifier(event->invitation_id))
		return &body_malformed;
	return NULL;
}

/* Returns NULL if the value is not a string. */
static char *
string_value(const ClerkJsonValue *value)
{
	ClerkJsonError json_error = CLERK_JSON_GOOD;
	text	   *string;

	if (value->kind != CLERK_JSON_STRING)
		return NULL;
	string = clerk_json_string(value, &json_error);
	return string == NULL ? NULL : text_to_cstring(string);
}
