/*
 * secret_key.h
 *		What a Clerk secret key may look like, and reading one from a file.
 */
#ifndef CLERK_SECRET_KEY_H
#define CLERK_SECRET_KEY_H

/*
 * Longest key accepted, in bytes.  Clerk's are about 50; a header line has
 * room for far more, and a file that was named by mistake is seldom shorter.
 */
#define CLERK_SECRET_KEY_MAX 255

extern const char *clerk_secret_key_error(const char *key);
extern const char *clerk_secret_key_from_file(const char *path,
											  const char **reason);

#endif							/* CLERK_SECRET_KEY_H */
