/*
 * invitation_json.c
 *		Conversion of invitations between Clerk's JSON and the SQL type.
 *
 * A request omits fields that are NULL.  Unknown fields of a response are
 * ignored.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type_d.h"
#include "clerk/invitation_json.h"
#include "clerk/json_reader.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/timestamp.h"

/*
 * Maximum number of invitations in a response.  A page of Clerk's has at most
 * 500.  An empty object is three bytes of a response, but its fields take 500
 * bytes of memory, so without a limit 4 MiB would become 700 MB.
 */
#define MAX_LIST_LENGTH 5000

/*
 * The names of an invitation's fields, both in Clerk's JSON and in the SQL
 * type.
 */
static const char *const field_names[CLERK_INVITATION_FIELDS] = {
	[CLERK_INVITATION_ID] = "id",
	[CLERK_INVITATION_ORGANIZATION_ID] = "organization_id",
	[CLERK_INVITATION_EMAIL_ADDRESS] = "email_address",
	[CLERK_INVITATION_ROLE] = "role",
	[CLERK_INVITATION_ROLE_NAME] = "role_name",
	[CLERK_INVITATION_STATUS] = "status",
	[CLERK_INVITATION_INVITER_ID] = "inviter_id",
	[CLERK_INVITATION_URL] = "url",
	[CLERK_INVITATION_PUBLIC_METADATA] = "public_metadata",
	[CLERK_INVITATION_PRIVATE_METADATA] = "private_metadata",
	[CLERK_INVITATION_PUBLIC_INVITER_DATA] = "public_inviter_data",
	[CLERK_INVITATION_PUBLIC_ORGANIZATION_DATA] = "public_organization_data",
	[CLERK_INVITATION_CREATED_AT] = "created_at",
	[CLERK_INVITATION_UPDATED_AT] = "updated_at",
	[CLERK_INVITATION_EXPIRES_AT] = "expires_at",
};

/* The types of the SQL type's columns. */
static const Oid field_types[CLERK_INVITATION_FIELDS] = {
	[CLERK_INVITATION_ID] = TEXTOID,
	[CLERK_INVITATION_ORGANIZATION_ID] = TEXTOID,
	[CLERK_INVITATION_EMAIL_ADDRESS] = TEXTOID,
	[CLERK_INVITATION_ROLE] = TEXTOID,
	[CLERK_INVITATION_ROLE_NAME] = TEXTOID,
	[CLERK_INVITATION_STATUS] = TEXTOID,
	[CLERK_INVITATION_INVITER_ID] = TEXTOID,
	[CLERK_INVITATION_URL] = TEXTOID,
	[CLERK_INVITATION_PUBLIC_METADATA] = JSONBOID,
	[CLERK_INVITATION_PRIVATE_METADATA] = JSONBOID,
	[CLERK_INVITATION_PUBLIC_INVITER_DATA] = JSONBOID,
	[CLERK_INVITATION_PUBLIC_ORGANIZATION_DATA] = JSONBOID,
	[CLERK_INVITATION_CREATED_AT] = TIMESTAMPTZOID,
	[CLERK_INVITATION_UPDATED_AT] = TIMESTAMPTZOID,
	[CLERK_INVITATION_EXPIRES_AT] = TIMESTAMPTZOID,
};

static void append_name(StringInfo json, const char *name);
static void append_string(StringInfo json, const char *name, const char *value);
static void append_jsonb(StringInfo json, const char *name, Jsonb *value);
static const char *build_invitation(const ClerkJsonValue *fields,
									ClerkInvitation *invitation,
									ClerkJsonError *json_error);
static int64 read_count(const ClerkJsonValue *value);
static const char *read_field(const ClerkJsonValue *value, Oid type,
							  Datum *datum, ClerkJsonError *json_error);
static bool read_milliseconds(const char *milliseconds, Datum *datum);

/*
 * Whether a row type has exactly an invitation's columns, with the types of
 * this version of the library.
 */
