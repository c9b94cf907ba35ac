/*
 * outbox_statement.c
 *		Runs SQL statements on the table clerk_invitation_outbox.
 *
 * They run with the rights of the table's owner, whoever calls
 * (outbox/owner_rights.c).  The table is found in the schema of the function
 * that was called.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "outbox/outbox_statement.h"
#include "outbox/owner_rights.h"
#include "outbox/statement_table.h"
#include "parser/parse_coerce.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#define OUTBOX "clerk_invitation_outbox"

/*
 * Plan types that must not be used.  A plan that was made while the table was
 * small stays in use after it has grown, and the statistics of a queue are
 * always out of date: every statement must read the index made for it, row by
 * row.  For the same reason, a statement that looks up rows by id has their
 * state as a parameter.  Generic plans do not depend on parameters, so the
 * planner cannot use the partial indexes, which also contain the id.  Such a
 * statement looks each row up in a LATERAL subquery with FOR UPDATE, which the
 * planner does not merge into a join: it could begin the join with a small
 * table, and read all of it.
 */
static const char *const disabled_plan_types[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
	"enable_mergejoin", "enable_material"
};

/*
 * Since PostgreSQL 16, auto_explain logs the parameters of nested statements,
 * and an invitation's url is a secret.
 */
#define LOGGED_PARAMETERS "auto_explain.log_parameter_max_length"

/*
 * Milliseconds that a statement waits for a lock before it fails and its row
 * is set aside.
 */
#define LOCK_TIMEOUT "1000"

/* The table that clerk_outbox_find() found last. */
static struct
{
	Oid			relation;		/* invalid: none */
	NameData	schema;			/* its name is in the text of the plans */
	uint64		generation;		/* changes with the table and with the
								 * schema's name */
}			outbox;

/*
 * Whether a statement of the extension's own, as opposed to a user's, is
 * running.
 */
static bool in_internal_statement = false;

/* Number of statements being run, each nested in the one before. */
static int	execution_depth = 0;

static void note_schema_name(void);
static void set_local_settings(const ClerkOutboxStatement *statement);
static uint64 execute(ClerkOutboxStatement *statement, const Datum *values,
					  const char *nulls, const ClerkRights *rights,
					  ClerkOutboxCollect collect, void *result);
static void check_result(const ClerkOutboxStatement *statement);
static bool affects_any_statement(int sqlstate);
static SPIPlanPtr get_plan(ClerkOutboxStatement *statement);

/*
 * Makes the outbox of this schema the table of all further statements.  Must
 * be called in a transaction.  Raises 42P01 if the schema has no outbox.
 */
void
clerk_outbox_find(Oid schema)
{
	Oid			relation = get_relname_relid(OUTBOX, schema);

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" does not exist", OUTBOX)));
	if (relation != outbox.relation)
		outbox.generation++;
	outbox.relation = relation;
}

/*
 * Gives a process that runs nothing but statements of a sender the settings
 * that they need, so that they need not be changed for each of them.
 */
void
clerk_outbox_adopt_settings(void)
{
	SetConfigOption("search_path", CLERK_SAFE_SEARCH_PATH, PGC_SUSET,
					PGC_S_OVERRIDE);
	for (int i = 0; i < (int) lengthof(disabled_plan_types); i++)
		SetConfigOption(disabled_plan_types[i], "off", PGC_SUSET,
						PGC_S_OVERRIDE);
	SetConfigOption("plan_cache_mode", "force_generic_plan", PGC_SUSET,
					PGC_S_OVERRIDE);
}

/* Returns the OID of the table that clerk_outbox_find() found. */
Oid
clerk_outbox_relation(void)
{
	return outbox.relation;
}

/*
 * Gives the current transaction, including its commit, the rights of the
 * table's owner if a table was found.  After the commit, the caller must
 * restore the session's own rights; an abort restores them automatically.
 */
