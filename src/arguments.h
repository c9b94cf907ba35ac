/*
 * arguments.h
 *		Checks of what is given to the SQL functions.
 *
 * All that take an argument's name raise 22004 for a null that cannot be and
 * 22023 for a value that cannot be meant, and name the argument.
 */
#ifndef CLERK_ARGUMENTS_H
#define CLERK_ARGUMENTS_H

#include "fmgr.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

extern char *clerk_required_text(FunctionCallInfo fcinfo, int position,
								 const char *name);
extern char *clerk_optional_text(FunctionCallInfo fcinfo, int position,
								 const char *name);
extern char *clerk_required_identifier(FunctionCallInfo fcinfo, int position,
									   const char *name);
extern Jsonb *clerk_optional_object(FunctionCallInfo fcinfo, int position,
									const char *name);
extern List *clerk_optional_texts(FunctionCallInfo fcinfo, int position,
								  const char *name);
extern void clerk_check_address(const char *address, const char *name);
extern void clerk_check_expires_in_days(int64 days, const char *name);

/* What is wrong with a value, to be said after its name; NULL: nothing. */
extern const char *clerk_text_complaint(const char *value);
extern const char *clerk_address_complaint(const char *address);
extern const char *clerk_expires_in_days_complaint(int64 days);

#endif							/* CLERK_ARGUMENTS_H */
