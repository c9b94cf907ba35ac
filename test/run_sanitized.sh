# run_sanitized.sh FOLDER - the run itself, as an ordinary user in a folder of
# its own with the source in FOLDER/source; see sanitize.sh
set -eu

folder=$1
cd "$folder/source"
. test/instrumented.sh
. test/sanitizers.sh

prepare_sanitizers "$folder"
echo "left out:"
not_instrumented
status=0
CHECKS="${CHECKS:-build regress isolation tap}" \
	TAP_FILES="${TAP_FILES:-$(instrumented_tests | tr '\n' ' ')}" \
	INSTRUMENT="$SANITIZER_FLAGS" sh test/run_checks.sh "$folder" || status=$?
sanitizer_reports "$folder" || status=1
[ $status -ne 0 ] || echo "the sanitizers have found nothing"
exit $status
