/*
 * installed_extension.c
 *		The extension as it is installed in this database, and whether this
 *		library is compatible with it.
 *
 * A package upgrade replaces the library file, ALTER EXTENSION UPDATE replaces
 * the SQL objects, and a process keeps the library that it has loaded.  So for
 * a while either the library or the SQL objects may be newer.  A library knows
 * what older SQL objects were like and how old they may be, but not what newer
 * ones will be like.
 *
 * Everything that calls Clerk checks compatibility before it reads an argument
 * or a row: the SQL functions once per statement, a sender each time it plans
 * what to send.  Code that runs when rows are added to the outbox
 * (outbox/enqueue_trigger.c, outbox/guard.c, worker/wakeup.c) does not check
 * it, because a package upgrade must not make an INSERT fail; it uses only
 * what all versions have.  The monitoring functions only check that their
 * result has the columns that they return.
 *
 * The row in pg_extension is read each time, which takes some microseconds.
 * It cannot be cached, because the server sends no invalidation for it when
 * ALTER EXTENSION UPDATE changes it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "common/installed_extension.h"
#include "common/shared_memory.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#define EXTENSION "clerk_invite"

/*
 * The oldest version of the SQL objects that this library works with.  Raise
 * it to the version whose script adds something that the library requires.
 */
#define OLDEST_SQL_VERSION "1.0"

/* The extension's row in pg_extension. */
typedef struct InstalledExtension
{
	Oid			schema;			/* invalid if the extension does not exist */
	char	   *version;		/* of the SQL objects */
} InstalledExtension;

static InstalledExtension read_catalog(void);
static int	compare_versions(const char *a, const char *b);
static ClerkMisfit describe_misfit(const char *sql_version, const char *hint);
pg_noreturn static void raise_misfit(const ClerkMisfit *misfit);

/*
 * Returns the schema of the extension, or InvalidOid if the extension does not
 * exist.
 */
Oid
clerk_extension_schema(void)
{
	return read_catalog().schema;
}

/*
 * Returns whether this library is compatible with the SQL objects.  If not,
 * fills in *misfit, in the current memory context, which says which of the two
 * must be upgraded.  If the extension does not exist, the functions were
 * created manually, which is accepted.
 */
ClerkFit
clerk_find_fit(ClerkMisfit *misfit)
{
	InstalledExtension installed = read_catalog();

	if (!OidIsValid(installed.schema))
		return CLERK_FIT_GOOD;
	if (compare_versions(installed.version, OLDEST_SQL_VERSION) < 0)
	{
		*misfit = describe_misfit(installed.version,
								  "Run ALTER EXTENSION clerk_invite UPDATE.");
		return CLERK_FIT_SQL_TOO_OLD;
	}
	if (compare_versions(installed.version, CLERK_INVITE_VERSION) > 0)
	{
		*misfit = describe_misfit(installed.version,
								  clerk_is_preloaded() ?
								  "The library was loaded at server start. Restart the server." :
								  "Reconnect. If the error persists, install the library version that matches the SQL objects.");
		return CLERK_FIT_LIBRARY_TOO_OLD;
	}
	return CLERK_FIT_GOOD;
}

/* Raises 55000 if this library is not compatible with the SQL objects. */
void
clerk_require_fit(void)
{
	ClerkMisfit misfit;

	if (clerk_find_fit(&misfit) != CLERK_FIT_GOOD)
		raise_misfit(&misfit);
}

/*
 * Raises 55000 because an SQL object is not what this library expects.  Either
 * the versions explain it, or somebody has altered the object.
 */
void
clerk_raise_misfit(void)
{
	ClerkMisfit misfit;

	clerk_require_fit();
	misfit = describe_misfit(read_catalog().version,
							 "The extension's objects were altered. Restore them to the definitions in the extension's script.");
	raise_misfit(&misfit);
}

/* Reads the extension's row in pg_extension. */
static InstalledExtension
read_catalog(void)
{
	InstalledExtension installed = {InvalidOid, CLERK_INVITE_VERSION};
	Relation	extensions = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum(EXTENSION));
	scan = systable_beginscan(extensions, ExtensionNameIndexId, true, NULL,
							  1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		version = heap_getattr(tuple, Anum_pg_extension_extversion,
										   RelationGetDescr(extensions),
										   &isnull);

		installed.schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
		installed.version = TextDatumGetCString(version);
	}
	systable_endscan(scan);
	table_close(extensions, AccessShareLock);
	return installed;
}

/*
 * Compares versions that consist of numbers and dots, such as 1.0.  Returns a
 * negative number, 0 or a positive number, as strcmp() does.
 */
static int
compare_versions(const char *a, const char *b)
{
	for (;;)
	{
		char	   *a_end;
		char	   *b_end;
		long		a_number = strtol(a, &a_end, 10);
		long		b_number = strtol(b, &b_end, 10);

		if (a_number != b_number)
			return a_number < b_number ? -1 : 1;
		if (*a_end != '.' || *b_end != '.')
			return (*a_end == '.') - (*b_end == '.');
		a = a_end + 1;
		b = b_end + 1;
	}
}

static ClerkMisfit
describe_misfit(const char *sql_version, const char *hint)
{
	ClerkMisfit misfit = {
		.summary = "the clerk_invite library does not match the extension's SQL objects",
		.detail = psprintf("The library is version %s; the SQL objects are version %s.",
						   CLERK_INVITE_VERSION, sql_version),
		.hint = hint
	};

	return misfit;
}

static void
raise_misfit(const ClerkMisfit *misfit)
{
	ereport(ERROR,
			(errcode(CLERK_MISFIT_SQLSTATE),
			 errmsg("%s", misfit->summary),
			 errdetail("%s", misfit->detail),
			 errhint("%s", misfit->hint)));
}
