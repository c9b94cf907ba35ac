#!/bin/sh
# pace.sh - how close to Clerk's ceiling backlogs drain
#
# One run of test/t/031_pace.pl with a window that is long enough for the
# machine's own delays to count little: the worker sends backlogs of thousands
# to fakes that enforce 250 single and 50 bulk requests in a window.  Prints the
# times, the ideal ones, and the ratio in percent.  Fails below 99.5 %, or if a
# request was refused.  Takes ten windows.
#
# WINDOW, in seconds, may be set in the environment.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine libipc-run-perl perl
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" WINDOW="${WINDOW:-20}" \
	sh "$WORKSPACE/source/bench/measure_pace.sh" "$WORKSPACE"
