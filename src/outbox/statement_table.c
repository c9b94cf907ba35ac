/*
 * statement_table.c
 *		Ensures that a statement refers to the table that it was meant for.
 *
 * A statement names a table by schema and name.  After the extension has found
 * its table, and before the server looks up that name, the owner of the schema
 * can rename the schema and put another table in its place, whose triggers
 * would run with the rights of the first table's owner.  Therefore the result
 * of the lookup is checked after parse analysis, which is before anything of
 * the table is evaluated, and again whenever the server reanalyzes a saved
 * statement.  From then on, the server uses the OID.
 */
#include "postgres.h"

#include "compat.h"
#include "nodes/nodeFuncs.h"
#include "outbox/statement_table.h"
#include "parser/analyze.h"

/* The statement that is about to be analyzed or run. */
static struct
{
	const char *statement;		/* NULL: none yet */
	Oid			table;
}			expected;

static post_parse_analyze_hook_type previous_hook = NULL;

static void check_analyzed(CLERK_POST_PARSE_ANALYZE_PARAMETERS);
static bool check_tables(Node *node, void *context);

/*
 * From now on, a statement with this text may refer to this table only; NULL
 * accepts all statements.  If the name leads to another table, the statement
 * raises 55000.  The text must live until the next call.
 */
void
clerk_expect_table(const char *statement, Oid table)
{
	static bool hooked = false;

	if (!hooked)
	{
		previous_hook = post_parse_analyze_hook;
		post_parse_analyze_hook = check_analyzed;
		hooked = true;
	}
	expected.statement = statement;
	expected.table = table;
}

static void
check_analyzed(CLERK_POST_PARSE_ANALYZE_PARAMETERS)
{
	if (expected.statement != NULL && pstate->p_sourcetext != NULL &&
		strcmp(pstate->p_sourcetext, expected.statement) == 0)
		(void) check_tables((Node *) query, NULL);
	if (previous_hook != NULL)
		previous_hook(CLERK_POST_PARSE_ANALYZE_ARGUMENTS);
}

/* Walks a query tree and raises 55000 if it refers to another table. */
static bool
check_tables(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		const RangeTblEntry *entry = (const RangeTblEntry *) node;

		if (entry->rtekind == RTE_RELATION && entry->relid != expected.table)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the outbox's schema was renamed while a statement was being prepared")));
		return false;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, check_tables, context,
								 QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, check_tables, context);
}
