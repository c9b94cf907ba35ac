# machine.sh - what the scripts need that promise to run on a bare machine
#
# Sourced, not run, with the checkout as the working directory.  Debian and
# Ubuntu; as root, or as a user who may use sudo, or where all packages are
# there already.

# as_root COMMAND...: runs it with the privileges that apt-get needs
as_root()
{
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "$0: needs root or sudo for: $*" >&2
		exit 1
	fi
}

missing_packages()
{
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null |
			grep -qx installed || echo "$package"
	done
}

# install_packages NAME...: installs those that are missing.  The server's
# packages would create and start a cluster of the machine's own, which is
# none of our business: a setting of postgresql-common's prevents it.  It goes
# again however this ends.
install_packages()
{
	missing=$(missing_packages "$@")
	[ -n "$missing" ] || return 0

	(
		trap allow_clusters EXIT
		trap 'exit 130' INT
		trap 'exit 143' TERM HUP
		forbid_clusters
		# shellcheck disable=SC2086
		as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $missing >&2
	)
}

forbid_clusters()
{
	no_cluster=/etc/postgresql-common/createcluster.d/clerk_invite.conf
	[ -d "${no_cluster%/*}" ] || our_folder=${no_cluster%/*}
	as_root mkdir -p "${no_cluster%/*}"
	echo 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
}

# The folder is nobody's but ours if it was not there; the one above it is the
# package's, if that was installed.
allow_clusters()
{
	as_root rm -f "$no_cluster"
	[ -z "${our_folder:-}" ] ||
		as_root rmdir -p --ignore-fail-on-non-empty "$our_folder"
}

refresh_package_lists()
{
	as_root apt-get update -qq >&2
}

# postgresql_version: the major version to use: PG_CONFIG's, else the newest
# server that is installed, else the distribution's
postgresql_version()
{
	if [ -n "${PG_CONFIG:-}" ]; then
		"$PG_CONFIG" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/'
		return
	fi
	for server in /usr/lib/postgresql/*/bin/postgres; do
		[ -x "$server" ] && echo "$server"
	done | sed 's,/usr/lib/postgresql/\([0-9]*\)/.*,\1,' | sort -n | tail -n 1 |
		grep . || distribution_version
}

distribution_version()
{
	apt-cache depends postgresql |
		sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p'
}

# prepare_machine EXTRA_PACKAGE...: installs what building and running the
# extension takes and sets PG_CONFIG
prepare_machine()
{
	version=$(postgresql_version)
	if [ -z "$version" ] || [ -n "$(missing_packages "$@" \
		"postgresql-$version" "postgresql-server-dev-$version")" ]; then
		refresh_package_lists
		version=$(postgresql_version)
	fi
	install_packages gcc make libcurl4-openssl-dev ca-certificates openssl \
		python3 python3-jsonschema \
		"postgresql-$version" "postgresql-server-dev-$version" "$@"
	# A version that is not released yet has no pg_cron.
	install_where_available "postgresql-$version-cron"
	PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/$version/bin/pg_config}
	export PG_CONFIG
}

# install_where_available NAME...: those that this distribution has
install_where_available()
{
	for package in $(missing_packages "$@"); do
		if apt-cache show "$package" >/dev/null 2>&1; then
			install_packages "$package"
		fi
	done
}

# unpack_package PACKAGE FOLDER: puts its files into the folder without
# installing it, since that would start a service, and without what it depends
# on
unpack_package()
{
	# shellcheck disable=SC2016
	as_ordinary_user sh -euc '
		mkdir -p "$2.package"
		cd "$2.package"
		apt-get download -qq "$1"
		dpkg-deb -x ./*.deb "$2"
		rm -r "$2.package"
	' sh "$1" "$2" >&2
}

# fetch_program PACKAGE: puts the package's programs into $WORKSPACE/programs, a
# folder for PATH, without installing it, since that would start a service.
# Whoever needs them finds out if that did not work.
fetch_program()
{
	# shellcheck disable=SC2016
	as_ordinary_user sh -euc '
		mkdir -p "$1/programs" "$1/package"
		cd "$1/package"
		apt-get download -qq "$2"
		dpkg-deb -x ./*.deb .
		mv usr/bin/* "$1/programs/"
		rm -r "$1/package"
	' sh "$WORKSPACE" "$1" >&2 || echo "$0: no programs of $1" >&2
}

# The server refuses to run as root.
as_ordinary_user()
{
	if [ "$(id -u)" = 0 ]; then
		runuser -u postgres -- "$@"
	else
		"$@"
	fi
}

# make_workspace: a folder of the ordinary user's with a copy of the checkout
# in it, so that nothing is built in the checkout; sets WORKSPACE, which is
# removed at exit
make_workspace()
{
	WORKSPACE=$(as_ordinary_user mktemp -d /tmp/clerk_invite.XXXXXX)
	trap 'rm -rf "$WORKSPACE"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	mkdir "$WORKSPACE/source"
	tar -cf - --exclude=./.git --exclude='*.o' --exclude='*.bc' \
		--exclude='*.so' --exclude=__pycache__ --exclude=./tmp_check \
		--exclude=node_modules . |
		tar -xf - -C "$WORKSPACE/source" --no-same-owner
	if [ "$(id -u)" = 0 ]; then
		chown -R postgres "$WORKSPACE/source"
	fi
}

# make_small_disk: a file system in the workspace that a test can fill up, for
# the ordinary user; sets SMALL_DISK to its folder, or to nothing where it cannot
# be mounted, as in most containers
make_small_disk()
{
	SMALL_DISK=$WORKSPACE/disk
	mkdir "$SMALL_DISK"
	if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=192m,mode=700,uid=postgres \
		tmpfs "$SMALL_DISK" 2>"$WORKSPACE/mount.log"; then
		trap 'umount -l "$SMALL_DISK"; rm -rf "$WORKSPACE"' EXIT
	else
		rmdir "$SMALL_DISK"
		SMALL_DISK=
	fi
}
