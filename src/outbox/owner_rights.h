/*
 * owner_rights.h
 *		Runs code that users have attached to a table with the rights of its
 *		owner.
 */
#ifndef CLERK_OWNER_RIGHTS_H
#define CLERK_OWNER_RIGHTS_H

/* What clerk_restore_rights() restores. */
typedef struct ClerkRights
{
	Oid			user;
	int			security_context;
	int			guc_nest_level;
	int64		temporary_objects;	/* of the session, before */
} ClerkRights;

/*
 * Schemas in which only a superuser can create objects, apart from the
 * temporary one, which comes last.
 */
#define CLERK_SAFE_SEARCH_PATH "pg_catalog, pg_temp"

extern Oid	clerk_lock_table_and_owner(Oid table);
extern void clerk_take_owner_rights(Oid owner, ClerkRights *rights);
extern void clerk_refuse_temporary_objects(const ClerkRights *rights);
extern void clerk_restore_rights(const ClerkRights *rights);
extern void clerk_set_locally(const char *name, const char *value);
extern void clerk_fire_triggers(void);
extern void clerk_make_constraints_immediate_of(Oid table);
extern void clerk_make_constraints_immediate(void);

#endif							/* CLERK_OWNER_RIGHTS_H */
