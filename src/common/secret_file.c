/*
 * secret_file.c
 *		Reads a file that contains secrets.
 *
 * No text that is produced here contains anything from the file, nor its name,
 * because it is also shown to users who are not allowed to see the setting.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/xact.h"
#include "common/secret_file.h"
#include "compat.h"

static const char *permissions_error(const struct stat *status);
static const char *read_content(int descriptor, ClerkSecretFile *file);
static bool is_unchanged(const struct stat *a, const struct stat *b);

/*
 * Whether file->content is still what the file contains.  A relative path
 * starts at the data directory.  The file's status is checked once per
 * statement, so that a secret can be replaced without a reload.
 */
bool
clerk_secret_file_is_current(ClerkSecretFile *file, const char *path)
{
	TimestampTz statement = GetCurrentStatementStartTimestamp();
	struct stat status;

	if (!file->valid || strcmp(file->path, path) != 0)
		return false;
	if (file->checked_in != statement &&
		(stat(path, &status) != 0 || !is_unchanged(&status, &file->status)))
		return false;
	file->checked_in = statement;
	return true;
}

/*
 * Reads the file into file->content.  "what" names it in messages, such as "key
 * file".  If it cannot be used, returns false and sets *reason to a sentence
 * that is valid until the next call.
 */
bool
clerk_secret_file_read(ClerkSecretFile *file, const char *path,
					   const char *what, const char **reason)
{
	static char sentence[256];
	const char *wrong = NULL;
	int			descriptor;

	file->valid = false;

	/* O_NONBLOCK: opening a named pipe would wait for its writer. */
	descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
	if (descriptor < 0 || fstat(descriptor, &file->status) < 0)
	{
		snprintf(sentence, sizeof(sentence), "Could not open the %s: %s.", what,
				 strerror(errno));
		*reason = sentence;
	}
	else
	{
		wrong = permissions_error(&file->status);
		if (wrong == NULL)
			wrong = read_content(descriptor, file);
		if (wrong != NULL)
		{
			snprintf(sentence, sizeof(sentence), "The %s %s.", what, wrong);
			*reason = sentence;
		}
		file->valid = (wrong == NULL);
	}
	if (descriptor >= 0)
		close(descriptor);
	file->checked_in = GetCurrentStatementStartTimestamp();
	strlcpy(file->path, path, sizeof(file->path));
	return file->valid;
}

/*
 * Returns what is wrong with the file's type, owner or permissions, or NULL if
 * nothing is.  The rule is that of PostgreSQL for the server's TLS key
 * (check_ssl_key_file_permissions()): the file is accessible only to the
 * server's owner, or it belongs to root and is readable by a group that the
 * server belongs to.
 */
static const char *
permissions_error(const struct stat *status)
{
	if (!S_ISREG(status->st_mode))
		return "is not a regular file";
	if (status->st_uid != geteuid() && status->st_uid != 0)
		return "must be owned by the owner of the server process or by root";
	if ((status->st_uid == geteuid() && status->st_mode & (S_IRWXG | S_IRWXO)) ||
		(status->st_uid == 0 && status->st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)))
		return "must have permissions u=rw (0600) or less, or u=rw,g=r (0640) or less if it is owned by root";
	return NULL;
}

/*
 * Reads at most CLERK_SECRET_FILE_MAX bytes.  Returns what is wrong, or NULL if
 * nothing is.
 */
static const char *
read_content(int descriptor, ClerkSecretFile *file)
{
	ssize_t		length = read(descriptor, file->content, CLERK_SECRET_FILE_MAX);

	if (length < 0)
		return "could not be read";
	file->length = length;
	file->content[length] = '\0';
	return NULL;
}

/*
 * Whether two calls of stat() found the same, unchanged file.  The change time
 * detects a new mode or owner, which must be checked again.
 */
static bool
is_unchanged(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev &&
		a->st_ino == b->st_ino &&
		a->st_size == b->st_size &&
		memcmp(&a->st_mtim, &b->st_mtim, sizeof(a->st_mtim)) == 0 &&
		memcmp(&a->st_ctim, &b->st_ctim, sizeof(a->st_ctim)) == 0;
}
