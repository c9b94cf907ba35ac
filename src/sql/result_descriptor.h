/*
 * result_descriptor.h
 *		The result types of the SQL functions, checked against the columns
 *		that this library returns.
 */
#ifndef CLERK_RESULT_DESCRIPTOR_H
#define CLERK_RESULT_DESCRIPTOR_H

#include "access/htup.h"
#include "clerk/invitation_json.h"
#include "fmgr.h"

extern TupleDesc clerk_result_descriptor(FunctionCallInfo fcinfo, int columns);
extern TupleDesc clerk_invitation_descriptor(FunctionCallInfo fcinfo);
extern HeapTuple clerk_form_invitation(TupleDesc descriptor,
									   ClerkInvitation *invitation);

#endif							/* CLERK_RESULT_DESCRIPTOR_H */
