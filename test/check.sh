#!/bin/sh
# check.sh - every test, on a bare Debian or Ubuntu with a clean checkout
#
# Installs what is missing, copies the checkout to a folder of an ordinary
# user's, and runs run_checks.sh there: nothing is built in the checkout, and
# the machine's own PostgreSQL is left alone.  Ends with a line of counts, and
# a status other than 0 if anything failed or nothing ran.
#
# CHECKS in the environment chooses some of them, such as "regress tap".  The
# source is built in any case, which counts if "build" is among them.  TAP_FILES
# chooses files for "tap", such as "test/t/001_create.pl".  CC names another
# compiler than the server's, which must be installed.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine libipc-run-perl perl cppcheck nginx-light git
install_where_available pg-bsd-indent spin
make_workspace
make_small_disk

# Which files are git's, where there is a repository.  Told its place, git does
# not mind whose it is.
if [ -e .git ]; then
	git --git-dir=.git --work-tree=. ls-files -z >"$WORKSPACE/tracked"
fi
case " ${CHECKS:-tap} " in
	*" tap "*) fetch_program prometheus-postgres-exporter ;;
esac
as_ordinary_user env PG_CONFIG="$PG_CONFIG" CHECKS="${CHECKS:-}" \
	TAP_FILES="${TAP_FILES:-}" SMALL_DISK="$SMALL_DISK" \
	TMPDIR="$WORKSPACE" HOME="$WORKSPACE" PATH="$PATH:$WORKSPACE/programs" \
	sh "$WORKSPACE/source/test/run_checks.sh" "$WORKSPACE"
