#!/bin/bash
# hub_image.sh - what hub/Dockerfile says, without Docker, and the hub itself
#
# In Debian systems that are made for this and removed, where Debian's server
# stands in for the official image's: follows the instructions of each stage,
# with the files that a build is given and no others.  Then runs the image's
# entrypoint as process 1 of a container of its own, with publishers that do not
# have the extension and the fake Clerk: kills it at every point of its setup,
# starts it again, stops it, refuses publishers that cannot be used, and asks
# the health check.  Needs root, and some minutes and 4 GB.
#
# HUB_SYSTEMS in the environment names a folder: the systems are kept there, and
# used if they are there, with the scripts of the hub as they are now.
set -euo pipefail

cd "$(dirname "$0")/.."
. test/machine.sh
. test/debian_system.sh

dockerfile=hub/Dockerfile
# The Debian that has the server which the Dockerfile asks for by itself.
suite=sid
major=$(sed -n 's/^ARG PG_MAJOR=//p' $dockerfile)
bin=/usr/lib/postgresql/$major/bin
key=sk_test_fakeclerk000000000000000000000000000
password=the-password-of-a-hub
failures=0

good()
{
	echo "ok      $1"
}

bad()
{
	echo "FAILED  $1"
	failures=$((failures + 1))
	[ ! -s "${2:-/dev/null}" ] || tail -n 40 "$2"
}

# check NAME COMMAND...
check()
{
	local name=$1
	shift
	if "$@" >"$SYSTEMS/check.log" 2>&1; then good "$name"; else bad "$name" "$SYSTEMS/check.log"; fi
}

# eventually NAME COMMAND...: waits until the command succeeds, up to 90 seconds
eventually()
{
	local name=$1 end=$((SECONDS + 90))
	shift
	until "$@" >"$SYSTEMS/check.log" 2>&1; do
		if [ $SECONDS -ge $end ]; then
			bad "$name" "$SYSTEMS/check.log"
			tail -n 40 "$SYSTEMS/hub.log"
			return 0
		fi
		sleep 0.2
	done
	good "$name"
}

wait_until()
{
	local end=$((SECONDS + 90))
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.02
	done
}

# lacks TEXT FILE...
lacks()
{
	! grep -F -- "$@"
}

# end_system PID: what in_system runs in the background
end_system()
{
	local pid

	for pid in $(pgrep -P "$1"); do
		kill -KILL "$pid" 2>/dev/null || true
	done
}

# --- the image ---------------------------------------------------------------

# instructions_of STAGE: one a line
instructions_of()
{
	sed -e '/^#/d' $dockerfile | sed -e ':more' -e '/\\$/{N;s/\\\n[[:space:]]*/ /;b more' -e '}' |
		awk -v stage="$1" '
			/^FROM/ {in_stage = $4 == stage}
			in_stage && NF && !/^FROM/'
}

# What .dockerignore lets through, of what is committed: it names everything,
# and then the exceptions.
send_context()
{
	grep -qx '[*]' .dockerignore
	mkdir -p "$1"
	sed -n 's/^!//p' .dockerignore | while read -r pattern; do
		git ls-files -z -- ":(glob)$pattern"
	done | xargs -0 cp --parents -t "$1"
}

# follow STAGE: what a build does in that stage, in $SYSTEMS/STAGE
follow()
{
	local stage=$1 instruction words n=0

	while read -r instruction; do
		n=$((n + 1))
		read -ra words <<<"${instruction#* }"
		case $instruction in
			RUN* | 'COPY --from='*) [ -n "$building" ] || continue ;;&
			RUN*)
				step "$SYSTEMS/$stage" "stage $stage, instruction $n: RUN" "
					export PATH=\$PATH:$bin PG_MAJOR=$major
					${instruction#RUN }" </dev/null
				;;
			'COPY --from='*)
				mkdir -p "$SYSTEMS/$stage${words[2]}"
				cp -a "$SYSTEMS/${words[0]#--from=}${words[1]}/." "$SYSTEMS/$stage${words[2]}"
				;;
			COPY*)
				mkdir -p "$SYSTEMS/$stage${words[1]}"
				cp -a "$SYSTEMS/context/${words[0]}/." "$SYSTEMS/$stage${words[1]}"
				;;
			ENV*) image_environment+=("${instruction#ENV }") ;;
			ENTRYPOINT*) image_entrypoint=$(words_of "${instruction#ENTRYPOINT }") ;;
			HEALTHCHECK*) image_healthcheck=$(words_of "${instruction#*CMD }") ;;
			ARG* | VOLUME*) ;;
			*) bad "stage $stage: $instruction is unknown to this test" ;;
		esac
	done < <(instructions_of "$stage")
}

