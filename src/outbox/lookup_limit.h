/*
 * lookup_limit.h
 *		How many lookups a process may make.
 */
#ifndef CLERK_LOOKUP_LIMIT_H
#define CLERK_LOOKUP_LIMIT_H

#include "datatype/timestamp.h"

extern int	clerk_lookups_left(TimestampTz *next_lookup_at);
extern void clerk_lookups_note(int count);

#endif							/* CLERK_LOOKUP_LIMIT_H */
