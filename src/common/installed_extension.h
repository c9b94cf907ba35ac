/*
 * installed_extension.h
 *		The extension as it is installed in this database, and whether this
 *		library is compatible with it.
 */
#ifndef CLERK_INSTALLED_EXTENSION_H
#define CLERK_INSTALLED_EXTENSION_H

#include "compat.h"

#define CLERK_MISFIT_SQLSTATE ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE

typedef enum ClerkFit
{
	CLERK_FIT_GOOD,
	CLERK_FIT_SQL_TOO_OLD,		/* ALTER EXTENSION UPDATE is needed */
	CLERK_FIT_LIBRARY_TOO_OLD	/* a newer library must be loaded */
} ClerkFit;

/*
 * Why the library and the SQL objects are not compatible, for a message with
 * CLERK_MISFIT_SQLSTATE.
 */
typedef struct ClerkMisfit
{
	const char *summary;
	const char *detail;
	const char *hint;
} ClerkMisfit;

extern Oid	clerk_extension_schema(void);
extern ClerkFit clerk_find_fit(ClerkMisfit *misfit);
extern void clerk_require_fit(void);
pg_noreturn extern void clerk_raise_misfit(void);

#endif							/* CLERK_INSTALLED_EXTENSION_H */
