/*
 * budget_file.c
 *		Records in a file of the data directory, which survive a restart of the
 *		server.
 *
 * Each record has its own block in the file and is written as a whole, by one
 * system call.  Writes are not flushed to disk.  Once written, a record is in
 * the kernel's page cache and survives this process and the server, however
 * they end.  If the machine crashes, writes that the kernel has not flushed
 * yet are lost: the last 30 seconds or so with Linux's default settings.  A
 * record that was torn by a crash does not match its checksum, and is treated
 * as missing.
 *
 * The file is in the folder of the server's own statistics files.  There it is
 * kept after a crash and copied by a base backup, and the server works without
 * it.
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

/* The digit at the end is the version of the record format. */
#define FILE_NAME PGSTAT_STAT_PERMANENT_DIRECTORY "/clerk_invite.budgets.2"

/* "CLK1", which distinguishes a record from other contents of a file. */
#define MAGIC 0x434c4b31

/* A divisor of the page size, so that no record spans two pages. */
#define BLOCK_SIZE 2048

typedef struct FileBlock
{
	uint32		magic;
	pg_crc32c	checksum;		/* of the record */
	char		record[CLERK_BUDGET_RECORD_MAX];
} FileBlock;

#define HEADER_SIZE offsetof(FileBlock, record)

/* This process's descriptor of the file, or -1 if it is not open. */
static int	open_descriptor = -1;

static int	open_file(int flags);
static void keep_or_close(int file);
static pg_crc32c checksum_of(const void *record, size_t size);

/*
 * Reads record number "number", which has "size" bytes, up to
 * CLERK_BUDGET_RECORD_MAX.  Returns false if there is no valid record of this
 * size, and sets errno: to 0 if the file has no such record, to ENOENT if
 * there is no file, or to the error of the system call.
 */
bool
clerk_budget_file_read(int number, void *record, size_t size)
{
	FileBlock	block;
	ssize_t		bytes_read;
	int			file = open_file(O_RDWR);
	int			error;

	StaticAssertStmt(sizeof(FileBlock) == BLOCK_SIZE,
					 "a place in the file has another size");
	Assert(size <= sizeof(block.record));
	if (file < 0)
		return false;
	bytes_read = pg_pread(file, &block, HEADER_SIZE + size,
						  (off_t) number * BLOCK_SIZE);
	error = bytes_read < 0 ? errno : 0;
	keep_or_close(file);
	errno = error;
	if (bytes_read != (ssize_t) (HEADER_SIZE + size) || block.magic != MAGIC ||
		!EQ_CRC32C(block.checksum, checksum_of(block.record, size)))
		return false;
	memcpy(record, block.record, size);
	return true;
}

/*
 * Writes record number "number", which has "size" bytes, up to
 * CLERK_BUDGET_RECORD_MAX.  Creates the file if necessary.  Returns false and
 * sets errno if the record cannot be written.
 */
bool
clerk_budget_file_write(int number, const void *record, size_t size)
{
	FileBlock	block;
	ssize_t		bytes_written;
	int			file = open_file(O_RDWR | O_CREAT);
	int			error;

	Assert(size <= sizeof(block.record));
	if (file < 0)
		return false;
	block.magic = MAGIC;
	block.checksum = checksum_of(record, size);
	memcpy(block.record, record, size);
	bytes_written = pg_pwrite(file, &block, HEADER_SIZE + size,
							  (off_t) number * BLOCK_SIZE);
	/* A regular file is written to incompletely only if the disk is full. */
	error = bytes_written < 0 ? errno : ENOSPC;
	keep_or_close(file);
	errno = error;
	return bytes_written == (ssize_t) (HEADER_SIZE + size);
}

/* The file's name relative to the data directory, for messages. */
const char *
clerk_budget_file_name(void)
{
	return FILE_NAME;
}

/* Programs that the server starts must not inherit the descriptor. */
static int
open_file(int flags)
{
	if (open_descriptor >= 0)
		return open_descriptor;
	return BasicOpenFilePerm(FILE_NAME, flags | O_CLOEXEC | PG_BINARY,
							 pg_file_create_mode);
}

/*
 * Keeps the file open until the process ends, unless too many file descriptors
 * are in use.
 */
static void
keep_or_close(int file)
{
	if (file == open_descriptor)
		return;
	if (AcquireExternalFD())
		open_descriptor = file;
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
