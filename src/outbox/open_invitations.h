/*
 * open_invitations.h
 *		The invitations of which a refresh wants to know the status.
 *
 * An invitation is "open" until a response has named it.
 */
#ifndef CLERK_OPEN_INVITATIONS_H
#define CLERK_OPEN_INVITATIONS_H

#include "outbox/status_statements.h"

struct ClerkOpenOrganization;

/* An invitation that was pending in the outbox. */
typedef struct ClerkOpenInvitation
{
	const ClerkOutboxPending *row;
	struct ClerkOpenOrganization *organization;
	bool		open;			/* no response has named it */
} ClerkOpenInvitation;

/* An organization with invitations that were pending in the outbox. */
typedef struct ClerkOpenOrganization
{
	const char *id;
	ClerkOpenInvitation *invitations;	/* an array */
	int64		count;
	int64		open;			/* number of open ones */
	int64		pending;		/* open, or named as pending */
} ClerkOpenOrganization;

/* All of them. */
typedef struct ClerkOpenInvitations
{
	ClerkOpenOrganization *organizations;
	int			organization_count;
	ClerkOpenInvitation **by_id;	/* each invitation once, ordered by id */
	int64		count;
} ClerkOpenInvitations;

extern void clerk_open_invitations_load(ClerkOpenInvitations *set);
extern ClerkOpenInvitation *clerk_open_invitation_find(const ClerkOpenInvitations *set,
													   const char *id);
extern void clerk_open_invitation_close(ClerkOpenInvitation *invitation,
										const char *status);

#endif							/* CLERK_OPEN_INVITATIONS_H */
