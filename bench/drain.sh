#!/bin/sh
# drain.sh - how fast the outbox empties when Clerk sets no limit
#
# One run: a server in C that creates whatever it is asked to, on loopback with
# a core of its own; against it, in turn and several rounds, one session calls
# clerk_send_invitations() for 10,000 rows, with 10,000 and with 1,000,000 rows
# queued, for one organization and for an organization each.  Prints medians in
# invitations a second, ratios, how busy the server was and what it can do
# alone; and how much the sender's private memory has grown after 100,000 more.
# Fails below 5,000 a second, if a million queued rows make it more than 10 %
# slower, or at a growth of 2 MiB or more.
#
# ROUNDS, DRAIN (rows sent a round), QUEUED (the larger queue) and MORE (rows
# sent while memory is watched) may be set in the environment.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" ROUNDS="${ROUNDS:-5}" \
	DRAIN="${DRAIN:-10000}" QUEUED="${QUEUED:-1000000}" MORE="${MORE:-100000}" \
	sh "$WORKSPACE/source/bench/measure_drain.sh" "$WORKSPACE"