# Of the kind of JSON that a Dockerfile has: ["A", "B"].
words_of()
{
	sed 's/[]["]//g; s/,/ /g' <<<"$1"
}

# --- publishers and Clerk ----------------------------------------------------

# free_ports NUMBER: ports at which nobody listens
free_ports()
{
	python3 -c 'import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for i in range(int(sys.argv[1]))]
print(*[s.getsockname()[1] for s in sockets])' "$1"
}

# start_publisher NAME PORT [SETTING...]: a server without the extension
start_publisher()
{
	local name=$1 port=$2
	shift 2
	in_system "$SYSTEMS/base" runuser -u postgres -- sh -euc '
		data=/var/lib/postgresql/$1; port=$2; shift 2
		PATH=$PATH:'"$bin"'
		initdb -D $data -A trust -N -E UTF8 --locale=C.UTF-8 >/dev/null
		echo "host all all 127.0.0.1/32 scram-sha-256" >$data/pg_hba.conf
		echo "local all all trust" >>$data/pg_hba.conf
		exec postgres -D $data -p $port -k /tmp -c fsync=off "$@"
	' sh "$name" "$port" "$@" >"$SYSTEMS/$name.log" 2>&1 &
	systems+=($!)
	wait_until on "$port" postgres 'SELECT'
}

# on PORT DATABASE SQL [OPTION...]: at a publisher, as its superuser
on()
{
	local port=$1 database=$2 sql=$3
	shift 3
	in_system "$SYSTEMS/base" psql -XAtq -v ON_ERROR_STOP=1 -h /tmp -p "$port" -U postgres -d "$database" \
		"$@" -c "$sql" </dev/null
}

# make_publisher DATABASE: in the first server
make_publisher()
{
	on "$first" postgres "CREATE DATABASE $1 OWNER app_owner"
	in_system "$SYSTEMS/base" psql -Xq -v ON_ERROR_STOP=1 -h /tmp -p "$first" -U postgres -d "$1" \
		-c 'SET ROLE app_owner' -c 'CREATE SCHEMA app' -c 'SET search_path = app' \
		-f /publisher.sql -c "SELECT clerk_grant_to_hub('hub')" >/dev/null 2>"$SYSTEMS/publisher.sql.log" </dev/null ||
		{ cat "$SYSTEMS/publisher.sql.log" >&2; return 1; }
}

string()
{
	echo "postgresql://hub:$password@127.0.0.1:${2:-$first}/$1"
}

# invite DATABASE ADDRESS
invite()
{
	on "$first" "$1" "SET ROLE app_owner; SELECT app.clerk_enqueue_organization_invitation('org_acme', NULL, '$2', 'org:member')"
}

# is_sent DATABASE ADDRESS: and the publisher knows it
is_sent()
{
	[ "$(on "$first" "$1" "SELECT state FROM app.clerk_invitation_outbox WHERE email_address = '$2'")" = sent ]
}

start_fake_clerk()
{
	mkfifo "$SYSTEMS/life" "$SYSTEMS/port"
	python3 test/fake_clerk.py --exit-with-stdin --secret-key "$key" --bulk-limit 10000 --single-limit 10000 \
		--journal "$SYSTEMS/journal" --violations "$SYSTEMS/violations" <"$SYSTEMS/life" >"$SYSTEMS/port" &
	exec 8>"$SYSTEMS/life"
	read -r clerk_port <"$SYSTEMS/port"
}

# times_invited ADDRESS: how many invitations of it Clerk has made
times_invited()
{
	curl -s "http://127.0.0.1:$clerk_port/_fake/invitations" |
		python3 -c 'import json, sys
print(sum(i["email_address"] == sys.argv[1] for i in json.load(sys.stdin)["data"]))' "$1"
}

