/*
 * invitations_argument.c
 *		Reads an argument that contains many invitations: a jsonb array of
 *		objects with Clerk's field names.
 *
 * A JSON null is the same as a missing field.  The whole array is checked
 * before any of it is used: an error in the last element must not be found
 * after the first ones were sent.
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "clerk/json_reader.h"
#include "clerk/white_space.h"
#include "compat.h"
#include "miscadmin.h"
#include "sql/arguments.h"
#include "sql/invitations_argument.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

typedef enum FieldKind
{
	FIELD_ADDRESS,
	FIELD_TEXT,
	FIELD_OBJECT,
	FIELD_DAYS,
	FIELD_FLAG
} FieldKind;

typedef struct Field
{
	const char *name;			/* Clerk's name */
	FieldKind	kind;
	bool		required;
	size_t		offset;			/* of the member of ClerkNewInvitation */
	int			max_length;		/* of a text, in characters; otherwise 0 */
} Field;

/*
 * The address comes first, because error messages about the other fields quote
 * it.
 */
static const Field fields[] = {
	{"email_address", FIELD_ADDRESS, true, offsetof(ClerkNewInvitation, email_address), CLERK_MAX_ADDRESS},
	{"role", FIELD_TEXT, true, offsetof(ClerkNewInvitation, role), CLERK_MAX_IDENTIFIER},
	{"inviter_user_id", FIELD_TEXT, false, offsetof(ClerkNewInvitation, inviter_user_id), CLERK_MAX_IDENTIFIER},
	{"redirect_url", FIELD_TEXT, false, offsetof(ClerkNewInvitation, redirect_url), CLERK_MAX_URL},
	{"public_metadata", FIELD_OBJECT, false, offsetof(ClerkNewInvitation, public_metadata), 0},
	{"private_metadata", FIELD_OBJECT, false, offsetof(ClerkNewInvitation, private_metadata), 0},
	{"expires_in_days", FIELD_DAYS, false, offsetof(ClerkNewInvitation, expires_in_days), 0},
	{"notify", FIELD_FLAG, false, offsetof(ClerkNewInvitation, notify), 0},
};

#define FIELD_NAMES \
	"email_address, role, inviter_user_id, redirect_url, public_metadata, private_metadata, expires_in_days, and notify"

/* The array element that is being read. */
typedef struct Element
{
	const char *argument;		/* name of the SQL argument */
	int			position;		/* counted from 1 */
	JsonbContainer *object;
	ClerkNewInvitation *invitation; /* where to store the fields */
} Element;

/* An address and the position, from 1, of its element. */
typedef struct AddressPosition
{
	char	   *normalized;
	int			position;
} AddressPosition;

static Jsonb *required_array(FunctionCallInfo fcinfo, int position,
							 const char *name);
static void read_element(Element *element, const JsonbValue *value);
static void check_field_names(const Element *element);
static bool is_field(const JsonbValue *name);
static const char *read_field(const JsonbValue *value, const Field *field,
							  ClerkNewInvitation *invitation);
static const char *read_text(const JsonbValue *value, const Field *field,
							 char **text);
static const char *read_days(const JsonbValue *value, int *days);
static void check_encodable(const Element *element, int length);
static void check_distinct(const char *name,
						   const ClerkNewInvitation *invitations, int count);
static int	compare_addresses(const void *a, const void *b);
pg_noreturn static void refuse(const Element *element, int sqlstate,
							   const char *error, const char *hint);

/*
 * Reads the argument at this position, whose name appears in messages, and
 * sets *invitations to a palloc'd array of invitations to this organization.
 * Returns their number, which may be 0.
 *
 * Raises 22004 for a null argument and for a missing required field, 22021 for
 * an element that cannot be converted to UTF-8, and 22023 for anything else
 * that is invalid, such as a repeated address.  The message contains the
 * position of the element, counted from 1.
 */
