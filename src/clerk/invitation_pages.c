/*
 * invitation_pages.c
 *		Reads a list of invitations page by page while the list may change.
 *
 * Clerk addresses pages by an offset.  Invitations may join or leave the list
 * between two requests, so an offset does not always denote the same place.
 * Nevertheless an invitation that is in the list during the whole time is
 * returned exactly once.  This is how:
 *
 * Pages are requested in the order of creation, so new invitations join at the
 * end.  "newest" is the creation time of the last invitation read.  Invariant:
 * every invitation that is in the list during the whole time and was created
 * before "newest" has been read.
 *
 * The next page is requested so that it begins one invitation before those
 * created at "newest".  It is used only if its first invitation was created
 * before "newest".  In that case everything in front of the page was also
 * created before "newest", so it has been read.  Otherwise invitations have
 * left the list and the page begins too late.  Then a page that begins earlier
 * is requested, going back twice as far each time.
 *
 * From a page that is used, invitations created before "newest" are skipped.
 * So are those created exactly at "newest" that have been read before; their
 * IDs are kept for this purpose.  Invitations with the same creation time may
 * be in a different order in each response.
 *
 * An invitation that joins the list at a place that has already been read,
 * because its status has changed, may or may not be returned.
 */
#include "postgres.h"

#include "clerk/invitation_pages.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Maximum number of successive requests that return nothing new.  More would
 * be needed only if over 5,000 invitations, which are 25 pages of 200, left
 * the list between two requests: about 12 requests to find a page that begins
 * early enough, and up to 50 to read on from there, since that page may begin
 * twice as far back as necessary.
 */
#define MAX_REQUESTS_WITHOUT_PROGRESS 64

/* A list that is being read. */
struct ClerkInvitationPages
{
	ClerkListing listing;		/* the next page to request, unless at_end */
	MemoryContext memory;		/* of this struct and its members */
	ClerkInvitationList page;	/* the last page taken */
	int			next;			/* its first invitation not examined yet */
	int64		end;			/* offset of the end of the last page used */
	int64		overlap;		/* by how much the next page begins before
								 * "end"; 0: not decided yet */
	int			requests_without_progress;	/* successive requests that
											 * returned nothing new */
	bool		at_end;			/* no page follows */
	bool		newest_is_set;	/* false until an invitation has been read */
	TimestampTz newest;
	List	   *ids_of_newest;	/* IDs read with that creation time */
};

static bool is_same_text(const char *a, const char *b);
static int64 least_overlap(const ClerkInvitationPages *pages);
static const char *order_error(const ClerkInvitationList *page);
static bool begins_too_late(const ClerkInvitationPages *pages);
static bool is_new(const ClerkInvitationPages *pages,
				   const ClerkInvitation *invitation);
static void note_read(ClerkInvitationPages *pages,
					  const ClerkInvitation *invitation);
static TimestampTz creation_time(const ClerkInvitation *invitation);

/*
 * Starts to read a list in pages of listing->limit invitations, in the order
 * of creation (listing->oldest_first and listing->offset are ignored).  Copies
 * everything into the current memory context, which must live as long as the
 * list is read.
 */
ClerkInvitationPages *
clerk_pages_begin(const ClerkListing *listing)
{
	ClerkInvitationPages *pages = palloc0(sizeof(ClerkInvitationPages));
	ListCell   *cell;

#define COPY(string) ((string) == NULL ? NULL : pstrdup(string))

	pages->listing.organization_id = COPY(listing->organization_id);
	pages->listing.email_address = COPY(listing->email_address);
	pages->listing.query = COPY(listing->query);
	foreach(cell, listing->statuses)
		pages->listing.statuses = lappend(pages->listing.statuses,
										  pstrdup(lfirst(cell)));

#undef COPY

	pages->listing.oldest_first = true;
	pages->listing.limit = listing->limit;
	pages->memory = CurrentMemoryContext;
	return pages;
}

/*
 * Whether "pages" is for the same organization, address, query and statuses as
 * "listing".
 */
bool
clerk_pages_are_of(const ClerkInvitationPages *pages,
				   const ClerkListing *listing)
{
	ListCell   *ours;
	ListCell   *theirs;

	if (!is_same_text(pages->listing.organization_id, listing->organization_id) ||
		!is_same_text(pages->listing.email_address, listing->email_address) ||
		!is_same_text(pages->listing.query, listing->query) ||
		list_length(pages->listing.statuses) != list_length(listing->statuses))
		return false;
	forboth(ours, pages->listing.statuses, theirs, listing->statuses)
	{
		if (strcmp(lfirst(ours), lfirst(theirs)) != 0)
			return false;
	}
	return true;
}

/* Sets the number of invitations per page for pages not requested yet. */
void
clerk_pages_set_size(ClerkInvitationPages *pages, int size)
{
	pages->listing.limit = size;
}

