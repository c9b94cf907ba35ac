# measure_backlog.sh FOLDER - the measuring part of backlog.sh, as an ordinary
# user in a folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
. bench/cluster_and_server.sh

organization=org_2fXk0aLqB3cD4eF5gH6iJ7kL8mN
limit=1.5

# Of a sender with default settings: requests at a time, and in a batch.
at_a_time=10
batch=40

# unavoidable has what a sender's rows have, but nothing that is fired; update_all
# does for batches of so many rows what a sender must, and nothing else.
prepare()
{
	psql -Xq -v ON_ERROR_STOP=1 <<'SQL'
SET client_min_messages = error;
CREATE EXTENSION clerk_invite;
CREATE TABLE unavoidable (LIKE clerk_invitation_outbox INCLUDING ALL);
CREATE PROCEDURE update_all(batch integer) LANGUAGE plpgsql AS $$
DECLARE
    lowest bigint;
    highest bigint;
BEGIN
    SELECT min(id), max(id) INTO lowest, highest FROM unavoidable;
    FOR beginning IN lowest .. highest BY batch LOOP
        UPDATE unavoidable
        SET state = 'sending', attempts = attempts + 1, claimed_at = clock_timestamp(),
            first_claimed_at = clock_timestamp(), first_claimed_clock = 1
        WHERE id BETWEEN beginning AND beginning + batch - 1 AND state = 'queued';
        COMMIT;
        UPDATE unavoidable
        SET state = 'sent', settled_at = clock_timestamp(), status = 'pending',
            invitation_id = 'orginv_2fXk0aLqB3c' || lpad(to_hex(id), 16, '0'),
            url = 'https://clerk.example.com/v1/tickets/accept?ticket=' || repeat('e', 203),
            expires_at = clock_timestamp() + interval '30 days'
        WHERE id BETWEEN beginning AND beginning + batch - 1 AND state = 'sending';
        COMMIT;
    END LOOP;
END
$$;
SQL
}

# fill TABLE ROWS KIND: with a backlog; what the server would vacuum at some time
# is vacuumed now
fill()
{
	case $3 in
		one) organizations="'$organization'" ;;
		each) organizations="'org_2fXk0aLqB3cD4eF5gH6' || lpad(n::text, 8, '0')" ;;
	esac
	psql -Xq -v ON_ERROR_STOP=1 <<SQL
SET client_min_messages = error;
TRUNCATE $1;
INSERT INTO $1 (organization_id, inviter_user_id, email_address, role)
SELECT $organizations, 'user_2gYl1bMrC4dE5fG6hI7jK8lM9nO',
       'person-' || n || '@example.com', 'org:member'
FROM generate_series(1, $2) AS n;
VACUUM ANALYZE $1;
CHECKPOINT;
SQL
}

# time_call CALL TABLE ROWS: the seconds that it takes until all rows are sent;
# leaves the most private memory that the session has in between in $folder/most
time_call()
{
	: >"$folder/session"
	psql -XAtq -v ON_ERROR_STOP=1 >>"$folder/session" <<SQL &
SET client_min_messages = error;
SELECT pg_backend_pid();
SELECT clock_timestamp() AS begun \\gset
CALL $1;
SELECT extract(epoch FROM clock_timestamp() - :'begun');
SELECT count(DISTINCT invitation_id) FROM $2 WHERE state = 'sent';
SQL
	client=$!
	: >"$folder/samples"
	while kill -0 "$client" 2>"$folder/gone.log"; do
		awk '/^RssAnon:/ {print $2}' "/proc/$(sed -n 1p "$folder/session")/status" \
			2>"$folder/gone.log" >>"$folder/samples" || true
		sleep 0.2
	done
	wait "$client"
	sort -n "$folder/samples" | tail -n 1 >"$folder/most"
	if [ "$(sed -n 3p "$folder/session")" != "$3" ]; then
		echo "only $(sed -n 3p "$folder/session") of $3 rows of $2 were sent" >&2
		return 1
	fi
	sed -n 2p "$folder/session"
}

