#!/bin/sh
# ledger.sh - none lost, none created twice, whatever happens
#
# Usage: ledger.sh [--invitations N] [--faults N] [--seed S]
#
# Installs what is missing, and lets 10,000 invitations flow through the outbox
# of a throwaway cluster to a fake Clerk while 500 faults happen, or as many as
# the arguments say; a seed decides which.  Prints a table of the faults and of
# what became of the rows, and every difference between the outbox and the
# fake's ledger.  Fails if there is any.  Clerk's clock is set by minutes, but not
# twice without a response in between: nobody can know what was created by a clock
# that no response has shown.  Takes about ten minutes.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine libipc-run-perl perl
make_workspace
make_small_disk
as_ordinary_user env PG_CONFIG="$PG_CONFIG" TMPDIR="$WORKSPACE" SMALL_DISK="$SMALL_DISK" \
	sh "$WORKSPACE/source/test/run_ledger.sh" "$WORKSPACE" ledger_campaign.pl "$@"
