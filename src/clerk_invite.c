/*
 * clerk_invite.c
 *		Module entry: what happens when the library is loaded.
 *
 * Nothing here may start libcurl: the library may be loaded by the
 * postmaster, and neither threads nor connections survive a fork.
 */
#include "postgres.h"

#include "clerk/rate_limit.h"
#include "common/settings.h"
#include "compat.h"
#include "fmgr.h"
#include "worker/launcher.h"
#include "worker/slots.h"

CLERK_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	clerk_define_settings();
	clerk_rate_limit_request_memory();
	clerk_worker_slots_request_memory();
	clerk_register_launcher();
}
