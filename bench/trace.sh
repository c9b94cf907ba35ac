# trace.sh - how many system calls a process makes
#
# Sourced, not run, with the name of the measurement's folder in folder.  Needs
# strace, and that the system lets a process trace another.

# can_trace: whether this machine can
can_trace()
{
	command -v strace >"$folder/trace.log" || return 1
	sleep 60 &
	traced=$!
	trace "$traced" && kill "$traced" && end_trace
}

# trace PID: begins to count; fails if that is not allowed.  A descriptor 3 is the
# caller's own: who reads at its other end waits for it to be closed.
trace()
{
	strace -f -qq -c -o "$folder/trace" -p "$1" 2>"$folder/trace.log" 3>&- &
	tracer=$!
	until grep -q 'TracerPid:[[:space:]]*[1-9]' "/proc/$1/status"; do
		kill -0 "$tracer" 2>"$folder/gone.log" || return 1
		sleep 0.01
	done
}

# end_trace: waits for the end of the process
end_trace()
{
	wait "$tracer" || true
}

# calls_of_trace: the sum
calls_of_trace()
{
	awk '$NF == "total" {calls = $4} END {print calls + 0}' "$folder/trace"
}