bool
clerk_fits_invitation(TupleDesc descriptor)
{
	if (descriptor->natts != CLERK_INVITATION_FIELDS)
		return false;
	for (int i = 0; i < CLERK_INVITATION_FIELDS; i++)
		if (TupleDescAttr(descriptor, i)->attisdropped ||
			TupleDescAttr(descriptor, i)->atttypid != field_types[i])
			return false;
	return true;
}

/* Returns a field of type text as a palloc'd string; NULL if it is null. */
char *
clerk_invitation_text(const ClerkInvitation *invitation,
					  ClerkInvitationField field)
{
	return invitation->nulls[field] ? NULL :
		TextDatumGetCString(invitation->values[field]);
}

/*
 * Returns the request body for one invitation, as a palloc'd string in the
 * database's encoding.  The fields are those of Clerk's operation
 * CreateOrganizationInvitation.
 */
char *
clerk_new_invitation_json(const ClerkNewInvitation *wanted)
{
	StringInfoData json;

	initStringInfo(&json);
	append_string(&json, "email_address", wanted->email_address);
	append_string(&json, "role", wanted->role);
	append_string(&json, "inviter_user_id", wanted->inviter_user_id);
	append_string(&json, "redirect_url", wanted->redirect_url);
	append_jsonb(&json, "public_metadata", wanted->public_metadata);
	append_jsonb(&json, "private_metadata", wanted->private_metadata);
	if (wanted->expires_in_days != 0)
		appendStringInfo(&json, ",\"expires_in_days\":%d",
						 wanted->expires_in_days);
	if (wanted->notify != NULL)
		appendStringInfo(&json, ",\"notify\":%s",
						 *wanted->notify ? "true" : "false");

	/*
	 * Each field was appended with a comma before it; replace the first
	 * comma.
	 */
	json.data[0] = '{';
	appendStringInfoChar(&json, '}');
	return json.data;
}

static void
append_name(StringInfo json, const char *name)
{
	appendStringInfoString(json, ",\"");
	appendStringInfoString(json, name);
	appendStringInfoString(json, "\":");
}

static void
append_string(StringInfo json, const char *name, const char *value)
{
	if (value == NULL)
		return;
	append_name(json, name);
	escape_json(json, value);
}

static void
append_jsonb(StringInfo json, const char *name, Jsonb *value)
{
	if (value == NULL)
		return;
	append_name(json, name);
	JsonbToCString(json, &value->root, VARSIZE(value));
}

/*
 * Reads the response to a list or bulk operation: an object with "data", an
 * array of invitations, and "total_count".  "text" is JSON in the database's
 * encoding.
 *
 * Returns NULL and fills "list" except list->lossless, or returns what is
 * wrong as a phrase.  In the latter case *json_error is CLERK_JSON_GOOD unless
 * the cause is invalid JSON or the encoding.
 */
const char *
clerk_read_invitation_list(const char *text, ClerkInvitationList *list,
						   ClerkJsonError *json_error)
{
	static const char *const names[] = {"data", "total_count"};
	ClerkJsonValue values[lengthof(names)];
	ClerkJsonList data = {
		.names = field_names,
		.name_count = CLERK_INVITATION_FIELDS,
		.max_count = MAX_LIST_LENGTH
	};

	if (!clerk_json_read_list(text, strlen(text), names, lengthof(names),
							  values, 0, &data, json_error))
		return clerk_json_error_text(*json_error);
	list->total_count = read_count(&values[1]);
	if (values[0].kind != CLERK_JSON_OTHER || !data.is_array)
		return "\"data\" is not an array";
	if (!data.has_objects_only)
		return "an element of \"data\" is not an object";
	if (data.is_too_long)
		return "\"data\" has too many elements";

	list->count = data.count;
	list->invitations = palloc(Max(list->count, 1) * sizeof(ClerkInvitation));
	for (int i = 0; i < list->count; i++)
	{
		const char *error =
		build_invitation(&data.values[i * CLERK_INVITATION_FIELDS],
						 &list->invitations[i], json_error);

		if (error != NULL)
			return error;
	}
	return NULL;
}