invited_once()
{
	[ "$(times_invited "$1")" = 1 ]
}

# --- the container -----------------------------------------------------------

# start_hub PUBLISHERS [VARIABLE=VALUE...]: as "docker start" does; what
# container_user says comes before the entrypoint
start_hub()
{
	local publishers=$1
	shift
	# shellcheck disable=SC2086
	in_system "$SYSTEMS/hub" env PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$bin" \
		"${image_environment[@]}" CLERK_SECRET_KEY="$key" CLERK_PUBLISHERS="$publishers" "$@" \
		unshare --pid --fork --kill-child --mount-proc --propagation unchanged \
		$container_user $image_entrypoint -c clerk_invite.api_url="http://127.0.0.1:$clerk_port" \
		-c clerk_invite.verify_delay=50ms -c clerk_invite.retry_delay=100ms -c wal_retrieve_retry_interval=200ms \
		>>"$SYSTEMS/hub.log" 2>&1 &
	hub=$!
	container=
	wait_until find_container || kill -0 $hub 2>/dev/null || true
}

# The first process of the container: the one with that command line that has
# number 1 in a namespace of its own, two below ours.
find_container()
{
	local pid=$hub child

	while child=$(pgrep -P "$pid" | head -n 1) && [ -n "$child" ]; do
		pid=$child
		if [ "$(sed -n 's/^NSpid:.*\t//p' "/proc/$pid/status")" = 1 ] &&
			tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q '^/bin/bash .*entrypoint.sh'; then
			container=$pid
			return
		fi
	done
	# It may be over already.
	! kill -0 "$hub" 2>/dev/null
}

# in_container COMMAND...: as "docker exec"
in_container()
{
	nsenter --target "$container" --mount --pid --root --wd \
		env -i PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$bin" "${image_environment[@]}" "$@"
}

# as_postgres COMMAND...: as "docker exec --user postgres"
as_postgres()
{
	in_container setpriv --reuid=postgres --regid=postgres --init-groups "$@"
}

# What dies at once, as the machine's power goes.
kill_hub()
{
	[ -z "$container" ] || kill -KILL "$container" 2>/dev/null || true
	wait "$hub" 2>/dev/null || true
	container=
}

# stop_hub: as "docker stop"; sets hub_status
stop_hub()
{
	kill -TERM "$container" || bad "the container runs until it is stopped"
	hub_status=0
	wait "$hub" || hub_status=$?
	container=
}

remove_volume()
{
	rm -rf "${SYSTEMS:?}/hub/var/lib/clerk_hub"
	mkdir -m 0700 "$SYSTEMS/hub/var/lib/clerk_hub"
	chown --reference="$SYSTEMS/hub/var/lib/postgresql" "$SYSTEMS/hub/var/lib/clerk_hub"
	: >"$SYSTEMS/hub.log"
}

# kill_process PATTERN [PARENT]: a process of the container with that command line
kill_process()
{
	local folder

	for folder in /proc/[0-9]*; do
		if [ "$(readlink "$folder/ns/pid")" = "$(readlink "/proc/$container/ns/pid")" ] &&
			tr '\0' ' ' <"$folder/cmdline" | grep -q "$1" &&
			grep -q "^PPid:.${2:-[0-9]*}\$" "$folder/status"; then
			kill -KILL "${folder#/proc/}"
			return
		fi
	done
	bad "there is a process $1"
}

# memory_of_container: what its processes have, in MB; what they share counts once
memory_of_container()
{
	local folder

	for folder in /proc/[0-9]*; do
		[ "$(readlink "$folder/ns/pid")" != "$(readlink "/proc/$container/ns/pid")" ] ||
			cat "$folder/smaps_rollup"
	done 2>/dev/null | awk '/^Pss:/ {sum += $2} END {print int(sum / 1024 + 0.5)}'
}

healthy()
{
	# shellcheck disable=SC2086
	in_container $image_healthcheck "$@"
}

unhealthy()
{
	! healthy "$@"
}

# refuses NAME SENTENCE PUBLISHERS [VARIABLE=VALUE...]: ends by itself
refuses()
{
	local name=$1 sentence=$2
	shift 2
	remove_volume
	start_hub "$@"
	if wait "$hub"; then
		bad "$name: ends with an error"
	else
		check "$name" grep -qF "$sentence" "$SYSTEMS/hub.log"
	fi
}