int
clerk_required_invitations(FunctionCallInfo fcinfo, int position,
						   const char *name, char *organization_id,
						   ClerkNewInvitation **invitations)
{
	Jsonb	   *array = required_array(fcinfo, position, name);
	int			count = JB_ROOT_COUNT(array);

	*invitations = palloc0(Max(count, 1) * sizeof(ClerkNewInvitation));
	for (int i = 0; i < count; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(&array->root, i);
		Element		element = {name, i + 1, NULL, &(*invitations)[i]};

		CHECK_FOR_INTERRUPTS();
		read_element(&element, value);
		element.invitation->organization_id = organization_id;
		pfree(value);
	}
	check_distinct(name, *invitations, count);
	return count;
}

static Jsonb *
required_array(FunctionCallInfo fcinfo, int position, const char *name)
{
	Jsonb	   *value;

	if (PG_ARGISNULL(position))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name),
				 errhint("jsonb_agg() returns null if there are no rows; use coalesce(jsonb_agg(...), '[]').")));
	value = PG_GETARG_JSONB_P(position);
	if (!JB_ROOT_IS_ARRAY(value) || JB_ROOT_IS_SCALAR(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a JSON array of objects", name)));
	return value;
}

/* Reads all fields of an element, or raises an error. */
static void
read_element(Element *element, const JsonbValue *value)
{
	if (value->type != jbvBinary ||
		!JsonContainerIsObject(value->val.binary.data))
		refuse(element, ERRCODE_INVALID_PARAMETER_VALUE,
			   "it must be a JSON object", NULL);
	element->object = value->val.binary.data;
	check_encodable(element, value->val.binary.len);
	check_field_names(element);
	for (int i = 0; i < (int) lengthof(fields); i++)
	{
		JsonbValue	given;
		const char *error = NULL;

		if (clerk_json_field(element->object, fields[i].name, &given))
			error = read_field(&given, &fields[i], element->invitation);
		else if (fields[i].required)
			refuse(element, ERRCODE_NULL_VALUE_NOT_ALLOWED,
				   psprintf("\"%s\" is missing", fields[i].name), NULL);
		if (error != NULL)
			refuse(element, ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("\"%s\" %s", fields[i].name, error), NULL);
	}
}

/*
 * Raises 22023 for a field that Clerk does not have: it is probably
 * misspelled.
 */
static void
check_field_names(const Element *element)
{
	JsonbIterator *iterator = JsonbIteratorInit(element->object);
	JsonbIteratorToken token;
	JsonbValue	value;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY && !is_field(&value))
			refuse(element, ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("unknown field \"%s\"",
							pnstrdup(value.val.string.val, value.val.string.len)),
				   "Valid fields are " FIELD_NAMES ".");
	}
}

static bool
is_field(const JsonbValue *name)
{
	for (int i = 0; i < (int) lengthof(fields); i++)
		if (strlen(fields[i].name) == (size_t) name->val.string.len &&
			memcmp(fields[i].name, name->val.string.val, name->val.string.len) == 0)
			return true;
	return false;
}

/* Reads a field.  Returns what is wrong with it, or NULL if nothing is. */
static const char *
read_field(const JsonbValue *value, const Field *field,
		   ClerkNewInvitation *invitation)
{
	void	   *target = (char *) invitation + field->offset;

	switch (field->kind)
	{
		case FIELD_ADDRESS:
		case FIELD_TEXT:
			return read_text(value, field, target);
		case FIELD_OBJECT:
			if (value->type != jbvBinary ||
				!JsonContainerIsObject(value->val.binary.data))
				return "must be a JSON object";
			*(Jsonb **) target = JsonbValueToJsonb(unconstify(JsonbValue *, value));
			return NULL;
		case FIELD_DAYS:
			return read_days(value, target);
		case FIELD_FLAG:
			if (value->type != jbvBool)
				return "must be true or false";
			*(bool **) target = palloc(sizeof(bool));
			**(bool **) target = value->val.boolean;
			return NULL;
	}
	pg_unreachable();
}

