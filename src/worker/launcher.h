/*
 * launcher.h
 *		Starts the workers after the server has started.
 */
#ifndef CLERK_LAUNCHER_H
#define CLERK_LAUNCHER_H

#include "postgres.h"

extern void clerk_register_launcher(void);
extern PGDLLEXPORT void clerk_launcher_main(Datum main_arg);

#endif							/* CLERK_LAUNCHER_H */
