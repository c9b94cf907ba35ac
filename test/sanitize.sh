#!/bin/sh
# sanitize.sh - the tests on a module built with AddressSanitizer and
# UndefinedBehaviorSanitizer
#
# Installs what is missing, builds a copy of the checkout with both, and runs
# the regression, isolation, and TAP tests; the files of test/t that are left
# out are named with the reason.  Fails if a test does or if a sanitizer has
# found something.  Takes about half an hour.  TAP_FILES in the environment
# chooses files, CHECKS some of the three kinds, as for check.sh.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine libipc-run-perl perl nginx-light git
make_workspace
fetch_program prometheus-postgres-exporter
as_ordinary_user env PG_CONFIG="$PG_CONFIG" CHECKS="${CHECKS:-}" \
	TAP_FILES="${TAP_FILES:-}" \
	TMPDIR="$WORKSPACE" HOME="$WORKSPACE" PATH="$PATH:$WORKSPACE/programs" \
	sh "$WORKSPACE/source/test/run_sanitized.sh" "$WORKSPACE"
