# measure_sync.sh FOLDER - the measuring part of sync.sh, as an ordinary user in
# a folder of its own with the source in FOLDER/source
set -eu

folder=$1
bin=$("$PG_CONFIG" --bindir)
cd "$folder/source"
. test/throwaway_cluster.sh
. bench/cores.sh
. bench/figures.sh

stop_everything()
{
	stop_cluster
	if [ -f "$folder/nginx.pid" ]; then
		kill "$(cat "$folder/nginx.pid")"
	fi
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# As Clerk answers an invitation that a backend sends in nobody's name: a URL
# with a signed ticket makes up half of it.
answer='{"object":"organization_invitation","id":"orginv_2fXk0aLqB3cD4eF5gH6iJ7kL8mN","email_address":"ann@example.com","role":"org:member","role_name":"Member","organization_id":"org_2fXk0aLqB3cD4eF5gH6iJ7kL8mN","inviter_id":null,"public_inviter_data":null,"status":"pending","public_metadata":{"team":"red"},"private_metadata":{},"url":"https://clerk.example.com/v1/tickets/accept?ticket=eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJlaXMiOjI1OTIwMDAsImV4cCI6MTc5NTg5MjA3MSwiaWlkIjoiaW5zXzJnIiwic2lkIjoib3JnaW52XzJmIiwic3QiOiJvcmdhbml6YXRpb25faW52aXRhdGlvbiJ9.c2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmU","expires_at":1795892071000,"created_at":1793300071000,"updated_at":1793300071000}'

# Header lines of the SQL function's request, for the others to send as well.
authorization='Authorization: Bearer sk_test_benchmark'
type='Content-Type: application/json'
accept='Accept: application/json'
version='Clerk-API-Version: 2026-05-12'
agent='User-Agent: clerk_invite/1.0 PostgreSQL/15.0'
body='{"email_address":"ann@example.com","role":"org:member","public_metadata":{"team": "red"}}'
organization=org_2fXk0aLqB3cD4eF5gH6iJ7kL8mN

free_port()
{
	python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start_nginx()
{
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
		-addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
		-keyout "$folder/tls.key" -out "$folder/tls.crt" 2>"$folder/openssl.log"
	plain_port=$(free_port)
	tls_port=$(free_port)
	sed -e "s,@FOLDER@,$folder,; s,@PLAIN@,$plain_port,; s,@TLS@,$tls_port," \
		bench/nginx.conf >"$folder/nginx.conf"
	printf '%s' "$answer" >"$folder/answer.json"
	taskset -c "$server_cpu" /usr/sbin/nginx -c "$folder/nginx.conf" \
		2>"$folder/nginx.log"
}

# One figure each: microseconds a call.
time_function()
{
	psql -XAtq -v ON_ERROR_STOP=1 <<SQL | tail -n 1
SET clerk_invite.api_url = '$1';
SET clerk_invite.ca_file = '$folder/tls.crt';
SET clerk_invite.secret_key_file = 'clerk.key';
CREATE TEMP TABLE begun AS
SELECT clock_timestamp() AS at
FROM clerk_create_organization_invitation('$organization', NULL, 'a@b', 'r');
TRUNCATE begun;
INSERT INTO begun VALUES (clock_timestamp());
SELECT count(clerk_create_organization_invitation('$organization',
	NULL, 'ann@example.com', 'org:member', metadata => '{"team": "red"}'))
FROM generate_series(1, $CALLS);
SELECT round((extract(epoch FROM clock_timestamp() - at) * 1e6 / $CALLS)::numeric, 2)
FROM begun;
SQL
}

time_libcurl()
{
	taskset -c "$client_cpu" "$folder/libcurl_loop" "$1/v1/organizations/$organization/invitations" \
		"$body" "$CALLS" "$2" "$authorization" "$type" "$accept" "$version" \
		"$agent"
}

time_libcurl_function()
{
	psql -XAtq -v ON_ERROR_STOP=1 <<SQL | tail -n 1
CREATE TEMP TABLE begun AS
SELECT clock_timestamp() AS at
FROM libcurl_call('$1/v1/organizations/$organization/invitations', '$body',
	'$2', ARRAY['$authorization', '$type', '$accept', '$version', '$agent']);
TRUNCATE begun;
INSERT INTO begun VALUES (clock_timestamp());
SELECT count(libcurl_call('', '', '', '{}')) FROM generate_series(1, $CALLS);
SELECT round((extract(epoch FROM clock_timestamp() - at) * 1e6 / $CALLS)::numeric, 2)
FROM begun;
SQL
}

time_pgsql_http()
{
	psql -XAtq -v ON_ERROR_STOP=1 <<SQL | tail -n 1
SET http.curlopt_cainfo = '$folder/tls.crt';
SELECT http_set_curlopt('CURLOPT_CAINFO', '$folder/tls.crt');
CREATE TEMP TABLE begun AS SELECT clock_timestamp() AS at;
SELECT count(content::jsonb ->> 'id')
FROM generate_series(1, $CALLS) AS n,
LATERAL http(('POST', '$1/v1/organizations/$organization/invitations',
	ARRAY[http_header('Authorization', 'Bearer sk_test_benchmark')],
	'application/json', '$body')::http_request);
SELECT round((extract(epoch FROM clock_timestamp() - at) * 1e6 / $CALLS)::numeric, 2)
FROM begun;
SQL
}

# What a jsonb of the answer takes.
time_jsonb()
{
	psql -XAtq -v ON_ERROR_STOP=1 <<SQL | tail -n 1
CREATE TEMP TABLE answer AS SELECT pg_read_file('$folder/answer.json') AS text;
CREATE TEMP TABLE begun AS SELECT clock_timestamp() AS at;
SELECT count((text || left(n::text, 0))::jsonb)
FROM answer, generate_series(1, $CALLS) AS n;
SELECT round((extract(epoch FROM clock_timestamp() - at) * 1e6 / $CALLS)::numeric, 2)
FROM begun;
SQL
}

# compare NAME URL CA_FILE: the rounds, in turn, then medians and the median of
# the ratios of each round, since the machine's speed drifts
compare()
{
	for figures in ours bare backend jsonb theirs ratios; do
		: >"$folder/$figures"
	done
	for round in $(seq "$ROUNDS"); do
		ours=$(time_function "$2")
		bare=$(time_libcurl "$2" "$3")
		echo "$ours" >>"$folder/ours"
		echo "$bare" >>"$folder/bare"
		time_libcurl_function "$2" "$3" >>"$folder/backend"
		time_jsonb >>"$folder/jsonb"
		ratio "$ours" "$bare" >>"$folder/ratios"
		if [ -n "$pgsql_http" ]; then
			time_pgsql_http "$2" >>"$folder/theirs"
		fi
	done
	overhead=$(median <"$folder/ratios")
	printf '%-12s %12s %8s %6s %12s %8s' "$1" "$(median <"$folder/ours")" \
		"$(median <"$folder/bare")" "$overhead" "$(median <"$folder/backend")" \
		"$(median <"$folder/jsonb")"
	if [ -n "$pgsql_http" ]; then
		printf ' %12s %10s' "$(median <"$folder/theirs")" \
			"$(ratio "$(median <"$folder/theirs")" "$(median <"$folder/bare")")"
	fi
	echo
	! exceeds "$overhead" 1.15 || failed=1
}

# Private memory of a session, in kB, before and after 20,000 calls of which
# each is a statement of its own.
measure_growth()
{
	calls=20000
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
	[ "$growth" -lt 1024 ] || failed=1
}

failed=
make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
	{ cat "$folder/build.log"; exit 1; }
# shellcheck disable=SC2046
${CC:-cc} -O2 -o "$folder/libcurl_loop" bench/libcurl_loop.c \
	$(curl-config --cflags --libs)
# shellcheck disable=SC2046
${CC:-cc} -O2 -fPIC -shared -o "$folder/libcurl_function.so" bench/libcurl_function.c \
	-I"$("$PG_CONFIG" --includedir-server)" $(curl-config --cflags --libs)
start_cluster "$folder" "$folder/root"
pin_cluster
(umask 077; echo sk_test_benchmark >"$PGDATA/clerk.key")
psql -Xq -c 'CREATE EXTENSION clerk_invite' \
	-c "CREATE FUNCTION libcurl_call(text, text, text, text[]) RETURNS integer
		LANGUAGE c VOLATILE AS '$folder/libcurl_function.so'"
pgsql_http=$(psql -XAt -c "SELECT name FROM pg_available_extensions WHERE name = 'http'")
[ -z "$pgsql_http" ] || psql -Xq -c 'CREATE EXTENSION http'
start_nginx

echo "microseconds a call: medians of $ROUNDS rounds of $CALLS calls"
printf '%-12s %12s %8s %6s %12s %8s' '' clerk_invite libcurl ratio 'in a backend' jsonb
[ -z "$pgsql_http" ] || printf ' %12s %10s' pgsql-http ratio
echo
compare 'HTTP/1.1' "http://127.0.0.1:$plain_port" ''
compare 'TLS, HTTP/2' "https://localhost:$tls_port" "$folder/tls.crt"
echo "the least with jsonb would be libcurl in a backend, and a jsonb of the answer"
[ -n "$pgsql_http" ] || echo "pgsql-http is not installed: not measured"
measure_growth
[ -z "$failed" ]
