#!/bin/sh
# idle.sh - what the extension costs while there is nothing to do
#
# One run: for SECONDS_IDLE (60) each, the worker of a database whose only row
# is due tomorrow, once it rests without a connection; the launcher in a server
# that has sent what there was, and whose worker is gone; and the worker of
# pg_net, where that extension is installed.  Prints how often a process was woken
# and for how long it ran, in a minute, and its system calls where strace may
# count them.  Fails if the launcher or the worker wakes at all, or if a worker is
# left.
#
# SECONDS_IDLE, and PEERS (see install.sh) may be set in the environment.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" SECONDS_IDLE="${SECONDS_IDLE:-60}" \
	sh "$WORKSPACE/source/bench/measure_idle.sh" "$WORKSPACE"
