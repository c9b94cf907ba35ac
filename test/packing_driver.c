/*
 * packing_driver.c
 *		A SQL function that calls src/outbox/packing.c directly. This library
 *		contains its own copy of that file.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "../src/outbox/packing.c"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(driver_plan);

static Datum *
elements_of(Datum array, Oid type, int length, bool by_value, char align)
{
	Datum	   *elements;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(array), type, length, by_value, align,
					  &elements, NULL, &count);
	return elements;
}

/*
 * (organizations text[], addresses text[], alone boolean[], overdue boolean[],
 * singles integer, bulks integer, min_bulk_size integer) RETURNS text
 *
 * Packs invitations into requests.  Returns a line for each request: its kind,
 * and the positions of its invitations, counted from 1.
 */
Datum
driver_plan(PG_FUNCTION_ARGS)
{
	int			count = ArrayGetNItems(1, ARR_DIMS(PG_GETARG_ARRAYTYPE_P(0)));
	Datum	   *organizations = elements_of(PG_GETARG_DATUM(0), TEXTOID, -1, false, 'i');
	Datum	   *addresses = elements_of(PG_GETARG_DATUM(1), TEXTOID, -1, false, 'i');
	Datum	   *alone = elements_of(PG_GETARG_DATUM(2), BOOLOID, 1, true, 'c');
	Datum	   *overdue = elements_of(PG_GETARG_DATUM(3), BOOLOID, 1, true, 'c');
	ClerkPackingBudget budget = {
		.singles = PG_GETARG_INT32(4),
		.bulks = PG_GETARG_INT32(5),
		.min_bulk_size = PG_GETARG_INT32(6)
	};
	ClerkDueInvitation *due = palloc0(count * sizeof(ClerkDueInvitation));
	ClerkPackedRequests packed;
	StringInfoData lines;

	for (int i = 0; i < count; i++)
	{
		due[i].organization_id = TextDatumGetCString(organizations[i]);
		due[i].normalized_address = TextDatumGetCString(addresses[i]);
		due[i].send_alone = DatumGetBool(alone[i]);
		due[i].overdue = DatumGetBool(overdue[i]);
	}
	clerk_pack_requests(due, count, &budget, &packed);

	initStringInfo(&lines);
	for (int i = 0; i < packed.count; i++)
	{
		appendStringInfoString(&lines, packed.requests[i].bulk ? "bulk" : "single");
		for (int j = 0; j < packed.requests[i].count; j++)
			appendStringInfo(&lines, " %d", packed.requests[i].members[j] + 1);
		appendStringInfoChar(&lines, '\n');
	}
	PG_RETURN_TEXT_P(cstring_to_text(lines.data));
}
