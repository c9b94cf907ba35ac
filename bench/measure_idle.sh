# measure_idle.sh FOLDER - the measuring part of idle.sh, as an ordinary user in a
# folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
. bench/cluster_and_server.sh
. bench/trace.sh

# wait_for SQL: until it is true; for two minutes at most
wait_for()
{
	for _ in $(seq 2400); do
		if [ "$(psql -XAt -c "SELECT $1")" = t ]; then
			return
		fi
		sleep 0.05
	done
	echo "timed out waiting until $1" >&2
	return 1
}

# How often a process has been switched to, and for how many nanoseconds it has
# run.
switches()
{
	awk '/_ctxt_switches:/ {sum += $2} END {print sum}' "/proc/$1/status"
}

running_time()
{
	cut -d ' ' -f 1 "/proc/$1/schedstat"
}

# trace_for_a_while PID: the system calls in SECONDS_IDLE.  Those in the first
# second are due to strace: it interrupts what the process waits in.
trace_for_a_while()
{
	strace -f -qq -ttt -o "$folder/calls" -p "$1" 2>"$folder/trace.log" &
	tracer=$!
	sleep $((SECONDS_IDLE + 1))
	kill -INT "$tracer"
	wait "$tracer" || true
	awk 'NR == 1 {begun = $2} $2 - begun > 1 && !/detached/ {calls++} END {print calls + 0}' "$folder/calls"
}

# a_minute FIGURE: so much in SECONDS_IDLE is so much in a minute
a_minute()
{
	awk -v f="$1" -v s="$SECONDS_IDLE" 'BEGIN {printf "%.4g\n", f * 60 / s}'
}

# measure KEY TITLE PID: leaves the process's wake-ups in wakeups
measure()
{
	switched=$(switches "$3")
	ran=$(running_time "$3")
	sleep "$SECONDS_IDLE"
	wakeups=$(a_minute $(($(switches "$3") - switched)))
	milliseconds=$(a_minute "$(awk -v ns=$(($(running_time "$3") - ran)) 'BEGIN {print ns / 1e6}')")
	system_calls=-
	[ -z "$tracing" ] || system_calls=$(a_minute "$(trace_for_a_while "$3")")
	report "$1" "$2" "$wakeups" "$milliseconds" "$system_calls"
}

# report KEY TITLE FIGURES...: a line of the table
report()
{
	note "idle.$1.wakeups $3"
	note "idle.$1.milliseconds $4"
	[ "$5" = - ] || note "idle.$1.system_calls $5"
	printf '%-44s %9s %9s %12s\n' "$2" "$3" "$4" "$5"
}

# pid_of BACKEND_TYPE
pid_of()
{
	psql -XAt -c "SELECT pid FROM pg_stat_activity WHERE backend_type = '$1'"
}

# Processes of the extension.
processes()
{
	psql -XAt -c "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'clerk_invite%'"
}

failed=
install_extensions
start_server
tracing=
! can_trace || tracing=yes

start_cluster "$folder" "$folder/root" "$(peer_settings)" "clerk_invite.api_url = '$url'" \
	"clerk_invite.secret_key_file = 'clerk.key'"
(umask 077; echo sk_test_benchmark >"$PGDATA/clerk.key")
psql -Xq -c 'CREATE EXTENSION clerk_invite'

echo "in a minute (of $SECONDS_IDLE seconds)"
printf '%-44s %9s %9s %12s\n' '' wake-ups 'CPU, ms' 'system calls'

psql -Xq -c "INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
	VALUES ('org_1', 'tomorrow@example.com', 'org:member', now() + interval '1 day')"
# A process without a connection is not in pg_stat_activity.
wait_for "EXISTS (SELECT FROM clerk_worker_status() WHERE state = 'waiting'
	AND pid NOT IN (SELECT pid FROM pg_stat_activity))"
measure worker 'a worker, waiting for a row that is due later' \
	"$(psql -XAt -c 'SELECT pid FROM clerk_worker_status()')"
! exceeds "$wakeups" 0 || failed=1

psql -Xq -c 'DELETE FROM clerk_invitation_outbox' \
	-c "INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
		VALUES ('org_1', 'now@example.com', 'org:member')"
wait_for "NOT EXISTS (SELECT FROM clerk_invitation_outbox WHERE state <> 'sent')"
wait_for 'NOT EXISTS (SELECT FROM clerk_worker_status())'
left=$(processes)
note "idle.gone.processes $left"
echo "processes when all is sent, without a launcher: $left"
[ "$left" = 0 ] || failed=1

libraries=clerk_invite
! has_extension pg_net || libraries="$libraries, pg_net"
echo "shared_preload_libraries = '$libraries'" >>"$PGDATA/postgresql.conf"
pg_ctl restart -w -l "$folder/server.log" >"$folder/pg_ctl.log"
wait_for "EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'clerk_invite launcher')"
wait_for 'NOT EXISTS (SELECT FROM clerk_worker_status())'
measure launcher 'the launcher of a preloaded library' "$(pid_of 'clerk_invite launcher')"
! exceeds "$wakeups" 0 || failed=1
if has_extension pg_net; then
	psql -Xq -v ON_ERROR_STOP=1 -c 'CREATE EXTENSION pg_net'
	wait_for "EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'pg_net%')"
	measure pg_net "pg_net's worker" "$(psql -XAt -c "SELECT pid FROM pg_stat_activity
		WHERE backend_type LIKE 'pg_net%'")"
else
	echo 'not installed, not measured: pg_net'
fi
within_limits