clean_up()
{
	local pid

	# The fake Clerk ends with its standard input.
	exec 8>&-
	for pid in $hub "${systems[@]}"; do
		end_system "$pid"
	done
	wait
	rm -rf --one-file-system "$SYSTEMS"
}

prepare_for_systems
install_packages curl python3 python3-jsonschema
systems=() image_environment=() container='' hub='' container_user=
make_folder_for_systems
trap clean_up EXIT

building=yes
if [ -d "${HUB_SYSTEMS:-/nowhere}/extension" ]; then
	building=
	cp -a "$HUB_SYSTEMS/base" "$HUB_SYSTEMS/hub" "$HUB_SYSTEMS/extension" "$SYSTEMS"
else
	make_system "$SYSTEMS/base" "$suite" 2>"$SYSTEMS/log" || { cat "$SYSTEMS/log" >&2; exit 1; }
	step "$SYSTEMS/base" "a system stands in for the image postgres:$major" "
		apt-get update
		apt-get install -y --no-install-recommends postgresql-common
		echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
		apt-get install -y --no-install-recommends postgresql-$major"
fi
if [ -n "$building" ]; then
	# As the official image has it.
	install -d -m 3777 "$SYSTEMS/base/var/run/postgresql"
	cp -a "$SYSTEMS/base" "$SYSTEMS/build"
	cp -a "$SYSTEMS/base" "$SYSTEMS/hub"
	mkdir "$SYSTEMS/extension"
fi
send_context "$SYSTEMS/context"
follow build
follow extension
follow hub
if [ -n "$building" ] && [ -n "${HUB_SYSTEMS:-}" ]; then
	cp -a "$SYSTEMS/base" "$SYSTEMS/hub" "$SYSTEMS/extension" "$HUB_SYSTEMS"
fi
install -m 0644 hub/publisher.sql "$SYSTEMS/base/publisher.sql"
check 'the image has no compiler, and nothing of the source' \
	test ! -e "$SYSTEMS/hub/usr/bin/gcc" -a ! -e "$SYSTEMS/hub/source"

read -r first second unused < <(free_ports 3)
start_fake_clerk
start_publisher first "$first" -c wal_level=logical -c max_replication_slots=50 -c max_wal_senders=50
start_publisher second "$second" -c wal_level=replica
for port in "$first" "$second"; do
	on "$port" postgres "CREATE ROLE app_owner; CREATE ROLE hub LOGIN REPLICATION PASSWORD '$password';
		CREATE ROLE weak LOGIN PASSWORD '$password'"
done
make_publisher shop
make_publisher forum
on "$first" postgres 'CREATE DATABASE plain'

refuses 'without publishers it says so' 'CLERK_PUBLISHERS is not set' ''
refuses 'without a key it says so' 'CLERK_SECRET_KEY is not set' "$(string shop)" CLERK_SECRET_KEY=
refuses 'several publishers need names' 'each needs a name' "$(string shop)"$'\n'"$(string forum)"
refuses 'names are checked' 'a name consists of' "Shop=$(string shop)"
refuses 'names are unique' 'there are two publishers "shop"' "shop=$(string shop)"$'\n'"shop=$(string forum)"
refuses 'a line that is no connection string is refused' 'line 2 of CLERK_PUBLISHERS' $'shop=host=a\nwhatever'

# Usable and unusable publishers together.
remove_volume
invite shop ann@example.com >/dev/null
start_hub "# the publishers
shop=$(string shop)
 forum=host=127.0.0.1 port=$first dbname=forum user=hub password=$password
plain=$(string plain)
standby=$(string postgres "$second")
weak=postgresql://weak:$password@127.0.0.1:$first/shop
nobody=$(string shop "$unused")"
eventually 'what was there before the hub is sent, and the publisher knows it' is_sent shop ann@example.com
invite forum bob@example.com >/dev/null
eventually 'a second publisher is served' is_sent forum bob@example.com
eventually 'a publisher without publisher.sql is refused with a sentence' \
	grep -q '"plain" cannot be used: .*run hub/publisher.sql' "$SYSTEMS/hub.log"
