# cluster_and_server.sh - what the benchmarks of senders share: a server of their
# own, and an HTTP server that answers as Clerk does; to be read with "." in the
# source, when $folder is known
. test/throwaway_cluster.sh
. bench/cores.sh
. bench/figures.sh
. bench/install.sh
. bench/creation_server.sh

stop_everything()
{
	stop_cluster
	stop_server
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
