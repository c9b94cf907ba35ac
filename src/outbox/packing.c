/*
 * packing.c
 *		Which invitations share a request.
 *
 * Clerk has one budget for requests with a single invitation, and another for
 * bulk requests, which carry up to ten invitations of one organization.  A
 * backlog is delivered fastest if both budgets are used up and bulk requests
 * are as full as possible.
 *
 * Therefore the invitations of each organization are split into chunks of ten
 * and a remainder.  A chunk that fills a bulk request better than the ratio of
 * the budgets (by default, 250 / 50 = 5 invitations) is worth a bulk request;
 * the others are sent one by one.  If one budget is then left, it serves what
 * the other one could not.  Bulk requests take the largest chunks first and
 * single requests the smallest, so that what must wait suits the next bulk
 * budget best.
 *
 * Among equals, the oldest come first.  Overdue invitations come before all
 * others, whatever the size of their chunk, so that a steady stream of full
 * chunks cannot delay a remainder forever.
 *
 * Each address is packed only once: it is not known what Clerk does with the
 * same address twice in a request, or in two concurrent requests.
 */
#include "postgres.h"

#include "outbox/packing.h"

/* Invitations of one organization that can share a request, oldest first. */
typedef struct Chunk
{
	const int  *members;		/* positions in the array of due invitations */
	int			count;			/* those not packed yet */
	int			age;			/* position of the first: lower is older */
	bool		alone;
	bool		overdue;
	bool		worthwhile;		/* whether it is worth a bulk request */
} Chunk;

/* The state that the steps below share. */
typedef struct Packing
{
	const ClerkDueInvitation *due;
	ClerkPackedRequests *packed;
	int			singles;		/* remaining budgets */
	int			bulks;
	Chunk	   *chunks;
	int			chunk_count;
	int		   *request_ages;	/* age of each request, for sorting */
} Packing;

static int	choose_distinct(const ClerkDueInvitation *due, int count,
							int *chosen);
static void split_into_chunks(Packing *packing, int *chosen, int count,
							  int min_bulk_size);
static int	chunk_length(const ClerkDueInvitation *due,
						 const int *chosen, int count);
static void pack_bulks(Packing *packing, bool worthwhile);
static void pack_singles(Packing *packing, bool worthwhile);
static void add_request(Packing *packing, Chunk *chunk, bool bulk, int count);
static void sort_by_age(Packing *packing);

static int	compare_addresses(const void *a, const void *b, void *due);
static int	compare_organizations(const void *a, const void *b,
								  void *due);
static int	compare_for_bulks(const void *a, const void *b);
static int	compare_for_singles(const void *a, const void *b);
static int	compare_ages(const void *a, const void *b, void *ages);

/*
 * Packs invitations that are due, oldest first, into requests within the
 * budgets.  Fills in *packed: the requests, ordered by age, are in the current
 * memory context.  Invitations for which no budget is left, and all but the
 * oldest of those with the same address, are in none.
 */
void
clerk_pack_requests(const ClerkDueInvitation *due, int count,
					const ClerkPackingBudget *budget, ClerkPackedRequests *packed)
{
	int		   *chosen = palloc(Max(count, 1) * sizeof(int));
	int			chosen_count = choose_distinct(due, count, chosen);
	Packing		packing = {
		.due = due,
		.packed = packed,
		.singles = budget->singles,
		.bulks = budget->bulks
	};

	packed->count = 0;
	packed->requests = palloc(Max(chosen_count, 1) * sizeof(ClerkPackedRequest));
	packing.request_ages = palloc(Max(chosen_count, 1) * sizeof(int));
	split_into_chunks(&packing, chosen, chosen_count, budget->min_bulk_size);

	pack_bulks(&packing, true);
	pack_singles(&packing, false);
	pack_singles(&packing, true);
	pack_bulks(&packing, false);
	sort_by_age(&packing);
}

/*
 * Chooses the oldest invitation of each address.  Stores their positions,
 * ordered by organization, and returns their number.
 */
static int
choose_distinct(const ClerkDueInvitation *due, int count, int *chosen)
{
	int			distinct = 0;

	for (int i = 0; i < count; i++)
		chosen[i] = i;
	qsort_arg(chosen, count, sizeof(int), compare_addresses,
			  unconstify(ClerkDueInvitation *, due));
	for (int i = 0; i < count; i++)
		if (distinct == 0 ||
			strcmp(due[chosen[i]].normalized_address,
				   due[chosen[distinct - 1]].normalized_address) != 0)
			chosen[distinct++] = chosen[i];
	qsort_arg(chosen, distinct, sizeof(int), compare_organizations,
			  unconstify(ClerkDueInvitation *, due));
	return distinct;
}

