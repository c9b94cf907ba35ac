#!/bin/sh
# hub_versions.sh [OPTION...] - a hub whose publishers have another version
#
# Makes a Debian system in a folder for each suite, installs its PostgreSQL
# there, and runs the tests of the hub with this machine's version for the hub
# and that one for its publishers.  Needs root, and some minutes for a suite.
#
#	--suites LIST   which Debian suites ("bullseye trixie": PostgreSQL 13, the
#	                oldest that a publisher may have, and 17)
#	--keep FOLDER   keep the systems there, and use those that are there
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
. test/debian_system.sh

usage()
{
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 2
}

# install_server SUITE: sets SERVER, the folder of its version of PostgreSQL
install_server()
{
	system=$SYSTEMS/$1
	if [ ! -d "$system" ]; then
		rm -rf --one-file-system "$system.part"
		make_system "$system.part" "$1"
		mv "$system.part" "$system"
	fi
	in_system "$system" sh -euc '
		ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 && exit
		apt-get update -qq
		apt-get install -y -qq --no-install-recommends postgresql' >&2
	SERVER=$(ls -d "$system"/usr/lib/postgresql/*)
}

# move_server SYSTEM SERVER: lets its programs run outside of the system, with
# the system's C library and all others: no folder of the machine's comes first
move_server()
{
	libraries=$(cd "$1" && find usr/lib lib/ -maxdepth 1 -type d -name '*-linux-gnu*' |
		sed "s,^,$1/," | tr '\n' ':')
	for program in "$2"/bin/*; do
		loader=$(patchelf --print-interpreter "$program" 2>/dev/null) || continue
		case $loader in
			"$1"/*) continue ;;
		esac
		patchelf --set-interpreter "$1$(chroot "$1" readlink -f "$loader")" \
			--force-rpath --set-rpath "$2/lib:$libraries" "$program"
	done
}

suites="bullseye trixie"
keep=
while [ $# -gt 0 ]; do
	[ $# -ge 2 ] || usage
	case $1 in
		--suites) suites=$2 ;;
		--keep) keep=$2 ;;
		*) usage ;;
	esac
	shift 2
done

prepare_for_systems
install_packages patchelf
if [ -n "$keep" ]; then
	mkdir -p "$keep"
	SYSTEMS=$(cd "$keep" && pwd)
else
	make_folder_for_systems
	# The tests run as another user.
	chmod 0755 "$SYSTEMS"
fi
failures=0
for suite in $suites; do
	install_server "$suite"
	move_server "$SYSTEMS/$suite" "$SERVER"
	echo "== publishers: $("$SERVER/bin/postgres" --version)"
	CLERK_PUBLISHER_PATH=$SERVER CHECKS=tap \
		TAP_FILES="test/t/071_hub.pl test/t/072_hub_crash.pl" sh test/check.sh ||
		failures=$((failures + 1))
done
[ "$failures" -eq 0 ]
