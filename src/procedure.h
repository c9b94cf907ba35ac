/*
 * procedure.h
 *		Procedures that commit as they go, so that nothing is held while the
 *		network waits.
 */
#ifndef CLERK_PROCEDURE_H
#define CLERK_PROCEDURE_H

#include "clerk_error.h"
#include "fmgr.h"

extern MemoryContext clerk_procedure_begin(FunctionCallInfo fcinfo,
										   const char *procedure);
extern void clerk_procedure_commit(void);
extern void clerk_procedure_end(MemoryContext caller);
extern void clerk_procedure_report_stop(const ClerkError *error,
										const char *what);

#endif							/* CLERK_PROCEDURE_H */
