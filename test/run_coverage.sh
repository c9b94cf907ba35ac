# run_coverage.sh FOLDER - the run itself, as an ordinary user in a folder of its
# own with the source in FOLDER/source; see coverage.sh
set -eu

folder=$1
cd "$folder/source"
. test/instrumented.sh

# The least of the lines that must have been executed, in percent.
least=92

# Libraries that contain a copy of a file of the source are built in folders
# that are removed, so their counts are kept elsewhere.
mkdir "$folder/drivers"
echo "left out:"
not_instrumented
status=0
CHECKS="${CHECKS:-build regress isolation tap}" \
	TAP_FILES="${TAP_FILES:-$(instrumented_tests | tr '\n' ' ')}" \
	INSTRUMENT="--coverage" DRIVERS="$folder/drivers" \
	sh test/run_checks.sh "$folder" || status=$?
perl test/coverage.pl --least "$least" ${UNCOVERED:+--uncovered "$UNCOVERED"} \
	src "$folder/drivers" || status=1
exit $status
