/*
 * clerk_error.c
 *		What went wrong with a request to Clerk: a table from transport result,
 *		HTTP status and Clerk's code to class, SQLSTATE and texts.
 *
 * Clerk's part is its documented error catalogue for the operations on
 * organization invitations.  A status that the table lacks is judged by its
 * hundred.
 */
#include "postgres.h"

#include <ctype.h>

#include "clerk_error.h"
#include "email_address.h"
#include "json_reader.h"
#include "lib/stringinfo.h"

#define SQLSTATE_NOT_SENT ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION
#define SQLSTATE_READ_FAILED ERRCODE_CONNECTION_FAILURE
#define SQLSTATE_OUTCOME_UNKNOWN ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN

#define HINT_KEY \
	"Check \"clerk_invite.secret_key_file\", \"clerk_invite.secret_key\" or the server's environment variable CLERK_SECRET_KEY: the first one that is set counts."

#define HINT_NOT_FOUND \
	"Check the organization ID, the role and the inviter, and that the secret key belongs to the same Clerk instance."

/* What to do when it is unknown whether an invitation was created. */
#define HINT_LOOK_FIRST \
	"Before you try again, look whether the invitation exists: in Clerk's Dashboard, or with clerk_list_organization_invitations()."

#define HINT_LOOK_FIRST_FOR_SEVERAL \
	"Before you try again, look which of the invitations exist: in Clerk's Dashboard, or with clerk_list_organization_invitations()."

/* Most errors of one answer that a message quotes. */
#define MAX_QUOTED_ERRORS 10

typedef struct ErrorRule
{
	int			http_status;	/* 0: any from 400 to 499 */
	const char *code;			/* NULL: any */
	ClerkErrorClass class;
	int			sqlstate;
	const char *summary;
	const char *hint;
} ErrorRule;

/*
 * What is different about requests that concern existing invitations; asked
 * before the table for all.
 */
static const ErrorRule refusals_about_existing[] = {
	{403, "not_a_member_in_organization", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"the requesting user is not a member of the organization",
	"Pass the Clerk user ID of a member, or NULL for no user."},
	{403, "missing_organization_permission", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"the requesting user may not do this in the organization",
	"Pass the Clerk user ID of a member who may manage members, or NULL for no user."},
	{404, "resource_not_found", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
		"the organization, invitation or user does not exist",
	"Check the organization ID and the invitation ID, and that the secret key belongs to the same Clerk instance."},
	{404, "organization_not_found_or_unauthorized", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
		"the organization does not exist",
	"Check the organization ID, and that the secret key belongs to the same Clerk instance."},
};

