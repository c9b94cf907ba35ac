#!/bin/sh
# sync.sh - what a synchronous call costs over bare libcurl
#
# One run: nginx with a constant answer on loopback, with plain HTTP/1.1, with
# TLS and HTTP/2, and with the latter behind a proxy that is LATENCY (50)
# milliseconds away; against it, in turn and several rounds, a bare libcurl loop
# in C, the SQL function in one session, the loop in a backend, and those of
# pgsql-http and @clerk/backend that the machine has (npm fetches the latter).
# Prints medians in microseconds a call and of a session's first call, ratios to
# the bare loop, system calls where strace may count them, and how much a session
# grows over 20,000 calls.  Fails if the SQL function's ratio is over 1.10 or the
# growth is 1 MiB or more.
#
# ROUNDS and CALLS, FAR_ROUNDS and FAR_CALLS for those with latency, LATENCY,
# GROWTH_CALLS, and PEERS (see install.sh) may be set in the environment.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine nginx-light
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" ROUNDS="${ROUNDS:-21}" CALLS="${CALLS:-2000}" \
	FAR_ROUNDS="${FAR_ROUNDS:-5}" FAR_CALLS="${FAR_CALLS:-20}" LATENCY="${LATENCY:-50}" \
	GROWTH_CALLS="${GROWTH_CALLS:-20000}" \
	sh "$WORKSPACE/source/bench/measure_sync.sh" "$WORKSPACE"
