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
 * 4. The second flag refuses temporary tables only.  A type or a function in
 *	  the session's temporary schema is refused after the statement: a domain
 *	  there hides one of the same name that the caller means.
 *
 * A constraint trigger that is deferred would be refused by the second rule and
 * have the statement fail.  It is made immediate instead, so that its code runs
 * within the statement.
 *
 * The table stays locked until the transaction ends, so that its owner cannot
 * become another one before the statement has run.
 *
 * An error gives all this back with its (sub)transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_namespace.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "outbox/owner_rights.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

static int64 count_temporary_objects(void);
static bool has_namesake(const char *name, Oid schema, Oid table);
static void make_immediate(List *constraints);

/*
 * Locks a table for a change of its rows and returns its owner, who stays the
 * owner until the transaction ends.  Raises 42P01 if it was dropped.
 */
Oid
clerk_lock_table_and_owner(Oid table)
{
	HeapTuple	tuple;
	Oid			owner;

	LockRelationOid(table, RowExclusiveLock);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", table)));
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
	rights->temporary_objects = count_temporary_objects();
	clerk_set_locally("search_path", "pg_catalog, pg_temp");
}

/*
 * Raises 42501 if there are temporary objects that were not there before.  To
 * be called when the statement has run, and before its result is used.
 */
void
clerk_refuse_temporary_objects(const ClerkRights *rights)
{
	if (count_temporary_objects() > rights->temporary_objects)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot create a temporary object within security-restricted operation")));
}

/* Gives the rights back, and every setting its value from before. */
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
 * Has the table's triggers fire until clerk_restore_rights() as in any session,
 * also in one that is in replica role, as every apply worker of a subscription
 * is: a statement of ours makes rows, and does not copy them.  To change the role
 * has the server make all plans anew, so it is done only if there is need.
 */
void
clerk_fire_triggers(void)
{
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		clerk_set_locally("session_replication_role", "origin");
}

/*
 * Makes a table's own deferred constraints immediate until the transaction
 * ends: for a transaction of somebody else's, whose other constraints are none
 * of our business.
 *
 * SET CONSTRAINTS takes all constraints of a name in a schema, and fires what
 * waits for them at once.  Where another table has one of the same name, whose
 * trigger may be anyone's, the name is left alone: should the statement defer a
 * trigger then, the server refuses it.
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
		if (name != NULL &&
			!has_namesake(name, RelationGetNamespace(relation), table))
			constraints = lappend(constraints,
								  makeRangeVar(get_namespace_name(RelationGetNamespace(relation)),
											   name, -1));
	}
	RelationClose(relation);
	if (constraints != NIL)
		make_immediate(constraints);
}

/* Whether another table in the schema has a constraint of this name. */
static bool
has_namesake(const char *name, Oid schema, Oid table)
{
	Relation	catalog = table_open(ConstraintRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	ScanKeyInit(&keys[0], Anum_pg_constraint_conname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum(name));
	ScanKeyInit(&keys[1], Anum_pg_constraint_connamespace,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(schema));
	scan = systable_beginscan(catalog, ConstraintNameNspIndexId, true, NULL,
							  lengthof(keys), keys);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		found = ((Form_pg_constraint) GETSTRUCT(tuple))->conrelid != table;
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
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

/*
 * Objects in the session's temporary schema: what belongs to a schema depends on
 * it.  A session that has no such schema costs nothing.
 */
static int64
count_temporary_objects(void)
{
	Oid			schema;
	Oid			toast_schema;
	Relation	dependencies;
	ScanKeyData keys[2];
	SysScanDesc scan;
	int64		count = 0;

	GetTempNamespaceState(&schema, &toast_schema);
	if (!OidIsValid(schema))
		return 0;
	CommandCounterIncrement();
	dependencies = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(NamespaceRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(schema));
	scan = systable_beginscan(dependencies, DependReferenceIndexId, true, NULL,
							  lengthof(keys), keys);
	while (HeapTupleIsValid(systable_getnext(scan)))
		count++;
	systable_endscan(scan);
	table_close(dependencies, AccessShareLock);
	return count;
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
