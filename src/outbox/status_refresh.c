/*
 * status_refresh.c
 *		Updates the statuses of the pending invitations in the outbox with as
 *		few requests as Clerk's lists allow.
 *
 * A row gets a status only from a response that names its invitation.  An
 * invitation is "open" until a response has named it.  While there are open
 * invitations, they are looked for on three levels:
 *
 * 1. Lists of the whole Clerk instance
 *	  (ListInstanceOrganizationInvitations).
 * 2. Lists of each organization that has open invitations
 *	  (ListOrganizationInvitations).
 * 3. The list of each open invitation's address (the same operation).
 *
 * Levels 1 and 2 begin with the list of pending invitations.  It is short
 * however long the history is, and on most days it names nearly all open ones:
 * once it is read to its end, only those that have changed remain open.  Then
 * come the lists of the other statuses, newest first, since most people who
 * accept do so soon: each has a request of its own, since Clerk's documentation
 * contradicts itself about requests for several statuses.  The first page of
 * each is requested before the second one of any.
 *
 * A list is abandoned when the levels below can resolve what is still open with
 * fewer requests: the first list when its remaining pages, by Clerk's count,
 * would cost more; the others when they have cost as much, unless their
 * remaining pages cost less.  So if nothing has changed, a refresh takes one
 * request for each 500 pending invitations; with a few changes, it takes one
 * more for each status that they have; and it never takes more than about
 * twice as many requests as one lookup for each invitation would.
 *
 * If Clerk refuses a level, for example because the key is restricted, the
 * levels below it remain.  Only if Clerk does not let anybody see an
 * organization are its invitations not looked up one by one.
 *
 * There is one request at a time.  That stays below Clerk's general limit, 100
 * requests in 10 seconds on a development instance, without counting; and the
 * refresh holds no locks that would make its duration matter.
 */
#include "postgres.h"

#include "clerk/api_request.h"
#include "clerk/await_request.h"
#include "clerk/invitation_pages.h"
#include "clerk/operations.h"
#include "clerk/rate_limit.h"
#include "compat.h"
#include "outbox/open_invitations.h"
#include "outbox/outbox_statement.h"
#include "outbox/status_refresh.h"
#include "outbox/status_statements.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Page size after a lost response, which may have been larger than the 4 MiB
 * that http/http.c accepts; the same as in sql/list_invitations.c.
 */
#define SAFE_PAGE_SIZE 200

/* Consecutive failed requests after which the refresh ends. */
#define MAX_FAILURES 3

/* The statuses of invitations that are no longer pending. */
static const char *const other_statuses[] = {"accepted", "revoked", "expired"};

#define OTHER_STATUSES ((int) lengthof(other_statuses))

/* A list of invitations with one of other_statuses, as far as it was read. */
typedef struct OtherList
{
	ClerkListing listing;		/* the next page */
	int64		pages_read;
	int64		pages_left;		/* by Clerk's count; at least 1 until the end */
} OtherList;

/* The state of a refresh. */
typedef struct Refresh
{
	ClerkRefreshReport *report;
	void		(*commit) (void);	/* commits, and begins a transaction */
	MemoryContext memory;		/* holds all of this */
	MemoryContext list_memory;	/* holds a list being read */
	MemoryContext page_memory;	/* holds a page, its request and its changes */
	ClerkOpenInvitations invitations;
	int			page_size;
	int			failures;		/* consecutive */
	bool		refused;		/* Clerk refused the last request, and would
								 * refuse the next one */
	bool		finished;		/* no further request makes sense */
} Refresh;

static bool read_pending(Refresh *refresh,
						 const ClerkOpenOrganization *organization);
static void read_no_longer_pending(Refresh *refresh,
								   const ClerkOpenOrganization *organization);
static OtherList *next_other_list(OtherList *lists);
static int64 pages_left(const OtherList *lists);
static void refresh_organization(Refresh *refresh,
								 ClerkOpenOrganization *organization,
								 bool pending_complete);
static void look_up(Refresh *refresh, const ClerkOpenInvitation *invitation);
static int64 requests_below(const Refresh *refresh,
							const ClerkOpenOrganization *organization);
