/*
 * worker.h
 *		The background worker that sends the invitations of a database.
 */
#ifndef CLERK_WORKER_H
#define CLERK_WORKER_H

#include "postmaster/bgworker.h"

/* The library that the postmaster loads for a worker's main function. */
#define CLERK_WORKER_LIBRARY "$libdir/clerk_invite"

extern bool clerk_worker_start(Oid database, BackgroundWorkerHandle **handle);
extern PGDLLEXPORT void clerk_worker_main(Datum main_arg);

#endif							/* CLERK_WORKER_H */
