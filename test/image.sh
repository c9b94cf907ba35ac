#!/bin/sh
# image.sh - what the Dockerfile says, without Docker
#
# In Debian systems that are made for this and removed, where Debian's server
# stands in for the official image's: the commands of both stages, with the
# files that a build is given and no others.  Then a server of the second stage
# creates the extension.  Needs root, and some minutes and 3 GB.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
. test/debian_system.sh

# The Debian that has the server which the Dockerfile asks for by itself.
suite=trixie
major=$(sed -n 's/^ARG PG_MAJOR=//p' Dockerfile)

# commands_of STAGE: its RUN instructions, as a script
commands_of()
{
	awk -v wanted="$1" '
		/^FROM/ {stage++}
		sub(/^RUN /, "") {running = 1}
		running && stage == wanted {print}
		running && !/\\$/ {running = 0}' Dockerfile
}

# as_in_image STAGE SYSTEM: runs them there; the image has the server's
# programs in its PATH
as_in_image()
{
	step "$2" "the commands of stage $1 succeed" "
		PATH=\$PATH:/usr/lib/postgresql/$major/bin
		PG_MAJOR=$major
		$(commands_of "$1")"
}

# What .dockerignore lets through, of what is committed: it names everything,
# and then the exceptions.
send_context()
{
	grep -qx '[*]' .dockerignore
	sed -n 's/^!//p' .dockerignore | while read -r pattern; do
		git ls-files -z -- ":(glob)$pattern"
	done | xargs -0 cp --parents -t "$1"
}

prepare_for_systems
make_folder_for_systems
make_system "$SYSTEMS/image" "$suite" 2>"$SYSTEMS/log" ||
	{ cat "$SYSTEMS/log" >&2; exit 1; }
step "$SYSTEMS/image" "a system stands in for the image postgres:$major" "
	apt-get update
	apt-get install -y --no-install-recommends postgresql-common
	echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
	apt-get install -y --no-install-recommends postgresql-$major"
cp -a "$SYSTEMS/image" "$SYSTEMS/build"
mkdir "$SYSTEMS/build/source"
send_context "$SYSTEMS/build/source"
as_in_image 1 "$SYSTEMS/build"
as_in_image 2 "$SYSTEMS/image"
cp -a "$SYSTEMS/build/installed/." "$SYSTEMS/image/"
step "$SYSTEMS/image" 'a server of the image creates the extension' "
	PATH=\$PATH:/usr/lib/postgresql/$major/bin
	! command -v gcc
	runuser -u postgres -- sh -euc '
		cd
		initdb -D data
		pg_ctl -D data -w -l log -o \"-k /tmp\" start
		psql -X -h /tmp -v ON_ERROR_STOP=1 -c \"CREATE EXTENSION clerk_invite\" \\
			-c \"\\dx clerk_invite\" \\
			-c \"SELECT count(*) AS workers FROM clerk_worker_status()\"
		pg_ctl -D data -w stop'"
