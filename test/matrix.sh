#!/bin/sh
# matrix.sh [OPTION...] - check.sh on every PostgreSQL that the extension is for
#
# Makes a Debian system in a folder for each suite, runs check.sh in a clean
# clone there, and ends with a table.  Fails if a check failed anywhere, or
# nothing ran.  Needs root; all checks on all suites take hours.
#
#	--suites LIST   which Debian suites ("bookworm trixie sid experimental":
#	                PostgreSQL 15, 17, 18 and 19)
#	--i386          bookworm for a 32-bit machine, too
#	--clang         bookworm with everything compiled by clang, too
#	--checks LIST   which checks of check.sh (all of them)
#	--keep FOLDER   keep the systems there, and use those that are there
#
# For example, the 32-bit system alone:
#	sh test/matrix.sh --suites "" --i386 --checks "regress tap"
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
. test/debian_system.sh

usage()
{
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 2
}

# system_of RUN: the folder; what is compiled by clang needs none of its own
system_of()
{
	echo "$SYSTEMS/${1%-clang}"
}

# add_experimental SYSTEM: the version of PostgreSQL that comes next, by name,
# since nothing else of that suite is wanted
add_experimental()
{
	in_system "$1" sh -euc '
		apt-get update -qq
		sed "s/ sid / experimental /" /etc/apt/sources.list >/etc/apt/sources.list.d/experimental.list
		apt-get update -qq
		version=$(apt-cache search --names-only "^postgresql-[0-9]+$" |
			sed "s/^postgresql-\([0-9]*\) .*/\1/" | sort -n | tail -n 1)
		mkdir -p /etc/postgresql-common/createcluster.d
		echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/none.conf
		apt-get install -y -qq --no-install-recommends -t experimental "postgresql-$version" \
			"postgresql-client-$version" "postgresql-server-dev-$version" libpq-dev' >&2
}

# make_system_of RUN: unless it is there.  It gets its name when it is whole.
make_system_of()
{
	system=$(system_of "$1")
	[ ! -d "$system" ] || return 0
	case $1 in
		*-i386) architecture=i386 ;;
		*) architecture= ;;
	esac
	rm -rf --one-file-system "$system.part"
	suite=${1%-clang}
	suite=${suite%-i386}
	if [ "$suite" = experimental ]; then
		make_system "$system.part" sid $architecture && add_experimental "$system.part" || return 1
	else
		make_system "$system.part" "$suite" $architecture || return 1
	fi
	mv "$system.part" "$system"
}

# check_there RUN: everything check.sh says
check_there()
{
	compiler=
	case $1 in
		*-clang) compiler=clang ;;
	esac
	clone_into "$(system_of "$1")" root/clerk_invite || return 1
	# shellcheck disable=SC2016
	in_system "$(system_of "$1")" env CHECKS="$checks" CC=$compiler sh -euc '
		if [ -n "$CC" ]; then
			apt-get update -qq >&2
			apt-get install -y -qq --no-install-recommends "$CC" >&2
		fi
		sh /root/clerk_invite/test/check.sh
	'
}

# versions_there RUN: of PostgreSQL and libcurl
versions_there()
{
	in_system "$(system_of "$1")" sh -c '
		for server in /usr/lib/postgresql/*/bin/postgres; do
			"$server" --version
		done | sed -n "s/^postgres (PostgreSQL) \([^ ]*\).*/\1/p" | tail -n 1 | grep . || echo -
		curl-config --version 2>/dev/null | sed "s/^libcurl //" | grep . || echo -
	'
}

add_row()
{
	printf '%-15s %-11s %-8s %7s %7s %8s %8s\n' "$@" >>"$SYSTEMS/table"
}

# run_in RUN: and a row for the table; what ends without a line of counts
# has failed
run_in()
{
	echo "== $1"
	begun=$(date +%s)
	status=0
	{ make_system_of "$1" && check_there "$1"; } \
		>"$SYSTEMS/$1.out" 2>"$SYSTEMS/$1.err" || status=$?
	cat "$SYSTEMS/$1.out"
	seconds=$(($(date +%s) - begun))
	counts=$(sed -n '$s/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' \
		"$SYSTEMS/$1.out")
	if [ -z "$counts" ]; then
		tail -n 40 "$SYSTEMS/$1.err"
		counts="- - -"
	fi
	[ $status -eq 0 ] && [ "$counts" != "- - -" ] || all_is_well=false
	# shellcheck disable=SC2046,SC2086
	add_row "$1" $(versions_there "$1" 2>/dev/null || echo - -) $counts \
		"$((seconds / 60)):$(printf %02d $((seconds % 60)))"
	[ -n "$keep" ] || rm -rf --one-file-system "$(system_of "$1")"
}

suites="bookworm trixie sid experimental"
checks=
keep=
more=
while [ $# -gt 0 ]; do
	case $1 in
		--i386 | --clang)
			more="$more bookworm-${1#--}"
			shift
			continue
			;;
		--suites | --checks | --keep) [ $# -ge 2 ] || usage ;;
		*) usage ;;
	esac
	case $1 in
		--suites) suites=$2 ;;
		--checks) checks=$2 ;;
		--keep) keep=$2 ;;
	esac
	shift 2
done

prepare_for_systems
if [ -n "$keep" ]; then
	mkdir -p "$keep"
	SYSTEMS=$(cd "$keep" && pwd)
else
	make_folder_for_systems
fi
: >"$SYSTEMS/table"
add_row system PostgreSQL libcurl passed failed skipped time
all_is_well=true
for run in $suites $more; do
	run_in "$run"
done
echo
cat "$SYSTEMS/table"
[ "$(wc -l <"$SYSTEMS/table")" -gt 1 ] && $all_is_well
