/*
 * invitation_progress.c
 *		The SQL function that tells the view clerk_invitation_progress of Clerk's
 *		limits.
 *
 * A view reads tables with its owner's rights, but calls functions with those
 * of whoever reads it.  So everybody may call this one, and it asks for the
 * privilege to read the view.
 */
#include "postgres.h"

#include "clerk_api.h"
#include "fmgr.h"
#include "funcapi.h"
#include "guc.h"
#include "installed_extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define VIEW "clerk_invitation_progress"

/* The function's columns. */
enum
{
	COLUMN_SINGLE_LIMIT,
	COLUMN_SINGLE_LEFT,
	COLUMN_BULK_LIMIT,
	COLUMN_BULK_LEFT,
	COLUMN_MORE_AT,
	COLUMN_LIMIT_WINDOW,
	COLUMNS
};

static void check_privilege(Oid schema);
static void fill_columns(uint64 instance, Datum *values, bool *nulls);
static int	left_now(const ClerkBudget *budget);
static Datum limit_window(void);

PG_FUNCTION_INFO_V1(clerk_invitation_progress_limits);

/*
 * clerk_invitation_progress_limits()
 *		RETURNS (single_limit integer, single_left integer,
 *			bulk_limit integer, bulk_left integer, more_at timestamptz,
 *			limit_window interval)
 *
 * All columns are NULL if there is no usable key.  Raises 42501 if the caller
 * may not read the view, 53200 if there is no shared memory.
 */
Datum
clerk_invitation_progress_limits(PG_FUNCTION_ARGS)
{
	TupleDesc	descriptor = clerk_result_descriptor(fcinfo, COLUMNS);
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS];
	uint64		instance;
	ClerkError *error;

	check_privilege(get_func_namespace(fcinfo->flinfo->fn_oid));
	memset(nulls, true, sizeof(nulls));
	if (clerk_chosen_instance(&instance, &error))
		fill_columns(instance, values, nulls);
	return HeapTupleGetDatum(heap_form_tuple(descriptor, values, nulls));
}

/* Some of the view's columns are enough, as for reading it. */
static void
check_privilege(Oid schema)
{
	Oid			view = get_relname_relid(VIEW, schema);

	if (pg_class_aclcheck(view, GetUserId(), ACL_SELECT) != ACLCHECK_OK &&
		pg_attribute_aclcheck_all(view, GetUserId(), ACL_SELECT,
								  ACLMASK_ANY) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_VIEW, VIEW);
}

static void
fill_columns(uint64 instance, Datum *values, bool *nulls)
{
	ClerkBudget singles;
	ClerkBudget bulks;

	clerk_rate_limit_look(instance, CLERK_ENDPOINT_SINGLE, &singles);
	clerk_rate_limit_look(instance, CLERK_ENDPOINT_BULK, &bulks);
	memset(nulls, false, COLUMNS * sizeof(bool));
	values[COLUMN_SINGLE_LIMIT] = Int32GetDatum(singles.limit);
	values[COLUMN_SINGLE_LEFT] = Int32GetDatum(left_now(&singles));
	values[COLUMN_BULK_LIMIT] = Int32GetDatum(bulks.limit);
	values[COLUMN_BULK_LEFT] = Int32GetDatum(left_now(&bulks));
	values[COLUMN_MORE_AT] = TimestampTzGetDatum(Min(singles.available_at,
													 bulks.available_at));
	nulls[COLUMN_MORE_AT] = (singles.available_at == 0 || bulks.available_at == 0);
	values[COLUMN_LIMIT_WINDOW] = limit_window();
}

/* An endpoint that Clerk has closed takes none, whatever its budget says. */
static int
left_now(const ClerkBudget *budget)
{
	return budget->available_at == 0 ? budget->remaining : 0;
}

static Datum
limit_window(void)
{
	Interval   *window = palloc0(sizeof(Interval));

	window->time = clerk_rate_limit_window * INT64CONST(1000);
	return IntervalPGetDatum(window);
}
