# measure_wire.sh FOLDER - the measuring part of wire.sh, as an ordinary user in a
# folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
. bench/cluster_and_server.sh

journal=$folder/journal
limits='1 5'

# Who is a member is in the table of his own transaction, so that its row tells
# when that has committed.
prepare()
{
	psql -Xq -v ON_ERROR_STOP=1 <<'SQL'
CREATE EXTENSION clerk_invite;
CREATE TABLE members (org_id text NOT NULL, email text NOT NULL);
CREATE TRIGGER invite AFTER INSERT ON members
REFERENCING NEW TABLE AS new_members
FOR EACH STATEMENT EXECUTE FUNCTION
clerk_invitation_trigger('org_id', '', 'email', '=org:member');
CREATE TABLE guests (org_id text NOT NULL, email text NOT NULL);
CREATE TABLE requests (at bigint, email text);
SQL
	cat >"$folder/members.sql" <<'SQL'
\set n random(1, 1000000000000)
INSERT INTO members VALUES ('org_' || :n, 'm-' || :n || '@example.com');
SQL
	cat >"$folder/guests.sql" <<SQL
\\set n random(1, 1000000000000)
WITH guest AS (INSERT INTO guests VALUES ('org_' || :n, 'g-' || :n || '@example.com') RETURNING *)
SELECT net.http_post('$url/v1/organizations/' || org_id || '/invitations',
	jsonb_build_object('email_address', email, 'role', 'org:member'))
FROM guest;
SQL
}

# wait_for SQL: until it is true; for a minute at most
wait_for()
{
	for _ in $(seq 1200); do
		if [ "$(psql -XAt -c "SELECT $1")" = t ]; then
			return
		fi
		sleep 0.05
	done
	echo "timed out waiting until $1" >&2
	return 1
}

# Without those that are still under way there would be no slow ones.
wait_for_requests()
{
	for _ in $(seq 6000); do
		if [ "$(wc -l <"$journal")" -ge "$(psql -XAt -c "SELECT count(*) FROM $1")" ]; then
			return
		fi
		sleep 0.05
	done
	echo 'timed out waiting for requests' >&2
	return 1
}

# start_over: nobody has been added or asked for
start_over()
{
	wait_for "NOT EXISTS (SELECT FROM clerk_invitation_outbox WHERE state <> 'sent')"
	psql -Xq -c 'TRUNCATE members, guests, requests, clerk_invitation_outbox'
	: >"$journal"
}

# percentiles TABLE: median and 99th, in milliseconds
percentiles()
{
	wait_for_requests "$1"
	psql -XAtq -v ON_ERROR_STOP=1 -F ' ' <<SQL
\\copy requests FROM '$journal' WITH (DELIMITER ' ')
WITH times AS (
	SELECT r.at / 1000.0 - extract(epoch FROM pg_xact_commit_timestamp(p.xmin)) * 1000 AS ms
	FROM $1 AS p JOIN requests AS r USING (email))
SELECT round(percentile_disc(0.5) WITHIN GROUP (ORDER BY ms), 2),
       round(percentile_disc(0.99) WITHIN GROUP (ORDER BY ms), 2), count(*)
FROM times;
SQL
}

# report KEY TITLE FIGURES...: a line of the table
report()
{
	note "wire.$1.median $3"
	note "wire.$1.p99 $4"
	printf '%-48s %9s %9s %9s\n' "$2" "$3" "$4" "$5"
}

# measure KEY TITLE SCRIPT CLIENTS: commits at some rate
measure()
{
	start_over
	pgbench -n -c "$4" -j "$([ "$4" -gt 4 ] && echo 4 || echo "$4")" \
		-R $((PER_CLIENT * $4)) -T "$DURATION" -f "$folder/$3.sql" \
		>"$folder/pgbench.log" 2>&1 || { cat "$folder/pgbench.log" >&2; return 1; }
	percentiles "$3" >"$folder/percentiles"
	read -r median p99 commits <"$folder/percentiles"
	report "$1" "$2" "$median" "$p99" "$commits"
}

# measure_starts: of commits that find no worker
measure_starts()
{
	start_over
	for n in $(seq "$STARTS"); do
		wait_for 'NOT EXISTS (SELECT FROM clerk_worker_status())'
		psql -Xq -c "INSERT INTO members VALUES ('org_$n', 's-$n@example.com')"
		wait_for "NOT EXISTS (SELECT FROM clerk_invitation_outbox WHERE state <> 'sent')"
	done
	percentiles members >"$folder/percentiles"
	read -r median p99 commits <"$folder/percentiles"
	report start 'clients: 1, fsync off, a worker has to start' "$median" "$p99" "$commits"
}

failed=
install_extensions
touch "$journal"
start_server "$journal"
start_cluster "$folder" "$folder/root" "$(peer_settings)" 'track_commit_timestamp = on' \
	'max_wal_size = 8GB' 'max_connections = 100' \
	'clerk_invite.single_requests_per_hour = 1000000000' \
	'clerk_invite.bulk_requests_per_hour = 1000000000' \
	"clerk_invite.api_url = '$url'" "clerk_invite.secret_key_file = 'clerk.key'"
(umask 077; echo sk_test_benchmark >"$PGDATA/clerk.key")
prepare

note "wire.per_client $PER_CLIENT"
echo "milliseconds from a commit to its request; each client adds $PER_CLIENT a second"
printf '%-48s %9s %9s %9s\n' '' median p99 commits
for fsync in off on; do
	psql -Xq -c "ALTER SYSTEM SET fsync = $fsync" -c 'SELECT pg_reload_conf()' >"$folder/reload.log"
	wait_for "current_setting('fsync') = '$fsync'"
	for clients in 1 10 50; do
		measure "$fsync.$clients" "clients: $clients, fsync $fsync" members "$clients"
		if [ "$fsync.$clients" = off.10 ]; then
			# shellcheck disable=SC2086
			set -- $limits
			! exceeds "$median" "$1" || failed=1
			! exceeds "$p99" "$2" || failed=1
		fi
	done
done
psql -Xq -c 'ALTER SYSTEM SET fsync = off' -c 'SELECT pg_reload_conf()' >"$folder/reload.log"
measure_starts
if has_extension pg_net; then
	psql -Xq -c "ALTER SYSTEM SET shared_preload_libraries = pg_net"
	pg_ctl restart -w -l "$folder/server.log" >"$folder/pg_ctl.log"
	psql -Xq -v ON_ERROR_STOP=1 -c 'CREATE EXTENSION pg_net'
	note "version.pg_net $(psql -XAt -c "SELECT extversion FROM pg_extension WHERE extname = 'pg_net'")"
	for clients in 1 10; do
		measure "pg_net.$clients" "pg_net, clients: $clients, fsync off" guests "$clients"
	done
else
	echo 'not installed, not measured: pg_net'
fi
printf '%-48s %9s %9s\n' 'limit for 10 clients, fsync off' $limits
within_limits
