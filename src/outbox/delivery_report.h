/*
 * delivery_report.h
 *		What a delivery pass needs of its host, and what it reports to it.
 */
#ifndef CLERK_DELIVERY_REPORT_H
#define CLERK_DELIVERY_REPORT_H

#include "clerk/error.h"
#include "common/installed_extension.h"
#include "datatype/timestamp.h"

typedef struct ClerkDeliveryReport
{
	TimestampTz begun_at;
	ClerkFit	fit;			/* of the library; not good: see stopped_by */
	bool		busy;			/* another session is sending: nothing done */
	int64		sent;
	int64		skipped;
	int64		failed;
	int64		postponed;		/* rows that are open after an attempt or a
								 * look */
	TimestampTz limited_until;	/* rows are due, but Clerk's limits allow none
								 * before this; 0: they do not matter */
	TimestampTz next_due;		/* when there is something to do again; 0: no
								 * row is open */
	int64		set_aside;		/* rows whose changes fail in this database */
	const char *set_aside_reason;	/* of one of them; NULL: there are none */
	const ClerkError *stopped_by;	/* why it ended early; NULL: it did not */
} ClerkDeliveryReport;

/* What a pass needs of where it runs. */
typedef struct ClerkDeliveryHost
{
	void		(*begin) (void);	/* a transaction */
	void		(*commit) (void);

	/*
	 * Called now and then, in a transaction, with the number of rows that are
	 * still due, and that the pass may send; NULL if nobody wants to know.
	 */
	void		(*progress) (const ClerkDeliveryReport *report, int64 left);
} ClerkDeliveryHost;

#endif							/* CLERK_DELIVERY_REPORT_H */
