/*
 * domain_name.h
 *		Names of Internet domains.
 */
#ifndef CLERK_DOMAIN_NAME_H
#define CLERK_DOMAIN_NAME_H

#include <locale.h>

/* Longest name in ASCII that the DNS has, RFC 1035. */
#define CLERK_DOMAIN_MAX 255

extern bool clerk_domain_to_ascii(const char *domain, locale_t unicode,
								  char *ascii);

#endif							/* CLERK_DOMAIN_NAME_H */
