/*
 * status_refresh.c
 *		Learns what became of the invitations that are pending in the outbox,
 *		with as few requests as Clerk allows.
 *
 * A row gets a status only from an answer that names its invitation.  An
 * invitation is "open" until an answer has named it, and open ones are asked
 * for on three levels, as long as there are any:
 *
 * 1. Lists of the whole Clerk instance.
 * 2. Lists of each organization with open invitations.
 * 3. The list of each open invitation's address.
 *
 * Levels 1 and 2 read two lists.  That of the pending ones is short however
 * long the history is, and on most days names nearly all: read to its end, it
 * leaves open those that have changed.  Then that of the others, newest first,
 * since who accepts does so soon.  A list is left when what is still open costs
 * fewer requests on the levels below: the first one when Clerk counts so many
 * that the rest of it would cost more, the second one when it has cost as much.
 * So without a change it takes one request for each 500 that are pending, with
 * some changes another one, and never more than about twice what asking for
 * each would take.
 *
 * If a level is refused, as a key may be restricted, the ones below it remain.
 *
 * One request is under way at a time: that keeps below Clerk's general limit,
 * 100 requests in 10 seconds on a development instance, without counting, and
 * what takes long holds nothing.
 */
#include "postgres.h"

#include "clerk/await_request.h"
#include "clerk/invitation_pages.h"
#include "clerk/operations.h"
#include "compat.h"
#include "outbox/outbox.h"
#include "outbox/outbox_statement.h"
#include "outbox/status_refresh.h"
#include "outbox/status_statements.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Invitations asked for at a time after an answer was lost, perhaps because it
 * was larger than the 4 MiB that http/http.c takes: as in sql/list_invitations.c.
 */
#define SAFE_PAGE_SIZE 200

/* Answers in a row that fail before Clerk is taken to be in trouble. */
#define MAX_FAILURES 3

struct Organization;

/* An invitation that was pending in the outbox. */
typedef struct Invitation
{
	const ClerkOutboxPending *row;
	struct Organization *organization;
	bool		open;			/* no answer has named it */
} Invitation;

typedef struct Organization
{
	const char *id;
	Invitation *invitations;	/* an array */
	int64		count;
	int64		open;			/* of them */
	int64		pending;		/* of them, or open */
} Organization;

typedef struct Refresh
{
	ClerkRefreshReport *report;
	void		(*commit) (void);	/* and begin a transaction */
	MemoryContext memory;		/* of all this */
	MemoryContext list_memory;	/* of a list that is being read */
	MemoryContext page_memory;	/* of a page, its request and its changes */
	Organization *organizations;
	int			organization_count;
	Invitation **by_id;			/* all of them, in that order */
	int64		count;
	int			page_size;
	int			failures;		/* in a row */
	bool		refused;		/* the last request, for good */
	bool		over;			/* no further request makes sense */
} Refresh;

static void load(Refresh *refresh);
static void group(Refresh *refresh, Invitation *invitations);
static void sort_by_id(Refresh *refresh, Invitation *invitations);
static int	compare_ids(const void *left, const void *right);
static bool read_pending(Refresh *refresh, const Organization *organization);
static void read_settled(Refresh *refresh, const Organization *organization);
static void refresh_organization(Refresh *refresh, Organization *organization,
								 bool only_settled);
static void look_up(Refresh *refresh, const Invitation *invitation);
static int64 calls_below(const Refresh *refresh,
						 const Organization *organization);
static int64 calls_for(const Organization *organization);
static bool ask(Refresh *refresh, const ClerkListing *wanted,
				ClerkInvitationList *page);
static bool may_ask(Refresh *refresh, const ClerkListing *listing);
static bool is_lost(const ClerkError *error);
static void note_failure(Refresh *refresh, const ClerkError *error);
static void take_page(Refresh *refresh, const ClerkInvitationList *page);
static Invitation *find(const Refresh *refresh, const char *id);
static void close_invitation(Invitation *invitation, const char *status);
static void count_untold(Refresh *refresh);
static void count_changes(ClerkRefreshReport *report, const List *statuses);

/*
 * Brings the statuses in the outbox of this schema up to date, and fills in the
 * report.  "commit" ends the current transaction and begins the next one, so
 * that nothing is held while the network waits.
 *
 * Raises an error if the session is told to stop: what was learned before that
 * is committed.  Two at a time do no harm: a row changes once.
 */
