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
 * An address occurs in a plan only once: what Clerk does with the same address
 * twice in a request, or in two at a time, is not known.
 */
#include "postgres.h"

#include "outbox/packing.h"

/* Candidates of one organization that can share a request, oldest first. */
typedef struct Piece
{
	const int  *members;		/* positions among the candidates */
	int			count;			/* those that are not planned yet */
	int			age;			/* position of the first: lower is older */
	bool		alone;
	bool		overdue;
	bool		worthwhile;		/* for a bulk request */
} Piece;

/* What the steps below share. */
typedef struct Planning
{
	const ClerkCandidate *candidates;
	ClerkPlan  *plan;
	int			singles;		/* budgets left */
	int			bulks;
	Piece	   *pieces;
	int			piece_count;
	int		   *request_ages;	/* of the plan's requests, for sorting */
} Planning;

static int	choose_distinct(const ClerkCandidate *candidates, int count,
							int *chosen);
static void cut_into_pieces(Planning *planning, int *chosen, int count,
							int worthwhile);
static int	length_of_piece(const ClerkCandidate *candidates,
							const int *chosen, int count);
static void plan_bulks(Planning *planning, bool worthwhile);
static void plan_singles(Planning *planning, bool worthwhile);
static void add_request(Planning *planning, Piece *piece, bool bulk, int count);
static void sort_by_age(Planning *planning);

static int	compare_addresses(const void *a, const void *b, void *candidates);
static int	compare_organizations(const void *a, const void *b,
								  void *candidates);
static int	compare_for_bulks(const void *a, const void *b);
static int	compare_for_singles(const void *a, const void *b);
static int	compare_ages(const void *a, const void *b, void *ages);

/*
 * Plans requests for candidates, which are in the order of their age, within
 * the budgets.  The plan is in order of age, too, and palloc'd.
 */
void
clerk_pack_requests(const ClerkCandidate *candidates, int count,
					const ClerkPackingBudget * budget, ClerkPlan *plan)
{
	int		   *chosen = palloc(Max(count, 1) * sizeof(int));
	int			chosen_count = choose_distinct(candidates, count, chosen);
	Planning	planning = {
		.candidates = candidates,
		.plan = plan,
		.singles = budget->singles,
		.bulks = budget->bulks
	};

	plan->count = 0;
	plan->requests = palloc(Max(chosen_count, 1) * sizeof(ClerkPackedRequest));
	planning.request_ages = palloc(Max(chosen_count, 1) * sizeof(int));
	cut_into_pieces(&planning, chosen, chosen_count, budget->worthwhile);

	plan_bulks(&planning, true);
	plan_singles(&planning, false);
	plan_singles(&planning, true);
	plan_bulks(&planning, false);
	sort_by_age(&planning);
}

/*
 * Stores the positions of the candidates in the order of their organizations,
 * without those whose address occurs before; returns how many there are.
 */
static int
choose_distinct(const ClerkCandidate *candidates, int count, int *chosen)
{
	int			distinct = 0;

	for (int i = 0; i < count; i++)
		chosen[i] = i;
	qsort_arg(chosen, count, sizeof(int), compare_addresses,
			  unconstify(ClerkCandidate *, candidates));
	for (int i = 0; i < count; i++)
		if (distinct == 0 ||
			strcmp(candidates[chosen[i]].address,
				   candidates[chosen[distinct - 1]].address) != 0)
			chosen[distinct++] = chosen[i];
	qsort_arg(chosen, distinct, sizeof(int), compare_organizations,
			  unconstify(ClerkCandidate *, candidates));
	return distinct;
}

