#!/bin/sh
# enqueue.sh - what the outbox costs in the transaction of whoever adds members
#
# One run: in turn and several rounds, MEMBERS (10,000; or several numbers, with
# blanks in between) members are inserted (a) plainly, and the same rows into the
# outbox by a second plain statement; (b) with a statement trigger on the members
# table; (c) with a row trigger.  Prints medians in milliseconds a transaction,
# and ratios to (a).  Fails if, with 10,000 members or more, (b) takes more than
# 1.5 times as long, or (c) more than 2.5 times.
#
# ROUNDS and MEMBERS may be set in the environment.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" ROUNDS="${ROUNDS:-21}" \
	MEMBERS="${MEMBERS:-10000}" sh "$WORKSPACE/source/bench/measure_enqueue.sh" "$WORKSPACE"
