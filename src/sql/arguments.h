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

/*
 * The most characters of what is given; the outbox's constraints have the same
 * numbers.  Together they keep the URL of a request below the 8 kB that servers
 * take.
 *
 * An address has 64 characters before the @ and 255 after it at most (RFC 5321,
 * 4.5.3.1).  Clerk's identifiers and keys of roles have some 30; it is the limit
 * of clerk_is_identifier().  A URL may be as long as everybody is to support
 * (RFC 9110, 4.1).
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
extern List *clerk_optional_texts(FunctionCallInfo fcinfo, int position,
								  const char *name);
extern void clerk_check_expires_in_days(int64 days, const char *name);

/* What is wrong with a value, to be said after its name; NULL: nothing. */
extern const char *clerk_text_error(const char *value, int max_length);
extern const char *clerk_address_error(const char *address);
extern const char *clerk_expires_in_days_error(int64 days);

#endif							/* CLERK_ARGUMENTS_H */
