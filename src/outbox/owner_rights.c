/*
 * owner_rights.c
 *		Runs code that users have attached to a table with the rights of its
 *		owner.
 *
 * A statement of the extension's on the outbox runs code that the outbox's
 * owner, or anyone with the TRIGGER privilege, has attached to it: triggers,
 * and functions in constraints, defaults, indexes, rules and policies.  The
 * process may belong to a user with more rights: the worker and pg_cron's jobs
 * to a superuser, the trigger on a members table to whoever inserts there.
 * Therefore the process takes the owner's rights for the statement, and
 * refuses or undoes anything that such code could leave behind to take effect
 * when the rights have been given back:
 *
 * 1. SECURITY_LOCAL_USERID_CHANGE refuses SET ROLE and SET SESSION
 *	  AUTHORIZATION.
 * 2. SECURITY_RESTRICTED_OPERATION refuses held cursors and deferred
 *	  triggers, whose code would run at commit, as well as temporary objects,
 *	  prepared statements and LISTEN, which outlast the statement.  REFRESH
 *	  MATERIALIZED VIEW and the server's maintenance commands run code of a
 *	  table's owner under the same two flags.
 * 3. Settings are restored to their previous values, whether the code has
 *	  changed them for the transaction or for the session.
 * 4. The second flag refuses only temporary tables.  A type or function in
 *	  the session's temporary schema is refused after the statement: a domain
 *	  there would hide the one with the same name that the caller means.
 *
 * The second rule would refuse a deferred constraint trigger, and make the
 * statement fail.  Such a trigger is made immediate instead, so that its code
 * runs within the statement.
 *
 * The table stays locked until the transaction ends, so that its owner cannot
 * change before the statement has run.
 *
 * The end of a (sub)transaction by an error restores all of this.
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
static bool is_name_used_elsewhere(const char *name, Oid schema, Oid table);
static void set_constraints_immediate(List *constraints);

/*
 * Takes ROW EXCLUSIVE lock on a table and returns the table's owner, who
 * cannot change until the transaction ends.  Raises 42P01 if the table was
 * dropped.
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
 * Takes the rights of a table's owner, and sets search_path to schemas in
 * which only a superuser can create objects, apart from the temporary one,
 * which comes last.  *rights receives what clerk_restore_rights() needs.  That
 * must be called unless an error ends the (sub)transaction.
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
	clerk_set_locally("search_path", CLERK_SAFE_SEARCH_PATH);
}

/*
 * Raises 42501 if there are more temporary objects than when the rights were
 * taken.  Must be called after the statement has run and before its result is
 * used.
 */
void
clerk_refuse_temporary_objects(const ClerkRights *rights)
{
	if (count_temporary_objects() > rights->temporary_objects)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot create a temporary object within security-restricted operation")));
}

/*
 * Restores the rights and all settings to what they were before
 * clerk_take_owner_rights().
 */
void
clerk_restore_rights(const ClerkRights *rights)
{
	/* "false" undoes every change, not only those made with SET LOCAL. */
	AtEOXact_GUC(false, rights->guc_nest_level);
	SetUserIdAndSecContext(rights->user, rights->security_context);
}

/*
 * Changes a setting until clerk_restore_rights().  Does not check the caller's
 * rights, since only a superuser can change some of the settings.  Raises what
 * the setting's check raises.
 *
 * Several settings are changed for each statement, which takes as long as
 * finding a row, so one that has the value already is left alone.
 */
void
clerk_set_locally(const char *name, const char *value)
{
	const char *current = GetConfigOption(name, true, false);

	if (current != NULL && strcmp(current, value) == 0)
		return;
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Makes the triggers of a table fire until clerk_restore_rights() as in any
 * session, even if the session is in replica role, as every apply worker of a
 * subscription is: a statement of ours adds rows, it does not copy them.
 * Changing the role makes the server discard all plans of the session, so it is
 * changed only if necessary.
 */
void
clerk_fire_triggers(void)
{
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		clerk_set_locally("session_replication_role", "origin");
}

/*
 * Makes the deferred constraints of a table immediate until the transaction
 * ends.  For a user's transaction, in which the constraints of other tables
 * must stay as they are.
 *
 * SET CONSTRAINTS affects all constraints with the same name in a schema, and
 * fires their pending triggers at once.  If another table has a constraint of
 * that name, whose trigger may belong to anyone, the name is left alone.  If
 * the statement then defers that trigger, the server refuses it.
 */
void
clerk_make_constraints_immediate_of(Oid table)
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
			!is_name_used_elsewhere(name, RelationGetNamespace(relation),
									table))
			constraints = lappend(constraints,
								  makeRangeVar(get_namespace_name(RelationGetNamespace(relation)),
											   name, -1));
	}
	RelationClose(relation);
	if (constraints != NIL)
		set_constraints_immediate(constraints);
}

/* Whether another table in the schema has a constraint of this name. */
static bool
is_name_used_elsewhere(const char *name, Oid schema, Oid table)
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
 * Makes all constraints immediate until the transaction ends, including those
 * of tables that a trigger writes to.  For a transaction of a sender's own.
 */
void
clerk_make_constraints_immediate(void)
{
	set_constraints_immediate(NIL);
}

/*
 * Counts the objects in the session's temporary schema, by their dependency on
 * it.  A session without such a schema pays nothing.
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

/* SET CONSTRAINTS ... IMMEDIATE; NIL means ALL. */
static void
set_constraints_immediate(List *constraints)
{
	ConstraintsSetStmt *statement = makeNode(ConstraintsSetStmt);

	statement->constraints = constraints;
	statement->deferred = false;
	AfterTriggerSetState(statement);
}
