/*
 * packing.c
 *		Which invitations share a request.
 *
 * Clerk has a budget for requests with one invitation and another for bulk
 * requests, which carry up to ten of one organization.  A backlog is gone
 * soonest if neither budget lies idle and bulk requests are as full as can be.
 *
 * So each organization's invitations are cut into tens and a remainder.  A
 * piece that fills a bulk request better than the budgets' ratio (250 / 50 = 5
 * invitations) is worth one; the others go one by one.  If one budget then has
 * something left, it serves what the other could not.  Bulk requests always
 * begin with the largest pieces and single ones with the smallest, so that what
 * has to wait is what the next bulk budget carries best.
 *
 * Age decides among equals.  What is overdue comes first whatever its size, so
 * that a steady stream of full tens cannot keep a remainder waiting for ever.
 *
 * An address occurs only once: what Clerk does with the same address
 * twice in a request, or in two at a time, is not known.
 */
#include "postgres.h"

#include "outbox/packing.h"

/* Candidates of one organization that can share a request, oldest first. */
typedef struct Piece
{
	const int  *members;		/* positions among the due */
	int			count;			/* those that are not packed yet */
	int			age;			/* position of the first: lower is older */
	bool		alone;
	bool		overdue;
	bool		worthwhile;		/* for a bulk request */
} Piece;

/* What the steps below share. */
typedef struct Packing
{
	const ClerkDueInvitation *due;
	ClerkPackedRequests *packed;
	int			singles;		/* budgets left */
	int			bulks;
	Piece	   *pieces;
	int			piece_count;
	int		   *request_ages;	/* of the requests, for sorting */
} Packing;

static int	choose_distinct(const ClerkDueInvitation *due, int count,
							int *chosen);
static void cut_into_pieces(Packing *packing, int *chosen, int count,
							int worthwhile);
static int	length_of_piece(const ClerkDueInvitation *due,
							const int *chosen, int count);
static void pack_bulks(Packing *packing, bool worthwhile);
static void pack_singles(Packing *packing, bool worthwhile);
static void add_request(Packing *packing, Piece *piece, bool bulk, int count);
static void sort_by_age(Packing *packing);

static int	compare_addresses(const void *a, const void *b, void *due);
static int	compare_organizations(const void *a, const void *b,
								  void *due);
static int	compare_for_bulks(const void *a, const void *b);
static int	compare_for_singles(const void *a, const void *b);
static int	compare_ages(const void *a, const void *b, void *ages);

/*
 * Packs invitations that are due, in the order of their age, into requests
 * within the budgets.  The requests are in order of age, too, and palloc'd.
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
	cut_into_pieces(&packing, chosen, chosen_count, budget->worthwhile);

	pack_bulks(&packing, true);
	pack_singles(&packing, false);
	pack_singles(&packing, true);
	pack_bulks(&packing, false);
	sort_by_age(&packing);
}

/*
 * Stores the positions of those that are due in the order of their organizations,
 * without those whose address occurs before; returns how many there are.
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
cut_into_pieces(Packing *packing, int *chosen, int count, int worthwhile)
{
	const ClerkDueInvitation *due = packing->due;

	packing->pieces = palloc(Max(count, 1) * sizeof(Piece));
	packing->piece_count = 0;
	for (int i = 0; i < count; i += packing->pieces[packing->piece_count++].count)
	{
		Piece	   *piece = &packing->pieces[packing->piece_count];

		piece->members = chosen + i;
		piece->count = length_of_piece(due, chosen + i, count - i);
		piece->age = chosen[i];
		piece->alone = due[chosen[i]].send_alone;
		piece->overdue = due[chosen[i]].overdue;
		piece->worthwhile = !piece->alone && piece->count >= worthwhile;
	}
}

/* How many from here on can share a request. */
static int
length_of_piece(const ClerkDueInvitation *due, const int *chosen, int count)
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

/* Bulk requests for pieces that are worth them, or for what is left. */
static void
pack_bulks(Packing *packing, bool worthwhile)
{
	qsort(packing->pieces, packing->piece_count, sizeof(Piece),
		  compare_for_bulks);
	for (int i = 0; i < packing->piece_count && packing->bulks > 0; i++)
	{
		Piece	   *piece = &packing->pieces[i];

		if (piece->count == 0 || piece->worthwhile != worthwhile)
			continue;
		add_request(packing, piece, true, piece->count);
		packing->bulks--;
	}
}

/*
 * Single requests for pieces that are not worth a bulk request, or for what
 * the bulk requests have left over.
 */
static void
pack_singles(Packing *packing, bool worthwhile)
{
	qsort(packing->pieces, packing->piece_count, sizeof(Piece),
		  compare_for_singles);
	for (int i = 0; i < packing->piece_count; i++)
	{
		Piece	   *piece = &packing->pieces[i];

		if (piece->worthwhile != worthwhile)
			continue;
		while (piece->count > 0 && packing->singles > 0)
		{
			add_request(packing, piece, false, 1);
			packing->singles--;
		}
	}
}

/* Takes the oldest of a piece into a request of their own. */
static void
add_request(Packing *packing, Piece *piece, bool bulk, int count)
{
	ClerkPackedRequests *packed = packing->packed;
	ClerkPackedRequest *request = &packed->requests[packed->count];

	request->bulk = bulk;
	request->count = count;
	for (int i = 0; i < count; i++)
		request->members[i] = piece->members[i];
	packing->request_ages[packed->count++] = piece->members[0];
	piece->members += count;
	piece->count -= count;
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

/* By address; the oldest of the same address first. */
static int
compare_addresses(const void *a, const void *b, void *due)
{
	const ClerkDueInvitation *all = due;
	const int	first = *(const int *) a;
	const int	second = *(const int *) b;
	int			order = strcmp(all[first].normalized_address, all[second].normalized_address);

	return order != 0 ? order : first - second;
}

/* By organization, those that go alone last; the oldest first. */
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

/* The overdue, then the largest, then the oldest. */
static int
compare_for_bulks(const void *a, const void *b)
{
	const Piece *first = a;
	const Piece *second = b;

	if (first->overdue != second->overdue)
		return first->overdue ? -1 : 1;
	if (first->count != second->count)
		return second->count - first->count;
	return first->age - second->age;
}

/* The overdue, then the smallest, then the oldest. */
static int
compare_for_singles(const void *a, const void *b)
{
	const Piece *first = a;
	const Piece *second = b;

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