void
clerk_refresh_statuses(Oid schema, void (*commit) (void),
					   ClerkRefreshReport *report)
{
	Refresh		refresh = {
		.report = report,
		.commit = commit,
		.page_size = CLERK_LIST_MAX
	};
	bool		only_settled;
	int			first;

	memset(report, 0, sizeof(*report));
	refresh.memory = AllocSetContextCreate(CurrentMemoryContext,
										   "clerk_invite refresh",
										   ALLOCSET_DEFAULT_SIZES);
	refresh.list_memory = AllocSetContextCreate(refresh.memory,
												"clerk_invite list",
												ALLOCSET_DEFAULT_SIZES);
	refresh.page_memory = AllocSetContextCreate(refresh.memory,
												"clerk_invite page",
												ALLOCSET_DEFAULT_SIZES);
	clerk_outbox_find(schema);
	load(&refresh);
	commit();

	only_settled = read_pending(&refresh, NULL);
	if (only_settled)
		read_settled(&refresh, NULL);

	/* What is lacking there, the lists below may have. */
	if (!refresh.over)
		report->untold_for = NULL;
	refresh.failures = 0;

	/* Begin anywhere: what ends one run early does not favor some for ever. */
	first = (int) (clerk_random_fraction() * refresh.organization_count);
	for (int i = 0; i < refresh.organization_count && !refresh.over; i++)
		refresh_organization(&refresh,
							 &refresh.organizations[(first + i) % refresh.organization_count],
							 only_settled);

	count_untold(&refresh);
	MemoryContextDelete(refresh.list_memory);
	MemoryContextDelete(refresh.page_memory);
}

/* The invitations that are pending in the outbox. */
static void
load(Refresh *refresh)
{
	MemoryContext caller = MemoryContextSwitchTo(refresh->memory);
	ClerkOutboxPending *rows;
	Invitation *invitations;

	refresh->count = clerk_outbox_pending(&rows);
	invitations = MemoryContextAllocHuge(refresh->memory,
										 Max(refresh->count, 1) * sizeof(Invitation));
	for (int64 i = 0; i < refresh->count; i++)
	{
		invitations[i].row = &rows[i];
		invitations[i].open = true;
	}
	group(refresh, invitations);
	sort_by_id(refresh, invitations);
	refresh->report->pending = refresh->count;
	MemoryContextSwitchTo(caller);
}

/* Rows come by organization, and those of one have the same pointer. */
static void
group(Refresh *refresh, Invitation *invitations)
{
	int			count = 0;

	for (int64 i = 0; i < refresh->count; i++)
		if (i == 0 ||
			invitations[i].row->organization_id != invitations[i - 1].row->organization_id)
			count++;
	refresh->organizations = palloc0(Max(count, 1) * sizeof(Organization));
	for (int64 i = 0; i < refresh->count; i++)
	{
		Organization *organization;

		if (i == 0 ||
			invitations[i].row->organization_id != invitations[i - 1].row->organization_id)
		{
			organization = &refresh->organizations[refresh->organization_count++];
			organization->id = invitations[i].row->organization_id;
			organization->invitations = &invitations[i];
		}
		organization = &refresh->organizations[refresh->organization_count - 1];
		organization->count++;
		organization->open++;
		organization->pending++;
		invitations[i].organization = organization;
	}
}

/* An invitation that is in several rows is asked for once. */
static void
sort_by_id(Refresh *refresh, Invitation *invitations)
{
	int64		kept = 0;

	refresh->by_id = MemoryContextAllocHuge(refresh->memory,
											Max(refresh->count, 1) * sizeof(Invitation *));
	for (int64 i = 0; i < refresh->count; i++)
		refresh->by_id[i] = &invitations[i];
	qsort(refresh->by_id, refresh->count, sizeof(Invitation *), compare_ids);
	for (int64 i = 0; i < refresh->count; i++)
	{
		if (kept > 0 &&
			compare_ids(&refresh->by_id[i], &refresh->by_id[kept - 1]) == 0)
			close_invitation(refresh->by_id[i], CLERK_INVITATION_PENDING);
		else
			refresh->by_id[kept++] = refresh->by_id[i];
	}
	refresh->count = kept;
}

static int
compare_ids(const void *left, const void *right)
{
	const Invitation *const *a = left;
	const Invitation *const *b = right;

	return strcmp((*a)->row->invitation_id, (*b)->row->invitation_id);
}

/*
 * Reads the list of an organization's pending invitations, or the instance's if
 * it is NULL, as far as that pays.  True if it was read to its end: what is
 * still open was not pending all the time.
 */
static bool
read_pending(Refresh *refresh, const Organization *organization)
{
	ClerkListing listing = {.limit = refresh->page_size};
	ClerkInvitationPages *pages;
	MemoryContext caller;
	int64		left = 1;

	MemoryContextReset(refresh->list_memory);
	caller = MemoryContextSwitchTo(refresh->list_memory);
	listing.organization_id = organization == NULL ? NULL : organization->id;
	listing.statuses = list_make1(CLERK_INVITATION_PENDING);
	pages = clerk_pages_begin(&listing);
	MemoryContextSwitchTo(caller);

	while (left > 0 && calls_below(refresh, organization) > 1 &&
		   left <= calls_below(refresh, organization))
	{
		ClerkInvitationList page;

		clerk_pages_set_size(pages, refresh->page_size);
		if (!ask(refresh, clerk_pages_wanted(pages), &page))
			return false;
		clerk_pages_set_size(pages, refresh->page_size);
		take_page(refresh, &page);
		if (clerk_pages_take(pages, &page) != NULL)
			return false;
		while (clerk_pages_next(pages) != NULL)
			;
		left = clerk_pages_left(pages);
	}
	return left == 0;
}

