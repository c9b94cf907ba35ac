#!/bin/sh
# soak.sh - nothing grows, and nothing is left behind
#
# Usage: soak.sh [--minutes N] [--seed S]
#
# Installs what is missing, and lets invitations flow for 30 minutes, or as many as
# the arguments say, through a throwaway cluster to a fake Clerk while faults
# happen, as ledger.sh does, but no faster than an application would.  Prints a
# line a minute: the private memory and the file descriptors of the worker, of a
# session that does everything, and of the postmaster; the extension's shared
# memory; and what could be left behind.  In the last tenth of the time servers
# and senders are killed as well.  After a quarter of the time, the least of the
# first half of the lines is compared with the least of the second half.  Fails if
# memory has grown by 1 MiB or descriptors by 4, if anything is left, or if the
# outbox is not as the ledger is.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine libipc-run-perl perl
make_workspace
make_small_disk
as_ordinary_user env PG_CONFIG="$PG_CONFIG" TMPDIR="$WORKSPACE" SMALL_DISK="$SMALL_DISK" \
	sh "$WORKSPACE/source/test/run_ledger.sh" "$WORKSPACE" soak_campaign.pl "$@"