void
clerk_outbox_own_transaction(void)
{
	if (OidIsValid(outbox.relation) &&
		SearchSysCacheExists1(RELOID, ObjectIdGetDatum(outbox.relation)))
		SetUserIdAndSecContext(clerk_lock_table_and_owner(outbox.relation),
							   SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
}

/*
 * Runs a statement with the rights of the table's owner.  "nulls" is as for
 * SPI_execute_plan().  If "collect" is not NULL, it is called with "result" to
 * copy the resulting rows.  Returns the number of processed rows.  Must be
 * called in a transaction, after clerk_outbox_find().
 *
 * Raises 42P01 if the table was dropped, 55000 if another table takes its
 * place while the statement is prepared or a column has another type, 42501 if
 * code attached to the table leaves a temporary object behind, 55P03 after one
 * second if a statement of a sender's waits for a lock, and whatever else the
 * statement raises.
 */
uint64
clerk_outbox_run(ClerkOutboxStatement *statement, const Datum *values,
				 const char *nulls, ClerkOutboxCollect collect, void *result)
{
	ClerkRights rights;
	uint64		processed;

	clerk_take_owner_rights(clerk_lock_table_and_owner(outbox.relation), &rights);
	note_schema_name();
	set_local_settings(statement);
	if (statement->by_hand)
		clerk_make_constraints_immediate_of(outbox.relation);
	else
		clerk_make_constraints_immediate();
	processed = execute(statement, values, nulls, &rights, collect, result);
	clerk_restore_rights(&rights);
	return processed;
}

/*
 * Runs a statement like clerk_outbox_run(), but in a subtransaction, and
 * stores the number of rows in *processed.
 *
 * Returns false, and the error in the current memory context, if the statement
 * failed for a reason that may be specific to its rows, such as a constraint,
 * an index or a trigger that a user has added to the table.  Raises an error
 * that any statement would meet: 57014, 53100, 53200 or 25006.
 */
bool
clerk_outbox_try(ClerkOutboxStatement *statement, const Datum *values,
				 ClerkOutboxCollect collect, void *result,
				 uint64 *processed, ErrorData **error)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner resources = CurrentResourceOwner;
	volatile bool done = false;

	*processed = 0;
	*error = NULL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		*processed = clerk_outbox_run(statement, values, NULL, collect, result);
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		*error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = resources;
	if (!done && affects_any_statement((*error)->sqlerrcode))
		ReThrowError(*error);
	return done;
}

/*
 * Notes the schema's name, which is in the text of the plans and may change at
 * any time.
 */
static void
note_schema_name(void)
{
	const char *name = get_namespace_name(get_rel_namespace(outbox.relation));

	if (name == NULL)
		elog(ERROR, "cache lookup failed for the schema of relation %u",
			 outbox.relation);
	if (strcmp(name, NameStr(outbox.schema)) == 0)
		return;
	outbox.generation++;

	namestrcpy(&outbox.schema, name);
}

/*
 * Changes settings for a statement, until the owner's rights are given back.
 */
static void
set_local_settings(const ClerkOutboxStatement *statement)
{
	if (statement->without_triggers)
		clerk_set_locally("session_replication_role", "replica");
	else
		clerk_fire_triggers();
	if (GetConfigOption(LOGGED_PARAMETERS, true, false) != NULL)
		clerk_set_locally(LOGGED_PARAMETERS, "0");
	if (statement->by_hand)
		return;
	for (int i = 0; i < (int) lengthof(disabled_plan_types); i++)
		clerk_set_locally(disabled_plan_types[i], "off");
	clerk_set_locally("plan_cache_mode", "force_generic_plan");

	/*
	 * The statements skip locked rows of the outbox, but a trigger may change
	 * rows of another table, or a foreign key may check them, and those may
	 * be locked.
	 */
	clerk_set_locally("lock_timeout", LOCK_TIMEOUT);
}