/*
 * Reads the list of an organization's invitations that are no longer pending,
 * or the instance's if it is NULL, as far as that pays.  It may change while it
 * is read, so that one is missed: it stays open.
 */
static void
read_settled(Refresh *refresh, const Organization *organization)
{
	ClerkListing listing = {0};
	MemoryContext caller;

	MemoryContextReset(refresh->list_memory);
	caller = MemoryContextSwitchTo(refresh->list_memory);
	listing.organization_id = organization == NULL ? NULL : organization->id;
	listing.statuses = list_make3("accepted", "revoked", "expired");
	MemoryContextSwitchTo(caller);

	for (int64 spent = 0; calls_below(refresh, organization) > 1 &&
		 spent < calls_below(refresh, organization); spent++)
	{
		ClerkInvitationList page;

		if (!ask(refresh, &listing, &page))
			return;
		take_page(refresh, &page);
		listing.offset += page.count;
		if (page.count == 0 || listing.offset >= page.total_count)
			return;
	}
}

/* What is still open of an organization's, which may be gone from Clerk. */
static void
refresh_organization(Refresh *refresh, Organization *organization,
					 bool only_settled)
{
	refresh->refused = false;
	if (only_settled || read_pending(refresh, organization))
		read_settled(refresh, organization);
	for (int64 i = 0; i < organization->count && organization->open > 0; i++)
	{
		if (refresh->refused || refresh->over)
			break;
		if (organization->invitations[i].open)
			look_up(refresh, &organization->invitations[i]);
	}
}

/* A page of Clerk's largest size holds all that an address can have. */
static void
look_up(Refresh *refresh, const Invitation *invitation)
{
	ClerkListing listing = {
		.organization_id = invitation->row->organization_id,
		.email_address = invitation->row->email_address
	};
	ClerkInvitationList page;

	if (ask(refresh, &listing, &page))
		take_page(refresh, &page);
}

/*
 * The fewest requests by which the levels below an organization, or below the
 * instance if it is NULL, could tell about all that is open.
 */
static int64
calls_below(const Refresh *refresh, const Organization *organization)
{
	int64		calls = 0;

	if (refresh->over)
		return 0;
	if (organization != NULL)
		return organization->open;
	for (int i = 0; i < refresh->organization_count; i++)
		calls += calls_for(&refresh->organizations[i]);
	return calls;
}

/* One by one, or by the organization's list, which begins with those known. */
static int64
calls_for(const Organization *organization)
{
	if (organization->open <= 1)
		return organization->open;
	return Min(organization->open,
			   1 + (organization->pending - 1) / CLERK_LIST_MAX);
}

/*
 * Asks for a page, of a size that is decided here, and waits for it; false if
 * there is no answer to work with.
 */
static bool
ask(Refresh *refresh, const ClerkListing *wanted, ClerkInvitationList *page)
{
	ClerkListing listing = *wanted;
	MemoryContext caller;
	ClerkError *error = NULL;
	bool		answered;
	bool		again;

	do
	{
		ClerkHttpRequest *request = NULL;

		MemoryContextReset(refresh->page_memory);
		caller = MemoryContextSwitchTo(refresh->page_memory);
		listing.limit = refresh->page_size;
		if (!may_ask(refresh, &listing))
		{
			MemoryContextSwitchTo(caller);
			return false;
		}
		request = clerk_start_list_invitations(&listing, &error);
		if (request != NULL)
			clerk_await(request, CLERK_EFFECT_NONE);
		answered = request != NULL &&
			clerk_finish_list_invitations(request, &listing, page, &error);
		MemoryContextSwitchTo(caller);
		again = !answered && is_lost(error) &&
			refresh->page_size > SAFE_PAGE_SIZE;
		if (again)
			refresh->page_size = SAFE_PAGE_SIZE;
	} while (again);

	refresh->refused = !answered && error->class == CLERK_ERROR_FINAL;
	if (answered)
		refresh->failures = 0;
	else
		note_failure(refresh, error);
	return answered;
}

/*
 * Whether Clerk takes such a request now: the lists of organizations are also
 * what senders verify with, and may have been closed to them.
 */
