# cores.sh - a core for a server, and one for its clients
#
# Sourced, not run; sets server_cpu and client_cpu for "taskset -c".  Left
# alone, the kernel puts them now on one core and now on two, and what that
# costs is more than what is to be measured.

cpus=$(taskset -pc $$ | sed 's/.*: *//; s/,/ /g; s/\([0-9]*\)-\([0-9]*\)/\1 \2/g')
server_cpu=${cpus%% *}
client_cpu=${cpus##* }

# pin_cluster: lets the cluster of throwaway_cluster.sh, with the sessions to
# come, have the clients' core
pin_cluster()
{
	taskset -apc "$client_cpu" "$(head -n 1 "$PGDATA/postmaster.pid")" >"$folder/taskset.log"
}
