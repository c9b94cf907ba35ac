/*
 * id_sequence.h
 *		The sequence that generates the ids of the outbox's rows.
 */
#ifndef CLERK_ID_SEQUENCE_H
#define CLERK_ID_SEQUENCE_H

#include "utils/rel.h"

extern int64 clerk_outbox_last_id(Relation table);
extern void clerk_outbox_advance_id_sequence(Relation table);

#endif							/* CLERK_ID_SEQUENCE_H */
