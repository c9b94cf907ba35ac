/*
 * invitations_argument.c
 *		Reads the argument that has many invitations: a jsonb array of Clerk's
 *		own objects.
 *
 * The fields have Clerk's names, and JSON's null is the same as nothing.  All
 * of the array is checked before any of it is used: a fault in the last element
 * must not be found when the first ones have been invited.
 */
#include "postgres.h"

#include "clerk/email_address.h"
#include "clerk/json_reader.h"
#include "clerk/operations.h"
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
	const char *name;			/* Clerk's */
	FieldKind	kind;
	bool		required;
	size_t		offset;			/* in ClerkNewInvitation */
	int			max_length;		/* of a text, in characters; 0 for others */
} Field;

/* The address comes first: what is said of the other fields quotes it. */
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

/* The element that is being read. */
typedef struct Element
{
	const char *argument;		/* its name */
	int			position;		/* the first is 1 */
	JsonbContainer *object;
	ClerkNewInvitation *invitation; /* what it is read into */
} Element;

/* An address and where it stands. */
typedef struct Place
{
	char	   *normalized;
	int			position;
} Place;

static Jsonb *required_array(FunctionCallInfo fcinfo, int position,
							 const char *name);
static void read_element(Element *element, const JsonbValue *value);
static void check_names(const Element *element);
static bool is_field(const JsonbValue *name);
static const char *read_field(const JsonbValue *value, const Field *field,
							  ClerkNewInvitation *invitation);
static const char *read_text(const JsonbValue *value, const Field *field,
							 char **text);
static const char *read_days(const JsonbValue *value, int *days);
static void check_expressible(const Element *element, int length);
static void check_distinct(const char *name,
						   const ClerkNewInvitation *invitations, int count);
static int	compare_places(const void *a, const void *b);
pg_noreturn static void refuse(const Element *element, int sqlstate,
							   const char *error, const char *hint);

/*
 * The invitations of this argument for this organization, as a palloc'd array
 * in *invitations.  Returns how many there are, which may be 0.
 *
 * Raises 22004 for a null and for a required field that is missing, 22021 for
 * an element that has no form in UTF-8, and 22023 for anything else that cannot
 * be meant, such as the same address twice.  The message has the position of
 * the element, from 1.
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

static void
read_element(Element *element, const JsonbValue *value)
{
	if (value->type != jbvBinary ||
		!JsonContainerIsObject(value->val.binary.data))
		refuse(element, ERRCODE_INVALID_PARAMETER_VALUE,
			   "it must be a JSON object", NULL);
	element->object = value->val.binary.data;
	check_expressible(element, value->val.binary.len);
	check_names(element);
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

/* A field that Clerk does not know is one that is misspelt. */
static void
check_names(const Element *element)
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

/* Reads a field; returns what is wrong with it, NULL if nothing. */
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

/* Sets *text only if nothing is wrong with it. */
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

/* A whole number may come with zeros behind its point, as a quotient does. */
static const char *
read_days(const JsonbValue *value, int *days)
{
	const char *digits;

	if (value->type != jbvNumeric)
		return "must be a JSON number";
	digits = numeric_normalize(value->val.numeric);
	if (strchr(digits, '.') != NULL)
		return "must be a whole number";

	/* No number of more digits than this is in range. */
	*days = strlen(digits) > 6 ? 0 : atoi(digits);
	return clerk_expires_in_days_error(*days);
}

/*
 * What cannot be sent is found out here, and not when others have been.  Comes
 * before the other checks, so that they can quote what they dislike.
 */
static void
check_expressible(const Element *element, int length)
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
 * Refuses the same address twice, which is a mistake of the caller's; what
 * Clerk makes of it is not known.  Names the first element that repeats one.
 */
static void
check_distinct(const char *name, const ClerkNewInvitation *invitations,
			   int count)
{
	Place	   *places = palloc(Max(count, 1) * sizeof(Place));
	const Place *repeated = NULL;

	for (int i = 0; i < count; i++)
	{
		places[i].normalized = clerk_normalize_address(invitations[i].email_address);
		places[i].position = i + 1;
	}
	qsort(places, count, sizeof(Place), compare_places);
	for (int i = 1; i < count; i++)
		if (strcmp(places[i].normalized, places[i - 1].normalized) == 0 &&
			(repeated == NULL || places[i].position < repeated->position))
			repeated = &places[i];
	if (repeated != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\", element %d: \"email_address\" is the same as in element %d",
						name, repeated->position, repeated[-1].position),
				 errdetail("The address is \"%s\".",
						   invitations[repeated->position - 1].email_address)));

	for (int i = 0; i < count; i++)
		pfree(places[i].normalized);
	pfree(places);
}

/* By address, and then by position. */
static int
compare_places(const void *a, const void *b)
{
	const Place *first = a;
	const Place *second = b;
	int			order = strcmp(first->normalized, second->normalized);

	return order != 0 ? order : first->position - second->position;
}

/* "error" and "hint" say what is wrong and what to do; hint may be NULL. */
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
