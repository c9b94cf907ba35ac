#!/bin/bash
# entrypoint.sh [OPTION...] - runs a hub: a server, and what it takes for each
# publisher; the options are the server's, such as -c work_mem=8MB
#
# In the environment, each also as the path of a file, in a variable with _FILE
# after its name:
#
#	CLERK_SECRET_KEY    the key
#	CLERK_PUBLISHERS    connection strings, one a line, as NAME=STRING; the name
#	                    can be left out if there is only one
#
# NAME is the publisher's database here, so a publisher keeps its name.
# CLERK_HUB_REFRESH and PGDATA are used as well; see report.sh and Dockerfile.
#
# Can be killed at any time, and started again.  The cluster gets its name when
# it is whole, and add_publisher.sh goes on where it was interrupted.
set -u
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In memory: the key is not to be on a disk of ours.
run=/dev/shm/clerk_hub
: "${PGDATA:=/var/lib/clerk_hub/data}"
export PGDATA HOME=/var/lib/postgresql PGUSER=postgres PGDATABASE=postgres
PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)

say()
{
	echo "clerk_hub: $*" >&2
}

fail()
{
	say "$@"
	exit 1
}

# copy_secret FILE COPY: for the server's user; the copy is replaced as a whole
copy_secret()
{
	cat "$1" >"$2.new" && mv "$2.new" "$2"
}

# Only root may read some secrets, but not run the server.
become_postgres()
{
	local name file

	install -d -o postgres -g postgres -m 0700 "$run" "${PGDATA%/*}" || exit
	for name in CLERK_SECRET_KEY CLERK_PUBLISHERS; do
		file=${name}_FILE
		[ -z "${!file:-}" ] || { copy_secret "${!file}" "$run/$name" &&
			chown postgres:postgres "$run/$name"; } || fail "cannot read $file"
	done
	exec setpriv --reuid=postgres --regid=postgres --init-groups \
		/bin/bash "$here/entrypoint.sh" "$@"
}

# take_secret NAME: sets the variable of that name, which is exported no longer,
# from the environment or the file
take_secret()
{
	local name=$1 file=${1}_FILE

	if [ -n "${!file:-}" ]; then
		[ -z "${!name:-}" ] || fail "both $name and $file are set; choose one"
		[ ! -r "${!file}" ] || copy_secret "${!file}" "$run/$name"
		[ -r "$run/$name" ] || fail "cannot read the file that $file names"
		printf -v "$name" '%s' "$(cat "$run/$name")"
	fi
	export -n "${name?}"
	[[ ${!name:-} =~ [^[:space:]] ]] || fail "$name is not set, nor is $file"
}

# is_parameter WORD: whether a connection string can begin with WORD=, so that
# WORD is no name
is_parameter()
{
	case $1 in
		application_name | channel_binding | client_encoding | connect_timeout | dbname | fallback_application_name | \
			gss* | host | hostaddr | keepalives* | krbsrvname | load_balance_hosts | max_protocol_version | \
			min_protocol_version | oauth_* | options | passfile | password | port | replication | require_auth | \
			requirepeer | require_peer | requiressl | scram_* | service | servicefile | ssl* | target_session_attrs | \
			tcp_user_timeout | user) return 0 ;;
	esac
	return 1
}