/* The first rule that fits counts. */
static const ErrorRule refusals[] = {
	/* What the status alone decides, whatever the body says. */
	{401, NULL, CLERK_ERROR_CONFIGURATION, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
	"Clerk does not accept the secret key", HINT_KEY},
	{429, NULL, CLERK_ERROR_RATE_LIMITED, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
	"Clerk's rate limit is exceeded", NULL},

	/* Clerk already has it. */
	{0, "organization_invitation_not_unique", CLERK_ERROR_EXISTS, ERRCODE_UNIQUE_VIOLATION,
		"an invitation for this address is already pending",
	"The pending invitation stays valid. Revoke it first if it is to be replaced."},
	{0, "duplicate_record", CLERK_ERROR_EXISTS, ERRCODE_UNIQUE_VIOLATION,
		"an invitation for this address is already pending",
	"The pending invitation stays valid. Revoke it first if it is to be replaced."},
	{0, "already_a_member_in_organization", CLERK_ERROR_EXISTS, ERRCODE_UNIQUE_VIOLATION,
		"this address already belongs to a member of the organization",
	"No invitation is needed."},

	/* Quotas and billing. */
	{0, "organization_membership_quota_exceeded", CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"the organization has reached its membership limit",
	"Members and pending invitations count together. Raise the organization's limit in Clerk, or revoke pending invitations."},
	{0, "dev_monthly_email_limit_exceeded", CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"the development instance has used up its e-mails for this month",
	"Use a production instance, or pass notify => false and deliver the link yourself."},
	{0, "quota_exceeded", CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"a quota of the Clerk instance is used up",
	"Raise the quota in Clerk's Dashboard."},
	{402, "insufficient_seats", CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"the organization's plan has no seat left",
	"Buy seats for the organization, or revoke pending invitations."},
	{402, NULL, CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"the organization's plan does not allow it",
	"Check the plan and billing of the organization in Clerk's Dashboard."},

	/* Privileges. */
	{403, "not_a_member_in_organization", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"the inviter is not a member of the organization",
	"Pass the Clerk user ID of a member, or NULL for no inviter."},
	{403, "missing_organization_permission", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"the inviter may not invite to the organization",
	"Pass the Clerk user ID of a member who may manage members, or NULL for no inviter."},
	{403, "organization_not_enabled_in_instance", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"organizations are not enabled in the Clerk instance",
	"Enable organizations in Clerk's Dashboard."},
	{403, NULL, CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
	"Clerk does not allow it", NULL},

	/* Not found. */
	{404, "organization_invitation_not_pending", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the invitation is no longer pending", NULL},
	{404, "resource_not_found", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the organization, role or inviter does not exist", HINT_NOT_FOUND},
	{404, "organization_not_found_or_unauthorized", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the organization does not exist", HINT_NOT_FOUND},
	{404, NULL, CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"Clerk did not find it", "Check \"clerk_invite.api_url\"."},

	/* Another change is in the way. */
	{409, NULL, CLERK_ERROR_TRY_LATER, ERRCODE_OBJECT_IN_USE,
	"Clerk cannot do it at the moment", NULL},

	/* Refused by the form of the request. */
	{0, "api_version_invalid", CLERK_ERROR_CONFIGURATION, ERRCODE_INVALID_PARAMETER_VALUE,
		"Clerk does not know the API version that was asked for",
	"Check \"clerk_invite.api_version\"."},
	{0, "exclusive_organization_membership", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
		"the person belongs to an organization that allows no other membership",
	NULL},
	{0, "bulk_size_exceeded", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the request has too many invitations for Clerk", NULL},
	{413, NULL, CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the request is too large for Clerk", "Clerk allows 8 kB of metadata."},
	{0, NULL, CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"Clerk refused the request", NULL},
};

static void outcome_unknown(ClerkError *error, ClerkEffect effect);
static void judge_refusal(ClerkError *error, ClerkEffect effect);
static const ErrorRule *find_rule(const ErrorRule *rules, int count,
								  const ClerkError *error);
static void read_answer(const ClerkHttpRequest *request, ClerkError *error);
static char *header_trace_id(const ClerkHttpRequest *request);
static void read_errors(JsonbContainer *errors, const char *key,
						ClerkError *error);
static JsonbContainer *element(JsonbContainer *array, uint32 index);
static void collect_names(StringInfo names, JsonbContainer *object);
static void collect_array(StringInfo names, JsonbContainer *object,
						  const char *field);
static bool contains(const char *named, const char *wanted);
static bool has_word_for(const char *named, const char *address);
static bool continues_address(char c);
static void quote_error(StringInfo said, JsonbContainer *object,
						const char *key);
static char *text_field(JsonbContainer *object, const char *name,
						const char *key);
static void conceal_key(char *text, const char *key);
static void conceal_query_strings(char *text);
static char *describe(const ClerkHttpRequest *request,
					  const ClerkError *error);
static const char *try_again_hint(int seconds, ClerkEffect effect);

/*
 * There is no usable key; "fault" says why, and "hint" what to do, unless it is
 * NULL.
 */
ClerkError *
clerk_error_no_key(const char *fault, const char *hint)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->class = CLERK_ERROR_CONFIGURATION;
	error->sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error->summary = "there is no usable secret key";
	error->detail = pstrdup(fault);
	error->hint = hint != NULL ? hint : HINT_KEY;
	return error;
}

/* The API's address cannot be used; "fault" says why, as a phrase. */
ClerkError *
clerk_error_unusable_address(const char *fault)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->class = CLERK_ERROR_CONFIGURATION;
	error->sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error->summary = "the configured address cannot be used";
	error->detail = psprintf("In \"clerk_invite.api_url\", %s.", fault);
	error->hint = "Nothing was sent.";
	return error;
}

/* The request cannot be expressed; "fault" says why, as a phrase. */
ClerkError *
clerk_error_unsendable(const char *fault)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->class = CLERK_ERROR_FINAL;
	error->sqlstate = ERRCODE_CHARACTER_NOT_IN_REPERTOIRE;
	error->summary = pstrdup(fault);
	return error;
}

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
			return clerk_error_unusable_address(clerk_http_fault(request));
		case CLERK_HTTP_NOT_SENT:
			error->class = CLERK_ERROR_NOT_SENT;
			error->sqlstate = SQLSTATE_NOT_SENT;
			error->summary = "could not connect to Clerk";
			error->detail = psprintf("Reason: %s.", clerk_http_fault(request));
			error->hint = effect == CLERK_EFFECT_CREATES_SEVERAL ?
				"It is safe to try again." :
				"Nothing was sent. It is safe to try again.";
			return error;
		case CLERK_HTTP_LOST:
			outcome_unknown(error, effect);
			error->summary = "the answer of Clerk was lost";
			error->detail = psprintf("Reason: %s.", clerk_http_fault(request));
			return error;
		case CLERK_HTTP_ANSWERED:
			break;
	}

	read_answer(request, error);
	if (error->http_status < 400 || error->http_status > 499)
	{
		outcome_unknown(error, effect);
		error->summary = error->http_status >= 500 ?
			"Clerk failed to answer properly" : "Clerk's answer is unexpected";
	}
	else
		judge_refusal(error, effect);
	error->detail = describe(request, error);
	return error;
}

