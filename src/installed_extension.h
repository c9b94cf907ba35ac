/*
 * installed_extension.h
 *		The extension as this database has it, and whether this library fits it.
 */
#ifndef CLERK_INSTALLED_EXTENSION_H
#define CLERK_INSTALLED_EXTENSION_H

#include "access/tupdesc.h"
#include "clerk_error.h"
#include "compat.h"
#include "fmgr.h"

typedef enum ClerkFit
{
	CLERK_FIT_GOOD,
	CLERK_FIT_SQL_TOO_OLD,		/* until ALTER EXTENSION UPDATE */
	CLERK_FIT_LIBRARY_TOO_OLD	/* until the process loads a newer one */
}			ClerkFit;

extern Oid	clerk_extension_schema(void);
extern ClerkFit clerk_find_fit(ClerkError **error);
extern void clerk_require_fit(void);
extern TupleDesc clerk_result_descriptor(FunctionCallInfo fcinfo, int columns);
pg_noreturn extern void clerk_raise_misfit(void);

#endif							/* CLERK_INSTALLED_EXTENSION_H */
