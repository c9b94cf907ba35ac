/*
 * url_rules.h
 *		Which URLs and addresses a secret key may be sent to.
 */
#ifndef CLERK_URL_RULES_H
#define CLERK_URL_RULES_H

#include <sys/socket.h>

extern const char *clerk_url_error(const char *url, bool *loopback_only);
extern bool clerk_is_loopback_address(const struct sockaddr *address);

#endif							/* CLERK_URL_RULES_H */