static int64 requests_for_organization(const ClerkOpenOrganization *organization);
static bool fetch_page(Refresh *refresh, const ClerkListing *wanted,
					   ClerkInvitationList *page);
static bool is_request_allowed(Refresh *refresh, const ClerkListing *listing);
static bool would_be_refused_again(const ClerkListing *listing,
								   const ClerkError *error);
static bool is_response_lost(const ClerkError *error);
static void note_failure(Refresh *refresh, const ClerkError *error);
static void record_page(Refresh *refresh, const ClerkInvitationList *page);
static void count_unreported(Refresh *refresh);
static void count_changes(ClerkRefreshReport *report, const List *statuses);

/*
 * Updates the statuses in the outbox of this schema, and fills in the report,
 * whose strings are in a child of the current memory context.  Must be called
 * in a transaction; returns in another one.  "commit" commits the current
 * transaction and begins the next one, so that none is held open during a
 * request.
 *
 * A failed request is not an error: see report->stopped_by and
 * report->unreported_reason.  Raises 42P01 if the schema has no outbox, the
 * errors of clerk_outbox_run(), and 57014 or 57P01 if the session is told to
 * stop; what was recorded before is committed.  Concurrent calls are harmless:
 * each row changes once.
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
	MemoryContext caller;
	bool		pending_complete;
	int			first;
	int			count;

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
	caller = MemoryContextSwitchTo(refresh.memory);
	clerk_open_invitations_load(&refresh.invitations);
	MemoryContextSwitchTo(caller);
	report->pending = refresh.invitations.count;
	commit();

	pending_complete = read_pending(&refresh, NULL);
	if (pending_complete)
		read_no_longer_pending(&refresh, NULL);

	/*
	 * The lists below may have what is missing here, so errors so far do not
	 * matter.
	 */
	if (!refresh.finished)
		report->unreported_reason = NULL;
	refresh.failures = 0;

	/*
	 * Begin at random, so that runs that end early do not always favor the
	 * same ones.
	 */
	count = refresh.invitations.organization_count;
	first = (int) (clerk_random_fraction() * count);
	for (int i = 0; i < count && !refresh.finished; i++)
		refresh_organization(&refresh,
							 &refresh.invitations.organizations[(first + i) % count],
							 pending_complete);

	count_unreported(&refresh);
	MemoryContextDelete(refresh.list_memory);
	MemoryContextDelete(refresh.page_memory);
}

/*
 * Reads the list of the pending invitations of an organization, or of the
 * instance if it is NULL, as far as that saves requests.  Returns whether the
 * end was reached: then what is still open was not pending during the whole
 * time.
 */
static bool
read_pending(Refresh *refresh, const ClerkOpenOrganization *organization)
{
	ClerkListing listing = {.limit = refresh->page_size};
	ClerkInvitationPages *pages;
	MemoryContext caller;
	int64		left = 1;

	MemoryContextReset(refresh->list_memory);
	caller = MemoryContextSwitchTo(refresh->list_memory);
	listing.organization_id = organization == NULL ? NULL : organization->id;
	pages = clerk_pages_begin(&listing, list_make1(CLERK_INVITATION_PENDING));
	MemoryContextSwitchTo(caller);

	while (left > 0 && requests_below(refresh, organization) > 1 &&
		   left <= requests_below(refresh, organization))
	{
		ClerkInvitationList page;

		clerk_pages_set_size(pages, refresh->page_size);
		if (!fetch_page(refresh, clerk_pages_wanted(pages), &page))
			return false;
		clerk_pages_set_size(pages, refresh->page_size);
		record_page(refresh, &page);
		if (clerk_pages_take(pages, &page) != NULL)
			return false;
		while (clerk_pages_next(pages) != NULL)
			;
		left = clerk_pages_left(pages);
	}
	return left == 0;
}

/*
 * Reads the lists of the invitations of an organization, or of the instance if
 * it is NULL, that are no longer pending, as far as that saves requests.  The
 * lists may change while they are read, so that an invitation is missed; it
 * remains open.
 */
