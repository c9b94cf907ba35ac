/*
 * owner_rights.c
 *		Runs what others have attached to a table with its owner's rights.
 *
 * A statement of ours on the outbox runs code that its owner, or anyone with
 * the TRIGGER privilege, has attached to it: triggers, and functions in
 * constraints, defaults, indexes, rules and policies.  The process may belong
 * to somebody who can do more: the worker and pg_cron's jobs to a superuser,
 * the trigger on a members table to whoever inserts there.  So for the
 * statement the process takes the owner's rights, and what that code could
 * leave behind for later, when the rights are given back, is refused or undone:
 *
 * 1. SECURITY_LOCAL_USERID_CHANGE refuses SET ROLE and SET SESSION
 *	  AUTHORIZATION.
 * 2. SECURITY_RESTRICTED_OPERATION refuses held cursors and deferred triggers,
 *	  whose code would run at commit; temporary objects, prepared statements
 *	  and LISTEN, which stay with the session.  REFRESH MATERIALIZED VIEW and
 *	  maintenance commands of the server run code of a table's owner under the
 *	  same two flags.
 * 3. Settings are restored to what they were, whoever has changed them, and
 *	  whether for the transaction or the session.
 *
 * A constraint trigger that is deferred would be refused by the second rule and
 * have the statement fail.  It is made immediate instead, so that its code runs
 * within the statement.
 *
 * An error gives all this back with its (sub)transaction.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "owner_rights.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

static void make_immediate(List *constraints);

/* A table's owner. */
Oid
clerk_table_owner(Oid table)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", table);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Takes a table owner's rights, with a search_path that only a superuser can
 * put objects into.  Must be followed by clerk_restore_rights() unless an
 * error ends the (sub)transaction before.
 */
void
clerk_take_owner_rights(Oid owner, ClerkRights *rights)
{
	GetUserIdAndSecContext(&rights->user, &rights->security_context);
	SetUserIdAndSecContext(owner, rights->security_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	rights->guc_nest_level = NewGUCNestLevel();
	clerk_set_locally("search_path", "pg_catalog, pg_temp");
}

void
clerk_restore_rights(const ClerkRights *rights)
{
	/* "false" undoes every change, not only those made with SET LOCAL. */
	AtEOXact_GUC(false, rights->guc_nest_level);
	SetUserIdAndSecContext(rights->user, rights->security_context);
}

/*
 * Sets a setting until clerk_restore_rights(), whoever calls: some are the
 * superuser's.
 */
void
clerk_set_locally(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Makes a table's own deferred constraints immediate until the transaction
 * ends: for a transaction of somebody else's, whose other constraints are none
 * of our business.
 */
void
clerk_defer_no_constraint_of(Oid table)
{
	Relation	relation = RelationIdGetRelation(table);
	List	   *constraints = NIL;

	if (!RelationIsValid(relation))
		elog(ERROR, "could not open relation with OID %u", table);
	for (int i = 0; relation->trigdesc != NULL &&
		 i < relation->trigdesc->numtriggers; i++)
	{
		const Trigger *trigger = &relation->trigdesc->triggers[i];
		char	   *name;

		if (!trigger->tgdeferrable || !OidIsValid(trigger->tgconstraint))
			continue;
		name = get_constraint_name(trigger->tgconstraint);
		if (name != NULL)
			constraints = lappend(constraints,
								  makeRangeVar(get_namespace_name(RelationGetNamespace(relation)),
											   name, -1));
	}
	RelationClose(relation);
	if (constraints != NIL)
		make_immediate(constraints);
}

/*
 * Makes all constraints immediate until the transaction ends, also those of
 * tables that a trigger writes to: for a transaction of our own.
 */
void
clerk_defer_no_constraint(void)
{
	make_immediate(NIL);
}

/* SET CONSTRAINTS ... IMMEDIATE; NIL stands for ALL. */
static void
make_immediate(List *constraints)
{
	ConstraintsSetStmt *statement = makeNode(ConstraintsSetStmt);

	statement->constraints = constraints;
	statement->deferred = false;
	AfterTriggerSetState(statement);
}
