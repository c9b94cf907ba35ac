#!/bin/sh
# wire.sh - how long it takes from a commit to the request
#
# One run: a server in C that creates whatever it is asked to, on loopback; against
# it, the worker of a database to whose members table 1, 10, and 50 clients add,
# each PER_CLIENT (20) a second in a transaction of its own, for DURATION (20)
# seconds.  The time is from the commit, as PostgreSQL records it before it flushes
# the WAL, until the server has read the request: first without flushes to disk (of
# which there are two, the commit's and that of the sender's claim), then with
# them.  Also for STARTS (20) commits that have to start a worker first, and for
# pg_net, where that extension is installed.  Prints median and 99th percentile in
# milliseconds.  Fails if, without flushes and with 10 clients, they are over 1 ms
# or 5 ms.
#
# DURATION, PER_CLIENT, STARTS, and PEERS (see install.sh) may be set in the
# environment.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" DURATION="${DURATION:-20}" \
	PER_CLIENT="${PER_CLIENT:-20}" STARTS="${STARTS:-20}" \
	sh "$WORKSPACE/source/bench/measure_wire.sh" "$WORKSPACE"
