# contenders.sh - the ways to make one synchronous call
#
# Sourced, not run, after install.sh and nginx.sh, with the number of calls in
# CALLS.  Each time_NAME URL CA_FILE prints the microseconds of a new session's
# first call, and of each of the next CALLS.
#
# Addresses differ from call to call where SQL computes the request: a function
# in FROM whose arguments are constant is evaluated once, however many rows it is
# joined to.

# Header lines of the SQL function's request, for the others to send as well.
authorization='Authorization: Bearer sk_test_benchmark'
type='Content-Type: application/json'
accept='Accept: application/json'
version='Clerk-API-Version: 2026-05-12'
agent='User-Agent: clerk_invite/1.0 PostgreSQL/15.0'
body='{"email_address":"ann@example.com","role":"org:member","public_metadata":{"team": "red"}}'
organization=org_2fXk0aLqB3cD4eF5gH6iJ7kL8mN

# prepare_contenders: builds what they need, and sets contenders to the names of
# those that the machine has, and missing to those that it does not have; the
# cluster is running
prepare_contenders()
{
	contenders='libcurl clerk_invite backend'
	missing=
	# shellcheck disable=SC2046
	${CC:-cc} -O2 -o "$folder/libcurl_loop" bench/libcurl_loop.c \
		$(curl-config --cflags --libs)
	# shellcheck disable=SC2046
	${CC:-cc} -O2 -fPIC -shared -o "$folder/libcurl_function.so" bench/libcurl_function.c \
		-I"$("$PG_CONFIG" --includedir-server)" $(curl-config --cflags --libs)
	psql -Xq -v ON_ERROR_STOP=1 -c 'CREATE EXTENSION clerk_invite' \
		-c "CREATE FUNCTION libcurl_call(text, text, text, text[]) RETURNS integer
			LANGUAGE c VOLATILE AS '$folder/libcurl_function.so'"
	if has_extension http; then
		psql -Xq -v ON_ERROR_STOP=1 -c 'CREATE EXTENSION http'
		contenders="$contenders pgsql_http pgsql_http_kept"
		note "version.pgsql-http $(psql -XAt -c "SELECT extversion FROM pg_extension WHERE extname = 'http'")"
	else
		missing="$missing pgsql-http"
	fi
	if install_clerk_backend; then
		contenders="$contenders clerk_backend"
		note "version.@clerk/backend $(sed -n 's/.*"version": *"\(.*\)".*/\1/p' \
			"$folder/node/node_modules/@clerk/backend/package.json"), Node.js $(node --version)"
	else
		missing="$missing @clerk/backend"
	fi
}

# The version that the tests use, with nothing left in anyone's home.
install_clerk_backend()
{
	command -v npm >"$folder/npm.log" || return 1
	mkdir "$folder/node"
	cp test/official_client/package.json bench/clerk_backend_loop.mjs "$folder/node/"
	(
		cd "$folder/node" || exit
		HOME=$folder/node npm_config_cache=$folder/node/cache \
			npm install --no-audit --no-fund --no-package-lock \
			--engine-strict --fetch-retries=1
	) >"$folder/npm.log" 2>&1
}

# title NAME: what the tables call it
title()
{
	case $1 in
		backend) echo 'libcurl in a backend' ;;
		pgsql_http) echo 'pgsql-http' ;;
		pgsql_http_kept) echo 'pgsql-http, http.keepalive' ;;
		clerk_backend) echo '@clerk/backend' ;;
		*) echo "$1" ;;
	esac
}

# time_in_session SETTINGS CALL: an expression that makes call n
time_in_session()
{
	psql -XAtq -v ON_ERROR_STOP=1 -F ' ' <<SQL
$1
SELECT clock_timestamp() AS begun \\gset
SELECT count($2) FROM generate_series(0, 0) AS n \\g /dev/null
SELECT clock_timestamp() AS connected \\gset
SELECT count($2) FROM generate_series(1, $CALLS) AS n \\g /dev/null
SELECT clock_timestamp() AS ended \\gset
SELECT round(extract(epoch FROM :'connected'::timestamptz - :'begun') * 1e6, 2),
       round(extract(epoch FROM :'ended'::timestamptz - :'connected') * 1e6 / $CALLS, 2);
SQL
}

time_libcurl()
{
	taskset -c "$client_cpu" "$folder/libcurl_loop" "$1/v1/organizations/$organization/invitations" \
		"$body" "$CALLS" "$2" "$authorization" "$type" "$accept" "$version" \
		"$agent"
}

time_clerk_invite()
{
	time_in_session "SET clerk_invite.api_url = '$1';
		SET clerk_invite.ca_file = '$2';
		SET clerk_invite.secret_key_file = 'clerk.key';" \
		"clerk_create_organization_invitation('$organization', NULL,
			'ann-' || n || '@example.com', 'org:member', metadata => '{\"team\": \"red\"}')"
}

time_backend()
{
	time_in_session '' "libcurl_call('$1/v1/organizations/$organization/invitations',
		'$body', '$2', ARRAY['$authorization', '$type', '$accept', '$version', '$agent'])"
}

# Each call has a connection of its own, unless told otherwise.
time_pgsql_http()
{
	time_in_session "SET http.curlopt_cainfo = '$2'; ${3:-}" \
		"(SELECT content::jsonb ->> 'id'
		FROM http(('POST', '$1/v1/organizations/$organization/invitations',
			ARRAY[http_header('Authorization', '${authorization#*: }'),
				http_header('Accept', '${accept#*: }'),
				http_header('Clerk-API-Version', '${version#*: }')],
			'application/json', replace('$body', '@', '-' || n || '@'))::http_request))"
}

time_pgsql_http_kept()
{
	time_pgsql_http "$1" "$2" 'SET http.keepalive = on;'
}

time_clerk_backend()
{
	NODE_EXTRA_CA_CERTS=$2 taskset -c "$client_cpu" node "$folder/node/clerk_backend_loop.mjs" \
		"$1" "$organization" "$CALLS"
}

# What a jsonb of the answer takes, for each of CALLS.
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

# timed NAME URL CA_FILE: leaves the figures in $folder/timed, and fails unless
# the server was asked as often as it should have been
timed()
{
	before=$(requests_served)
	"time_$1" "$2" "$3" >"$folder/timed"
	# The question itself is one.
	made=$(($(requests_served) - before - 1))
	if [ "$made" -ne $((CALLS + 1)) ]; then
		echo "$(title "$1") made $made requests instead of $((CALLS + 1))" >&2
		return 1
	fi
}
