/*
 * rollback_warning.c
 *		Warns about invitations that remain at Clerk when the transaction
 *		that created them is rolled back.
 *
 * Invitations are recorded in a stack of frames, one for each open
 * subtransaction that created some.  When a subtransaction commits, its frame
 * is merged into its parent's.  When it aborts, a WARNING lists the frame's
 * invitations and the frame is dropped.  The same happens when the whole
 * transaction aborts.
 *
 * Another session decides what happens to a prepared transaction, so there is
 * no warning about its rollback.
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "sql/rollback_warning.h"
#include "utils/memutils.h"

/*
 * Identifiers that a frame lists; further ones are only counted.  At 34
 * characters each, as Clerk's have, the list and the message stay below 40 kB
 * however many invitations a transaction creates.
 */
#define MAX_NAMED 1000

/* Allocated in TopTransactionContext. */
typedef struct Frame
{
	SubTransactionId subtransaction;
	int64		count;			/* all invitations, including those not listed */
	int			named;
	StringInfoData names;		/* comma-separated identifiers */
	struct Frame *outer;
} Frame;

static Frame *innermost = NULL;

static void on_transaction_event(XactEvent event, void *arg);
static void on_subtransaction_event(SubXactEvent event,
									SubTransactionId subtransaction,
									SubTransactionId parent, void *arg);
static void push_frame(SubTransactionId subtransaction);
static Frame *pop_frame(void);
static void add_names(Frame *frame, const char *identifiers, int count);
static void merge_into_outer(void);
static void warn_of_frame(const Frame *frame);

/*
 * Records that the current (sub)transaction has created the invitation with
 * this ID.  If it is rolled back, a WARNING lists the ID.
 */
void
clerk_warn_on_rollback(const char *invitation_id)
{
	static bool registered = false;
	SubTransactionId current = GetCurrentSubTransactionId();

	if (!registered)
	{
		RegisterXactCallback(on_transaction_event, NULL);
		RegisterSubXactCallback(on_subtransaction_event, NULL);
		registered = true;
	}
	if (innermost == NULL || innermost->subtransaction != current)
		push_frame(current);
	innermost->count++;
	add_names(innermost, invitation_id, 1);
}

static void
on_transaction_event(XactEvent event, void *arg pg_attribute_unused())
{
	switch (event)
	{
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
			while (innermost != NULL)
				warn_of_frame(pop_frame());
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PREPARE:
			innermost = NULL;
			break;
		default:
			break;
	}
}

static void
on_subtransaction_event(SubXactEvent event, SubTransactionId subtransaction,
						SubTransactionId parent,
						void *arg pg_attribute_unused())
{
	if (innermost == NULL || innermost->subtransaction != subtransaction)
		return;

	if (event == SUBXACT_EVENT_ABORT_SUB)
		warn_of_frame(pop_frame());
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		if (innermost->outer != NULL &&
			innermost->outer->subtransaction == parent)
			merge_into_outer();
		else
			innermost->subtransaction = parent;
	}
}

static void
push_frame(SubTransactionId subtransaction)
{
	MemoryContext caller = MemoryContextSwitchTo(TopTransactionContext);
	Frame	   *frame = palloc0(sizeof(Frame));

	frame->subtransaction = subtransaction;
	initStringInfo(&frame->names);
	frame->outer = innermost;
	innermost = frame;
	MemoryContextSwitchTo(caller);
}

/*
 * Removes the innermost frame and returns it.  It is removed before the
 * warning is raised, so that a warning that fails is not raised again.
 */
static Frame *
pop_frame(void)
{
	Frame	   *frame = innermost;

	innermost = frame->outer;
	return frame;
}

/*
 * Adds comma-separated identifiers to a frame's list, unless it would become
 * too long.
 */
static void
add_names(Frame *frame, const char *identifiers, int count)
{
	if (frame->named + count > MAX_NAMED)
		return;
	if (frame->named > 0)
		appendStringInfoString(&frame->names, ", ");
	appendStringInfoString(&frame->names, identifiers);
	frame->named += count;
}

static void
merge_into_outer(void)
{
	Frame	   *inner = innermost;

	innermost = inner->outer;
	innermost->count += inner->count;
	add_names(innermost, inner->names.data, inner->named);
	pfree(inner->names.data);
	pfree(inner);
}

static void
warn_of_frame(const Frame *frame)
{
	int64		unnamed = frame->count - frame->named;

	ereport(WARNING,
			(errmsg_plural("%lld invitation created in Clerk is not undone by the rollback",
						   "%lld invitations created in Clerk are not undone by the rollback",
						   (unsigned long) frame->count,
						   (long long) frame->count),
			 unnamed == 0 ?
			 errdetail("Created: %s.", frame->names.data) :
			 errdetail("Created: %s, and %lld more.", frame->names.data,
					   (long long) unnamed),
			 errhint("Revoke unwanted invitations in Clerk's Dashboard or with clerk_revoke_organization_invitation().")));
}