static void
read_no_longer_pending(Refresh *refresh, const ClerkOpenOrganization *organization)
{
	OtherList	lists[OTHER_STATUSES] = {0};

	for (int i = 0; i < OTHER_STATUSES; i++)
	{
		lists[i].listing.organization_id = organization == NULL ? NULL : organization->id;
		lists[i].listing.status = other_statuses[i];
		lists[i].pages_left = 1;
	}
	for (int64 requests_made = 0; pages_left(lists) > 0; requests_made++)
	{
		int64		below = requests_below(refresh, organization);
		OtherList  *list = next_other_list(lists);
		ClerkInvitationList page;

		if (below <= 1 ||
			(requests_made >= below && pages_left(lists) > below))
			return;
		if (!fetch_page(refresh, &list->listing, &page))
			return;
		record_page(refresh, &page);
		list->listing.offset += page.count;
		list->pages_read++;
		list->pages_left = page.count == 0 ? 0 :
			(Max(page.total_count - list->listing.offset, 0) + page.count - 1) / page.count;
	}
}

/* Returns the list of which the fewest pages have been read, not to its end. */
static OtherList *
next_other_list(OtherList *lists)
{
	OtherList  *next = NULL;

	for (int i = 0; i < OTHER_STATUSES; i++)
		if (lists[i].pages_left > 0 &&
			(next == NULL || lists[i].pages_read < next->pages_read))
			next = &lists[i];
	return next;
}

/* How many pages of all these lists have not been read, by Clerk's count. */
static int64
pages_left(const OtherList *lists)
{
	int64		left = 0;

	for (int i = 0; i < OTHER_STATUSES; i++)
		left += lists[i].pages_left;
	return left;
}

/*
 * Resolves the open invitations of an organization, which may have been
 * deleted at Clerk.  If the instance's list of pending invitations was
 * complete ("pending_complete"), the organization's list would not show more.
 */
static void
refresh_organization(Refresh *refresh, ClerkOpenOrganization *organization,
					 bool pending_complete)
{
	refresh->refused = false;
	if (pending_complete || read_pending(refresh, organization))
		read_no_longer_pending(refresh, organization);
	for (int64 i = 0; i < organization->count && organization->open > 0; i++)
	{
		if (refresh->refused || refresh->finished)
			break;
		if (organization->invitations[i].open)
			look_up(refresh, &organization->invitations[i]);
	}
}

/* A page of the maximum size has room for all invitations of an address. */
static void
look_up(Refresh *refresh, const ClerkOpenInvitation *invitation)
{
	ClerkListing listing = {
		.organization_id = invitation->row->organization_id,
		.email_address = invitation->row->email_address
	};
	ClerkInvitationList page;

	if (fetch_page(refresh, &listing, &page))
		record_page(refresh, &page);
}

/*
 * Returns the fewest requests with which the levels below an organization, or
 * below the instance if it is NULL, could resolve everything that is open.
 */
static int64
requests_below(const Refresh *refresh, const ClerkOpenOrganization *organization)
{
	int64		requests = 0;

	if (refresh->finished)
		return 0;
	if (organization != NULL)
		return organization->open;
	for (int i = 0; i < refresh->invitations.organization_count; i++)
		requests += requests_for_organization(&refresh->invitations.organizations[i]);
	return requests;
}

/*
 * One lookup for each open invitation, or the pages of the organization's list
 * of pending invitations, which also has those that are already known to be
 * pending.
 */
static int64
requests_for_organization(const ClerkOpenOrganization *organization)
{
	if (organization->open <= 1)
		return organization->open;
	return Min(organization->open,
			   1 + (organization->pending - 1) / CLERK_LIST_MAX);
}

/*
 * Fetches a page of a list, with refresh->page_size invitations at most, into
 * the page's memory context.  Returns false if there is no usable response.
 */
