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
 *
 * A server that ignores the order that it is asked for has another one, such
 * as Clerk's default, the newest first.  As soon as a page shows this, the
 * list is read again from its start, in the server's order, and what has been
 * returned is not returned again.  Then a page is used only if its first
 * invitation has been read: as long as the order is always the same, whatever
 * is in front of that one has been read or has joined the list since.
 *
 * Clerk's documentation does not say for certain what a request for several
 * statuses returns: a server may honor all of them, the first, or the last, or
 * refuse the request.  So no request has more than one.  A list with several
 * statuses is requested without any, and those that were not asked for are
 * left out here.  A list for each status, merged, would have fewer pages if
 * most invitations have another status.  But an invitation whose status
 * changes between two of the requests could then be missing from all of the
 * lists, and a LIMIT would take a request for each of them.
 */
#include "postgres.h"

#include "clerk/invitation_pages.h"
#include "common/hashfn.h"
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

/* An ID in the set of those that have been read. */
typedef struct ReadId
{
	const char *id;
	char		status;			/* for simplehash.h */
}			ReadId;

#define SH_PREFIX read_ids
#define SH_ELEMENT_TYPE ReadId
#define SH_KEY_TYPE const char *
#define SH_KEY id
#define SH_HASH_KEY(set, key) \
	hash_bytes((const unsigned char *) (key), (int) strlen(key))
#define SH_EQUAL(set, a, b) (strcmp(a, b) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* Initial size of the set; it grows as needed. */
#define INITIAL_IDS 256

/* A list that is being read. */
struct ClerkInvitationPages
{
	ClerkListing listing;		/* the next page to request, unless at_end */
	List	   *statuses;		/* to return; NIL: all */
	MemoryContext memory;		/* of this struct and its members */
	ClerkInvitationList page;	/* the last page taken */
	int			next;			/* its first invitation not examined yet */
	int64		end;			/* offset of the end of the last page used */
	int64		overlap;		/* by how much the next page begins before
								 * "end"; 0: not decided yet */
	int			requests_without_progress;	/* successive requests that
											 * returned nothing new */
	bool		at_end;			/* no page follows */
	bool		unordered;		/* the order is not that of creation */
	bool		newest_is_set;	/* false until an invitation has been read */
	TimestampTz newest;			/* if unordered: of the last one read */
	int			count_of_newest;	/* number read with that creation time */
	read_ids_hash *read;		/* IDs of all that have been read */
};

static bool is_same_text(const char *a, const char *b);
static int64 least_overlap(const ClerkInvitationPages *pages);
static const char *page_error(const ClerkInvitationPages *pages,
							  const ClerkInvitationList *page);
static bool is_in_order(const ClerkInvitationList *page);
static bool begins_too_late(const ClerkInvitationPages *pages);
static bool is_new(const ClerkInvitationPages *pages,
				   const ClerkInvitation *invitation);
static bool is_read(const ClerkInvitationPages *pages,
					const ClerkInvitation *invitation);
static bool has_wanted_status(const ClerkInvitationPages *pages,
							  const ClerkInvitation *invitation);
static List *copy_distinct(const List *texts);
static bool is_text_in(const char *text, const List *texts);
static void note_read(ClerkInvitationPages *pages,
					  const ClerkInvitation *invitation);
static TimestampTz creation_time(const ClerkInvitation *invitation);

/*
 * Starts to read a list in pages of listing->limit invitations, in the order
 * of creation (listing->oldest_first, offset and status are ignored).
 * "statuses" is a list of strings, or NIL for all.  Copies everything into the
 * current memory context, which must live as long as the list is read.
 */
ClerkInvitationPages *
clerk_pages_begin(const ClerkListing *listing, const List *statuses)
{
	ClerkInvitationPages *pages = palloc0(sizeof(ClerkInvitationPages));

#define COPY(string) ((string) == NULL ? NULL : pstrdup(string))

	pages->listing.organization_id = COPY(listing->organization_id);
	pages->listing.email_address = COPY(listing->email_address);
	pages->listing.query = COPY(listing->query);

#undef COPY

	pages->statuses = copy_distinct(statuses);
	if (list_length(pages->statuses) == 1)
		pages->listing.status = linitial(pages->statuses);

	pages->listing.oldest_first = true;
	pages->listing.limit = listing->limit;
	pages->memory = CurrentMemoryContext;
	pages->read = read_ids_create(CurrentMemoryContext, INITIAL_IDS, NULL);
	return pages;
}

/*
 * Whether "pages" is for the same organization, address and query as
 * "listing", and for these statuses.
 */
