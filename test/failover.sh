#!/bin/sh
# failover.sh [OPTION...] - invitations through the failovers of a real cluster
#
#	--invitations 2000   how many are enqueued
#	--failovers 20       how often the leader fails meanwhile
#	--mode both          sync, async or both: Patroni's synchronous mode or not
#	--seed N             chooses who is invited how and what happens when
#
# Three nodes of PostgreSQL under Patroni with etcd.  While clients enqueue
# invitations, which the leader's worker sends to a fake Clerk, that leader is
# killed, paused, partitioned and switched over.  In the end the outbox of the
# last leader is compared with what the fake Clerk has and with what was
# acknowledged to the clients.  Fails if that is not as docs/failover.md says.
#
# Installs what is missing on a bare Debian; neither Patroni nor etcd is
# installed, since their packages have services.  Each node is a network
# namespace, and a partition is a port of a bridge that is disabled: root must
# be allowed to make namespaces (in Docker: --privileged).  Nothing listens
# outside of them, and with their first process everything ends.  Takes about
# ten minutes for each mode.  FAILOVER_LOGS names a folder for the logs.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine iproute2 util-linux python3-psycopg2 python3-yaml python3-psutil \
	python3-dateutil python3-prettytable python3-click python3-urllib3 \
	python3-etcd python3-pkg-resources
# Which of them Patroni takes depends on its version.
install_where_available python3-cdiff python3-ydiff
make_workspace
unpack_package etcd-server "$WORKSPACE/etcd"
unpack_package patroni "$WORKSPACE/patroni"

source=$WORKSPACE/source
as_ordinary_user make -s -C "$source" PG_CONFIG="$PG_CONFIG" \
	DESTDIR="$WORKSPACE/root" install >"$WORKSPACE/build.log" 2>&1 ||
	{ cat "$WORKSPACE/build.log"; exit 1; }
if [ "$version" -lt 18 ]; then
	library_settings="extension_destdir = '$WORKSPACE/root'"
else
	library_settings="extension_control_path = '$WORKSPACE/root$("$PG_CONFIG" --sharedir):\$system'
dynamic_library_path = '$WORKSPACE/root$("$PG_CONFIG" --pkglibdir):\$libdir'"
fi

status=0
as_root env PYTHONPATH="$WORKSPACE/patroni/usr/lib/python3/dist-packages" \
	unshare --net --pid --fork --kill-child --mount-proc \
	/usr/bin/python3 "$source/test/failover.py" \
	--user "$(as_ordinary_user id -un)" --folder "$WORKSPACE" \
	--test-folder "$source/test" --bindir "$("$PG_CONFIG" --bindir)" \
	--etcd "$WORKSPACE/etcd/usr/bin/etcd" \
	--patroni "$WORKSPACE/patroni/usr/bin/patroni" \
	--patronictl "$WORKSPACE/patroni/usr/bin/patronictl" \
	--library-settings "$library_settings" "$@" || status=$?
if [ -n "${FAILOVER_LOGS:-}" ]; then
	mkdir -p "$FAILOVER_LOGS"
	(cd "$WORKSPACE" && tar -cf - ./*ync/*.log ./*ync/journal ./*ync/*/log) |
		tar -xf - -C "$FAILOVER_LOGS" --no-same-owner
fi
exit "$status"
