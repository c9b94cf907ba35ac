/*
 * open_invitations.c
 *		The invitations of which a refresh wants to know the status.
 */
#include "postgres.h"

#include "clerk/invitation_json.h"
#include "outbox/open_invitations.h"
#include "utils/memutils.h"

static void group_by_organization(ClerkOpenInvitations *set,
								  ClerkOpenInvitation *invitations);
static void sort_by_id(ClerkOpenInvitations *set,
					   ClerkOpenInvitation *invitations);
static int	compare_ids(const void *left, const void *right);

/*
 * Fills in the set with the invitations that are pending in the outbox, in the
 * current memory context.  Must be called in a transaction; raises the errors
 * of clerk_outbox_run().
 */
void
clerk_open_invitations_load(ClerkOpenInvitations *set)
{
	ClerkOutboxPending *rows;
	ClerkOpenInvitation *invitations;

	memset(set, 0, sizeof(*set));
	set->count = clerk_outbox_pending(&rows);
	invitations = MemoryContextAllocHuge(CurrentMemoryContext,
										 Max(set->count, 1) * sizeof(ClerkOpenInvitation));
	for (int64 i = 0; i < set->count; i++)
	{
		invitations[i].row = &rows[i];
		invitations[i].open = true;
	}
	group_by_organization(set, invitations);
	sort_by_id(set, invitations);
}

/*
 * Rows are ordered by organization, and those of one share the pointer to its
 * id.
 */
static void
group_by_organization(ClerkOpenInvitations *set,
					  ClerkOpenInvitation *invitations)
{
	int			count = 0;

	for (int64 i = 0; i < set->count; i++)
		if (i == 0 ||
			invitations[i].row->organization_id != invitations[i - 1].row->organization_id)
			count++;
	set->organizations = palloc0(Max(count, 1) * sizeof(ClerkOpenOrganization));
	for (int64 i = 0; i < set->count; i++)
	{
		ClerkOpenOrganization *organization;

		if (i == 0 ||
			invitations[i].row->organization_id != invitations[i - 1].row->organization_id)
		{
			organization = &set->organizations[set->organization_count++];
			organization->id = invitations[i].row->organization_id;
			organization->invitations = &invitations[i];
		}
		organization = &set->organizations[set->organization_count - 1];
		organization->count++;
		organization->open++;
		organization->pending++;
		invitations[i].organization = organization;
	}
}

/*
 * Sorts invitations by id, and closes all but one of those that are in several
 * rows.
 */
static void
sort_by_id(ClerkOpenInvitations *set, ClerkOpenInvitation *invitations)
{
	int64		kept = 0;

	set->by_id = MemoryContextAllocHuge(CurrentMemoryContext,
										Max(set->count, 1) * sizeof(ClerkOpenInvitation *));
	for (int64 i = 0; i < set->count; i++)
		set->by_id[i] = &invitations[i];
	qsort(set->by_id, set->count, sizeof(ClerkOpenInvitation *), compare_ids);
	for (int64 i = 0; i < set->count; i++)
	{
		if (kept > 0 &&
			compare_ids(&set->by_id[i], &set->by_id[kept - 1]) == 0)
			clerk_open_invitation_close(set->by_id[i], CLERK_INVITATION_PENDING);
		else
			set->by_id[kept++] = set->by_id[i];
	}
	set->count = kept;
}

static int
compare_ids(const void *left, const void *right)
{
	const ClerkOpenInvitation *const *a = left;
	const ClerkOpenInvitation *const *b = right;

	return strcmp((*a)->row->invitation_id, (*b)->row->invitation_id);
}

/* Returns the invitation with this id; NULL if the set has none. */
ClerkOpenInvitation *
clerk_open_invitation_find(const ClerkOpenInvitations *set, const char *id)
{
	ClerkOutboxPending row = {.invitation_id = id};
	ClerkOpenInvitation wanted = {.row = &row};
	ClerkOpenInvitation *key = &wanted;
	ClerkOpenInvitation **found = bsearch(&key, set->by_id, set->count,
										  sizeof(ClerkOpenInvitation *), compare_ids);

	return found == NULL ? NULL : *found;
}

/*
 * A response has named the invitation.  Even without a status, another
 * response would say no more.
 */
void
clerk_open_invitation_close(ClerkOpenInvitation *invitation, const char *status)
{
	invitation->open = false;
	invitation->organization->open--;
	if (status != NULL && strcmp(status, CLERK_INVITATION_PENDING) != 0)
		invitation->organization->pending--;
}
