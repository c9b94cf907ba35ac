#!/bin/sh
# all.sh - everything that is measured, in one run, on one page
#
#	sh bench/all.sh [--quick]
#
# Runs the benchmarks one after the other, and writes their figures, as tables and
# as SVG plots, into docs/benchmarks.md, with the machine that they are from.  With
# --quick, each is run with numbers so small that they only show that everything
# works: they go to a copy of the page in a temporary folder, and no limits apply.
# Takes more than an hour, and a machine that has nothing else to do; --quick takes
# some minutes.
#
# PAGE may be set in the environment, to write to another page; and PEERS, a folder
# that "make install DESTDIR=" of pgsql-http or pg_net has filled.  ONLY may name
# benchmarks, with blanks in between.  Fails if a benchmark does, which means that
# it was beyond a limit of its own or that it could not be run.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
. bench/figures.sh

case ${1:-} in
	'') quick= ;;
	--quick) quick=yes ;;
	*) echo "usage: sh bench/all.sh [--quick]" >&2; exit 2 ;;
esac

if [ -n "$quick" ]; then
	export IGNORE_LIMITS=yes ROUNDS=2 CALLS=50 FAR_ROUNDS=1 FAR_CALLS=3 GROWTH_CALLS=500
	export MEMBERS='1 1000' DURATION=2 STARTS=2 BACKLOGS='1000:1 2000:1' SECONDS_IDLE=3 WINDOW=6
else
	# In a window that is long compared to a burst, as Clerk's hour is.
	export MEMBERS='1 10 100 1000 10000 100000' WINDOW=180
fi

# describe_machine: what the figures are from
describe_machine()
{
	. /etc/os-release
	note "machine.date $(date -u +%Y-%m-%d)"
	note "machine.cpu $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)"
	note "machine.cores $(nproc)"
	note "machine.memory $(awk '/^MemTotal:/ {printf "%.1f GiB\n", $2 / 1048576}' /proc/meminfo)"
	note "machine.system $PRETTY_NAME, Linux $(uname -r)"
	note "machine.load before $load"
	note "version.PostgreSQL $("$PG_CONFIG" --version | cut -d ' ' -f 2)"
	note "version.libcurl $(curl-config --version | cut -d ' ' -f 2)"
	note "version.nginx $(/usr/sbin/nginx -v 2>&1 | sed 's,.*/,,')"
	# Half a core that somebody else uses is too much.
	! exceeds "$load" 0.5 || note "machine.busy a load of $load before it began"
}

# run NAME: a benchmark; how it ends is told at the end
run()
{
	case " ${ONLY:-$1} " in
		*" $1 "*) ;;
		*) return 0 ;;
	esac
	echo "== $1"
	sh "bench/$1.sh" || failed="$failed $1"
	echo
}

load=$(cut -d ' ' -f 1 /proc/loadavg)
prepare_machine libipc-run-perl nginx-light perl strace
make_workspace
BUILT=${BUILT:-$WORKSPACE/root}
RESULTS=$WORKSPACE/figures
export BUILT RESULTS
as_ordinary_user touch "$RESULTS"
[ -e "$BUILT" ] || as_ordinary_user make -s -C "$WORKSPACE/source" PG_CONFIG="$PG_CONFIG" \
	DESTDIR="$BUILT" install >"$WORKSPACE/build.log" 2>&1 || { cat "$WORKSPACE/build.log"; exit 1; }
failed=

for benchmark in sync enqueue wire backlog pace idle; do
	run "$benchmark"
done
describe_machine
if [ -z "$quick" ]; then
	[ -z "$failed" ] || note "failed$failed"
	page=${PAGE:-docs/benchmarks.md}
else
	page=${PAGE:-$(mktemp -d /tmp/clerk_invite_page.XXXXXX)/benchmarks.md}
	cp docs/benchmarks.md "$page"
fi
python3 bench/report.py "$RESULTS" "$page"
echo "the tables and plots are in $page"
[ -z "$failed" ] || { echo "beyond their limits, or failed:$failed"; exit 1; }
