#!/bin/sh
# healthcheck.sh [server] - whether the hub works: a line for each publisher,
# and status 1 if one of them is not connected
#
# With "server", whether the server accepts connections and nothing else: what a
# publisher does wrong is not cured by a restart of the hub.
set -u

run=/dev/shm/clerk_hub
status=0
export PGCONNECT_TIMEOUT=5
PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)

# psql is the server's user, whom the server trusts by that.
as_postgres()
{
	if [ "$(id -u)" = 0 ]; then
		setpriv --reuid=postgres --regid=postgres --init-groups "$@"
	else
		"$@"
	fi
}

if ! as_postgres psql -XAtq -U postgres -d postgres -c 'SELECT' >/dev/null 2>&1; then
	echo 'the server does not accept connections'
	exit 1
fi
[ "${1:-}" != server ] || exit 0

# A publisher is heard of every 30 seconds at least, by default, even if nothing
# happens there.  The session that reports has the lock; see hub.sql.
while read -r name; do
	state=$(cat "$run/$name.state")
	if [ "$state" = connected ]; then
		state=$(as_postgres psql -XAtq -U postgres -d "$name" 2>&1 <<-'SQL'
			SELECT CASE
			    WHEN s.subname IS NULL THEN 'no subscription'
			    WHEN NOT s.subenabled THEN 'its subscription is disabled'
			    WHEN NOT coalesce(r.last_msg_receipt_time > now() - interval '100 seconds', false)
			        THEN 'not heard of for 100 seconds'
			    WHEN NOT EXISTS (
			        SELECT FROM pg_locks AS l
			        WHERE l.locktype = 'advisory' AND l.database = d.oid AND l.granted AND
			              l.classid::bigint::bit(32) = hashtext('clerk_hub')::bit(32) AND l.objid = 0)
			        THEN 'nobody reports to it'
			    ELSE 'connected'
			END
			FROM pg_database AS d
			LEFT JOIN pg_subscription AS s ON s.subdbid = d.oid AND s.subname = 'clerk_invite'
			LEFT JOIN pg_stat_subscription AS r ON r.subid = s.oid AND r.relid IS NULL
			WHERE d.datname = current_database() ORDER BY r.last_msg_receipt_time DESC NULLS LAST LIMIT 1
		SQL
		)
	fi
	echo "$name: $state"
	[ "$state" = connected ] || status=1
done <"$run/names"
exit $status
