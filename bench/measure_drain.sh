# measure_drain.sh FOLDER - the measuring part of drain.sh, as an ordinary user
# in a folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
. bench/cluster_and_server.sh

organization=org_2fXk0aLqB3cD4eF5gH6iJ7kL8mN
warm_up=10000					# invitations: plans look 5,000 ahead
memory_limit=2048				# kB
rate_limit=5000					# invitations a second
ratio_limit=0.90

# repeat COUNT TEXT: with commas in between
repeat()
{
	yes "$2" | head -n "$1" | paste -sd ,
}

# server_alone ENDPOINT BODY PER_REQUEST: invitations a second that a bare
# libcurl loop gets out of the server, over one connection
server_alone()
{
	microseconds=$(taskset -c "$client_cpu" "$folder/libcurl_loop" \
		"$url/v1/organizations/$organization/$1" "$2" 20000 '')
	microseconds=${microseconds#* }
	awk -v n="$3" -v t="$microseconds" 'BEGIN {printf "%.0f\n", n * 1e6 / t}'
}

# The outboxes, each in a database of its own: NAME, rows queued, organization
outboxes()
{
	cat <<EOF
few_one $DRAIN '$organization'
many_one $QUEUED '$organization'
few_each $DRAIN 'org_2fXk0aLqB3cD4eF5gH6'||lpad(n::text,8,'0')
many_each $QUEUED 'org_2fXk0aLqB3cD4eF5gH6'||lpad(n::text,8,'0')
EOF
}

# Fills an outbox up until so many rows are queued.  A queue that is no longer
# than what a round sends starts anew, so that it does not grow with its past.
# What the server would vacuum at some time is vacuumed now.
fill_up()
{
	outboxes | while read -r name queued organization_id; do
		[ "$name" = "$1" ] || continue
		psql -Xq -v ON_ERROR_STOP=1 -d "$name" <<SQL
$([ "$queued" -gt "$DRAIN" ] || echo 'TRUNCATE clerk_invitation_outbox;')
INSERT INTO clerk_invitation_outbox
	(organization_id, inviter_user_id, email_address, role)
SELECT $organization_id, 'user_2gYl1bMrC4dE5fG6hI7jK8lM9nO',
       'person-' || n || '@example.com', 'org:member'
FROM (SELECT count(*) FILTER (WHERE state = 'queued') AS queued,
             coalesce(max(id), 0) AS last
      FROM clerk_invitation_outbox) AS already,
LATERAL generate_series(last + 1, last + $queued - queued) AS n;
VACUUM ANALYZE clerk_invitation_outbox;
CHECKPOINT;
SQL
	done
}

# drain NAME: sends a round's rows; notes the rate, and how busy the server was
drain()
{
	fill_up "$1"
	busy_before=$(server_seconds)
	psql -XAtq -v ON_ERROR_STOP=1 -F ' ' -d "$1" >"$folder/last" <<SQL
SET client_min_messages = error;
SELECT clock_timestamp() AS begun \\gset
CALL clerk_send_invitations($DRAIN);
SELECT clock_timestamp() AS ended \\gset
SELECT extract(epoch FROM :'ended'::timestamptz - :'begun'), count(DISTINCT invitation_id)
FROM clerk_invitation_outbox WHERE state = 'sent' AND settled_at >= :'begun';
SQL
	read -r seconds sent <"$folder/last"
	if [ "$sent" -ne "$DRAIN" ]; then
		echo "only $sent of $DRAIN were sent:" >&2
		psql -X -d "$1" -c 'SELECT state, error_message, count(*)
			FROM clerk_invitation_outbox GROUP BY 1, 2' >&2
		exit 1
	fi
	awk -v n="$DRAIN" -v s="$seconds" 'BEGIN {printf "%.0f\n", n / s}' >"$folder/rate"
	cat "$folder/rate" >>"$folder/$1"
	awk -v before="$busy_before" -v after="$(server_seconds)" -v s="$seconds" \
		'BEGIN {printf "%.0f\n", 100 * (after - before) / s}' >>"$folder/busy"
	cat "$folder/rate"
}

# report TITLE KIND: a line of the table
report()
{
	few=$(median <"$folder/few_$2")
	many=$(median <"$folder/many_$2")
	slowdown=$(median <"$folder/ratios_$2")
	printf '%-26s %12s %12s %8s\n' "$1" "$few" "$many" "$slowdown"
	! exceeds "$rate_limit" "$few" || failed=1
	! exceeds "$rate_limit" "$many" || failed=1
	! exceeds "$ratio_limit" "$slowdown" || failed=1
}

private_kilobytes()
{
	awk '/^RssAnon:/ {print $2}' "/proc/$1/status" 2>"$folder/gone.log" || true
}

sent_ever()
{
	psql -XAt -d "$1" -c "SELECT count(*) FROM clerk_invitation_outbox WHERE state = 'sent'"
}

# measure_growth TITLE NAME: how much a sender's private memory has grown, over
# what it is after a warm-up, when it has sent more; and the most it has in
# between, when there is a plan in it
measure_growth()
{
	fill_up "$2"
	sent_before=$(sent_ever "$2")
	: >"$folder/samples"
	: >"$folder/sender"
	psql -XAtq -v ON_ERROR_STOP=1 -d "$2" >>"$folder/sender" <<SQL &
SET client_min_messages = error;
SELECT pg_backend_pid();
CALL clerk_send_invitations($warm_up);
SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status')
	FROM 'RssAnon:\s*(\d+)');
CALL clerk_send_invitations($MORE);
SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status')
	FROM 'RssAnon:\s*(\d+)');
