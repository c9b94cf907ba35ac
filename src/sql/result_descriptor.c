/*
 * result_descriptor.c
 *		The result types of the SQL functions, checked against what this library
 *		returns.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "common/installed_extension.h"
#include "funcapi.h"
#include "sql/result_descriptor.h"

/*
 * The descriptor of a function's result, which must have so many columns, ready
 * for tuples.  Raises 55000 if it has not.
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
 * The result type's descriptor, looked up through the function's own entry in
 * the catalog: no search_path comes into it.  In the current memory context.
 *
 * Raises 55000 if the library does not fit the extension's SQL objects.  To be
 * called before anything else: without a fit it is not known which arguments
 * there are.
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

HeapTuple
clerk_form_invitation(TupleDesc descriptor, ClerkInvitation *invitation)
{
	return heap_form_tuple(descriptor, invitation->values, invitation->nulls);
}
