/*
 * secret_file.h
 *		Reads a file that contains secrets.
 */
#ifndef CLERK_SECRET_FILE_H
#define CLERK_SECRET_FILE_H

#include <sys/stat.h>

#include "datatype/timestamp.h"

/*
 * Bytes of a file that are read.  The extension's own secrets have far fewer,
 * so a file with more was named by mistake.
 */
#define CLERK_SECRET_FILE_MAX 4096

/*
 * What was read from a file, and the file's identity then.  Must be a static
 * variable, initially zero.
 */
typedef struct ClerkSecretFile
{
	bool		valid;			/* the rest is filled in */
	TimestampTz checked_in;		/* start of the statement that checked the
								 * file last */
	struct stat status;
	char		path[MAXPGPATH];
	size_t		length;			/* of the content, in bytes */
	char		content[CLERK_SECRET_FILE_MAX + 1]; /* NUL-terminated */
} ClerkSecretFile;

extern bool clerk_secret_file_is_current(ClerkSecretFile *file,
										 const char *path);
extern bool clerk_secret_file_read(ClerkSecretFile *file, const char *path,
								   const char *what, const char **reason);

#endif							/* CLERK_SECRET_FILE_H */
