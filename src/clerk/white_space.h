/*
 * white_space.h
 *		Removes white space around an e-mail address.
 */
#ifndef CLERK_WHITE_SPACE_H
#define CLERK_WHITE_SPACE_H

extern const char *clerk_trim(const char *text, size_t *length);

#endif							/* CLERK_WHITE_SPACE_H */
