/*
 * error_rules.h
 *		What Clerk's refusals mean: a table that maps HTTP status and Clerk's
 *		error code to class, SQLSTATE and messages.
 */
#ifndef CLERK_ERROR_RULES_H
#define CLERK_ERROR_RULES_H

#include "clerk/error.h"

typedef struct ClerkErrorRule
{
	int			http_status;	/* 0: any from 400 to 499 */
	const char *code;			/* NULL: any code, or none */
	ClerkErrorClass class;
	int			sqlstate;
	const char *summary;
	const char *hint;
} ClerkErrorRule;

extern const ClerkErrorRule *clerk_find_error_rule(ClerkEffect effect,
												   int http_status,
												   const char *code);

#endif							/* CLERK_ERROR_RULES_H */
