#!/bin/sh
# rpm.sh - the RPM package, as far as it can be built and tried on Debian
#
# Runs on a bare Debian or Ubuntu: makes the source of what is committed, as
# "make dist" does, lets rpmlint judge the spec file and the packages, builds
# both of them with rpmbuild, and creates the extension in a throwaway cluster
# that loads it from the unpacked package.  Ends with what takes an RPM-based
# system and so is not tried.  PG_CONFIG in the environment chooses the server.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine rpm rpm2cpio rpmlint debugedit cpio unzip git
make_workspace
[ -z "$(git status --porcelain)" ] || echo "$0: what is not committed is left out" >&2
git clone -q --no-hardlinks . "$WORKSPACE/clone"
if [ "$(id -u)" = 0 ]; then
	chown -R postgres "$WORKSPACE/clone"
fi
as_ordinary_user env PG_CONFIG="$PG_CONFIG" HOME="$WORKSPACE" \
	sh "$WORKSPACE/source/test/run_rpm.sh" "$WORKSPACE"
