# measure_sync.sh FOLDER - the measuring part of sync.sh, as an ordinary user in
# a folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh
. bench/cores.sh
. bench/figures.sh
. bench/install.sh
. bench/nginx.sh
. bench/contenders.sh
. bench/trace.sh

proxy=
stop_everything()
{
	stop_cluster
	stop_nginx
	[ -z "$proxy" ] || kill "$proxy" 2>"$folder/gone.log" || true
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

limit=1.10

# start_proxy: what is asked of it is LATENCY milliseconds away
start_proxy()
{
	mkfifo "$folder/proxy"
	taskset -c "$server_cpu" python3 bench/delaying_proxy.py "$tls_port" "$LATENCY" \
		>"$folder/proxy" 2>"$folder/proxy.log" &
	proxy=$!
	read -r proxy_port <"$folder/proxy"
}

# compare KEY TITLE ROUNDS CALLS URL CA_FILE: the rounds, in turn, then medians
# and the median of the ratios of each round, since the machine's speed drifts
compare()
{
	key=$1
	rounds=$3
	CALLS=$4
	for contender in $contenders; do
		rm -f "$folder/$contender".*
	done
	for _ in $(seq "$rounds"); do
		for contender in $contenders; do
			timed "$contender" "$5" "$6"
			read -r first each <"$folder/timed"
			[ "$contender" != libcurl ] || bare=$each
			echo "$first" >>"$folder/$contender.first"
			echo "$each" >>"$folder/$contender.each"
			ratio "$each" "$bare" >>"$folder/$contender.ratio"
		done
	done
	printf '%s: microseconds a call, medians of %s rounds of %s calls\n' "$2" "$rounds" "$CALLS"
	printf '%-28s %8s %12s %12s\n' '' ratio 'a call' 'first call'
	for contender in $contenders; do
		report "$contender"
	done
	overhead=$(median <"$folder/clerk_invite.ratio")
	! exceeds "$overhead" "$limit" || failed=1
}

# report CONTENDER: a line of the table
report()
{
	for figure in ratio each first; do
		value=$(median <"$folder/$1.$figure")
		note "sync.$key.$1.$figure $value"
		case $figure in
			ratio) printf '%-28s %8s' "$(title "$1")" "$value" ;;
			*) printf ' %12s' "$value" ;;
		esac
	done
	echo
}

# calls_of_clerk_invite URL CA_FILE COUNT: the system calls of a session in which
# the SQL function is called so often
calls_of_clerk_invite()
{
	mkfifo "$folder/traced"
	psql -XAtq -v ON_ERROR_STOP=1 <"$folder/traced" >"$folder/traced.log" &
	session=$!
	exec 3>"$folder/traced"
	rm "$folder/traced"
	echo 'SELECT pg_backend_pid();' >&3
	until [ -s "$folder/traced.log" ]; do
		sleep 0.01
	done
	trace "$(cat "$folder/traced.log")"
	cat >&3 <<SQL
SET clerk_invite.api_url = '$1';
SET clerk_invite.ca_file = '$2';
SET clerk_invite.secret_key_file = 'clerk.key';
SELECT count(clerk_create_organization_invitation('$organization', NULL,
	'ann-' || n || '@example.com', 'org:member', metadata => '{"team": "red"}'))
FROM generate_series(1, $3) AS n;
SQL
	exec 3>&-
	wait "$session"
	end_trace
	calls_of_trace
}

# The same of a bare loop.
calls_of_libcurl()
{
	strace -f -qq -c -o "$folder/trace" "$folder/libcurl_loop" \
		"$1/v1/organizations/$organization/invitations" "$body" "$3" "$2" \
		"$authorization" "$type" "$accept" "$version" "$agent" >"$folder/traced.log"
	calls_of_trace
}

# count_system_calls KEY TITLE URL CA_FILE: those of a request, which are what
# more requests make more
count_system_calls()
{
	for contender in libcurl clerk_invite; do
		few=$("calls_of_$contender" "$3" "$4" 100)
		many=$("calls_of_$contender" "$3" "$4" 1100)
		awk -v few="$few" -v many="$many" 'BEGIN {printf "%.2f\n", (many - few) / 1000}' \
			>"$folder/$contender.system_calls"
		note "sync.$1.$contender.system_calls $(cat "$folder/$contender.system_calls")"
	done
	echo "system calls of a call, $2: clerk_invite $(cat "$folder/clerk_invite.system_calls")," \
		"libcurl $(cat "$folder/libcurl.system_calls")"
}

# Private memory of a session, in kB, before and after 20,000 calls of which
# each is a statement of its own.
measure_growth()
{
	calls=$GROWTH_CALLS
	{
		cat <<SQL
SET clerk_invite.api_url = 'http://127.0.0.1:$plain_port';
SET clerk_invite.secret_key_file = 'clerk.key';
PREPARE invite AS SELECT id FROM clerk_create_organization_invitation(
	'$organization', NULL, 'ann@example.com', 'org:member');
CREATE FUNCTION private_kilobytes() RETURNS integer LANGUAGE sql AS
\$\$SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status')
	FROM 'RssAnon:\s*(\d+)')::integer\$\$;
SQL
		yes 'EXECUTE invite;' | head -n 1000
		echo "SELECT 'kB', private_kilobytes();"
		yes 'EXECUTE invite;' | head -n "$calls"
		echo "SELECT 'kB', private_kilobytes();"
	} | psql -XAtq -v ON_ERROR_STOP=1 -F ' ' | awk '$1 == "kB" {print $2}' >"$folder/growth"
	growth=$(awk '{v[NR] = $1} END {print v[2] - v[1]}' "$folder/growth")
	echo "a session's memory after $calls more calls: $growth kB more"
	note "sync.growth $growth"
	note "sync.growth_calls $calls"
	[ "$growth" -lt 1024 ] || failed=1
}

failed=
install_extensions
start_cluster "$folder" "$folder/root"
pin_cluster
(umask 077; echo sk_test_benchmark >"$PGDATA/clerk.key")
prepare_contenders
start_nginx
start_proxy

plain="http://127.0.0.1:$plain_port"
tls="https://localhost:$tls_port"
compare http 'HTTP/1.1' "$ROUNDS" "$CALLS" "$plain" ''
jsonb=$(time_jsonb)
compare tls 'TLS, HTTP/2 where it is spoken' "$ROUNDS" "$CALLS" "$tls" "$folder/tls.crt"
compare far "the same, $LATENCY ms away" "$FAR_ROUNDS" "$FAR_CALLS" \
	"https://localhost:$proxy_port" "$folder/tls.crt"
note "sync.jsonb $jsonb"
note "sync.latency $LATENCY"
echo "the least with jsonb would be libcurl in a backend, and $jsonb for a jsonb of the answer"
[ -z "$missing" ] || echo "not installed, not measured:$missing"
if can_trace; then
	count_system_calls http HTTP/1.1 "$plain" ''
	count_system_calls tls TLS "$tls" "$folder/tls.crt"
fi
measure_growth
within_limits
