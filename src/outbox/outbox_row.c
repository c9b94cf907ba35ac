/*
 * outbox_row.c
 *		Reads rows of the outbox as their sender sees them.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "outbox/outbox_row.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

static ClerkOutboxRow *read_row(HeapTuple tuple, TupleDesc descriptor);

/*
 * Appends the rows in SPI_tuptable, whose columns are CLERK_ROW_COLUMNS, to a
 * list of ClerkOutboxRow in the current memory context.  All of them are in
 * this state.
 */
void
clerk_outbox_collect_rows(List **rows, const char *state)
{
	List	   *read = NIL;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ClerkOutboxRow *row = read_row(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc);

		row->progress.state = state;
		read = lappend(read, row);
	}
	/* Append all rows or none: reading them may raise an error. */
	*rows = list_concat(*rows, read);
}

/* Columns are in the order of CLERK_ROW_COLUMNS. */
static ClerkOutboxRow *
read_row(HeapTuple tuple, TupleDesc descriptor)
{
	ClerkOutboxRow *row = palloc0(sizeof(ClerkOutboxRow));
	int			column = 0;
	bool		isnull;
	Datum		value;

#define NEXT() (value = SPI_getbinval(tuple, descriptor, ++column, &isnull))
#define NEXT_TEXT() (NEXT(), isnull ? NULL : TextDatumGetCString(value))
#define NEXT_JSONB() (NEXT(), isnull ? NULL : DatumGetJsonbPCopy(value))

	row->id = DatumGetInt64(NEXT());
	row->progress.attempts = DatumGetInt32(NEXT());
	row->invitation.organization_id = NEXT_TEXT();
	row->invitation.inviter_user_id = NEXT_TEXT();
	row->invitation.email_address = NEXT_TEXT();
	row->invitation.role = NEXT_TEXT();
	row->invitation.redirect_url = NEXT_TEXT();
	row->invitation.public_metadata = NEXT_JSONB();
	row->invitation.private_metadata = NEXT_JSONB();
	NEXT();
	row->invitation.expires_in_days = isnull ? 0 : DatumGetInt32(value);
	NEXT();
	if (!isnull)
	{
		row->invitation.notify = palloc(sizeof(bool));
		*row->invitation.notify = DatumGetBool(value);
	}
	NEXT();
	row->first_claimed_at = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->first_claimed_clock = isnull ? 0 : DatumGetInt64(value);
	NEXT();
	row->claimed_at = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->claimed_clerk_clock = isnull ? 0 : DatumGetTimestampTz(value);
	NEXT();
	row->progress.http_status = isnull ? 0 : DatumGetInt32(value);
	row->progress.error_code = NEXT_TEXT();
	row->progress.error_message = NEXT_TEXT();
	row->progress.trace_id = NEXT_TEXT();
	row->progress.send_alone = DatumGetBool(NEXT());
	row->progress.consecutive_failures = DatumGetInt32(NEXT());
	return row;
}
