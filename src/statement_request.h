/*
 * statement_request.h
 *		Requests that a statement waits for: what the SQL functions that call
 *		Clerk have in common.
 */
#ifndef CLERK_STATEMENT_REQUEST_H
#define CLERK_STATEMENT_REQUEST_H

#include "access/htup.h"
#include "clerk_api.h"
#include "compat.h"
#include "fmgr.h"

extern void clerk_prevent_write(const char *function);
extern void clerk_await(ClerkHttpRequest *request, ClerkEffect effect);
extern void clerk_await_any(ClerkHttpRequest *const *requests, int count,
							ClerkEffect effect);
extern TupleDesc clerk_invitation_descriptor(FunctionCallInfo fcinfo);
extern HeapTuple clerk_form_invitation(TupleDesc descriptor,
									   ClerkInvitation *invitation);
pg_noreturn extern void clerk_raise(const ClerkError *error, const char *failure);

#endif							/* CLERK_STATEMENT_REQUEST_H */
