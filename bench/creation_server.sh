# creation_server.sh - a Clerk that creates whatever it is asked to
#
# Sourced, not run, after cores.sh, with the name of the measurement's folder in
# folder.

server=

# start_server [JOURNAL]: on a core of its own; sets server to its process, and
# url; it writes into the journal what it was asked for, and when
start_server()
{
	${CC:-cc} -O2 -o "$folder/creation_server" bench/creation_server.c
	mkfifo "$folder/port"
	taskset -c "$server_cpu" "$folder/creation_server" "$@" >"$folder/port" &
	server=$!
	read -r port <"$folder/port"
	url=http://127.0.0.1:$port
}

stop_server()
{
	[ -z "$server" ] || kill "$server" 2>"$folder/gone.log" || true
}

# Seconds that the server has been running on its core, to a hundredth.
server_seconds()
{
	awk -v ticks="$(getconf CLK_TCK)" '{print ($14 + $15) / ticks}' "/proc/$server/stat"
}
