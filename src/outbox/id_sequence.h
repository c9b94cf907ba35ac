/*
 * id_sequence.h
 *		The numbers of the outbox's rows, and the sequence that gives them out.
 */
#ifndef CLERK_OUTBOX_NUMBERS_H
#define CLERK_OUTBOX_NUMBERS_H

#include "utils/rel.h"

extern int64 clerk_outbox_last_number(Relation table);
extern void clerk_outbox_keep_numbers_ahead(Relation table);

#endif							/* CLERK_OUTBOX_NUMBERS_H */
