# measure_pace.sh FOLDER - the measuring part of pace.sh, as an ordinary user in
# a folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
. bench/figures.sh
. bench/install.sh
pgxs_src=$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")

# note_drains: the figures of each drain; of more than one attempt, the best
note_drains()
{
	note "pace.window $WINDOW"
	sed -n 's/^# \(.*\): \([0-9]*\) windows of .* s in \([0-9.]*\) s, ideally .* s; a burst of .* s; \([0-9.]*\) %$/\2 \3 \4 \1/p' \
		"$folder/pace.log" | sort -k 3,3n >"$folder/drains"
	# What report.py reads last counts.
	while read -r windows seconds percent what; do
		key=$(cut -d ' ' -f 4- "$folder/drains" | sort -u | grep -nxF "$what" | cut -d : -f 1)
		note "pace.$key.what $what"
		note "pace.$key.windows $windows"
		note "pace.$key.percent $percent"
		note "pace.$key.ceiling $((${what%% *} / windows))"
		note "pace.$key.rate $(awk -v n="${what%% *}" -v w="$windows" -v p="$percent" \
			'BEGIN {printf "%.0f\n", n / w * p / 100}')"
	done <"$folder/drains"
}

install_extensions
status=0
# A drain takes up to ten windows.
PG_TEST_TIMEOUT_DEFAULT=$((WINDOW * 12))
export PG_TEST_TIMEOUT_DEFAULT
CLERK_PACE_WINDOW=$WINDOW CLERK_PACE_CEILING=99.5 CLERK_DESTDIR="$folder/root" TESTDIR="$folder" \
	PATH="$("$PG_CONFIG" --bindir):$PATH" PG_REGRESS="$pgxs_src/test/regress/pg_regress" \
	prove --verbose --merge -I "$pgxs_src/test/perl" -I test/perl \
	test/t/031_pace.pl >"$folder/pace.log" || status=$?
grep -vE '^ok ' "$folder/pace.log"
note_drains
failed=
[ $status -eq 0 ] || failed=1
[ -s "$folder/drains" ] && within_limits