eventually 'a publisher whose wal_level is too low is refused with a sentence' \
	grep -q '"standby" cannot be used: its wal_level is "replica"' "$SYSTEMS/hub.log"
eventually 'a role without privileges is refused with a sentence' \
	grep -q '"weak" cannot be used: ' "$SYSTEMS/hub.log"
eventually 'a publisher that cannot be reached is tried again' \
	grep -q 'cannot connect to the publisher of "nobody"' "$SYSTEMS/hub.log"
check 'the health check is bad' unhealthy
healthy >"$SYSTEMS/health" || true
for line in 'shop: connected$' 'forum: connected$' 'plain: .*run hub/publisher.sql' 'nobody: .*cannot connect'; do
	check "the health check says \"$line\"" grep "^$line" "$SYSTEMS/health"
done
check 'the health check of the server is good' healthy server
in_container sh -c 'cat /proc/[0-9]*/cmdline | tr "\0" "\n"' >"$SYSTEMS/arguments" 2>/dev/null || true
check "arguments of processes can be seen" grep -q report.sh "$SYSTEMS/arguments"
check "the key is not among them" lacks "$key" "$SYSTEMS/arguments"
check "a publisher's password is not among them" lacks "$password" "$SYSTEMS/arguments"
check 'the key is in no log' lacks "$key" "$SYSTEMS/hub.log"
check 'passwords are in no log' lacks "$password" "$SYSTEMS/hub.log"
check 'the key is not on the volume' lacks "$key" -r "$SYSTEMS/hub/var/lib/clerk_hub"

# When the publisher is repaired, nothing has to be restarted.
on "$first" postgres 'DROP DATABASE plain'
make_publisher plain
invite plain carl@example.com >/dev/null
eventually 'a publisher that can be used now is served' is_sent plain carl@example.com

stop_hub
check 'docker stop is a fast shutdown' grep -q 'received fast shutdown request' "$SYSTEMS/hub.log"
check 'it ends well' test "$hub_status" = 0
check 'the server was shut down' grep -q 'database system is shut down' "$SYSTEMS/hub.log"

# Started again, as with "docker start", with what is usable only.
invite shop dora@example.com >/dev/null
publishers="shop=$(string shop)"$'\n'"forum=$(string forum)"
start_hub "$publishers"
eventually 'what was enqueued while it was stopped is sent' is_sent shop dora@example.com
eventually 'the health check is good' healthy
echo "        a hub with two publishers uses $(memory_of_container) MB of memory"
check 'a database whose publisher is not named is mentioned' \
	grep -q '"plain" has a publisher that CLERK_PUBLISHERS does not name' "$SYSTEMS/hub.log"

# Removed as docs/managed.md says.
check 'a publisher can be removed: its subscription' as_postgres psql -Xq -v ON_ERROR_STOP=1 -d plain \
	-c 'ALTER SUBSCRIPTION clerk_invite DISABLE' -c 'ALTER SUBSCRIPTION clerk_invite SET (slot_name = NONE)' \
	-c 'DROP SUBSCRIPTION clerk_invite'
check 'its database' as_postgres dropdb --force plain
on "$first" plain "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
	WHERE slot_name LIKE 'clerk\_hub\_%' AND database = current_database() AND NOT active" >/dev/null
check 'and its slot' test -z "$(on "$first" plain "SELECT slot_name FROM pg_replication_slots WHERE database = 'plain'")"

# What ends on its own.
kill_process '^sh .*report.sh shop $' "$container"
eventually 'a loop that was killed is noticed' grep -q 'reports to publisher "shop" have ended' "$SYSTEMS/hub.log"
invite shop eve@example.com >/dev/null
eventually 'and started again' is_sent shop eve@example.com
eventually 'the health check is good then' healthy
kill_process '^postgres: .*logical replication apply'
invite shop fred@example.com >/dev/null
eventually 'the server recovers from a crash' is_sent shop fred@example.com
on "$first" postgres "ALTER ROLE hub NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'hub'" >/dev/null
eventually 'the health check is bad while the hub cannot log in' unhealthy
on "$first" postgres 'ALTER ROLE hub LOGIN'
eventually 'and good again afterward' healthy
kill_hub
invite forum gina@example.com >/dev/null
start_hub "$publishers"
eventually 'a hub that was killed goes on' is_sent forum gina@example.com
container_of_first=$container
hub_of_first=$hub
start_hub "$publishers"
if wait "$hub"; then bad 'a second hub on the same volume ends'; else
	check 'a second hub on the same volume is refused' grep -q 'another hub uses' "$SYSTEMS/hub.log"
