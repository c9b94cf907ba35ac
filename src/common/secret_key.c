/*
 * secret_key.c
 *		Checks a Clerk secret key, and reads it from a file.
 *
 * No text that is produced here contains the key or a part of it.
 */
#include "postgres.h"

#include "common/secret_file.h"
#include "common/secret_key.h"

static const char *copy_key(const ClerkSecretFile *file, char *key);

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
 */
const char *
clerk_secret_key_from_file(const char *path, const char **reason)
{
	static ClerkSecretFile file;
	static char key[CLERK_SECRET_KEY_MAX + 1];

	if (clerk_secret_file_is_current(&file, path))
		return key;
	if (!clerk_secret_file_read(&file, path, "key file", reason))
		return NULL;
	*reason = copy_key(&file, key);
	file.valid = (*reason == NULL);
	return file.valid ? key : NULL;
}

/*
 * Copies the key to a buffer of CLERK_SECRET_KEY_MAX + 1 bytes.  Returns what
 * is wrong with it, or NULL if nothing is.
 */
static const char *
copy_key(const ClerkSecretFile *file, char *key)
{
	const char *white_space = " \t\r\n";
	const char *content = file->content + strspn(file->content, white_space);
	size_t		length = strlen(content);

	if (strlen(file->content) < file->length)
		return "The key contains an invalid character.";
	while (length > 0 && strchr(white_space, content[length - 1]) != NULL)
		length--;
	if (length > CLERK_SECRET_KEY_MAX)
		return "The key is too long.";
	memcpy(key, content, length);
	key[length] = '\0';
	return clerk_secret_key_error(key);
}