/* Sets *text only if nothing is wrong with the value. */
static const char *
read_text(const JsonbValue *value, const Field *field, char **text)
{
	const char *string = value->val.string.val;
	size_t		length;
	char	   *given;
	const char *error;

	if (value->type != jbvString)
		return "must be a JSON string";
	length = value->val.string.len;
	if (field->kind == FIELD_ADDRESS)
		string = clerk_trim(string, &length);
	given = pnstrdup(string, length);
	error = clerk_text_error(given, field->max_length);
	if (error == NULL && field->kind == FIELD_ADDRESS)
		error = clerk_address_error(given);
	if (error == NULL)
		*text = given;
	return error;
}

/*
 * Accepts zeros after the decimal point, as in 7.0: a quotient of numerics has
 * them.
 */
static const char *
read_days(const JsonbValue *value, int *days)
{
	const char *digits;

	if (value->type != jbvNumeric)
		return "must be a JSON number";
	digits = numeric_normalize(value->val.numeric);
	if (strchr(digits, '.') != NULL)
		return "must be a whole number";

	/* No number with more digits is in range, and atoi() must not overflow. */
	*days = strlen(digits) > 6 ? 0 : atoi(digits);
	return clerk_expires_in_days_error(*days);
}

/*
 * Raises 22021 for an element that cannot be sent, so that no other element is
 * sent before this is found.  It precedes the other checks because their
 * messages quote the element.
 */
static void
check_encodable(const Element *element, int length)
{
	char	   *text = JsonbToCString(NULL, element->object, length);
	size_t		utf8_length;
	char	   *utf8 = clerk_json_to_wire(text, &utf8_length);

	if (utf8 == NULL)
		refuse(element, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
			   "it cannot be converted to UTF-8", NULL);
	if (utf8 != text)
		pfree(utf8);
	pfree(text);
}

/*
 * Raises 22023 if two elements have the same normalized address: this is a
 * mistake of the caller, and how Clerk treats it is unknown.  Names the first
 * element that repeats an address.
 */
static void
check_distinct(const char *name, const ClerkNewInvitation *invitations,
			   int count)
{
	AddressPosition *addresses = palloc(Max(count, 1) * sizeof(AddressPosition));
	const AddressPosition *repeated = NULL;

	for (int i = 0; i < count; i++)
	{
		addresses[i].normalized = clerk_normalize_address(invitations[i].email_address);
		addresses[i].position = i + 1;
	}
	qsort(addresses, count, sizeof(AddressPosition), compare_addresses);
	for (int i = 1; i < count; i++)
		if (strcmp(addresses[i].normalized, addresses[i - 1].normalized) == 0 &&
			(repeated == NULL || addresses[i].position < repeated->position))
			repeated = &addresses[i];
	if (repeated != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\", element %d: \"email_address\" is the same as in element %d",
						name, repeated->position, repeated[-1].position),
				 errdetail("The address is \"%s\".",
						   invitations[repeated->position - 1].email_address)));

	for (int i = 0; i < count; i++)
		pfree(addresses[i].normalized);
	pfree(addresses);
}

/* Orders by address, then by position. */
static int
compare_addresses(const void *a, const void *b)
{
	const AddressPosition *first = a;
	const AddressPosition *second = b;
	int			order = strcmp(first->normalized, second->normalized);

	return order != 0 ? order : first->position - second->position;
}

/*
 * Raises an error about an element.  "error" says what is wrong; "hint" says
 * what to do, and may be NULL.
 */
static void
refuse(const Element *element, int sqlstate, const char *error,
	   const char *hint)
{
	const char *address = element->invitation->email_address;

	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("argument \"%s\", element %d: %s", element->argument,
					element->position, error),
			 address != NULL ?
			 errdetail("The e-mail address of the element is \"%s\".", address) : 0,
			 hint != NULL ? errhint("%s", hint) : 0));
}