/*
 * Returns the page to request next, or NULL at the end of the list.  The
 * previous page must have been read to its end with clerk_pages_next().
 */
const ClerkListing *
clerk_pages_wanted(ClerkInvitationPages *pages)
{
	if (pages->at_end)
		return NULL;
	if (pages->overlap == 0)
		pages->overlap = least_overlap(pages);
	pages->listing.offset = Max(pages->end - pages->overlap, 0);
	return &pages->listing;
}

/*
 * Takes the page that clerk_pages_wanted() asked for.  "page" must stay valid
 * until the next page is taken or clerk_pages_next() is no longer called.
 * Returns NULL, or a phrase that says why the page cannot be part of the list.
 */
const char *
clerk_pages_take(ClerkInvitationPages *pages, const ClerkInvitationList *page)
{
	const ClerkListing *listing = &pages->listing;
	const char *reason = order_error(page);

	pages->page = *page;
	pages->next = 0;
	if (reason != NULL)
		return reason;
	if (++pages->requests_without_progress > MAX_REQUESTS_WITHOUT_PROGRESS)
		return "successive pages contain no new invitations";
	if (begins_too_late(pages))
	{
		pages->page.count = 0;
		pages->overlap *= 2;
		return NULL;
	}

	/*
	 * A page that is not full is the last one, unless Clerk has made all
	 * pages smaller than requested.
	 */
	pages->end = listing->offset + page->count;
	pages->at_end = page->count < listing->limit &&
		(page->count == 0 || pages->end >= page->total_count);
	pages->overlap = 0;
	return NULL;
}

/*
 * Returns the next invitation of the page that has not been returned before,
 * or NULL at the end of the page.
 */
ClerkInvitation *
clerk_pages_next(ClerkInvitationPages *pages)
{
	while (pages->next < pages->page.count)
	{
		ClerkInvitation *invitation = &pages->page.invitations[pages->next++];

		if (is_new(pages, invitation))
		{
			note_read(pages, invitation);
			pages->requests_without_progress = 0;
			return invitation;
		}
	}
	return NULL;
}

/*
 * Returns how many more pages there are by Clerk's total count: 0 at the end
 * of the list, otherwise at least 1.
 */
int64
clerk_pages_left(const ClerkInvitationPages *pages)
{
	int64		new_in_page = Max(pages->listing.limit - least_overlap(pages), 1);
	int64		left = pages->page.total_count - pages->end;

	if (pages->at_end)
		return 0;
	return left <= 0 ? 1 : (left + new_in_page - 1) / new_in_page;
}

static bool
is_same_text(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

/*
 * How many invitations a page has in common with the previous one if none
 * leave the list.
 */
static int64
least_overlap(const ClerkInvitationPages *pages)
{
	return list_length(pages->ids_of_newest) + 1;
}

/*
 * The invariant depends on the order of creation.  Returns what is wrong as a
 * phrase, or NULL.
 */
static const char *
order_error(const ClerkInvitationList *page)
{
	for (int i = 0; i < page->count; i++)
	{
		if (page->invitations[i].nulls[CLERK_INVITATION_CREATED_AT])
			return "\"created_at\" is missing";
		if (i > 0 &&
			creation_time(&page->invitations[i]) <
			creation_time(&page->invitations[i - 1]))
			return "it is not in the requested order";
	}
	return NULL;
}

/* Whether there may be unread invitations in front of the page. */
static bool
begins_too_late(const ClerkInvitationPages *pages)
{
	if (pages->listing.offset == 0)
		return false;
	return pages->page.count == 0 ||
		creation_time(&pages->page.invitations[0]) >= pages->newest;
}

static bool
is_new(const ClerkInvitationPages *pages, const ClerkInvitation *invitation)
{
	const TimestampTz created = creation_time(invitation);
	const char *id;
	ListCell   *cell;

	if (!pages->newest_is_set || created > pages->newest)
		return true;
	if (created < pages->newest)
		return false;
	id = clerk_invitation_text(invitation, CLERK_INVITATION_ID);
	foreach(cell, pages->ids_of_newest)
		if (strcmp(lfirst(cell), id) == 0)
		return false;
	return true;
}

static void
note_read(ClerkInvitationPages *pages, const ClerkInvitation *invitation)
{
	MemoryContext caller = MemoryContextSwitchTo(pages->memory);

	if (!pages->newest_is_set || creation_time(invitation) > pages->newest)
	{
		list_free_deep(pages->ids_of_newest);
		pages->ids_of_newest = NIL;
		pages->newest = creation_time(invitation);
		pages->newest_is_set = true;
	}
	pages->ids_of_newest = lappend(pages->ids_of_newest,
								   clerk_invitation_text(invitation,
														 CLERK_INVITATION_ID));
	MemoryContextSwitchTo(caller);
}

static TimestampTz
creation_time(const ClerkInvitation *invitation)
{
	return DatumGetTimestampTz(invitation->values[CLERK_INVITATION_CREATED_AT]);
}
