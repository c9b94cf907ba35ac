/*
 * outbox_statement.c
 *		Runs SQL statements on the table clerk_invitation_outbox.
 *
 * They run with the rights of the table's owner, whoever calls
 * (outbox/owner_rights.c); the table is found through the schema of the function that
 * was called.
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

/* Milliseconds that a statement waits for a lock; its row is set aside then. */
#define LOCK_TIMEOUT "1000"

/* The table that was found last. */
static struct
{
	Oid			relation;		/* invalid: none */
	NameData	schema;			/* the plans' text has its name */
	uint64		number;			/* another one for each table or name */
}			outbox;

/* True while statements of this file change rows. */
static bool at_work = false;

/* How many statements are being run, each in the middle of the one before. */
static int	depth = 0;

static void note_schema(void);
static void choose_plans(const ClerkOutboxStatement *statement);
static uint64 execute(ClerkOutboxStatement *statement, const Datum *values,
					  const char *nulls, const ClerkRights *rights,
					  ClerkOutboxCollect collect, void *result);
static void check_result(const ClerkOutboxStatement *statement);
static bool concerns_more_than_a_row(int sqlstate);
static SPIPlanPtr plan_for(ClerkOutboxStatement *statement);

/* Uses the outbox of this schema from now on; within a transaction. */
void
clerk_outbox_find(Oid schema)
{
	Oid			relation = get_relname_relid(OUTBOX, schema);

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" does not exist", OUTBOX)));
	if (relation != outbox.relation)
		outbox.number++;
	outbox.relation = relation;
}

/* The table that was found. */
Oid
clerk_outbox_relation(void)
{
	return outbox.relation;
}

/*
 * Makes the current transaction, its commit included, the table's owner's, once
 * a table was found.  After the commit the caller must have the session's own
 * rights back; an abort restores them.
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
 * Runs a statement with the rights of the table's owner; returns the number of
 * rows, which are handed to a function first if one is given.  "nulls" is as
 * for SPI_execute_plan().
 */
uint64
clerk_outbox_run(ClerkOutboxStatement *statement, const Datum *values,
				 const char *nulls, ClerkOutboxCollect collect, void *result)
{
	ClerkRights rights;
	uint64		processed;

	clerk_take_owner_rights(clerk_lock_table_and_owner(outbox.relation), &rights);
	note_schema();
	choose_plans(statement);
	if (statement->by_hand)
		clerk_defer_no_constraint_of(outbox.relation);
	else
		clerk_defer_no_constraint();
	processed = execute(statement, values, nulls, &rights, collect, result);
	clerk_restore_rights(&rights);
	return processed;
}

/*
 * The same, in a subtransaction: false, with what the server said in the
 * current memory context, if the statement failed for a reason that may lie in
 * the rows it is about, such as a constraint, an index or a trigger that a user
 * has added to the table.  An error that would meet any statement is raised.
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
	if (!done && concerns_more_than_a_row((*error)->sqlerrcode))
		ReThrowError(*error);
	return done;
}

/* The schema may get another name at any time; plans have it in their text. */
static void
note_schema(void)
{
	const char *name = get_namespace_name(get_rel_namespace(outbox.relation));

	if (name == NULL)
		elog(ERROR, "cache lookup failed for the schema of relation %u",
			 outbox.relation);
	if (strcmp(name, NameStr(outbox.schema)) == 0)
		return;
	outbox.number++;

	namestrcpy(&outbox.schema, name);
}

/* Until the rights are restored. */
static void
choose_plans(const ClerkOutboxStatement *statement)
{
	if (statement->without_triggers)
		clerk_set_locally("session_replication_role", "replica");
	else
		clerk_fire_triggers();
	if (GetConfigOption(LOGGED_PARAMETERS, true, false) != NULL)
		clerk_set_locally(LOGGED_PARAMETERS, "0");
	if (statement->by_hand)
		return;
	for (int i = 0; i < (int) lengthof(kept_from_planner); i++)
		clerk_set_locally(kept_from_planner[i], "off");
	clerk_set_locally("plan_cache_mode", "force_generic_plan");

	/*
	 * Rows of the outbox that are locked are passed over, but those of
	 * another table may be that a trigger changes, or a foreign key looks at.
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
	const bool	at_work_before = at_work;

	/* A user's trigger may call our functions in the middle of a statement. */
	at_work = !statement->by_hand;
	depth++;
	PG_TRY();
	{
		SPI_connect();
		if (SPI_execute_plan(plan_for(statement), unconstify(Datum *, values),
							 nulls, false, 0) < 0)
			elog(ERROR, "could not run a statement on \"%s\"", OUTBOX);
		processed = SPI_processed;

		/* What is collected must not be of a statement that fails after all. */
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
		at_work = at_work_before;
		depth--;
	}
	PG_END_TRY();
	return processed;
}

/*
 * Who owns the table may give a column another type, with which a value would
 * be taken for what it is not.  A domain or varchar has the same values.
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
					 errmsg("column \"%s\" of table \"%s\" has another type than the extension has given it",
							NameStr(TupleDescAttr(descriptor, i)->attname), OUTBOX)));
}

/*
 * Somebody wants the statement to end, or the server lacks what any statement
 * needs.  What a trigger has from another server or program may have any code.
 */
static bool
concerns_more_than_a_row(int sqlstate)
{
	return sqlstate == ERRCODE_QUERY_CANCELED ||
		sqlstate == ERRCODE_DISK_FULL ||
		sqlstate == ERRCODE_OUT_OF_MEMORY ||
		sqlstate == ERRCODE_READ_ONLY_SQL_TRANSACTION;
}

/* Plans are kept for the session; the plan cache keeps them valid. */
static SPIPlanPtr
plan_for(ClerkOutboxStatement *statement)
{
	if (statement->full_text != NULL && statement->table != outbox.number)
	{
		/* One that may be running is left to the end of the session. */
		clerk_expect_table(NULL, InvalidOid);
		if (statement->plan != NULL && depth == 1)
			SPI_freeplan(statement->plan);
		statement->plan = NULL;
		if (depth == 1)
			pfree(statement->full_text);
		statement->full_text = NULL;
	}
	if (statement->full_text == NULL)
	{
		char	   *name = quote_qualified_identifier(NameStr(outbox.schema),
													  OUTBOX);

		statement->full_text = MemoryContextStrdup(TopMemoryContext,
												   psprintf(statement->text, name));
		statement->table = outbox.number;
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
