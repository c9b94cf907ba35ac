#!/bin/sh
# backlog.sh - how fast whole backlogs drain, next to the work that is unavoidable
#
# One run: a server in C that creates whatever it is asked to, on loopback with a
# core of its own; against it, one session drains backlogs of 10,000 to 1,000,000
# invitations, for one organization and for an organization each.  After each, the
# same rows are updated in plain SQL, in the same batches, with as many commits,
# in a table without triggers; and bare libcurl makes the same requests, as many
# at a time.  Prints invitations a second, the ratio of the drain's time to that
# of both together, and the most private memory that the sender had.  Fails if a
# ratio is over 1.5.  fsync is on.
#
# BACKLOGS may be set in the environment: sizes, each with its number of rounds.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" \
	BACKLOGS="${BACKLOGS:-10000:5 100000:3 1000000:1}" \
	sh "$WORKSPACE/source/bench/measure_backlog.sh" "$WORKSPACE"