SQL
	client=$!
	while kill -0 "$client" 2>"$folder/gone.log"; do
		pid=$(sed -n 1p "$folder/sender")
		if [ "$(wc -l <"$folder/sender")" -ge 2 ]; then
			private_kilobytes "$pid" >>"$folder/samples"
		fi
		sleep 0.1
	done
	wait "$client"
	sent=$(($(sent_ever "$2") - sent_before))
	warm=$(sed -n 2p "$folder/sender")
	growth=$(($(sed -n 3p "$folder/sender") - warm))
	most=$(($(sort -n "$folder/samples" | tail -n 1) - warm))
	echo "a sender's memory, $1: $growth kB more after $((sent - warm_up)) invitations," \
		"and at most $most kB in between"
	[ "$sent" -eq $((warm_up + MORE)) ] || failed=1
	[ "$growth" -lt "$memory_limit" ] || failed=1
}

failed=
install_extensions
# shellcheck disable=SC2046
${CC:-cc} -O2 -o "$folder/libcurl_loop" bench/libcurl_loop.c \
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
outboxes | while read -r name _; do
	createdb "$name"
	psql -Xq -d "$name" -c 'SET client_min_messages = error; CREATE EXTENSION clerk_invite'
	fill_up "$name"
done

# The ratios are taken round by round, since the machine's speed drifts.
for round in $(seq "$ROUNDS"); do
	for kind in one each; do
		few=$(drain "few_$kind")
		many=$(drain "many_$kind")
		ratio "$many" "$few" >>"$folder/ratios_$kind"
	done
done

invitation='{"email_address":"ann@example.com","role":"org:member"}'
echo "invitations a second: medians of $ROUNDS rounds of $DRAIN"
printf '%-26s %12s %12s %8s\n' '' "$DRAIN queued" "$QUEUED queued" ratio
report 'one organization' one
report 'an organization each' each
printf '%-26s %12s %12s %8s\n' 'limit' "$rate_limit" "$rate_limit" "$ratio_limit"
echo "the server was busy for $(median <"$folder/busy") % of the time; alone it creates" \
	"$(server_alone invitations "$invitation" 1) a second one by one," \
	"$(server_alone invitations/bulk "[$(repeat 10 "$invitation")]" 10) in tens"
measure_growth 'one organization' many_one
measure_growth 'an organization each' many_each
within_limits
