/*
 * result_descriptor.c
 *		The result types of the SQL functions, checked against the columns
 *		that this library returns.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "common/installed_extension.h"
#include "funcapi.h"
#include "sql/result_descriptor.h"

/*
 * Returns the blessed descriptor of the function's result, in the current
 * memory context.  Raises 55000 if the result does not have this number of
 * columns.
 */
TupleDesc
clerk_result_descriptor(FunctionCallInfo fcinfo, int columns)
{
	TupleDesc	descriptor;

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE ||
		descriptor->natts != columns)
		clerk_raise_misfit();
	return BlessTupleDesc(descriptor);
}

/*
 * Returns the blessed descriptor of the function's result, the type
 * clerk_organization_invitation, as a copy in the current memory context.  The
 * type is found through the function's own catalog entry, independently of
 * search_path.
 *
 * Raises 55000 if the library and the extension's SQL objects do not match.
 * Must be called before anything else: if they do not match, it is not known
 * which arguments the function has.
 */
TupleDesc
clerk_invitation_descriptor(FunctionCallInfo fcinfo)
{
	TupleDesc	descriptor;

	clerk_require_fit();
	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE ||
		!clerk_fits_invitation(descriptor))
		clerk_raise_misfit();
	return BlessTupleDesc(CreateTupleDescCopy(descriptor));
}

/*
 * Returns a row of that type, in the current memory context, with an
 * invitation from a response of Clerk.
 */
HeapTuple
clerk_form_invitation(TupleDesc descriptor, ClerkInvitation *invitation)
{
	return heap_form_tuple(descriptor, invitation->values, invitation->nulls);
}
