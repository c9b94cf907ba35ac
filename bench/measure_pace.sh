# measure_pace.sh FOLDER - the measuring part of pace.sh, as an ordinary user in
# a folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
pgxs_src=$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")

make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
	{ cat "$folder/build.log"; exit 1; }
status=0
CLERK_PACE_WINDOW=$WINDOW CLERK_DESTDIR="$folder/root" TESTDIR="$folder" \
	PATH="$("$PG_CONFIG" --bindir):$PATH" PG_REGRESS="$pgxs_src/test/regress/pg_regress" \
	prove --verbose --merge -I "$pgxs_src/test/perl" -I test/perl \
	test/t/031_pace.pl >"$folder/pace.log" || status=$?
grep -vE '^ok ' "$folder/pace.log"
exit $status
