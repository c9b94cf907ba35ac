/*
 * id_sequence.c
 *		The sequence that generates the ids of the outbox's rows.
 *
 * A restore and a subscription insert rows together with their ids, which does
 * not advance the sequence.  Moreover, the end of a restore sets the sequence
 * back to its value in the dump, below the ids of rows that were added
 * meanwhile.  An id generated twice would make the statement fail that adds a
 * member.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type_d.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "outbox/id_sequence.h"
#include "storage/lmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#define SEQUENCE "clerk_invitation_outbox_id_seq"
#define PRIMARY_KEY "clerk_invitation_outbox_pkey"

/*
 * Up to so many ids are skipped one by one with nextval(), which takes less
 * than a millisecond and is safe if other sessions use the sequence at the
 * same time.
 */
#define MAX_SINGLE_ADVANCES 1000

static Oid	find_relation(Relation table, const char *name, char kind);
static int64 last_value(Oid sequence);
static int64 highest_id(Relation table);
static void advance_sequence(Oid sequence, int64 id);

/*
 * Returns the highest id that the sequence of this outbox has generated; 0 if
 * it has generated none, or if there is no such sequence.
 */
int64
clerk_outbox_last_id(Relation table)
{
	Oid			sequence = find_relation(table, SEQUENCE, RELKIND_SEQUENCE);
	Oid			user;
	int			security;
	int64		last;

	if (!OidIsValid(sequence))
		return 0;
	/* A user who may insert need not have privileges on the sequence. */
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(table->rd_rel->relowner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	last = last_value(sequence);
	SetUserIdAndSecContext(user, security);
	return last;
}

/*
 * Advances the sequence of this outbox, if necessary, so that it generates no
 * id that a row has, whether the row is committed or not.  Must be called
 * before a statement generates ids.  Does nothing if there is no such
 * sequence.
 */
void
clerk_outbox_advance_id_sequence(Relation table)
{
	Oid			sequence = find_relation(table, SEQUENCE, RELKIND_SEQUENCE);
	int64		highest;
	Oid			user;
	int			security;

	if (!OidIsValid(sequence))
		return;
	highest = highest_id(table);
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(table->rd_rel->relowner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	if (last_value(sequence) < highest)
		advance_sequence(sequence, highest);
	SetUserIdAndSecContext(user, security);
}

/*
 * Finds a relation of this kind by name in the table's schema; InvalidOid if
 * there is none.
 */
static Oid
find_relation(Relation table, const char *name, char kind)
{
	Oid			relation = get_relname_relid(name, RelationGetNamespace(table));

	return OidIsValid(relation) && get_rel_relkind(relation) == kind ?
		relation : InvalidOid;
}

/* 0 if the sequence has generated no id yet. */
static int64
last_value(Oid sequence)
{
	LOCAL_FCINFO(call, 1);
	Datum		last;

	InitFunctionCallInfoData(*call, NULL, 1, InvalidOid, NULL, NULL);
	call->args[0].value = ObjectIdGetDatum(sequence);
	call->args[0].isnull = false;
	last = pg_sequence_last_value(call);
	return call->isnull ? 0 : DatumGetInt64(last);
}

/*
 * Reads the end of the primary key's index with SnapshotAny, so that every row
 * counts, whoever can see it.  Takes some microseconds whatever the size of
 * the table.  Returns 0 if there are no rows, or if the index is not as
 * installed.
 */
static int64
highest_id(Relation table)
{
	Oid			primary_key = find_relation(table, PRIMARY_KEY, RELKIND_INDEX);
	int			column = SPI_fnumber(RelationGetDescr(table), "id");
	int64		highest = 0;
	Relation	index;
	SysScanDesc scan;
	HeapTuple	row;

	if (!OidIsValid(primary_key))
		return 0;
	index = index_open(primary_key, AccessShareLock);
	if (index->rd_index->indrelid == RelationGetRelid(table) &&
		index->rd_index->indkey.values[0] == column && column > 0 &&
		TupleDescAttr(RelationGetDescr(table), column - 1)->atttypid == INT8OID)
	{
		scan = systable_beginscan_ordered(table, index, SnapshotAny, 0, NULL);
		row = systable_getnext_ordered(scan, BackwardScanDirection);
		if (HeapTupleIsValid(row))
		{
			bool		isnull;

			highest = DatumGetInt64(heap_getattr(row, column,
												 RelationGetDescr(table),
												 &isnull));
		}
		systable_endscan_ordered(scan);
	}
	index_close(index, AccessShareLock);
	return highest;
}

/*
 * Advances the sequence to this id.
 *
 * The lock keeps concurrent calls from setting the sequence back.  It does not
 * block nextval(), so other sessions may generate ids between last_value() and
 * setval(), but not as many as are skipped here.
 */
static void
advance_sequence(Oid sequence, int64 id)
{
	int64		missing;

	LockRelationOid(sequence, ShareUpdateExclusiveLock);
	missing = id - last_value(sequence);
	if (missing > MAX_SINGLE_ADVANCES)
		(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence),
								   Int64GetDatum(id));
	else
		for (; missing > 0; missing--)
			if (nextval_internal(sequence, false) >= id)
				break;
	UnlockRelationOid(sequence, ShareUpdateExclusiveLock);
}
