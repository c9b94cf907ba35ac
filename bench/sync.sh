#!/bin/sh
# sync.sh - what a synchronous call costs over bare libcurl
#
# One run: nginx with a constant answer on loopback, plain HTTP/1.1 and TLS with
# HTTP/2; against it, in turn and several rounds, the SQL function in one
# session, a bare libcurl loop in C with the same request, that loop in a backend,
# and pgsql-http where that extension is installed.  Prints medians in
# microseconds a call and ratios, and how much a session grows over 20,000 calls.
# Fails if a ratio to the bare loop is over 1.15 or the growth is 1 MiB or more.
#
# ROUNDS and CALLS may be set in the environment.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine nginx-light
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" ROUNDS="${ROUNDS:-21}" \
	CALLS="${CALLS:-2000}" sh "$WORKSPACE/source/bench/measure_sync.sh" "$WORKSPACE"
