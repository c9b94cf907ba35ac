/*
 * id_sequence.c
 *		The numbers of the outbox's rows, and the sequence that gives them out.
 *
 * A restore and a subscription bring rows with their numbers.  The sequence
 * learns nothing of these, and the end of a restore sets it back to what it was
 * in the dump, below the rows that were added meanwhile.  A number given out
 * twice would fail whoever adds a member.
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
 * As many numbers are skipped one by one, which takes under a millisecond, and
 * no harm is done by others who draw numbers at the same time.
 */
#define MOST_SKIPPED_SINGLY 1000

static Oid	related(Relation table, const char *name, char kind);
static int64 last_value(Oid sequence);
static int64 highest_number(Relation table);
static void move_ahead(Oid sequence, int64 number);

/*
 * The highest number that the sequence of this outbox has given out; 0 if it
 * has given out none.
 */
int64
clerk_outbox_last_number(Relation table)
{
	Oid			sequence = related(table, SEQUENCE, RELKIND_SEQUENCE);
	Oid			user;
	int			security;
	int64		last;

	if (!OidIsValid(sequence))
		return 0;
	/* Who may insert need not be able to read the sequence. */
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(table->rd_rel->relowner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	last = last_value(sequence);
	SetUserIdAndSecContext(user, security);
	return last;
}

/*
 * Sees to it that the sequence of this outbox gives out no number that a row
 * has, committed or not.  To be called before a statement draws numbers.
 */
void
clerk_outbox_keep_numbers_ahead(Relation table)
{
	Oid			sequence = related(table, SEQUENCE, RELKIND_SEQUENCE);
	int64		highest;
	Oid			user;
	int			security;

	if (!OidIsValid(sequence))
		return;
	highest = highest_number(table);
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(table->rd_rel->relowner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	if (last_value(sequence) < highest)
		move_ahead(sequence, highest);
	SetUserIdAndSecContext(user, security);
}

/* What belongs to the table, by its name; InvalidOid if there is no such. */
static Oid
related(Relation table, const char *name, char kind)
{
	Oid			relation = get_relname_relid(name, RelationGetNamespace(table));

	return OidIsValid(relation) && get_rel_relkind(relation) == kind ?
		relation : InvalidOid;
}

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
 * The end of the index, whoever may see the row that it has there: costs some
 * microseconds whatever the size of the table.
 */
static int64
highest_number(Relation table)
{
	Oid			primary_key = related(table, PRIMARY_KEY, RELKIND_INDEX);
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
 * Two that move it at the same time must not set it back.  The lock is in
 * nobody's way who draws a number, so somebody may draw some between the look
 * and the move; not as many as are jumped over.
 */
static void
move_ahead(Oid sequence, int64 number)
{
	int64		missing;

	LockRelationOid(sequence, ShareUpdateExclusiveLock);
	missing = number - last_value(sequence);
	if (missing > MOST_SKIPPED_SINGLY)
		(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence),
								   Int64GetDatum(number));
	else
		for (; missing > 0; missing--)
			if (nextval_internal(sequence, false) >= number)
				break;
	UnlockRelationOid(sequence, ShareUpdateExclusiveLock);
}
