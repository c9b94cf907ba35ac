/*
 * webhook_receipts.c
 *		The table clerk_webhook_receipt: which webhooks have been received.
 *
 * A webhook is sent again, with the same id and a later time, until its sender
 * gets a response.  Somebody who has copied it can send it only with the time
 * that is signed.
 *
 * A row is kept as long as its webhook's time is accepted, and twice that, in
 * case the server's clock is set.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "outbox/owner_rights.h"
#include "outbox/statement_table.h"
#include "outbox/webhook_receipts.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define TABLE "clerk_webhook_receipt"

/* Longest id that is kept, in bytes; those of Svix have about 30. */
#define MAX_ID_LENGTH 255

/* Removing more of them would delay this webhook's response. */
#define REMOVED_AT_ONCE "100"

#define INSERT_RECEIPT \
	"INSERT INTO %s (id, sent_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING"

#define UPDATE_RECEIPT \
	"UPDATE ONLY %s SET sent_at = $2 WHERE id = $1 AND sent_at < $2"

/* Two sessions that remove rows must not wait for each other. */
#define REMOVE_RECEIPTS \
	"WITH old AS (SELECT r.id FROM ONLY %1$s AS r " \
	"WHERE r.id <> $1 AND r.sent_at < $2 - interval '10 minutes' " \
	"FOR UPDATE SKIP LOCKED LIMIT " REMOVED_AT_ONCE ") " \
	"DELETE FROM ONLY %1$s AS r USING old WHERE r.id = old.id"

static uint64 run(const char *format, Oid table, Datum *values);

/*
 * Notes that a webhook with this id was received, which is undone if the
 * transaction rolls back.  Returns whether it had been received before.  The
 * statements run with the rights of the table's owner.  Raises 42P01 if the
 * schema has no such table, and what the statements raise.
 */
ClerkReceipt
clerk_note_webhook(Oid schema, const char *id, TimestampTz sent_at)
{
	Oid			table = get_relname_relid(TABLE, schema);
	ClerkReceipt receipt = CLERK_RECEIPT_FIRST;
	ClerkRights rights;
	Datum		values[2];

	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" does not exist", TABLE)));
	values[0] = PointerGetDatum(cstring_to_text_with_len(id,
														 (int) Min(strlen(id), MAX_ID_LENGTH)));
	values[1] = TimestampTzGetDatum(sent_at);
	clerk_take_owner_rights(clerk_lock_table_and_owner(table), &rights);
	clerk_fire_triggers();
	clerk_make_constraints_immediate_of(table);
	SPI_connect();
	if (run(INSERT_RECEIPT, table, values) == 0)
		receipt = run(UPDATE_RECEIPT, table, values) > 0 ?
			CLERK_RECEIPT_AGAIN : CLERK_RECEIPT_COPY;
	if (receipt == CLERK_RECEIPT_FIRST)
		run(REMOVE_RECEIPTS, table, values);
	clerk_refuse_temporary_objects(&rights);
	SPI_finish();
	clerk_restore_rights(&rights);
	return receipt;
}

/* Returns the number of rows. */
static uint64
run(const char *format, Oid table, Datum *values)
{
	Oid			types[] = {TEXTOID, TIMESTAMPTZOID};
	const char *name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
												  TABLE);
	char	   *statement = psprintf(format, name);

	clerk_expect_table(statement, table);
	if (SPI_execute_with_args(statement, lengthof(types), types, values, NULL,
							  false, 0) < 0)
		elog(ERROR, "could not run a statement on \"%s\"", TABLE);
	clerk_expect_table(NULL, InvalidOid);
	return SPI_processed;
}
