/*
 * secret_key.h
 *		Checks a Clerk secret key, and reads it from a file.
 */
#ifndef CLERK_SECRET_KEY_H
#define CLERK_SECRET_KEY_H

/*
 * Longest key that is accepted, in bytes.  Clerk's keys have about 50, and a
 * header line has room for far more.  A file that was named by mistake is
 * seldom shorter.
 */
#define CLERK_SECRET_KEY_MAX 255

extern const char *clerk_secret_key_error(const char *key);
extern const char *clerk_secret_key_from_file(const char *path,
											  const char **reason);

#endif							/* CLERK_SECRET_KEY_H */