static bool
fetch_page(Refresh *refresh, const ClerkListing *wanted,
		   ClerkInvitationList *page)
{
	ClerkListing listing = *wanted;
	MemoryContext caller;
	ClerkError *error = NULL;
	bool		received;
	bool		retry;

	do
	{
		ClerkHttpRequest *request = NULL;

		MemoryContextReset(refresh->page_memory);
		caller = MemoryContextSwitchTo(refresh->page_memory);
		listing.limit = refresh->page_size;
		if (!is_request_allowed(refresh, &listing))
		{
			MemoryContextSwitchTo(caller);
			return false;
		}
		request = clerk_start_list_invitations(&listing, &error);
		if (request != NULL)
			clerk_await(request, CLERK_EFFECT_NONE);
		received = request != NULL &&
			clerk_finish_list_invitations(request, &listing, page, &error);
		MemoryContextSwitchTo(caller);
		retry = !received && is_response_lost(error) &&
			refresh->page_size > SAFE_PAGE_SIZE;
		if (retry)
			refresh->page_size = SAFE_PAGE_SIZE;
	} while (retry);

	refresh->refused = !received && would_be_refused_again(wanted, error);
	if (received)
		refresh->failures = 0;
	else
		note_failure(refresh, error);
	return received;
}

/*
 * Whether a list request is allowed now.  Senders use the lists of
 * organizations to verify rows, and a 429 response to one of them closes that
 * endpoint for all.
 */
static bool
is_request_allowed(Refresh *refresh, const ClerkListing *listing)
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
	refresh->finished = true;
	return false;
}

/*
 * Whether Clerk would refuse the next request for the same organization, too.
 * A refusal of a list's parameters (400, 422) says nothing about lookups, which
 * have others.
 */
static bool
would_be_refused_again(const ClerkListing *listing, const ClerkError *error)
{
	if (error->class != CLERK_ERROR_FINAL)
		return false;
	return listing->email_address != NULL ||
		(error->http_status != 400 && error->http_status != 422);
}

/* Whether a request failed in a way that a smaller page may avoid. */
static bool
is_response_lost(const ClerkError *error)
{
	return error->class == CLERK_ERROR_OUTCOME_UNKNOWN &&
		error->http_status == 0;
}

/*
 * Records the failure of a request, and ends the refresh if all others would
 * fail, too.
 */
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
			refresh->finished = ++refresh->failures >= MAX_FAILURES;
			break;
		case CLERK_ERROR_CONFIGURATION:
		case CLERK_ERROR_RATE_LIMITED:
		case CLERK_ERROR_NOT_SENT:
			refresh->finished = true;
			break;
	}
	refresh->report->unreported_reason = clerk_error_copy(error);
	if (refresh->finished)
		refresh->report->stopped_by = refresh->report->unreported_reason;
	MemoryContextSwitchTo(caller);
}

/* Records the statuses that a page has for open invitations, and commits. */
static void
record_page(Refresh *refresh, const ClerkInvitationList *page)
{
	MemoryContext caller = MemoryContextSwitchTo(refresh->page_memory);
	const char **ids = palloc(Max(page->count, 1) * sizeof(char *));
	const char **statuses = palloc(Max(page->count, 1) * sizeof(char *));
	int			changed = 0;

	for (int i = 0; i < page->count; i++)
	{
		const char *status = clerk_invitation_text(&page->invitations[i],
												   CLERK_INVITATION_STATUS);
		ClerkOpenInvitation *invitation;

		invitation = clerk_open_invitation_find(&refresh->invitations,
												clerk_invitation_text(&page->invitations[i],
																	  CLERK_INVITATION_ID));
		if (invitation == NULL || !invitation->open)
			continue;
		clerk_open_invitation_close(invitation, status);
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

static void
count_unreported(Refresh *refresh)
{
	ClerkRefreshReport *report = refresh->report;
	MemoryContext caller = MemoryContextSwitchTo(refresh->memory);

	for (int i = 0; i < refresh->invitations.organization_count; i++)
	{
		const ClerkOpenOrganization *organization = &refresh->invitations.organizations[i];

		if (organization->open == 0)
			continue;
		report->unreported += organization->open;
		report->unreported_organizations = lappend(report->unreported_organizations,
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
