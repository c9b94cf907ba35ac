# run.sh FOLDER - the recording itself, as an ordinary user in a folder of its
# own with the source in FOLDER/source; see record.sh
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh

# A window that is a minute long, instead of Clerk's hour, makes minutes of
# what would take hours.
window=60
key=sk_test_dashboard

stop_everything()
{
	for program in ${prometheus:-} ${exporter:-}; do
		kill "$program" 2>/dev/null || true
	done
	stop_fake_clerk
	stop_cluster
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

free_port()
{
	python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_fake_clerk PORT: it ends with its standard input, should nobody be left
# to stop it
start_fake_clerk()
{
	python3 test/fake_clerk.py --exit-with-stdin --port "$1" --secret-key "$key" \
		--single-limit 250 --bulk-limit 50 --window "$window" \
		<"$folder/life" >"$folder/port" &
	fake_clerk=$!
	exec 9>"$folder/life"
	read -r port <"$folder/port"
}

stop_fake_clerk()
{
	if [ -n "${fake_clerk:-}" ]; then
		kill "$fake_clerk" 2>/dev/null || true
		wait "$fake_clerk" || true
		fake_clerk=
	fi
}

sql()
{
	psql -XAtq -v ON_ERROR_STOP=1
}

# wait_for WHAT QUERY: until the query gives true, for up to three windows
wait_for()
{
	for _ in $(seq $((window * 3 * 5))); do
		[ "$(echo "$2" | sql)" != t ] || return 0
		sleep 0.2
	done
	echo "$1 did not happen" >&2
	exit 1
}

# Every scrape asks anew: nothing may be 30 seconds old where a second counts.
start_exporter()
{
	sed -n 's/^#	\(GRANT .*;\)$/\1/p' monitoring/clerk_invite.collector.yml >"$folder/grants.sql"
	{ echo 'CREATE ROLE monitor LOGIN;'; cat "$folder/grants.sql"; } | sql
	sed '/^  cache_seconds:/d' monitoring/clerk_invite.queries.yaml >"$folder/queries.yaml"
	exporter_port=$(free_port)
	DATA_SOURCE_NAME="host=$PGHOST port=$PGPORT user=monitor dbname=postgres sslmode=disable" \
		prometheus-postgres-exporter --disable-default-metrics --disable-settings-metrics \
		--extend.query-path "$folder/queries.yaml" \
		--web.listen-address "127.0.0.1:$exporter_port" >"$folder/exporter.log" 2>&1 &
	exporter=$!
}

start_prometheus()
{
	cat >"$folder/prometheus.yml" <<-YAML
		global:
		  scrape_interval: 1s
		scrape_configs:
		  - job_name: postgres
		    static_configs:
		      - targets: ['127.0.0.1:$exporter_port']
		        labels: {instance: 'db.example.com:9187'}
	YAML
	prometheus_port=$(free_port)
	prometheus --config.file "$folder/prometheus.yml" --storage.tsdb.path "$folder/tsdb" \
		--web.listen-address "127.0.0.1:$prometheus_port" >"$folder/prometheus.log" 2>&1 &
	prometheus=$!
}

# import NUMBER ORGANIZATION ADDRESS: invitations of NUMBER people, in whose
# address % is a number
import()
{
	sql <<-SQL
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
		SELECT '$2', replace('$3', '%', i::text), 'org:member' FROM generate_series(1, $1) AS i;
	SQL
}

limits_are_used_up='SELECT sum(remaining) = 0 FROM clerk_rate_limit_status()'
all_settled="SELECT count(*) = 0 FROM clerk_invitation_outbox WHERE state IN ('queued', 'sending', 'verifying')"

# What the recording shows.  Only the recording depends on the pauses: they are
# there for the eye.
play()
{
	sleep 15
	# People who cannot be invited, or are already, and answers that get lost.
	import 8 org_acme x-error-422-form_param_format_invalid--%@example.com
	import 5 org_beta x-error-403-quota_exceeded--%@example.com
	import 12 org_gamma x-drop-after-once--%@example.com
	import 1 org_acme member@example.com
	wait_for 'the first ones' "SELECT count(*) > 0 FROM clerk_invitation_outbox WHERE state = 'sent'"
	import 1 org_acme member@example.com
	sleep 15
	import 1900 org_acme person-%@example.com
	wait_for 'the end of the first window' "$limits_are_used_up"
	# Clerk is down when the next one begins.
	sleep $((window / 2))
	stop_fake_clerk
	wait_for 'an error of the worker' 'SELECT bool_or(last_error IS NOT NULL) FROM clerk_worker_status()'
	sleep 25
	start_fake_clerk "$port"
	wait_for 'the end of the second window' "$limits_are_used_up"
	wait_for 'the end of the import' "$all_settled"
	# One address makes Clerk refuse more for a while.
	import 1 org_acme x-429-25-once--late@example.com
	import 40 org_acme late-%@example.com
	sleep 2
	wait_for 'the end' "$all_settled"
	# It ends in the middle of another import.
	import 1300 org_delta person-%@example.com
	wait_for 'the end of the last window' "$limits_are_used_up"
	sleep 20
}

make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
	{ cat "$folder/build.log" >&2; exit 1; }
mkfifo "$folder/life" "$folder/port"
start_fake_clerk 0
start_cluster "$folder" "$folder/root" \
	"clerk_invite.secret_key_file = 'clerk.key'" \
	"clerk_invite.api_url = 'http://127.0.0.1:$port'" \
	"clerk_invite.rate_limit_window = '${window}s'" \
	"clerk_invite.retry_delay = '5s'" \
	"clerk_invite.verify_delay = '20s'"
(umask 077; echo "$key" >"$PGDATA/clerk.key")
echo 'CREATE EXTENSION clerk_invite' | sql
start_exporter
start_prometheus
begin=$(date +%s)
play
python3 docs/dashboard/read.py "http://127.0.0.1:$prometheus_port" "$begin" "$(date +%s)" \
	monitoring/clerk_invite.dashboard.json "$folder/recording.json"