static bool
may_ask(Refresh *refresh, const ClerkListing *listing)
{
	ClerkBudget budget;
	ClerkError *error;
	uint64		instance;

	if (!clerk_chosen_instance(&instance, &error))
	{
		note_failure(refresh, error);
		return false;
	}
	if (listing->organization_id == NULL)
		return true;
	clerk_rate_limit_read(instance, CLERK_ENDPOINT_LIST, &budget);
	if (budget.closed_until <= GetCurrentTimestamp())
		return true;
	refresh->report->limited_until = budget.closed_until;
	refresh->over = true;
	return false;
}

/* Whether a request came to nothing that a smaller page may mend. */
static bool
is_lost(const ClerkError *error)
{
	return error->class == CLERK_ERROR_OUTCOME_UNKNOWN &&
		error->http_status == 0;
}

/* One request has failed: is it about all the others, too? */
static void
note_failure(Refresh *refresh, const ClerkError *error)
{
	MemoryContext caller = MemoryContextSwitchTo(refresh->memory);

	switch (error->class)
	{
		case CLERK_ERROR_FINAL:
		case CLERK_ERROR_EXISTS:
			refresh->failures = 0;
			break;
		case CLERK_ERROR_TRY_LATER:
		case CLERK_ERROR_OUTCOME_UNKNOWN:
			refresh->over = ++refresh->failures >= MAX_FAILURES;
			break;
		case CLERK_ERROR_CONFIGURATION:
		case CLERK_ERROR_RATE_LIMITED:
		case CLERK_ERROR_NOT_SENT:
			refresh->over = true;
			break;
	}
	refresh->report->untold_for = clerk_error_copy(error);
	if (refresh->over)
		refresh->report->stopped_by = refresh->report->untold_for;
	MemoryContextSwitchTo(caller);
}

/* Records what a page tells about open invitations, in a transaction. */
static void
take_page(Refresh *refresh, const ClerkInvitationList *page)
{
	MemoryContext caller = MemoryContextSwitchTo(refresh->page_memory);
	const char **ids = palloc(Max(page->count, 1) * sizeof(char *));
	const char **statuses = palloc(Max(page->count, 1) * sizeof(char *));
	int			changed = 0;

	for (int i = 0; i < page->count; i++)
	{
		const char *status = clerk_invitation_text(&page->invitations[i],
												   CLERK_INVITATION_STATUS);
		Invitation *invitation;

		invitation = find(refresh, clerk_invitation_text(&page->invitations[i],
														 CLERK_INVITATION_ID));
		if (invitation == NULL || !invitation->open)
			continue;
		close_invitation(invitation, status);
		if (status == NULL ||
			(invitation->row->status_known &&
			 strcmp(status, CLERK_INVITATION_PENDING) == 0))
			continue;
		ids[changed] = invitation->row->invitation_id;
		statuses[changed++] = status;
	}
	if (changed > 0)
	{
		count_changes(refresh->report,
					  clerk_outbox_set_statuses(ids, statuses, changed));
		refresh->commit();
	}
	MemoryContextSwitchTo(caller);
}

/* NULL if it is not one of the outbox's. */
static Invitation *
find(const Refresh *refresh, const char *id)
{
	ClerkOutboxPending row = {.invitation_id = id};
	Invitation	wanted = {.row = &row};
	Invitation *key = &wanted;
	Invitation **found = bsearch(&key, refresh->by_id, refresh->count,
								 sizeof(Invitation *), compare_ids);

	return found == NULL ? NULL : *found;
}

/* An answer has named it; without a status, nothing else would tell more. */
static void
close_invitation(Invitation *invitation, const char *status)
{
	invitation->open = false;
	invitation->organization->open--;
	if (status != NULL && strcmp(status, CLERK_INVITATION_PENDING) != 0)
		invitation->organization->pending--;
}

static void
count_untold(Refresh *refresh)
{
	ClerkRefreshReport *report = refresh->report;
	MemoryContext caller = MemoryContextSwitchTo(refresh->memory);

	for (int i = 0; i < refresh->organization_count; i++)
	{
		const Organization *organization = &refresh->organizations[i];

		if (organization->open == 0)
			continue;
		report->untold += organization->open;
		report->untold_organizations = lappend(report->untold_organizations,
											   unconstify(char *, organization->id));
	}
	MemoryContextSwitchTo(caller);
}

static void
count_changes(ClerkRefreshReport *report, const List *statuses)
{
	const ListCell *cell;

	foreach(cell, statuses)
	{
		const char *status = lfirst(cell);

		if (strcmp(status, CLERK_INVITATION_PENDING) == 0)
			continue;
		report->changed++;
		if (strcmp(status, "accepted") == 0)
			report->accepted++;
		else if (strcmp(status, "revoked") == 0)
			report->revoked++;
		else if (strcmp(status, "expired") == 0)
			report->expired++;
	}
}
