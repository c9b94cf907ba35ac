/*
 * installed_extension.h
 *		The extension as this database has it, and whether this library fits it.
 */
#ifndef CLERK_INSTALLED_EXTENSION_H
#define CLERK_INSTALLED_EXTENSION_H

#include "compat.h"

#define CLERK_MISFIT_SQLSTATE ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE

typedef enum ClerkFit
{
	CLERK_FIT_GOOD,
	CLERK_FIT_SQL_TOO_OLD,		/* until ALTER EXTENSION UPDATE */
	CLERK_FIT_LIBRARY_TOO_OLD	/* until the process loads a newer one */
} ClerkFit;

/* Why the library does not fit, for a message with CLERK_MISFIT_SQLSTATE. */
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
