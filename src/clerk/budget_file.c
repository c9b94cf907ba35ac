/*
 * budget_file.c
 *		Records in a file of the data directory that outlive the server.
 *
 * Each record has a place of its own, and is written whole, in one system
 * call.  None is flushed to disk: what was written is in the kernel's hands,
 * and so outlives this process and the server, however they end.  If the
 * machine crashes, what the kernel had not written yet is gone: half a minute
 * of Linux's, if nothing changes that.  A record that was torn by that does
 * not match its checksum, and counts as none.
 *
 * The file is beside the server's own statistics, where it has company of the
 * same kind: it is kept over a crash and copied with a base backup, and the
 * server is just as well without it.
 *
 * Nothing here raises an error or allocates memory.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "clerk/budget_file.h"
#include "common/file_perm.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"

/* With the number of the records' layout. */
#define FILE_NAME PGSTAT_STAT_PERMANENT_DIRECTORY "/clerk_invite.budgets.1"

/* Tells a record from what else a file may contain: "CLK1". */
#define MAGIC 0x434c4b31

/* A divisor of the page's, so that no record is in two of them. */
#define PLACE_SIZE 2048

typedef struct Place
{
	uint32		magic;
	pg_crc32c	checksum;		/* of the record */
	char		record[CLERK_BUDGET_RECORD_MAX];
} Place;

#define HEADER_SIZE offsetof(Place, record)

/* Of this process; -1: it is not open. */
static int	kept_file = -1;

static int	open_file(int flags);
static void keep_or_close(int file);
static pg_crc32c checksum_of(const void *record, size_t size);

/*
 * Reads a record of this size.  False if there is none; errno is 0 then, or
 * ENOENT if there is no file, or says what went wrong.
 */
bool
clerk_budget_file_read(int number, void *record, size_t size)
{
	Place		place;
	ssize_t		got;
	int			file = open_file(O_RDWR);
	int			error;

	StaticAssertStmt(sizeof(Place) == PLACE_SIZE,
					 "PLACE_SIZE does not match the size of a place");
	Assert(size <= sizeof(place.record));
	if (file < 0)
		return false;
	got = pg_pread(file, &place, HEADER_SIZE + size,
				   (off_t) number * PLACE_SIZE);
	error = got < 0 ? errno : 0;
	keep_or_close(file);
	errno = error;
	if (got != (ssize_t) (HEADER_SIZE + size) || place.magic != MAGIC ||
		!EQ_CRC32C(place.checksum, checksum_of(place.record, size)))
		return false;
	memcpy(record, place.record, size);
	return true;
}

/* Writes a record of this size.  False, with errno, if that is not possible. */
bool
clerk_budget_file_write(int number, const void *record, size_t size)
{
	Place		place;
	ssize_t		put;
	int			file = open_file(O_RDWR | O_CREAT);
	int			error;

	Assert(size <= sizeof(place.record));
	if (file < 0)
		return false;
	place.magic = MAGIC;
	place.checksum = checksum_of(record, size);
	memcpy(place.record, record, size);
	put = pg_pwrite(file, &place, HEADER_SIZE + size,
					(off_t) number * PLACE_SIZE);
	/* Nothing but a full disk writes less than it was given. */
	error = put < 0 ? errno : ENOSPC;
	keep_or_close(file);
	errno = error;
	return put == (ssize_t) (HEADER_SIZE + size);
}

/* For messages. */
const char *
clerk_budget_file_name(void)
{
	return FILE_NAME;
}

/* What programs that the server starts must not inherit. */
static int
open_file(int flags)
{
	if (kept_file >= 0)
		return kept_file;
	return BasicOpenFilePerm(FILE_NAME, flags | O_CLOEXEC | PG_BINARY,
							 pg_file_create_mode);
}

/* It stays open for good, unless this process has too many others. */
static void
keep_or_close(int file)
{
	if (file == kept_file)
		return;
	if (AcquireExternalFD())
		kept_file = file;
	else
		close(file);
}

static pg_crc32c
checksum_of(const void *record, size_t size)
{
	pg_crc32c	checksum;

	INIT_CRC32C(checksum);
	COMP_CRC32C(checksum, record, size);
	FIN_CRC32C(checksum);
	return checksum;
}
