/*
 * invitation_pages.c
 *		Reads a list of invitations page by page while it changes.
 *
 * Clerk's pages are told apart by an offset, and invitations may join or leave
 * the list while it is read, so that an offset does not stay where it was.
 * Whatever happens, an invitation that belongs to the list throughout is
 * returned exactly once:
 *
 * Invitations come in the order of their creation, so that new ones join at
 * the end.  "newest" is the time of creation of the last one read, and this
 * holds: every invitation that is there throughout and was created before
 * "newest" has been read.  The next page is asked for from one before those
 * created at "newest", and is used only if its first invitation was created
 * before "newest": then all that comes before the page was created before
 * "newest", too, and has been read.  Otherwise invitations have left the list,
 * and the page begins too late: one that begins earlier is asked for, twice as
 * far back each time.  In a
 * page that is used, those created before "newest" are passed over, and so are
 * those created at that very time that have been read, whose identifiers are
 * kept.  Invitations of the same time may come in another order each time.
 *
 * One that joins the list meanwhile at a place that has been passed, because
 * its status changes, may be returned or not.
 */
#include "postgres.h"

#include "clerk/invitation_pages.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Requests in a row that bring nothing new before we give up.  That many are
 * not needed unless some five thousand invitations, which make 25 pages of
 * 200, leave the list between two requests, and half of them were for nothing.
 */
#define MAX_FRUITLESS 64

/* A list that is being read. */
struct ClerkInvitationPages
{
	ClerkListing listing;		/* the next page, if there is one */
	MemoryContext memory;		/* of this struct */
	ClerkInvitationList page;	/* the last one that was taken */
	int			next;			/* the first of it not looked at yet */
	int64		end;			/* offset behind the last page used */
	int64		overlap;		/* how far before that the next one begins; 0:
								 * not decided yet */
	int			fruitless;		/* requests in a row that brought nothing new */
	bool		last;			/* no page follows */
	bool		any;			/* whether "newest" is set */
	TimestampTz newest;
	List	   *ids_of_newest;	/* read, and created at that time */
};

static bool is_same_text(const char *a, const char *b);
static int64 least_overlap(const ClerkInvitationPages *pages);
static const char *order_error(const ClerkInvitationList *page);
static bool begins_too_late(const ClerkInvitationPages *pages);
static bool is_new(const ClerkInvitationPages *pages,
				   const ClerkInvitation *invitation);
static void note_read(ClerkInvitationPages *pages,
					  const ClerkInvitation *invitation);
static TimestampTz created_at(const ClerkInvitation *invitation);

/*
 * Begins to read a list in pages of listing->limit invitations, oldest first;
 * everything is copied into the current memory context.
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

/* Whether these are the pages of such a listing. */
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

/* Makes the pages that are still to come of another size. */
void
clerk_pages_set_size(ClerkInvitationPages *pages, int size)
{
	pages->listing.limit = size;
}

/*
 * The page to ask for next; NULL at the list's end.  The last page must have
 * been looked through.
 */
const ClerkListing *
clerk_pages_wanted(ClerkInvitationPages *pages)
{
	if (pages->last)
		return NULL;
	if (pages->overlap == 0)
		pages->overlap = least_overlap(pages);
	pages->listing.offset = Max(pages->end - pages->overlap, 0);
	return &pages->listing;
}

/*
 * Takes the page that was wanted.  It must stay until the next one is taken,
 * or nobody calls clerk_pages_next() any more.  Returns what makes it unusable
 * as a part of a list, as a phrase, or NULL.
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
	if (++pages->fruitless > MAX_FRUITLESS)
		return "successive pages contain no new invitations";
	if (begins_too_late(pages))
	{
		pages->page.count = 0;
		pages->overlap *= 2;
		return NULL;
	}

	/*
	 * A page that is not full is the last one, unless Clerk has made all
	 * pages smaller than was asked for.
	 */
	pages->end = listing->offset + page->count;
	pages->last = page->count < listing->limit &&
		(page->count == 0 || pages->end >= page->total_count);
	pages->overlap = 0;
	return NULL;
}

/* The next invitation of the page that was not returned yet; NULL: none is left. */
ClerkInvitation *
clerk_pages_next(ClerkInvitationPages *pages)
{
	while (pages->next < pages->page.count)
	{
		ClerkInvitation *invitation = &pages->page.invitations[pages->next++];

		if (is_new(pages, invitation))
		{
			note_read(pages, invitation);
			pages->fruitless = 0;
			return invitation;
		}
	}
	return NULL;
}

/*
 * How many more pages there are, going by what Clerk counts; at least one if
 * the end has not been reached.
 */
int64
clerk_pages_left(const ClerkInvitationPages *pages)
{
	int64		new_in_page = Max(pages->listing.limit - least_overlap(pages), 1);
	int64		left = pages->page.total_count - pages->end;

	if (pages->last)
		return 0;
	return left <= 0 ? 1 : (left + new_in_page - 1) / new_in_page;
}

static bool
is_same_text(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

/* What a page has in common with the one before it while none leave the list. */
static int64
least_overlap(const ClerkInvitationPages *pages)
{
	return list_length(pages->ids_of_newest) + 1;
}

/* All that is said above rests on the order. */
static const char *
order_error(const ClerkInvitationList *page)
{
	for (int i = 0; i < page->count; i++)
	{
		if (page->invitations[i].nulls[CLERK_INVITATION_CREATED_AT])
			return "\"created_at\" is missing";
		if (i > 0 &&
			created_at(&page->invitations[i]) < created_at(&page->invitations[i - 1]))
			return "it is not in the requested order";
	}
	return NULL;
}

/* Whether there may be something before the page that was not read. */
static bool
begins_too_late(const ClerkInvitationPages *pages)
{
	if (pages->listing.offset == 0)
		return false;
	return pages->page.count == 0 ||
		created_at(&pages->page.invitations[0]) >= pages->newest;
}

static bool
is_new(const ClerkInvitationPages *pages, const ClerkInvitation *invitation)
{
	const TimestampTz created = created_at(invitation);
	const char *id;
	ListCell   *cell;

	if (!pages->any || created > pages->newest)
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

	if (!pages->any || created_at(invitation) > pages->newest)
	{
		list_free_deep(pages->ids_of_newest);
		pages->ids_of_newest = NIL;
		pages->newest = created_at(invitation);
		pages->any = true;
	}
	pages->ids_of_newest = lappend(pages->ids_of_newest,
								   clerk_invitation_text(invitation,
														 CLERK_INVITATION_ID));
	MemoryContextSwitchTo(caller);
}

static TimestampTz
created_at(const ClerkInvitation *invitation)
{
	return DatumGetTimestampTz(invitation->values[CLERK_INVITATION_CREATED_AT]);
}