/*
 * Clerk said that it has done what was asked, but in words that cannot be
 * used; "fault" says why.  "id" is the identifier found in the answer, or
 * NULL: then it is not certain that this was Clerk's answer at all.
 */
ClerkError *
clerk_error_unreadable(const ClerkHttpRequest *request, ClerkEffect effect,
					   const char *fault, const char *id)
{
	ClerkError *error = palloc0(sizeof(ClerkError));

	error->http_status = clerk_http_status(request);
	error->trace_id = header_trace_id(request);
	outcome_unknown(error, effect);
	error->summary = "the answer of Clerk cannot be read";
	error->said = psprintf("The answer is not as documented: %s", fault);
	error->detail = describe(request, error);
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

/* What to do about a request that may have been carried out or not. */
const char *
clerk_error_look_first(ClerkEffect effect)
{
	switch (effect)
	{
		case CLERK_EFFECT_NONE:
			return "It is safe to try again.";
		case CLERK_EFFECT_CREATES:
			return HINT_LOOK_FIRST;
		case CLERK_EFFECT_CREATES_SEVERAL:
			return HINT_LOOK_FIRST_FOR_SEVERAL;
		case CLERK_EFFECT_REVOKES:
			return "It is safe to try again: Clerk refuses to revoke an invitation that is no longer pending.";
	}
	pg_unreachable();
}

/* What an answer from 400 to 499 means. */
static void
judge_refusal(ClerkError *error, ClerkEffect effect)
{
	const ErrorRule *rule = NULL;

	if (effect != CLERK_EFFECT_CREATES && effect != CLERK_EFFECT_CREATES_SEVERAL)
		rule = find_rule(refusals_about_existing,
						 lengthof(refusals_about_existing), error);
	if (rule == NULL)
		rule = find_rule(refusals, lengthof(refusals), error);

	error->class = rule->class;
	error->sqlstate = rule->sqlstate;
	error->summary = rule->summary;
	error->hint = rule->hint;
	if (error->class == CLERK_ERROR_RATE_LIMITED ||
		error->class == CLERK_ERROR_TRY_LATER)
		error->hint = try_again_hint(error->retry_after, effect);
	else if (rule->http_status == 0 && rule->code == NULL &&
			 error->param_name != NULL)
		error->summary = psprintf("Clerk does not accept \"%s\"",
								  error->param_name);
}

/* NULL if none fits, which cannot be of the table for all. */
static const ErrorRule *
find_rule(const ErrorRule *rules, int count, const ClerkError *error)
{
	for (const ErrorRule *rule = rules; rule < rules + count; rule++)
		if ((rule->http_status == 0 || rule->http_status == error->http_status) &&
			(rule->code == NULL ||
			 (error->code != NULL && strcmp(rule->code, error->code) == 0)))
			return rule;
	return NULL;
}

/*
 * What the answer itself says about its failure.  Not every body is JSON, and
 * no part of one that is not is quoted.
 */
static void
read_answer(const ClerkHttpRequest *request, ClerkError *error)
{
	const char *key = clerk_http_bearer_token(request);
	size_t		length;
	const char *body = clerk_http_body(request, &length);
	Jsonb	   *answer = clerk_json_parse_what_is_legible(body, length);
	JsonbValue	errors;

	error->http_status = clerk_http_status(request);
	error->retry_after = clerk_http_retry_after(request);

	if (answer != NULL && JB_ROOT_IS_OBJECT(answer))
	{
		error->trace_id = text_field(&answer->root, "clerk_trace_id", key);
		if (clerk_json_field(&answer->root, "errors", &errors) &&
			errors.type == jbvBinary &&
			JsonContainerIsArray(errors.val.binary.data))
			read_errors(errors.val.binary.data, key, error);
	}
	if (error->trace_id == NULL)
		error->trace_id = header_trace_id(request);
}

/* Clerk's name for the request, or that of the edge in front of it. */
static char *
header_trace_id(const ClerkHttpRequest *request)
{
	char	   *trace_id = clerk_http_header(request, "x-clerk-trace-id");

	if (trace_id == NULL)
		trace_id = clerk_http_header(request, "cf-ray");
	if (trace_id != NULL)
		conceal_key(trace_id, clerk_http_bearer_token(request));
	return trace_id;
}

/* Several errors are quoted, but the first decides what they mean. */
static void
read_errors(JsonbContainer *errors, const char *key, ClerkError *error)
{
	StringInfoData said;
	StringInfoData names;
	JsonbValue	meta;

	initStringInfo(&said);
	initStringInfo(&names);
	for (uint32 i = 0; i < Min(JsonContainerSize(errors), MAX_QUOTED_ERRORS); i++)
	{
		JsonbContainer *object = element(errors, i);

		if (object == NULL)
			continue;
		quote_error(&said, object, key);
		collect_names(&names, object);
		if (error->code != NULL)
			continue;
		error->code = text_field(object, "code", key);
		if (clerk_json_field(object, "meta", &meta) &&
			meta.type == jbvBinary &&
			JsonContainerIsObject(meta.val.binary.data))
			error->param_name = text_field(meta.val.binary.data,
										   "param_name", key);
	}
	if (said.len > 0)
		error->said = said.data;
	if (names.len > 0)
		error->named = names.data;
}

/*
 * Where Clerk may say which addresses of a bulk request it refuses: sometimes
 * in "meta", sometimes in the message only.
 */
static void
collect_names(StringInfo names, JsonbContainer *object)
{
	const char *text = clerk_json_text_field(object, "long_message");
	JsonbValue	meta;

	if (text != NULL)
		appendStringInfo(names, "%s\n", text);
	if (clerk_json_field(object, "meta", &meta) &&
		meta.type == jbvBinary &&
		JsonContainerIsObject(meta.val.binary.data))
	{
		collect_array(names, meta.val.binary.data, "email_addresses");
		collect_array(names, meta.val.binary.data, "identifiers");
	}
}

static void
collect_array(StringInfo names, JsonbContainer *object, const char *field)
{
	JsonbValue	array;

	if (!clerk_json_field(object, field, &array) || array.type != jbvBinary ||
		!JsonContainerIsArray(array.val.binary.data))
		return;
	for (uint32 i = 0; i < JsonContainerSize(array.val.binary.data); i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(array.val.binary.data, i);

		if (element->type == jbvString)
			appendStringInfo(names, "%.*s\n", element->val.string.len,
							 element->val.string.val);
	}
}

/* A copy in the current memory context. */
ClerkError *
clerk_error_copy(const ClerkError *error)
{
	ClerkError *copy = palloc(sizeof(ClerkError));

#define COPY(field) \
	(copy->field = error->field != NULL ? pstrdup(error->field) : NULL)

	*copy = *error;
	COPY(code);
	COPY(param_name);
	COPY(trace_id);
	COPY(said);
	COPY(named);
	COPY(summary);
	COPY(detail);
	COPY(hint);
	return copy;

#undef COPY
}

/*
 * Whether a refusal names this address, in any case and normalized or not, as a
 * whole and not as part of a longer one.
 */
bool
clerk_error_names(const ClerkError *error, const char *address)
{
	const char *folded;

	if (error->named == NULL)
		return false;
	folded = clerk_fold_address(error->named);
	return contains(folded, clerk_fold_address(address)) ||
		contains(folded, clerk_normalize_address(address)) ||
		has_word_for(error->named, address);
}

/* Whether a text has an address in this very form. */
static bool
contains(const char *named, const char *wanted)
{
	size_t		length = strlen(wanted);

	for (const char *text = named; (text = strstr(text, wanted)) != NULL; text++)
	{
		const char *next = text + length;

		if (text > named && continues_address(text[-1]))
			continue;
		/* A full stop may end the sentence, or go on with the address. */
		if (*next == '.')
			next++;
		if (!continues_address(*next))
			return true;
	}
	return false;
}

/* Whether a word of the text is an address that is the same when normalized. */
static bool
has_word_for(const char *named, const char *address)
{
	char	   *rest = pstrdup(named);
	char	   *word;

	while ((word = strsep(&rest, " \t\r\n\"'`<>()[],;:")) != NULL)
	{
		size_t		length = strlen(word);

		/* A full stop that ends the sentence. */
		if (length > 0 && word[length - 1] == '.')
			word[length - 1] = '\0';
		if (strchr(word, '@') != NULL &&
			clerk_address_likeness(word, address) != CLERK_ADDRESS_OTHER)
			return true;
	}
	return false;
}

static bool
continues_address(char c)
{
	return IS_HIGHBIT_SET(c) || isalnum((unsigned char) c) ||
		(c != '\0' && strchr("._%+-@", c) != NULL);
}

/* An array's element that is an object; NULL if it is anything else. */
static JsonbContainer *
element(JsonbContainer *array, uint32 index)
{
	JsonbValue *value = getIthJsonbValueFromContainer(array, index);

	return value != NULL && value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data) ?
		value->val.binary.data : NULL;
}

