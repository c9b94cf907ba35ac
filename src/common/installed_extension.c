/*
 * installed_extension.c
 *		The extension as this database has it, and whether this library fits it.
 *
 * A package's upgrade replaces the file of the library, ALTER EXTENSION UPDATE
 * the SQL objects, and a process keeps the library that it has loaded: so for a
 * while either of them may be the newer one.  A library knows what the SQL
 * objects were like before it, and says how old they may be; it cannot know
 * what they will be like.
 *
 * Whatever calls Clerk asks for the fit before it looks at an argument or a
 * row: the SQL functions once a statement, a sender with each plan.  What runs
 * when rows are put into the outbox does not ask, since no INSERT shall fail
 * because a package was upgraded: outbox/enqueue_trigger.c, worker/wakeup.c and
 * outbox/guard.c use nothing but what all versions have.  The functions that
 * only tell something ask for the columns that they return.
 *
 * The row of pg_extension is read each time.  That takes some microseconds, and
 * the server tells nobody when ALTER EXTENSION UPDATE has changed it.
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
 * The oldest SQL objects that this library works with.  To be raised to the
 * version whose script brings something that the library cannot do without.
 */
#define OLDEST_SQL_VERSION "1.0"

/* The row of pg_extension. */
typedef struct InstalledExtension
{
	Oid			schema;			/* invalid: there is no such extension */
	char	   *version;		/* of the SQL objects */
} InstalledExtension;

static InstalledExtension read_catalog(void);
static int	compare_versions(const char *a, const char *b);
static ClerkMisfit describe_misfit(const char *sql_version, const char *hint);
pg_noreturn static void raise_misfit(const ClerkMisfit *misfit);

/* The schema that the extension is in; invalid if there is no extension. */
Oid
clerk_extension_schema(void)
{
	return read_catalog().schema;
}

/*
 * Whether this library fits the SQL objects; if not, fills in *misfit, in the
 * current memory context, with which of the two must be upgraded.  Without the
 * extension the functions were declared by hand, which is accepted.
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

/* Raises 55000 if this library does not fit the SQL objects. */
void
clerk_require_fit(void)
{
	ClerkMisfit misfit;

	if (clerk_find_fit(&misfit) != CLERK_FIT_GOOD)
		raise_misfit(&misfit);
}

/*
 * Raises 55000: an SQL object is not what this library expects.  The versions
 * explain it, or somebody has altered the object.
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

/* Of numbers with dots between them, such as 1.0: as strcmp(). */
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