fi
container=$container_of_first
hub=$hub_of_first
stop_hub

# As a container that is not allowed to begin as root.
container_user='setpriv --reuid=postgres --regid=postgres --init-groups'
invite shop otto@example.com >/dev/null
start_hub "$publishers"
eventually 'a container that begins as the server'"'"'s user works' is_sent shop otto@example.com
eventually 'and is healthy' healthy
kill_hub

# The number in the lock file that is left is that of a process of the same user
# now, as it may be where containers share their processes.
cat >"$SYSTEMS/hub/usr/local/bin/beside" <<'BESIDE'
#!/bin/sh
sleep 600 &
exec "$@"
BESIDE
chmod 0755 "$SYSTEMS/hub/usr/local/bin/beside"
sed -i '1s/.*/2/' "$SYSTEMS/hub/var/lib/clerk_hub/data/postmaster.pid"
container_user="$container_user /usr/local/bin/beside"
start_hub "$publishers"
eventually 'a lock file that was left does not keep it from starting' healthy
stop_hub
container_user=

# With files, which only root may read, and a key that is replaced.
install -m 0400 /dev/null "$SYSTEMS/hub/etc/key"
install -m 0400 /dev/null "$SYSTEMS/hub/etc/publishers"
echo "$key" >"$SYSTEMS/hub/etc/key"
echo "shop=$(string shop)" >"$SYSTEMS/hub/etc/publishers"
start_hub '' CLERK_SECRET_KEY= CLERK_SECRET_KEY_FILE=/etc/key CLERK_PUBLISHERS_FILE=/etc/publishers
invite shop hans@example.com >/dev/null
eventually 'the key and the publishers can be in files' is_sent shop hans@example.com
stop_hub
echo sk_test_wrong >"$SYSTEMS/hub/etc/key"
chown --reference="$SYSTEMS/hub/var/lib/postgresql" "$SYSTEMS/hub/etc/key"
start_hub '' CLERK_SECRET_KEY= CLERK_SECRET_KEY_FILE=/etc/key CLERK_PUBLISHERS_FILE=/etc/publishers
invite shop ida@example.com >/dev/null
eventually 'a wrong key is refused by Clerk' grep -q '401' "$SYSTEMS/hub.log"
echo "$key" >"$SYSTEMS/hub/etc/key"
eventually 'a key that was replaced is used' is_sent shop ida@example.com
kill_hub

# Killed before every psql that the setup runs, and at other points of it.  A
# psql ahead of the real one counts its calls and waits to be killed.
mkdir "$SYSTEMS/hub/kill"
chmod 0777 "$SYSTEMS/hub/kill"
cat >"$SYSTEMS/hub/usr/local/bin/psql" <<'PSQL'
#!/bin/sh
if [ -e /kill/at ]; then
	echo >>/kill/calls
	if [ "$(wc -l </kill/calls)" = "$(cat /kill/at)" ]; then
		touch /kill/reached
		exec sleep 600
	fi
fi
exec /usr/bin/psql "$@"
PSQL
chmod 0755 "$SYSTEMS/hub/usr/local/bin/psql"

# killed_at NAME CONDITION...: a new publisher and a new hub, which is killed
# when the condition holds, and started again
killed_at()
{
	local name=$1 database
	shift
	round=$((round + 1))
	database=round_$round
	make_publisher "$database"
	invite "$database" "before$round@example.com" >/dev/null
	remove_volume
	rm -f "$SYSTEMS"/hub/kill/calls "$SYSTEMS"/hub/kill/reached
	start_hub "$(string "$database")"
	if ! wait_until "$@"; then
		bad "killed $name: never got there" "$SYSTEMS/hub.log"
	fi
	reached=
	[ ! -e "$SYSTEMS/hub/kill/reached" ] || reached=yes
	kill_hub
	rm -f "$SYSTEMS/hub/kill/at"
	invite "$database" "after$round@example.com" >/dev/null
	start_hub "$(string "$database")"
	wait_until is_sent "$database" "before$round@example.com" && wait_until is_sent "$database" "after$round@example.com" &&
		invited_once "before$round@example.com" && invited_once "after$round@example.com" && wait_until healthy ||
		{ bad "killed $name: started again, it sends what waits, once" "$SYSTEMS/hub.log"; kill_hub; return; }
	kill_hub
	good "killed $name: started again, it sends what waits, once"
}

