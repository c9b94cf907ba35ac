/*
 * outbox_statement.c
 *		Runs SQL statements on the table clerk_invitation_outbox.
 *
 * They run as the table's owner, whoever calls, with a search_path that only
 * the superuser can put objects into; the table is found through the schema of
 * the function that was called.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "outbox_statement.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#define OUTBOX "clerk_invitation_outbox"

/*
 * A plan that was made while the table was small stays in use when it has
 * grown, and the statistics of a queue are always out of date: every statement
 * is to go by the index that was made for it, row by row.  For the same reason
 * a statement that looks rows up by id has their state as a parameter, and
 * plans do not depend on parameters: then the partial indexes, which have the
 * id in them, too, are out of the question.
 */
static const char *const kept_from_planner[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
	"enable_mergejoin", "enable_material"
};

/*
 * Since 16, auto_explain logs what statements inside of others are given, and
 * an invitation's url is a secret.
 */
#define LOGGED_PARAMETERS "auto_explain.log_parameter_max_length"

/* The table that was found last. */
static struct
{
	Oid			relation;
	Oid			owner;
	NameData	schema;			/* the plans' text has its name */
	uint64		number;			/* another one for each table or name */
}			outbox;

/* True while statements of this file change rows. */
static bool at_work = false;

static void set_locally(const char *name, const char *value);
static SPIPlanPtr plan_for(ClerkOutboxStatement *statement);

/* Uses the outbox of this schema from now on; within a transaction. */
void
clerk_outbox_find(Oid schema)
{
	Oid			relation = get_relname_relid(OUTBOX, schema);
	const char *schema_name;
	HeapTuple	tuple;

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" does not exist", OUTBOX)));
	schema_name = get_namespace_name(schema);
	if (schema_name == NULL)
		elog(ERROR, "cache lookup failed for schema %u", schema);
	if (relation != outbox.relation ||
		strcmp(schema_name, NameStr(outbox.schema)) != 0)
		outbox.number++;
	outbox.relation = relation;
	namestrcpy(&outbox.schema, schema_name);

	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relation);
	outbox.owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
}

/* The table that was found. */
Oid
clerk_outbox_relation(void)
{
	return outbox.relation;
}

/*
 * Runs a statement as the table's owner; returns the number of rows, which are
 * handed to a function first if one is given.
 */
uint64
clerk_outbox_run(ClerkOutboxStatement *statement, const Datum *values,
				 ClerkOutboxCollect collect, void *result)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			user;
	int			security;
	int			nest_level;
	volatile uint64 processed = 0;

	/* An error leaves these to the transaction's abort. */
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(outbox.owner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	nest_level = NewGUCNestLevel();
	set_locally("search_path", "pg_catalog, pg_temp");
	for (int i = 0; i < (int) lengthof(kept_from_planner); i++)
		set_locally(kept_from_planner[i], "off");
	set_locally("plan_cache_mode", "force_generic_plan");
	if (GetConfigOption(LOGGED_PARAMETERS, true, false) != NULL)
		set_locally(LOGGED_PARAMETERS, "0");
	at_work = true;
	PG_TRY();
	{
		SPI_connect();
		if (SPI_execute_plan(plan_for(statement), unconstify(Datum *, values),
							 NULL, false, 0) < 0)
			elog(ERROR, "could not run a statement on \"%s\"", OUTBOX);
		processed = SPI_processed;
		if (collect != NULL)
		{
			MemoryContext spi = MemoryContextSwitchTo(caller);

			collect(result);
			MemoryContextSwitchTo(spi);
		}
		SPI_finish();
	}
	PG_FINALLY();
	{
		at_work = false;
	}
	PG_END_TRY();
	AtEOXact_GUC(true, nest_level);
	SetUserIdAndSecContext(user, security);
	return processed;
}

/* Whoever calls: some settings are the superuser's. */
static void
set_locally(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/* Plans are kept for the session; the plan cache keeps them valid. */
static SPIPlanPtr
plan_for(ClerkOutboxStatement *statement)
{
	if (statement->plan != NULL && statement->table != outbox.number)
	{
		SPI_freeplan(statement->plan);
		statement->plan = NULL;
	}
	if (statement->plan == NULL)
	{
		char	   *name = quote_qualified_identifier(NameStr(outbox.schema),
													  OUTBOX);
		char	   *text = psprintf(statement->text, name);
		SPIPlanPtr	plan = SPI_prepare(text, statement->parameters,
									   statement->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare a statement on \"%s\"", OUTBOX);
		statement->plan = plan;
		statement->table = outbox.number;
	}
	return statement->plan;
}

/* A one-dimensional array; nulls may be NULL. */
Datum
clerk_outbox_array(Datum *elements, bool *nulls, int count, Oid type)
{
	int			lower_bound = 1;
	int16		length;
	bool		by_value;
	char		alignment;

	get_typlenbyvalalign(type, &length, &by_value, &alignment);
	return PointerGetDatum(construct_md_array(elements, nulls, 1, &count,
											  &lower_bound, type, length,
											  by_value, alignment));
}

/* Whether a row is being changed by a statement of this file. */
bool
clerk_outbox_at_work(void)
{
	return at_work;
}
