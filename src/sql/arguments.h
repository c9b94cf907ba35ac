/*
 * arguments.h
 *		Checks of the arguments of the SQL functions.
 *
 * The functions that take the name of an argument raise 22004 for a null that
 * is not allowed and 22023 for any other invalid value.  The message names the
 * argument.  "position" counts the function's arguments from 0.
 */
#ifndef CLERK_ARGUMENTS_H
#define CLERK_ARGUMENTS_H

#include "fmgr.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

/*
 * Maximum lengths of arguments, in characters; the outbox's constraints use
 * the same numbers.  Together they keep the URL of a request below the 8 kB
 * that servers accept.
 *
 * An address has at most 64 characters before the @ and 255 after it (RFC
 * 5321, section 4.5.3.1).  Clerk's identifiers and role keys have about 30;
 * clerk_is_identifier() has the same limit of 255.  8000 is the length of a
 * URL that every implementation should support (RFC 9110, section 4.1).
 */
#define CLERK_MAX_ADDRESS 320
#define CLERK_MAX_IDENTIFIER 255
#define CLERK_MAX_URL 8000

extern char *clerk_required_text(FunctionCallInfo fcinfo, int position,
								 const char *name, int max_length);
extern char *clerk_optional_text(FunctionCallInfo fcinfo, int position,
								 const char *name, int max_length);
extern char *clerk_required_address(FunctionCallInfo fcinfo, int position,
									const char *name);
extern char *clerk_optional_address(FunctionCallInfo fcinfo, int position,
									const char *name);
extern char *clerk_required_identifier(FunctionCallInfo fcinfo, int position,
									   const char *name);
extern Jsonb *clerk_optional_object(FunctionCallInfo fcinfo, int position,
									const char *name);
extern List *clerk_optional_statuses(FunctionCallInfo fcinfo, int position,
									 const char *name);
extern void clerk_check_expires_in_days(int64 days, const char *name);

/*
 * What is wrong with a value, as a phrase that follows the value's name in a
 * message; NULL if the value is valid.  The phrase may be palloc'd.
 */
extern const char *clerk_text_error(const char *value, int max_length);
extern const char *clerk_address_error(const char *address);
extern const char *clerk_expires_in_days_error(int64 days);

#endif							/* CLERK_ARGUMENTS_H */
