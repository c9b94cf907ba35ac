/*
 * email_address.h
 *		Which e-mail addresses Clerk treats as the same.
 */
#ifndef CLERK_EMAIL_ADDRESS_H
#define CLERK_EMAIL_ADDRESS_H

/* How similar two addresses are, in ascending order. */
typedef enum ClerkLikeness
{
	CLERK_ADDRESS_OTHER,
	CLERK_ADDRESS_NORMALIZED,	/* equal in normalized form */
	CLERK_ADDRESS_FOLDED,		/* equal except for case */
	CLERK_ADDRESS_EXACT
} ClerkLikeness;

extern char *clerk_fold_address(const char *address);
extern char *clerk_normalize_address(const char *address);
extern const char *clerk_normalized_text(const char *address);
extern ClerkLikeness clerk_address_likeness(const char *a, const char *b);
extern void clerk_match_addresses(const char *const *wanted, int wanted_count,
								  const char *const *found, int found_count,
								  int *matches);

#endif							/* CLERK_EMAIL_ADDRESS_H */
