# run_ledger.sh FOLDER SCRIPT ARGUMENT...: the run itself, as an ordinary user in
# a folder of its own with the source in FOLDER/source; see ledger.sh and soak.sh
set -eu

folder=$1
script=$2
shift 2
cd "$folder/source"
trap 'exit 130' INT
trap 'exit 143' TERM HUP
pgxs_src=$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")

make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install >"$folder/build.log" 2>&1 ||
	{ cat "$folder/build.log"; exit 1; }

# Without a small file system the disk is never full.
[ -z "${SMALL_DISK:-}" ] || set -- --disk "$SMALL_DISK" "$@"

# Since 16 the framework takes its folders from two other variables.
CLERK_DESTDIR="$folder/root" PATH="$("$PG_CONFIG" --bindir):$PATH" \
	TESTDIR="$folder" TESTDATADIR="$folder/tmp_check" TESTLOGDIR="$folder/tmp_check/log" \
	PG_REGRESS="$pgxs_src/test/regress/pg_regress" \
	perl -I "$pgxs_src/test/perl" -I test/perl "test/$script" "$@"
