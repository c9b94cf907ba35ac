/*
 * secret_key.c
 *		Checks a Clerk secret key, and reads it from a file.
 *
 * No text that is produced here contains the key or a part of it.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xact.h"
#include "common/secret_key.h"
#include "compat.h"

/* The key from the file that was read last, and the file's identity then. */
static struct
{
	bool		valid;
	TimestampTz checked_in;		/* start of the statement that checked the
								 * file last */
	struct stat status;
	char		path[MAXPGPATH];
	char		key[CLERK_SECRET_KEY_MAX + 1];
}			last_read;

static const char *permissions_error(const struct stat *status);
static const char *read_key(int file, char *key);
static bool is_unchanged(const struct stat *a, const struct stat *b);

/*
 * Returns what is wrong with a secret key, as a static sentence, or NULL if
 * nothing is.
 *
 * The key becomes part of a header line, so only characters that are allowed
 * there are accepted.  Clerk's publishable keys, which begin with "pk_", are
 * rejected with a message of their own because they are the usual mistake.
 */
const char *
clerk_secret_key_error(const char *key)
{
	size_t		length = strlen(key);

	if (length == 0)
		return "The key is empty.";
	if (length > CLERK_SECRET_KEY_MAX)
		return "The key is too long.";
	if (strncmp(key, "pk_", 3) == 0)
		return "This is a publishable key; a secret key begins with \"sk_\".";
	for (const char *c = key; *c != '\0'; c++)
		if (*c <= ' ' || *c > '~')
			return "The key contains an invalid character.";
	return NULL;
}

/*
 * Returns the key in a file, without surrounding white space.  The result is
 * valid until the next call.  If the file contains no usable key, returns NULL
 * and sets *reason to a sentence that is also valid until the next call.
 *
 * A relative path starts at the data directory.  The file's status is checked
 * once per statement, and the file is read again if it has changed.  So a key
 * can be replaced without a reload.
 */
const char *
clerk_secret_key_from_file(const char *path, const char **reason)
{
	static char system_error[256];
	TimestampTz statement = GetCurrentStatementStartTimestamp();
	struct stat status;
	int			file;

	if (last_read.valid && strcmp(last_read.path, path) == 0 &&
		(last_read.checked_in == statement ||
		 (stat(path, &status) == 0 &&
		  is_unchanged(&status, &last_read.status))))
	{
		last_read.checked_in = statement;
		return last_read.key;
	}
	last_read.valid = false;

	/* O_NONBLOCK: opening a named pipe would wait for its writer. */
	file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
	if (file < 0 || fstat(file, &status) < 0)
	{
		/*
		 * The message omits the file's name, because it is also shown to
		 * users who are not allowed to see the setting.
		 */
		snprintf(system_error, sizeof(system_error),
				 "Could not open the key file: %s.", strerror(errno));
		*reason = system_error;
	}
	else
	{
		*reason = permissions_error(&status);
		if (*reason == NULL)
			*reason = read_key(file, last_read.key);
		last_read.valid = (*reason == NULL);
	}
	if (file >= 0)
		close(file);
	if (!last_read.valid)
		return NULL;

	last_read.checked_in = statement;
	last_read.status = status;

	strlcpy(last_read.path, path, sizeof(last_read.path));
	return last_read.key;
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
		return "The key file is not a regular file.";
	if (status->st_uid != geteuid() && status->st_uid != 0)
		return "The key file must be owned by the owner of the server process or by root.";
	if ((status->st_uid == geteuid() && status->st_mode & (S_IRWXG | S_IRWXO)) ||
		(status->st_uid == 0 && status->st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)))
		return "The key file must have permissions u=rw (0600) or less, or u=rw,g=r (0640) or less if it is owned by root.";
	return NULL;
}

/*
 * Reads the key into a buffer of CLERK_SECRET_KEY_MAX + 1 bytes.  Returns what
 * is wrong with it, or NULL if nothing is.
 */
static const char *
read_key(int file, char *key)
{
	/*
	 * This has room for white space around the longest key, and for enough
	 * bytes to recognize a longer one.
	 */
	char		content[CLERK_SECRET_KEY_MAX + 64];
	ssize_t		length;
	char	   *start = content;

	length = read(file, content, sizeof(content) - 1);
	if (length < 0)
		return "The key file could not be read.";
	if (strnlen(content, length) < (size_t) length)
		return "The key contains an invalid character.";
	content[length] = '\0';

	while (length > 0 && strchr(" \t\r\n", content[length - 1]) != NULL)
		content[--length] = '\0';
	while (*start != '\0' && strchr(" \t\r\n", *start) != NULL)
		start++;
	if (strlen(start) > CLERK_SECRET_KEY_MAX)
		return "The key is too long.";
	strlcpy(key, start, CLERK_SECRET_KEY_MAX + 1);
	return clerk_secret_key_error(key);
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
