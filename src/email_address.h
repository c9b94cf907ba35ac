/*
 * email_address.h
 *		Which e-mail addresses are the same to Clerk.
 */
#ifndef CLERK_EMAIL_ADDRESS_H
#define CLERK_EMAIL_ADDRESS_H

extern char *clerk_fold_address(const char *address);
extern bool clerk_is_same_address(const char *a, const char *b);

#endif							/* CLERK_EMAIL_ADDRESS_H */