bool
clerk_pages_are_of(const ClerkInvitationPages *pages,
				   const ClerkListing *listing, const List *statuses)
{
	const List *wanted = copy_distinct(statuses);
	const ListCell *cell;

	if (!is_same_text(pages->listing.organization_id, listing->organization_id) ||
		!is_same_text(pages->listing.email_address, listing->email_address) ||
		!is_same_text(pages->listing.query, listing->query) ||
		list_length(pages->statuses) != list_length(wanted))
		return false;
	foreach(cell, wanted)
	{
		if (!is_text_in(lfirst(cell), pages->statuses))
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
	const char *reason = page_error(pages, page);

	pages->page = *page;
	pages->next = 0;
	if (reason != NULL)
		return reason;
	if (++pages->requests_without_progress > MAX_REQUESTS_WITHOUT_PROGRESS)
		return "successive pages contain no new invitations";
	if (!pages->unordered && !is_in_order(page))
	{
		pages->unordered = true;
		if (listing->offset > 0)
		{
			pages->page.count = 0;
			pages->end = 0;
			pages->overlap = 0;
			return NULL;
		}
	}
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
			if (has_wanted_status(pages, invitation))
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
	return pages->count_of_newest + 1;
}

/*
 * Returns what a page lacks that is needed to read the list, as a phrase, or
 * NULL.
 */
static const char *
page_error(const ClerkInvitationPages *pages, const ClerkInvitationList *page)
{
	for (int i = 0; i < page->count; i++)
	{
		const ClerkInvitation *invitation = &page->invitations[i];

		if (invitation->nulls[CLERK_INVITATION_CREATED_AT])
			return "\"created_at\" is missing";
		if (list_length(pages->statuses) > 1 &&
			invitation->nulls[CLERK_INVITATION_STATUS])
			return "\"status\" is missing, by which the list is to be filtered";
	}
	return NULL;
}

/* Whether a page has the oldest invitations first. */
static bool
is_in_order(const ClerkInvitationList *page)
{
	for (int i = 1; i < page->count; i++)
		if (creation_time(&page->invitations[i]) <
			creation_time(&page->invitations[i - 1]))
			return false;
	return true;
}

/* Whether there may be unread invitations in front of the page. */
static bool
begins_too_late(const ClerkInvitationPages *pages)
{
	const ClerkInvitation *first = pages->page.invitations;

	if (pages->listing.offset == 0)
		return false;
	if (pages->page.count == 0)
		return true;
	if (pages->unordered)
		return !is_read(pages, first);
	return creation_time(first) >= pages->newest;
}

static bool
is_new(const ClerkInvitationPages *pages, const ClerkInvitation *invitation)
{
	if (!pages->unordered && pages->newest_is_set &&
		creation_time(invitation) < pages->newest)
		return false;
	return !is_read(pages, invitation);
}

static bool
is_read(const ClerkInvitationPages *pages, const ClerkInvitation *invitation)
{
	char	   *id = clerk_invitation_text(invitation, CLERK_INVITATION_ID);
	bool		found = read_ids_lookup(pages->read, id) != NULL;

	pfree(id);
	return found;
}

/* A request with one status has left that to Clerk. */
static bool
has_wanted_status(const ClerkInvitationPages *pages,
				  const ClerkInvitation *invitation)
{
	char	   *status;
	bool		wanted;

	if (list_length(pages->statuses) <= 1)
		return true;
	status = clerk_invitation_text(invitation, CLERK_INVITATION_STATUS);
	wanted = is_text_in(status, pages->statuses);
	pfree(status);
	return wanted;
}

/* Copies a list of strings, each one once. */
static List *
copy_distinct(const List *texts)
{
	List	   *copy = NIL;
	const ListCell *cell;

	foreach(cell, texts)
	{
		if (!is_text_in(lfirst(cell), copy))
			copy = lappend(copy, pstrdup(lfirst(cell)));
	}
	return copy;
}

static bool
is_text_in(const char *text, const List *texts)
{
	const ListCell *cell;

	foreach(cell, texts)
	{
		if (strcmp(lfirst(cell), text) == 0)
			return true;
	}
	return false;
}

static void
note_read(ClerkInvitationPages *pages, const ClerkInvitation *invitation)
{
	const TimestampTz created = creation_time(invitation);
	MemoryContext caller = MemoryContextSwitchTo(pages->memory);
	bool		found;

	if (!pages->newest_is_set || created != pages->newest)
		pages->count_of_newest = 0;
	pages->newest = created;
	pages->newest_is_set = true;
	pages->count_of_newest++;
	(void) read_ids_insert(pages->read,
						   clerk_invitation_text(invitation,
												 CLERK_INVITATION_ID),
						   &found);
	MemoryContextSwitchTo(caller);
}

static TimestampTz
creation_time(const ClerkInvitation *invitation)
{
	return DatumGetTimestampTz(invitation->values[CLERK_INVITATION_CREATED_AT]);
}