/* Reads a count; returns -1 if it is missing or invalid. */
static int64
read_count(const ClerkJsonValue *value)
{
	double		count = value->kind == CLERK_JSON_NUMBER ?
	strtod(value->source, NULL) : -1;

	return count >= 0 && count <= PG_INT32_MAX ? (int64) count : -1;
}

/*
 * Reads one invitation from "length" bytes of JSON in the database's encoding.
 *
 * Returns NULL and fills "invitation", or returns what is wrong as a phrase.
 * In the latter case *json_error is CLERK_JSON_GOOD unless the cause is
 * invalid JSON or the encoding.
 */
const char *
clerk_read_invitation(const char *text, int length,
					  ClerkInvitation *invitation, ClerkJsonError *json_error)
{
	ClerkJsonValue fields[CLERK_INVITATION_FIELDS];

	if (!clerk_json_read_object(text, length, field_names,
								CLERK_INVITATION_FIELDS, fields, json_error))
		return clerk_json_error_text(*json_error);
	return build_invitation(fields, invitation, json_error);
}

/*
 * Converts the fields' JSON to their values.  Returns what is wrong as a
 * phrase, or NULL.
 */
static const char *
build_invitation(const ClerkJsonValue *fields, ClerkInvitation *invitation,
				 ClerkJsonError *json_error)
{
	for (int i = 0; i < CLERK_INVITATION_FIELDS; i++)
	{
		const char *error;

		invitation->nulls[i] = (fields[i].kind == CLERK_JSON_ABSENT);
		invitation->values[i] = (Datum) 0;
		if (invitation->nulls[i])
			continue;
		error = read_field(&fields[i], field_types[i],
						   &invitation->values[i], json_error);
		if (*json_error != CLERK_JSON_GOOD)
			return error;
		if (error != NULL)
			return psprintf("\"%s\" %s", field_names[i], error);
	}
	if (invitation->nulls[CLERK_INVITATION_ID])
		return "\"id\" is missing";
	return NULL;
}

/*
 * Converts a field's JSON to its value.  Returns what is wrong as a phrase, or
 * NULL.
 */
static const char *
read_field(const ClerkJsonValue *value, Oid type, Datum *datum,
		   ClerkJsonError *json_error)
{
	bool		valid = false;

	switch (type)
	{
		case TEXTOID:
			if (value->kind != CLERK_JSON_STRING)
				break;
			*datum = PointerGetDatum(clerk_json_string(value, json_error));
			return *json_error == CLERK_JSON_GOOD ?
				NULL : clerk_json_error_text(*json_error);
		case JSONBOID:
			*datum = JsonbPGetDatum(clerk_json_parse(value->source,
													 value->length, json_error));
			return *json_error == CLERK_JSON_GOOD ?
				NULL : clerk_json_error_text(*json_error);
		case TIMESTAMPTZOID:
			valid = (value->kind == CLERK_JSON_NUMBER &&
					 read_milliseconds(value->source, datum));
			break;
		default:
			elog(ERROR, "unexpected type %u of an invitation's field", type);
	}
	return valid ? NULL : "is not of the documented type, or is out of range";
}

/*
 * Converts Clerk's times, milliseconds since 1970, to timestamptz.
 * "milliseconds" is a JSON number that is not NUL-terminated: other JSON
 * follows it.  Returns false if the time is out of range.
 */
static bool
read_milliseconds(const char *milliseconds, Datum *datum)
{
	const int	epoch_days = POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE;
	const double epoch = epoch_days * (double) SECS_PER_DAY * 1000;

	/*
	 * A double is exact up to 2^53 milliseconds, far beyond the year 200,000.
	 */
	const double number = rint(strtod(milliseconds, NULL)) - epoch;
	const double limit = (double) (PG_INT64_MAX / 2000);
	Timestamp	timestamp;

	if (!(number > -limit && number < limit))
		return false;
	timestamp = (Timestamp) number * 1000;
	*datum = TimestampTzGetDatum(timestamp);
	return IS_VALID_TIMESTAMP(timestamp);
}