/* Appends what one element of "errors" says, and its code in brackets. */
static void
quote_error(StringInfo said, JsonbContainer *object, const char *key)
{
	char	   *text = text_field(object, "long_message", key);
	char	   *code = text_field(object, "code", key);

	if (text == NULL)
		text = text_field(object, "message", key);
	if (text == NULL && code == NULL)
		return;
	/* Clerk's messages end with a period or not. */
	if (text != NULL && text[0] != '\0' && text[strlen(text) - 1] == '.')
		text[strlen(text) - 1] = '\0';
	appendStringInfo(said, "%s%s", said->len > 0 ? "; " : "Clerk says: ",
					 text != NULL ? text : "");
	if (code != NULL)
		appendStringInfo(said, "%s[%s]", text != NULL ? " " : "", code);
}

/*
 * A string of Clerk's without secrets: a key that Clerk quotes, or the ticket
 * in an invitation's URL, must not reach a message or a log.
 */
static char *
text_field(JsonbContainer *object, const char *name, const char *key)
{
	char	   *text = clerk_json_text_field(object, name);

	if (text != NULL)
	{
		conceal_key(text, key);
		conceal_query_strings(text);
	}
	return text;
}

static void
conceal_key(char *text, const char *key)
{
	size_t		length = strlen(key);

	for (char *found = text; (found = strstr(found, key)) != NULL; found += length)
		memset(found, '*', length);
}

/* Replaces what follows the "?" of each URL. */
static void
conceal_query_strings(char *text)
{
	for (char *url = text; (url = strstr(url, "://")) != NULL;)
	{
		char	   *end = url + strcspn(url, " \t\r\n\"'<>");

		url += strcspn(url, "?");
		for (url++; url < end; url++)
			*url = '*';
		url = end;
	}
}

/* What Clerk said, HTTP status and trace ID, as sentences. */
static char *
describe(const ClerkHttpRequest *request, const ClerkError *error)
{
	StringInfoData detail;
	size_t		length;

	initStringInfo(&detail);
	if (error->said != NULL)
		appendStringInfo(&detail, "%s. ", error->said);
	else
	{
		(void) clerk_http_body(request, &length);
		appendStringInfo(&detail,
						 "The answer does not say why (%zu bytes). ", length);
	}
	appendStringInfo(&detail, "HTTP status %d", error->http_status);
	if (error->trace_id != NULL)
		appendStringInfo(&detail, ", trace ID %s", error->trace_id);
	appendStringInfoChar(&detail, '.');
	return detail.data;
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
