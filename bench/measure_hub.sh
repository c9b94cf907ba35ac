# measure_hub.sh FOLDER - the measuring part of hub.sh, as an ordinary user in a
# folder of its own with the source in FOLDER/source
set -eu

folder=$1
cd "$folder/source"
pgxs_src=$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")

. bench/install.sh
install_extensions
status=0
CLERK_DESTDIR="$folder/root" TESTDIR="$folder" TESTDATADIR="$folder/tmp_check" \
	TESTLOGDIR="$folder/tmp_check/log" PATH="$("$PG_CONFIG" --bindir):$PATH" \
	PG_REGRESS="$pgxs_src/test/regress/pg_regress" \
	perl -I "$pgxs_src/test/perl" -I test/perl bench/measure_hub.pl >"$folder/hub.log" 2>&1 || status=$?
grep -E ' ms' "$folder/hub.log" || tail -n 40 "$folder/hub.log"
exit $status
