# run_valgrind.sh FOLDER - the run itself, as an ordinary user in a folder of its
# own with the source in FOLDER/source; see valgrind.sh
set -eu

folder=$1
cd "$folder/source"
. test/throwaway_cluster.sh

stop_everything()
{
	if [ -n "${server:-}" ]; then
		kill -INT "$server" 2>/dev/null && wait "$server" || true
	fi
}
trap stop_everything EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
	{ cat "$folder/build.log"; exit 1; }
start_cluster "$folder" "$folder/root"
stop_cluster

# Each process writes a log of its own; a child ends as its parent's would.
valgrind --quiet --trace-children=yes --child-silent-after-fork=no \
	--leak-check=no --track-origins=yes --error-exitcode=0 \
	--suppressions="$folder/source/test/valgrind.supp" --log-file="$folder/memcheck.%p" \
	postgres -D "$PGDATA" >"$folder/server.log" 2>&1 &
server=$!
ready=
for _ in $(seq 600); do
	if pg_isready -q; then
		ready=1
		break
	fi
	sleep 0.2
done
[ -n "$ready" ] || { cat "$folder/server.log"; exit 1; }

# Ten times slower or more: the differences that matter are memcheck's.
failed=
make -s PG_CONFIG="$PG_CONFIG" installcheck >"$folder/regress.log" 2>&1 || failed=1
grep -E '^(test |ok|not ok)' "$folder/regress.log"
if [ -n "$failed" ]; then
	cat regression.diffs output_iso/regression.diffs 2>/dev/null || true
fi
kill -INT "$server"
wait "$server" || true
server=

if cat "$folder"/memcheck.* | grep -q .; then
	echo "memcheck has found errors:"
	cat "$folder"/memcheck.* | head -n 300
	failed=1
fi
processes=$(ls "$folder"/memcheck.* | wc -l)
echo "memcheck watched $processes processes"
[ -z "$failed" ] && [ "$processes" -gt 1 ]