static void
split_into_chunks(Packing *packing, int *chosen, int count, int min_bulk_size)
{
	const ClerkDueInvitation *due = packing->due;

	packing->chunks = palloc(Max(count, 1) * sizeof(Chunk));
	packing->chunk_count = 0;
	for (int i = 0; i < count; i += packing->chunks[packing->chunk_count++].count)
	{
		Chunk	   *chunk = &packing->chunks[packing->chunk_count];

		chunk->members = chosen + i;
		chunk->count = chunk_length(due, chosen + i, count - i);
		chunk->age = chosen[i];
		chunk->alone = due[chosen[i]].send_alone;
		chunk->overdue = due[chosen[i]].overdue;
		chunk->worthwhile = !chunk->alone && chunk->count >= min_bulk_size;
	}
}

/* Returns how many invitations, from the first one on, can share a request. */
static int
chunk_length(const ClerkDueInvitation *due, const int *chosen, int count)
{
	const ClerkDueInvitation *first = &due[chosen[0]];
	int			length = 1;

	if (first->send_alone)
		return 1;
	while (length < Min(count, CLERK_BULK_MAX) &&
		   !due[chosen[length]].send_alone &&
		   strcmp(due[chosen[length]].organization_id,
				  first->organization_id) == 0)
		length++;
	return length;
}

/*
 * Makes bulk requests for the chunks that are worth one, or for what is left
 * of the others.
 */
static void
pack_bulks(Packing *packing, bool worthwhile)
{
	qsort(packing->chunks, packing->chunk_count, sizeof(Chunk),
		  compare_for_bulks);
	for (int i = 0; i < packing->chunk_count && packing->bulks > 0; i++)
	{
		Chunk	   *chunk = &packing->chunks[i];

		if (chunk->count == 0 || chunk->worthwhile != worthwhile)
			continue;
		add_request(packing, chunk, true, chunk->count);
		packing->bulks--;
	}
}

/*
 * Makes single requests for the chunks that are not worth a bulk request, or
 * for those for which the bulk requests did not suffice.
 */
static void
pack_singles(Packing *packing, bool worthwhile)
{
	qsort(packing->chunks, packing->chunk_count, sizeof(Chunk),
		  compare_for_singles);
	for (int i = 0; i < packing->chunk_count; i++)
	{
		Chunk	   *chunk = &packing->chunks[i];

		if (chunk->worthwhile != worthwhile)
			continue;
		while (chunk->count > 0 && packing->singles > 0)
		{
			add_request(packing, chunk, false, 1);
			packing->singles--;
		}
	}
}

/* Adds a request for the oldest "count" invitations of a chunk. */
static void
add_request(Packing *packing, Chunk *chunk, bool bulk, int count)
{
	ClerkPackedRequests *packed = packing->packed;
	ClerkPackedRequest *request = &packed->requests[packed->count];

	request->bulk = bulk;
	request->count = count;
	for (int i = 0; i < count; i++)
		request->members[i] = chunk->members[i];
	packing->request_ages[packed->count++] = chunk->members[0];
	chunk->members += count;
	chunk->count -= count;
}

static void
sort_by_age(Packing *packing)
{
	ClerkPackedRequests *packed = packing->packed;
	ClerkPackedRequest *sorted = palloc(Max(packed->count, 1) *
										sizeof(ClerkPackedRequest));
	int		   *order = palloc(Max(packed->count, 1) * sizeof(int));

	for (int i = 0; i < packed->count; i++)
		order[i] = i;
	qsort_arg(order, packed->count, sizeof(int), compare_ages,
			  packing->request_ages);
	for (int i = 0; i < packed->count; i++)
		sorted[i] = packed->requests[order[i]];
	packed->requests = sorted;
}

/* By address; the oldest first for the same address. */
static int
compare_addresses(const void *a, const void *b, void *due)
{
	const ClerkDueInvitation *all = due;
	const int	first = *(const int *) a;
	const int	second = *(const int *) b;
	int			order = strcmp(all[first].normalized_address, all[second].normalized_address);

	return order != 0 ? order : first - second;
}

/* By organization; those to be sent alone last; the oldest first. */
static int
compare_organizations(const void *a, const void *b, void *due)
{
	const ClerkDueInvitation *all = due;
	const int	first = *(const int *) a;
	const int	second = *(const int *) b;
	int			order = strcmp(all[first].organization_id,
							   all[second].organization_id);

	if (order == 0)
		order = (int) all[first].send_alone - (int) all[second].send_alone;
	return order != 0 ? order : first - second;
}

/* Overdue chunks first, then the largest, then the oldest. */
static int
compare_for_bulks(const void *a, const void *b)
{
	const Chunk *first = a;
	const Chunk *second = b;

	if (first->overdue != second->overdue)
		return first->overdue ? -1 : 1;
	if (first->count != second->count)
		return second->count - first->count;
	return first->age - second->age;
}

/* Overdue chunks first, then the smallest, then the oldest. */
static int
compare_for_singles(const void *a, const void *b)
{
	const Chunk *first = a;
	const Chunk *second = b;

	if (first->overdue != second->overdue)
		return first->overdue ? -1 : 1;
	if (first->count != second->count)
		return first->count - second->count;
	return first->age - second->age;
}

static int
compare_ages(const void *a, const void *b, void *ages)
{
	return ((const int *) ages)[*(const int *) a] -
		((const int *) ages)[*(const int *) b];
}
