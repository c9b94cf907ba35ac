/*
 * statement_table.c
 *		Sees to it that a statement is about the table that it was meant for.
 *
 * A statement names a table by schema and name.  Between the moment when ours
 * was found and the one when the server looks the name up, the schema's owner
 * can rename the schema and put another table in that place, whose triggers
 * would run with the rights of the owner of the first one.  So the result of the
 * look-up is checked when the statement has been analyzed, which is before
 * anything of the table's is evaluated, and again whenever the server analyzes
 * a kept statement anew.  From then on the server goes by OID.
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
 * From now on, a statement with this text may be about this table only: an
 * error is raised, 55000, if another one is found in its place.  The text must
 * live until the next call.
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