# read_publishers: sets NAMES and STRINGS.  The string is not shown: it may have
# a password in it.
read_publishers()
{
	local line name number=0
	local without_name=0

	NAMES=()
	STRINGS=()
	while IFS= read -r line || [ -n "$line" ]; do
		number=$((number + 1))
		line=${line#"${line%%[![:space:]]*}"}
		line=${line%"${line##*[![:space:]]}"}
		case $line in
			'' | '#'*) continue ;;
		esac
		name=
		if [[ $line =~ ^([^=[:space:]:/]+)=(.*)$ ]] && ! is_parameter "${BASH_REMATCH[1]}"; then
			name=${BASH_REMATCH[1]}
			line=${BASH_REMATCH[2]}
		fi
		case $line in
			postgres://* | postgresql://* | *=*) ;;
			*) fail "line $number of CLERK_PUBLISHERS has no connection string" ;;
		esac
		if [ -z "$name" ]; then
			without_name=$number
			name=publisher
		fi
		if [[ ! $name =~ ^[a-z][a-z0-9_]{0,62}$ || $name =~ ^(postgres|template[01])$ ]]; then
			fail "line $number of CLERK_PUBLISHERS: a name consists of at most 63 of a-z, 0-9 and _, begins with a letter, and is not that of a database that each server has"
		fi
		[ ${#NAMES[@]} -eq 0 ] || [ $without_name -eq 0 ] ||
			fail "line $without_name of CLERK_PUBLISHERS: if there are several publishers, each needs a name: NAME=STRING"
		[[ " ${NAMES[*]:-} " != *" $name "* ]] ||
			fail "line $number of CLERK_PUBLISHERS: there are two publishers \"$name\""
		NAMES+=("$name")
		STRINGS+=("$line")
	done <<<"$CLERK_PUBLISHERS"
	[ ${#NAMES[@]} -gt 0 ] || fail "CLERK_PUBLISHERS has no connection string"
}

# The lock is the server's as well, which inherits it.  Whoever has it knows
# that no server runs here, whatever process has the number in the server's lock
# files: in a container that was restarted, numbers are given anew.
lock_data()
{
	mkdir -p "${PGDATA%/*}" || fail "cannot create ${PGDATA%/*}"
	exec 9>"${PGDATA%/*}/lock" || fail "cannot write to ${PGDATA%/*}"
	flock -w 10 9 || fail "another hub uses ${PGDATA%/*}"
	rm -f "$PGDATA/postmaster.pid" /var/run/postgresql/.s.PGSQL.*.lock
}

make_cluster()
{
	local version

	if [ ! -e "$PGDATA/PG_VERSION" ]; then
		rm -rf "$PGDATA.new"
		initdb -D "$PGDATA.new" --username=postgres --auth-local=peer --auth-host=scram-sha-256 \
			--encoding=UTF8 --locale=C.UTF-8 --data-checksums ||
			fail "cannot create the cluster"
		[ ! -d "$PGDATA" ] || rmdir "$PGDATA" ||
			fail "$PGDATA is neither empty nor a cluster"
		mv -T "$PGDATA.new" "$PGDATA" || fail "cannot create $PGDATA"
		sync -f "${PGDATA%/*}"
	fi
	version=$(cat "$PGDATA/PG_VERSION")
	[ "$version" = "$major" ] ||
		fail "$PGDATA is of PostgreSQL $version, but this is PostgreSQL $major; upgrade it with pg_upgrade, or begin with an empty volume: a new hub asks Clerk about what the old one may have sent"
}

# Workers of logical replication are four for each publisher (apply, initial
# copy, and parallel apply), and the extension's are one for each and the
# launcher.  A subscription and its initial copy have an origin each.
start_server()
{
	local n=${#NAMES[@]}
	local -a options=(
		-c shared_preload_libraries=clerk_invite
		-c listen_addresses=
		-c cluster_name=clerk_hub
		-c max_connections=$((100 + 5 * n))
		-c max_worker_processes=$((8 + 6 * n))
		-c max_logical_replication_workers=$((2 + 4 * n))
		-c max_replication_slots=$((10 + 2 * n)))

	[ "$major" -lt 18 ] || options+=(-c max_active_replication_origins=$((10 + 2 * n)))
	if [ -n "${CLERK_SECRET_KEY_FILE:-}" ]; then
		options+=(-c clerk_invite.secret_key_file="$run/CLERK_SECRET_KEY")
	else
		export CLERK_SECRET_KEY
	fi
	# If this process is killed, the server shuts down as well.
	setpriv --pdeathsig INT postgres "${options[@]}" "$@" &
	server=$!
	export -n CLERK_SECRET_KEY
}

# set_state NAME STATE: what healthcheck.sh says about a publisher
set_state()
{
	echo "$2" >"$run/state.new" && mv "$run/state.new" "$run/$1.state"
}

# start_task I: the next thing to do for a publisher
start_task()
{
	local i=$1 name=${NAMES[$1]}

	case ${task[i]} in
		add)
			CLERK_PUBLISHER=${STRINGS[i]} setpriv --pdeathsig TERM \
				timeout 600 sh "$here/add_publisher.sh" "$name" >"$run/$name.log" 2>&1 9>&- &
			;;
		report)
			set_state "$name" connected
			# In a group of its own, so that what it leaves behind can be ended.
			setpriv --pdeathsig TERM setsid sh "$here/report.sh" "$name" 9>&- &
			;;
	esac
	process[i]=$!
}

# end_task I STATUS: chooses the next one.  What is said again and again is
# logged once.
end_task()
{
	local i=$1 status=$2 name=${NAMES[$1]} group=${process[$1]} output

	process[i]=
	if [ "${task[i]}" = add ]; then
		output=$(cat "$run/$name.log")
		if [ "$status" -eq 0 ]; then
			[ -z "$output" ] || echo "$output" >&2
			say "publisher \"$name\" is connected"
			complaint[i]=
			task[i]=report
			next[i]=0
			return
		fi
		[ -n "$output" ] || output="add_publisher.sh: status $status"
		if [ "$output" != "${complaint[i]}" ]; then
			echo "$output" >&2
			say "publisher \"$name\" is tried again every $([ "$status" -eq 3 ] && echo 30 seconds || echo minute, or sooner)"
			complaint[i]=$output
		fi
		set_state "$name" "${output//$'\n'/ }"
		[ "$status" -ne 3 ] || delay[i]=30
	else
		# Its session would keep the next one out.
		kill -- "-$group" 2>/dev/null
		say "the reports to publisher \"$name\" have ended with status $status"
		set_state "$name" 'not connected'
	fi
	task[i]=add
	next[i]=$((SECONDS + delay[i]))
	delay[i]=$((delay[i] < 30 ? delay[i] * 2 : 60))
}

tend_publishers()
{
	local i status

	for i in "${!NAMES[@]}"; do
		[ -z "$stopping" ] || return
		if [ -n "${process[i]}" ]; then
			! kill -0 "${process[i]}" 2>/dev/null || continue
			wait "${process[i]}"
			status=$?
			end_task "$i" "$status"
		fi
		if [ "$SECONDS" -ge "${next[i]}" ]; then
			# A task that has gone well for a while is not to wait long.
			[ "${task[i]}" != report ] || delay[i]=1
			start_task "$i"
		fi
	done
}

# A key that was replaced is used from the next request on.
refresh_key()
{
	[ -z "${CLERK_SECRET_KEY_FILE:-}" ] || [ ! -r "$CLERK_SECRET_KEY_FILE" ] ||
		cmp -s "$CLERK_SECRET_KEY_FILE" "$run/CLERK_SECRET_KEY" ||
		copy_secret "$CLERK_SECRET_KEY_FILE" "$run/CLERK_SECRET_KEY"
}

# pause: a second, or less if a signal comes
pause()
{
	sleep 1 9>&- &
	wait $!
}

# Databases of publishers that are named no longer go on, in part.
warn_of_others()
{
	local database

	while read -r database; do
		[[ " ${NAMES[*]} " == *" $database "* ]] ||
			say "database \"$database\" has a publisher that CLERK_PUBLISHERS does not name; its invitations are sent, but not reported"
	done < <(psql -XAtqc "SELECT d.datname FROM pg_database AS d JOIN pg_subscription AS s ON s.subdbid = d.oid
		WHERE s.subname = 'clerk_invite' ORDER BY 1" 9>&- 2>/dev/null)
}

stop()
{
	local i

	for i in "${!NAMES[@]}"; do
		[ -z "${process[i]}" ] || kill "${process[i]}" 2>/dev/null
	done
	kill -INT "$server" 2>/dev/null
	stopping=1
}

wait_for_server()
{
	local status

	while :; do
		wait "$server"
		status=$?
		kill -0 "$server" 2>/dev/null || return $status
	done
}

[ "$(id -u)" != 0 ] || become_postgres "$@"
mkdir -p "$run" || fail "cannot create $run"
take_secret CLERK_SECRET_KEY
take_secret CLERK_PUBLISHERS
read_publishers
rm -f "$run"/*.state "$run"/*.log
printf '%s\n' "${NAMES[@]}" >"$run/names"

major=$(postgres --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
[ -n "$major" ] || fail "there is no server"
lock_data
make_cluster

stopping=
process=() task=() next=() delay=() complaint=()
for i in "${!NAMES[@]}"; do
	process[i]='' task[i]=add next[i]=0 delay[i]=1 complaint[i]=''
	set_state "${NAMES[i]}" 'being set up'
done
server=
trap 'stopping=1; [ -z "$server" ] || stop' TERM INT QUIT HUP
start_server "$@"

# Recovery takes as long as it takes.
while [ -z "$stopping" ] && kill -0 "$server" 2>/dev/null && ! pg_isready -q 9>&-; do
	pause
done
[ -n "$stopping" ] || warn_of_others
while [ -z "$stopping" ] && kill -0 "$server" 2>/dev/null; do
	tend_publishers
	refresh_key
	pause
done

# A task may have begun while the signal was handled.
interrupted=$stopping
stop
wait_for_server
status=$?
[ -n "$interrupted" ] || say "the server has ended with status $status"
wait
exit "$status"