static uint64
execute(ClerkOutboxStatement *statement, const Datum *values,
		const char *nulls, const ClerkRights *rights,
		ClerkOutboxCollect collect, void *result)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile uint64 processed = 0;
	const bool	was_in_internal_statement = in_internal_statement;

	/*
	 * A user's trigger may call the extension's functions within a statement.
	 */
	in_internal_statement = !statement->by_hand;
	execution_depth++;
	PG_TRY();
	{
		SPI_connect();
		if (SPI_execute_plan(get_plan(statement), unconstify(Datum *, values),
							 nulls, false, 0) < 0)
			elog(ERROR, "could not run a statement on \"%s\"", OUTBOX);
		processed = SPI_processed;

		/*
		 * Check before the result is used, as the statement fails in this
		 * case.
		 */
		clerk_refuse_temporary_objects(rights);
		if (collect != NULL)
		{
			MemoryContext spi = MemoryContextSwitchTo(caller);

			check_result(statement);
			collect(result);
			MemoryContextSwitchTo(spi);
		}
		SPI_finish();
	}
	PG_FINALLY();
	{
		in_internal_statement = was_in_internal_statement;
		execution_depth--;
	}
	PG_END_TRY();
	return processed;
}

/*
 * Raises 55000 if a column of the result does not have the expected type: the
 * table's owner may have altered it, and its values would be misread.  A
 * domain or varchar has the same representation.
 */
static void
check_result(const ClerkOutboxStatement *statement)
{
	TupleDesc	descriptor = SPI_tuptable->tupdesc;

	for (int i = 0; i < descriptor->natts; i++)
		if (!IsBinaryCoercible(SPI_gettypeid(descriptor, i + 1),
							   statement->results[i]))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("column \"%s\" of table \"%s\" does not have the type that the extension gave it",
							NameStr(TupleDescAttr(descriptor, i)->attname), OUTBOX)));
}

/*
 * Whether an error would meet any statement: somebody wants the statement to
 * end, or the server lacks a resource that every statement needs.  All other
 * codes may come from another server or program that a trigger uses, and then
 * concern only the row.
 */
static bool
affects_any_statement(int sqlstate)
{
	return sqlstate == ERRCODE_QUERY_CANCELED ||
		sqlstate == ERRCODE_DISK_FULL ||
		sqlstate == ERRCODE_OUT_OF_MEMORY ||
		sqlstate == ERRCODE_READ_ONLY_SQL_TRANSACTION;
}

/*
 * Returns the statement's plan, prepared once a session.  The server's plan
 * cache keeps it valid while the table stays the same.
 */
static SPIPlanPtr
get_plan(ClerkOutboxStatement *statement)
{
	if (statement->full_text != NULL &&
		statement->generation != outbox.generation)
	{
		/*
		 * A plan that may be running cannot be freed; it stays until the
		 * session ends.
		 */
		clerk_expect_table(NULL, InvalidOid);
		if (statement->plan != NULL && execution_depth == 1)
			SPI_freeplan(statement->plan);
		statement->plan = NULL;
		if (execution_depth == 1)
			pfree(statement->full_text);
		statement->full_text = NULL;
	}
	if (statement->full_text == NULL)
	{
		char	   *name = quote_qualified_identifier(NameStr(outbox.schema),
													  OUTBOX);

		statement->full_text = MemoryContextStrdup(TopMemoryContext,
												   psprintf(statement->text, name));
		statement->generation = outbox.generation;
	}
	clerk_expect_table(statement->full_text, outbox.relation);
	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(statement->full_text,
									   statement->parameters,
									   statement->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare a statement on \"%s\"", OUTBOX);
		statement->plan = plan;
	}
	return statement->plan;
}

/*
 * Makes a one-dimensional array of elements of this type; nulls may be NULL.
 * Returns it in the current memory context, in expanded form: a statement finds
 * an element without a search through those before it.
 */
Datum
clerk_outbox_array(Datum *elements, bool *nulls, int count, Oid type)
{
	int			lower_bound = 1;
	int16		length;
	bool		by_value;
	char		alignment;
	ArrayType  *flat;

	get_typlenbyvalalign(type, &length, &by_value, &alignment);
	flat = construct_md_array(elements, nulls, 1, &count, &lower_bound, type,
							  length, by_value, alignment);
	return MakeExpandedObjectReadOnly(expand_array(PointerGetDatum(flat),
												   CurrentMemoryContext, NULL),
									  false, -1);
}

/*
 * Returns whether a statement of the extension's own, as opposed to one for a
 * user (by_hand), is running.
 */
bool
clerk_outbox_in_internal_statement(void)
{
	return in_internal_statement;
}