static void
cut_into_pieces(Planning *planning, int *chosen, int count, int worthwhile)
{
	const ClerkCandidate *candidates = planning->candidates;

	planning->pieces = palloc(Max(count, 1) * sizeof(Piece));
	planning->piece_count = 0;
	for (int i = 0; i < count; i += planning->pieces[planning->piece_count++].count)
	{
		Piece	   *piece = &planning->pieces[planning->piece_count];

		piece->members = chosen + i;
		piece->count = length_of_piece(candidates, chosen + i, count - i);
		piece->age = chosen[i];
		piece->alone = candidates[chosen[i]].alone;
		piece->overdue = candidates[chosen[i]].overdue;
		piece->worthwhile = !piece->alone && piece->count >= worthwhile;
	}
}

/* How many from here on can share a request. */
static int
length_of_piece(const ClerkCandidate *candidates, const int *chosen, int count)
{
	const ClerkCandidate *first = &candidates[chosen[0]];
	int			length = 1;

	if (first->alone)
		return 1;
	while (length < Min(count, CLERK_BULK_MAX) &&
		   !candidates[chosen[length]].alone &&
		   strcmp(candidates[chosen[length]].organization_id,
				  first->organization_id) == 0)
		length++;
	return length;
}

/* Bulk requests for pieces that are worth them, or for what is left. */
static void
plan_bulks(Planning *planning, bool worthwhile)
{
	qsort(planning->pieces, planning->piece_count, sizeof(Piece),
		  compare_for_bulks);
	for (int i = 0; i < planning->piece_count && planning->bulks > 0; i++)
	{
		Piece	   *piece = &planning->pieces[i];

		if (piece->count == 0 || piece->worthwhile != worthwhile)
			continue;
		add_request(planning, piece, true, piece->count);
		planning->bulks--;
	}
}

/*
 * Single requests for pieces that are not worth a bulk request, or for what
 * the bulk requests have left over.
 */
static void
plan_singles(Planning *planning, bool worthwhile)
{
	qsort(planning->pieces, planning->piece_count, sizeof(Piece),
		  compare_for_singles);
	for (int i = 0; i < planning->piece_count; i++)
	{
		Piece	   *piece = &planning->pieces[i];

		if (piece->worthwhile != worthwhile)
			continue;
		while (piece->count > 0 && planning->singles > 0)
		{
			add_request(planning, piece, false, 1);
			planning->singles--;
		}
	}
}

/* Takes the oldest of a piece into a request of their own. */
static void
add_request(Planning *planning, Piece *piece, bool bulk, int count)
{
	ClerkPlan  *plan = planning->plan;
	ClerkPackedRequest *request = &plan->requests[plan->count];

	request->bulk = bulk;
	request->count = count;
	for (int i = 0; i < count; i++)
		request->members[i] = piece->members[i];
	planning->request_ages[plan->count++] = piece->members[0];
	piece->members += count;
	piece->count -= count;
}

static void
sort_by_age(Planning *planning)
{
	ClerkPlan  *plan = planning->plan;
	ClerkPackedRequest *sorted = palloc(Max(plan->count, 1) *
										sizeof(ClerkPackedRequest));
	int		   *order = palloc(Max(plan->count, 1) * sizeof(int));

	for (int i = 0; i < plan->count; i++)
		order[i] = i;
	qsort_arg(order, plan->count, sizeof(int), compare_ages,
			  planning->request_ages);
	for (int i = 0; i < plan->count; i++)
		sorted[i] = plan->requests[order[i]];
	plan->requests = sorted;
}

/* By address; the oldest of the same address first. */
static int
compare_addresses(const void *a, const void *b, void *candidates)
{
	const ClerkCandidate *all = candidates;
	const int	first = *(const int *) a;
	const int	second = *(const int *) b;
	int			order = strcmp(all[first].address, all[second].address);

	return order != 0 ? order : first - second;
}

/* By organization, those that go alone last; the oldest first. */
static int
compare_organizations(const void *a, const void *b, void *candidates)
{
	const ClerkCandidate *all = candidates;
	const int	first = *(const int *) a;
	const int	second = *(const int *) b;
	int			order = strcmp(all[first].organization_id,
							   all[second].organization_id);

	if (order == 0)
		order = (int) all[first].alone - (int) all[second].alone;
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
