/*
 * domain_name.h
 *		Conversion of internationalized domain names.
 */
#ifndef CLERK_DOMAIN_NAME_H
#define CLERK_DOMAIN_NAME_H

#include <locale.h>

/* Longest domain name in ASCII, in bytes: the limit of the DNS (RFC 1035). */
#define CLERK_DOMAIN_MAX 255

extern bool clerk_domain_to_ascii(const char *domain, locale_t utf8_locale,
								  char *ascii);

#endif							/* CLERK_DOMAIN_NAME_H */
