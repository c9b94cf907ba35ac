#!/bin/sh
# coverage.sh - which lines of src/ the tests execute
#
# Installs what is missing, builds a copy of the checkout that counts how often
# each line is executed (gcov), runs the regression, isolation, and TAP tests,
# and prints the part of the lines that was executed, for each file and in total.
# Fails if a test does, or if the total is below 92 %.  Takes about half an hour.
# UNCOVERED in the environment is a regular expression of files, such as
# "outbox/delivery": also lists their lines and branches that were not executed.
# TAP_FILES and CHECKS choose tests, as for check.sh.
#
# A process that is killed or stopped at once keeps its counts to itself, so the
# true figure is a little higher.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine libipc-run-perl perl nginx-light git
make_workspace
fetch_program prometheus-postgres-exporter
as_ordinary_user env PG_CONFIG="$PG_CONFIG" CHECKS="${CHECKS:-}" \
	TAP_FILES="${TAP_FILES:-}" UNCOVERED="${UNCOVERED:-}" \
	TMPDIR="$WORKSPACE" HOME="$WORKSPACE" PATH="$PATH:$WORKSPACE/programs" \
	sh "$WORKSPACE/source/test/run_coverage.sh" "$WORKSPACE"
