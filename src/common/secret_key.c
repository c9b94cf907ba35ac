/*
 * secret_key.c
 *		What a Clerk secret key may look like, and reading one from a file.
 *
 * No text made here ever contains the key or a part of it: what is wrong is
 * said in words alone.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xact.h"
#include "common/secret_key.h"
#include "compat.h"

/* The file's identity and content when it was last read. */
static struct
{
	bool		valid;
	TimestampTz statement;		/* start of the one that last looked */
	struct stat status;
	char		path[MAXPGPATH];
	char		key[CLERK_SECRET_KEY_MAX + 1];
}			last_read;

static const char *file_error(const struct stat *status);
static const char *read_key(int file, char *key);
static bool same_file(const struct stat *a, const struct stat *b);

/*
 * What is wrong with this key: NULL if nothing, else a static sentence.
 *
 * The key becomes part of a header line, so only characters that can stand in
 * one are let through.  Clerk's publishable keys begin with "pk_" and are the
 * usual mistake.
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
 * The key kept in a file, without the white space around it.  The result is
 * valid until the next call.
 *
 * A relative path starts at the data directory.  The file's status is looked
 * at once a statement, and the file read again when that has changed: so a key
 * can be replaced without a reload.
 *
 * Returns NULL and sets *reason to a sentence if there is no usable key in it;
 * the sentence is valid until the next call.
 */
const char *
clerk_secret_key_from_file(const char *path, const char **reason)
{
	static char system_error[256];
	TimestampTz statement = GetCurrentStatementStartTimestamp();
	struct stat status;
	int			file;

	if (last_read.valid && strcmp(last_read.path, path) == 0 &&
		(last_read.statement == statement ||
		 (stat(path, &status) == 0 &&
		  same_file(&status, &last_read.status))))
	{
		last_read.statement = statement;
		return last_read.key;
	}
	last_read.valid = false;

	/* O_NONBLOCK: opening a named pipe would wait for its writer. */
	file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
	if (file < 0 || fstat(file, &status) < 0)
	{
		/* Who may not see the setting need not learn the file's name. */
		snprintf(system_error, sizeof(system_error),
				 "Could not open the key file: %s.", strerror(errno));
		*reason = system_error;
	}
	else
	{
		*reason = file_error(&status);
		if (*reason == NULL)
			*reason = read_key(file, last_read.key);
		last_read.valid = (*reason == NULL);
	}
	if (file >= 0)
		close(file);
	if (!last_read.valid)
		return NULL;

	last_read.statement = statement;
	last_read.status = status;

	strlcpy(last_read.path, path, sizeof(last_read.path));
	return last_read.key;
}

/*
 * The rule that PostgreSQL has for the server's TLS key
 * (check_ssl_key_file_permissions): for the owner of the server alone, or
 * root's and readable by a group of which the server is a member.
 */
static const char *
file_error(const struct stat *status)
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

/* Reads the key into a buffer of CLERK_SECRET_KEY_MAX + 1 bytes. */
static const char *
read_key(int file, char *key)
{
	/* Room for some white space around the longest key, and to see more. */
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
 * Whether two looks found the same, unchanged file.  The change time catches
 * a new mode or owner, which must be checked again.
 */
static bool
same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev &&
		a->st_ino == b->st_ino &&
		a->st_size == b->st_size &&
		memcmp(&a->st_mtim, &b->st_mtim, sizeof(a->st_mtim)) == 0 &&
		memcmp(&a->st_ctim, &b->st_ctim, sizeof(a->st_ctim)) == 0;
}