# time_libcurl ROWS KIND: the seconds that the requests alone take
time_libcurl()
{
	case $2 in
		one) set -- "$url/v1/organizations/$organization/invitations/bulk" $(($1 / 10)) 10 ;;
		each) set -- "$url/v1/organizations/$organization/invitations" "$1" 1 ;;
	esac
	taskset -c "$client_cpu" "$folder/libcurl_batch" "$1" "$2" "$at_a_time" "$3" \
		'Authorization: Bearer sk_test_benchmark' 'Content-Type: application/json' \
		'Accept: application/json' 'Clerk-API-Version: 2026-05-12' \
		'User-Agent: clerk_invite/1.0 PostgreSQL/15.0'
}

# measure ROWS ROUNDS KIND
measure()
{
	rm -f "$folder"/*.figures
	for _ in $(seq "$2"); do
		fill clerk_invitation_outbox "$1" "$3"
		drain=$(time_call 'clerk_send_invitations()' clerk_invitation_outbox "$1")
		cat "$folder/most" >>"$folder/memory.figures"
		psql -Xq -c 'TRUNCATE clerk_invitation_outbox'
		fill unavoidable "$1" "$3"
		sql=$(time_call "update_all($([ "$3" = one ] && echo $((batch * 10)) || echo $batch))" \
			unavoidable "$1")
		psql -Xq -c 'TRUNCATE unavoidable'
		requests=$(time_libcurl "$1" "$3")
		echo "$drain" >>"$folder/drain.figures"
		echo "$sql" >>"$folder/sql.figures"
		echo "$requests" >>"$folder/requests.figures"
		awk -v d="$drain" -v s="$sql" -v r="$requests" \
			'BEGIN {printf "%.2f\n", d / (s + r)}' >>"$folder/ratio.figures"
	done
	report "$@"
}

# report ROWS ROUNDS KIND: a line of the table
report()
{
	for figure in ratio drain sql requests memory; do
		value=$(median <"$folder/$figure.figures")
		note "backlog.$3.$1.$figure $value"
		eval "$figure=$value"
	done
	rate=$(awk -v n="$1" -v s="$drain" 'BEGIN {printf "%.0f\n", n / s}')
	note "backlog.$3.$1.rate $rate"
	printf '%-22s %9s %6s %9s %9s %9s %9s %9s\n' \
		"$([ "$3" = one ] && echo 'one organization' || echo 'an organization each')" \
		"$1" "$ratio" "$rate" "$drain" "$sql" "$requests" "$memory"
	! exceeds "$ratio" "$limit" || failed=1
}

failed=
install_extensions
# shellcheck disable=SC2046
${CC:-cc} -O2 -o "$folder/libcurl_batch" bench/libcurl_batch.c \
	$(curl-config --cflags --libs)
start_server

# The claims must reach the disk, as in any server.  Autovacuum would come at
# some rounds and not at others.
start_cluster "$folder" "$folder/root" 'fsync = on' 'autovacuum = off' \
	'max_wal_size = 8GB' 'clerk_invite.worker = off' \
	'clerk_invite.single_requests_per_hour = 1000000000' \
	'clerk_invite.bulk_requests_per_hour = 1000000000' \
	"clerk_invite.api_url = '$url'" "clerk_invite.secret_key_file = 'clerk.key'"
pin_cluster
(umask 077; echo sk_test_benchmark >"$PGDATA/clerk.key")
prepare

printf '%-22s %9s %6s %9s %9s %9s %9s %9s\n' '' rows ratio 'a second' seconds \
	SQL libcurl 'kB'
for backlog in $BACKLOGS; do
	for kind in one each; do
		measure "${backlog%:*}" "${backlog#*:}" "$kind"
	done
done
printf '%-22s %9s %6s\n' limit '' "$limit"
within_limits
