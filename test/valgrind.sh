#!/bin/sh
# valgrind.sh - the regression tests with memcheck on every backend
#
# Installs what is missing, runs the server of a throwaway cluster under
# valgrind, and "make installcheck" against it.  Fails if memcheck has found an
# error that valgrind.supp does not know as the server's or a library's own.
# Takes some minutes.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine valgrind
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" TMPDIR="$WORKSPACE" \
	sh "$WORKSPACE/source/test/run_valgrind.sh" "$WORKSPACE"
