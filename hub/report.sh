#!/bin/sh
# report.sh DATABASE - keeps a publisher informed, until it is told to end
#
# Run once for each publisher, beside the hub's server, after add_publisher.sh.
# Tells the publisher what becomes of its invitations, asks Clerk for their
# status (accepted, revoked, expired) every CLERK_HUB_REFRESH seconds (300), and
# makes the subscription anew if the publisher has lost its slot.
set -u

database=$1
refresh=${CLERK_HUB_REFRESH:-300}
pause=1

# A session whose psql has been ended must not go on: the next one needs its lock.
run()
{
	PGOPTIONS="${PGOPTIONS:-} -c client_min_messages=warning -c search_path=pg_catalog \
-c log_min_error_statement=panic -c client_connection_check_interval=1s" \
		psql -XAtq -v ON_ERROR_STOP=1 -d "$database" -c 'CALL clerk_hub.connect()' \
		-c "CALL clerk_hub.report(interval '$refresh seconds')" \
		-c 'CALL public.clerk_refresh_invitations()' &
	child=$!
	wait "$child"
}

# psql cancels its statement at SIGINT, which a pause ignores.
end()
{
	kill -INT "$child" 2>/dev/null
	[ -z "$pausing" ] || kill "$child" 2>/dev/null
	wait "$child"
	exit 0
}

child=
pausing=
trap end TERM INT HUP
while :; do
	if run; then
		pause=1
	else
		echo "$0: $database: tries again in $pause seconds" >&2
		pausing=yes
		sleep "$pause" &
		child=$!
		wait "$child"
		pausing=
		pause=$((pause < 8 ? pause * 2 : 10))
	fi
done
