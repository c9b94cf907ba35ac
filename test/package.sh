#!/bin/sh
# package.sh [SUITE...] - Debian's packages, built, installed and tested
#
# For each suite (bookworm unless told otherwise), in Debian systems that are
# made for this and removed: builds the packages from a clean clone, as an
# ordinary user and with what debian/control says it takes; lets lintian judge
# them; installs one on a fresh system and creates the extension in the cluster
# that comes with the server; runs its autopkgtest.  Needs root, and some
# minutes and 3 GB for each suite.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
. test/debian_system.sh

build_packages()
{
	cp -a "$SYSTEMS/fresh" "$SYSTEMS/build"
	clone_into "$SYSTEMS/build" build/clerk-invite
	step "$SYSTEMS/build" "$suite: the build dependencies can be installed" '
		apt-get update
		apt-get install -y --no-install-recommends build-essential lintian
		apt-get build-dep -y --no-install-recommends /build/clerk-invite
		useradd builder
		chown -R builder /build
	'
	# debian/control is that of one suite: others have other servers.
	step "$SYSTEMS/build" "$suite: the packages build and pass the regression tests" '
		cd /build/clerk-invite
		runuser -u builder -- env PG_UPDATECONTROL=yes \
			dpkg-buildpackage --unsigned-source --unsigned-changes --build=binary
	'
	grep -E '^# (make|Postgres)|^(ok|test) .*(ok|[0-9] ms)|^(# )?All .* passed' \
		"$SYSTEMS/log" || true
	# The tag is for what is uploaded to Debian, which closes a bug there.
	step "$SYSTEMS/build" "$suite: lintian finds no error and no warning" '
		lintian --version
		runuser -u builder -- lintian --fail-on error,warning \
			--suppress-tags initial-upload-closes-no-bugs /build/*.changes
	'
	sed 's/^/        /' "$SYSTEMS/log"
}

install_packages_there()
{
	cp -a "$SYSTEMS/fresh" "$SYSTEMS/user"
	mkdir "$SYSTEMS/user/packages"
	cp "$SYSTEMS"/build/build/postgresql-*-clerk-invite_*.deb \
		"$SYSTEMS/user/packages"
	# shellcheck disable=SC2016
	step "$SYSTEMS/user" "$suite: the package can be installed on a fresh system" '
		apt-get update
		apt-get install -y /packages/*.deb
		cd /var/lib/postgresql
		for version in $(ls /usr/lib/postgresql); do
			pg_ctlcluster "$version" main start
			runuser -u postgres -- psql -X -v ON_ERROR_STOP=1 \
				--cluster "$version/main" \
				-c "CREATE EXTENSION clerk_invite" -c "\dx clerk_invite" \
				-c "SELECT count(*) AS workers FROM clerk_worker_status()" \
				-c "DROP EXTENSION clerk_invite"
			pg_ctlcluster "$version" main stop
		done
	'
}

# The null runner tests the system that it runs on.  Which packages it is to
# test is in debian/control, as it was written for this suite.
run_autopkgtest()
{
	clone_into "$SYSTEMS/user" packages/clerk-invite
	cp "$SYSTEMS/build/build/clerk-invite/debian/control" \
		"$SYSTEMS/user/packages/clerk-invite/debian/control"
	step "$SYSTEMS/user" "$suite: the package passes its autopkgtest" '
		apt-get install -y --no-install-recommends autopkgtest
		useradd --create-home tester
		autopkgtest --no-built-binaries --user=tester /packages/*.deb \
			/packages/clerk-invite/ -- null
	'
	grep -A 5 '@@@@ summary' "$SYSTEMS/log" || true
}

prepare_for_systems
make_folder_for_systems
for suite in "${@:-bookworm}"; do
	make_system "$SYSTEMS/fresh" "$suite" 2>"$SYSTEMS/log" ||
		{ cat "$SYSTEMS/log" >&2; exit 1; }
	build_packages
	install_packages_there
	run_autopkgtest
	rm -rf --one-file-system "${SYSTEMS:?}"/*
done
