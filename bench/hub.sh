#!/bin/sh
# hub.sh - how long it takes from a commit at a publisher to the request
#
# One run: a publisher without the extension, a hub, and a fake Clerk, on
# loopback; COMMITS (200) invitations are inserted one by one, each when the one
# before it is settled, its state is back, and the hub is idle.  The time is from
# the publisher's commit, as in its log, until the fake has read the request.
# Prints median and 99th percentile in milliseconds, for a worker that waits and
# (for a tenth as many) for one that has to be started.  Fails if the first is
# over 5 or 20.  As in all benchmarks here, fsync is off: two flushes, the
# publisher's and that of the sender's claim, come on top with a real disk.
#
# COMMITS may be set in the environment.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine libipc-run-perl perl
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" COMMITS="${COMMITS:-200}" \
	sh "$WORKSPACE/source/bench/measure_hub.sh" "$WORKSPACE"