is_there()
{
	[ -e "$SYSTEMS/hub/var/lib/clerk_hub/$1" ]
}

reached_or_connected()
{
	[ -e "$SYSTEMS/hub/kill/reached" ] || grep -q 'publisher "publisher" is connected' "$SYSTEMS/hub.log"
}

at_publisher()
{
	[ "$(on "$first" "round_$round" "$1")" = t ]
}

round=0
killed_at 'in the middle of initdb' is_there data.new/base
killed_at 'when the cluster is there' is_there data/PG_VERSION
killed_at 'when the server starts' is_there data/postmaster.pid
killed_at 'when the slot is there' at_publisher \
	'SELECT EXISTS (SELECT FROM pg_replication_slots WHERE database = current_database())'
killed_at 'when the publisher has accepted the hub' at_publisher \
	'SELECT generation IS NOT NULL FROM app.clerk_hub_status'
killed_at 'when the publisher has heard of the request' at_publisher \
	"SELECT count(*) = 0 FROM app.clerk_invitation_request WHERE received_at IS NULL"
for ((call = 1, reached = 1; reached; call++)); do
	echo "$call" >"$SYSTEMS/hub/kill/at"
	killed_at "before psql number $call" reached_or_connected
	[ -z "$reached" ] || reached=1
done
rm "$SYSTEMS/hub/usr/local/bin/psql"

# The extension's image, in a server that has neither libcurl nor the extension.
mkdir -p "$SYSTEMS/base/extensions"
cp -a "$SYSTEMS/extension" "$SYSTEMS/base/extensions/clerk_invite"
echo "        $(cd "$SYSTEMS/extension" && find . -type f | sort | tr '\n' ' ')"
check 'the image of the extension has what it takes, in lib and share' test \
	-f "$SYSTEMS/extension/lib/clerk_invite.so" -a -f "$SYSTEMS/extension/share/extension/clerk_invite.control"
cat >"$SYSTEMS/base/volume.sh" <<'VOLUME'
cd
initdb -D volume >log
cat >>volume/postgresql.conf <<'CONF'
listen_addresses = ''
unix_socket_directories = '/tmp'
port = 7105
shared_preload_libraries = 'clerk_invite'
extension_control_path = '$system:/extensions/clerk_invite/share'
dynamic_library_path = '$libdir:/extensions/clerk_invite/lib'
CONF
echo "clerk_invite.api_url = '$CLERK'" >>volume/postgresql.conf
pg_ctl -D volume -w -l log start || { cat log; exit 1; }
export PGHOST=/tmp PGPORT=7105
psql -X -v ON_ERROR_STOP=1 -c 'CREATE EXTENSION clerk_invite' \
	-c "SELECT clerk_enqueue_organization_invitation('org_acme', NULL, 'volume@example.com', 'org:member')"
for i in $(seq 300); do
	state=$(psql -XAtc 'SELECT state FROM clerk_invitation_outbox')
	[ "$state" != sent ] || break
	sleep 0.1
done
pg_ctl -D volume -w stop
cat log
test "$state" = sent
VOLUME
step "$SYSTEMS/base" "a server with the extension's image as a volume sends an invitation" "
	! ldconfig -p | grep libcurl
	runuser -u postgres -- env PATH=\$PATH:$bin CLERK=http://127.0.0.1:$clerk_port CLERK_SECRET_KEY=$key \
		LD_LIBRARY_PATH=/extensions/clerk_invite/system sh -eu /volume.sh" || failures=$((failures + 1))
check 'Clerk has it once' invited_once volume@example.com
check "no request has violated Clerk's contract" test ! -s "$SYSTEMS/violations"

if [ $failures -gt 0 ]; then
	echo "$failures checks failed"
	exit 1
fi
echo 'everything is as it should be'
