/*
 * arguments.h
 *		Checks of what is given to the SQL functions.
 *
 * All raise 22004 for a null that cannot be and 22023 for a value that cannot
 * be meant, and name the argument.
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
extern void clerk_check_text(const char *value, const char *name);
extern void clerk_check_address(const char *address, const char *name);
extern void clerk_check_expires_in_days(int64 days, const char *name);

#endif							/* CLERK_ARGUMENTS_H */
