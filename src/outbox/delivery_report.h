/*
 * delivery_report.h
 *		What a delivery pass needs from its host, and what it reports.
 */
#ifndef CLERK_DELIVERY_REPORT_H
#define CLERK_DELIVERY_REPORT_H

#include "clerk/error.h"
#include "common/installed_extension.h"
#include "datatype/timestamp.h"

/* The result of a pass. */
typedef struct ClerkDeliveryReport
{
	TimestampTz begun_at;
	ClerkFit	fit;			/* whether the library fits; if not, see
								 * stopped_by */
	bool		busy;			/* another session is the sender; the pass did
								 * nothing or ended early */
	int64		sent;
	int64		skipped;
	int64		failed;
	int64		postponed;		/* rows that are still open after an attempt
								 * or a lookup */
	TimestampTz limited_until;	/* rows are due, but Clerk's limits allow no
								 * request before this time; infinity: never;
								 * 0: no row waits for a limit */
	TimestampTz next_due;		/* when there will be something to do;
								 * infinity: never */
	int64		set_aside;		/* rows that are set aside: this database
								 * refuses to change them */
	const char *set_aside_reason;	/* of one of them; NULL: there are none */
	const ClerkError *stopped_by;	/* why the pass ended early; NULL: it did
									 * not */
} ClerkDeliveryReport;

/*
 * How a pass controls transactions and reports its progress.  The worker and
 * the procedure clerk_send_invitations() each have their own.
 */
typedef struct ClerkDeliveryHost
{
	void		(*begin) (void);	/* begins a transaction */
	void		(*commit) (void);

	/*
	 * Called about every 10 seconds, in a transaction, with the number of
	 * rows that are still due and that the pass may process; NULL: no
	 * progress reports.
	 */
	void		(*progress) (const ClerkDeliveryReport *report, int64 left);
} ClerkDeliveryHost;

#endif							/* CLERK_DELIVERY_REPORT_H */
