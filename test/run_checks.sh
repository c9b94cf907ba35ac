# run_checks.sh FOLDER - the checks themselves, as an ordinary user in a folder
# of its own with the source in FOLDER/source; see check.sh
set -u

folder=$1
cd "$folder/source" || exit 1
. test/throwaway_cluster.sh

passed=0
failed=0
skipped=0
model_search=
fake_clerk_tests=
other_compiler='-Wno-unknown-warning-option -Wno-ignored-optimization-argument'
tap_files=${TAP_FILES:-test/t/*.pl}
unset TAP_FILES # some of them run check.sh
pgxs_src=$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")

# Without a repository, as in the archive of "make dist", all files count that
# are here before anything is built.
[ -e "$folder/tracked" ] || find . -type f -print0 >"$folder/tracked"
trap 'stop_cluster; stop_background' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

stop_background()
{
	for process in $model_search $fake_clerk_tests; do
		kill "$process"
	done
}

count()
{
	passed=$((passed + $1))
	failed=$((failed + $2))
	skipped=$((skipped + ${3:-0}))
}

# verdict BAD TEXT: a line for a check with so many failures
verdict()
{
	if [ "$1" -eq 0 ]; then
		echo "ok      $2"
	else
		echo "FAILED  $2"
	fi
}

# check NAME COMMAND...: one that either passes or fails
check()
{
	name=$1
	shift
	if "$@" >"$folder/$name.log" 2>&1; then
		verdict 0 "$name"
		count 1 0
	else
		verdict 1 "$name"
		tail -n 60 "$folder/$name.log"
		count 0 1
	fi
}

# check_with PROGRAM NAME COMMAND...: the same, where the machine has the program
check_with()
{
	if command -v "$1" >/dev/null; then
		shift
		check "$@"
	else
		echo "skipped $2: there is no $1"
		count 0 0 1
	fi
}

# With the server's headers as a system's, only our own code is warned about.
# Another compiler than the server's need not know all the flags of that one.
# INSTRUMENT has flags for code that watches the module; see instrumented.sh.
build()
{
	make -s PG_CONFIG="$PG_CONFIG" DESTDIR="$folder/root" install ${CC:+CC="$CC"} \
		COPT="-Wall -Wextra -Werror ${CC:+$other_compiler} ${INSTRUMENT:-} -isystem $("$PG_CONFIG" --includedir-server)"
}

# ctunullpointer sees a null pointer survive a function that does not return.
# From 2.11 on cppcheck takes it for a fault that it has its limits.
static_analysis()
{
	cppcheck --quiet --error-exitcode=1 --std=c11 --inline-suppr \
		--enable=warning,performance,portability --suppress=missingInclude \
		--suppress=ctunullpointer --suppress=normalCheckLevelMaxBranches \
		--include=test/cppcheck.h -I src src/*.c src/*/*.c
}

# The fake Clerk's own tests wait most of the time, so they begin before the
# checks that compute.
begin_fake_clerk()
{
	python3 test/fake_clerk_test.py >"$folder/fake_clerk.log" 2>&1 &
	fake_clerk_tests=$!
}

# python says "Ran N tests" and counts the bad.
fake_clerk()
{
	wait "$fake_clerk_tests"
	status=$?
	fake_clerk_tests=
	ran=$(sed -n 's/^Ran \([0-9]*\) test.*/\1/p' "$folder/fake_clerk.log")
	ran=${ran:-0}
	bad=$(grep -cE '^(FAIL|ERROR): ' "$folder/fake_clerk.log")
	if [ $status -ne 0 ] || [ "$ran" -eq 0 ]; then
		[ "$bad" -gt 0 ] || bad=1
		tail -n 60 "$folder/fake_clerk.log"
	fi
	verdict "$bad" "fake_clerk ($ran tests)"
	# A failure to load them is none of those that ran.
	count $((ran > bad ? ran - bad : 0)) "$bad"
}

# installcheck NAME VARIABLE=...: tests as a user would run them, by "make
# installcheck" against a running server.  Up to 15 pg_regress says "test NAME
# ... ok", then "ok N - NAME".  One test has a part that takes prepared
# transactions.
installcheck()
{
	name=$1
	shift
	mkdir "$folder/$name"
	start_cluster "$folder/$name" "$folder/root" 'max_prepared_transactions = 1' ||
		{ count 0 1; return; }
	make -s PG_CONFIG="$PG_CONFIG" installcheck "$@" >"$folder/$name.log" 2>&1
	status=$?
	good=$(grep -cE '^(test .*\.\.\. ok|ok )' "$folder/$name.log")
	bad=$(grep -cE '^(test .*\.\.\. FAILED|not ok )' "$folder/$name.log")
	if [ $status -ne 0 ] || [ "$good" -eq 0 ]; then
		[ "$bad" -gt 0 ] || bad=1
		cat "$folder/$name.log"
		cat regression.diffs output_iso/regression.diffs 2>/dev/null
	fi
	verdict "$bad" "$name ($good tests)"
	count "$good" "$bad"
	stop_cluster
}

# Debian 11's packages of the server have no isolation tester.
isolation()
{
	if [ -x "$pgxs_src/test/isolation/pg_isolation_regress" ]; then
		installcheck isolation REGRESS=
	else
		echo "skipped isolation: the server's packages have no pg_isolation_regress"
		count 0 0 1
	fi
}

# Creating a cluster takes a second.  Since 16 the framework copies the one in
# INITDB_TEMPLATE, unless a test wants one with other options.  Before that, a
# program that is found first does the same.
prepare_template()
{
	INITDB_TEMPLATE=$folder/template
	export INITDB_TEMPLATE
	"$("$PG_CONFIG" --bindir)/initdb" -D "$INITDB_TEMPLATE" -A trust -N \
		>"$folder/template.log" 2>&1 || { cat "$folder/template.log"; return 1; }
	mkdir "$folder/initdb"
	cat >"$folder/initdb/initdb" <<-EOF
		#!/bin/sh
		if [ \$# -eq 5 ] && [ "\$1 \$3 \$4 \$5" = '-D -A trust -N' ]; then
			exec cp -RPp "$INITDB_TEMPLATE" "\$2"
		fi
		exec "$("$PG_CONFIG" --bindir)/initdb" "\$@"
	EOF
	chmod +x "$folder/initdb/initdb"
}

# prove_files JOBS FILE...: adds to the log.  Since 16 the framework takes its
# folders from two other variables, and without them gives paths that are
# relative.
prove_files()
{
	jobs=$1
	shift
	CLERK_DESTDIR="$folder/root" \
		PATH="$folder/initdb:$("$PG_CONFIG" --bindir):$PATH" \
		TESTDIR="$folder" TESTDATADIR="$folder/tmp_check" \
		TESTLOGDIR="$folder/tmp_check/log" \
		PG_REGRESS="$pgxs_src/test/regress/pg_regress" \
		prove --verbose --jobs "$jobs" --merge -I "$pgxs_src/test/perl" \
		-I test/perl "$@" >>"$folder/tap.log" 2>&1
}

# Assertions are counted, not files, but for those that end badly without one
# that does not hold.  Most files wait for something most of the time, so four of
# them share two cores well.  The longest begin first, so that none of them is
# left at the end, with the others idle.  Those that measure time run alone.
tap()
{
	longest=
	together=
	alone=
	for file in $tap_files; do
		case $file in
			*/015_demo_script.pl | */031_pace.pl) alone="$alone $file" ;;
			*/023_* | */035_* | */037_* | */040_* | */044_* | */045_* | \
			*/046_* | */051_*)
				longest="$longest $file" ;;
			*) together="$together $file" ;;
		esac
	done
	together="$longest$together"
	status=0
	prepare_template || { verdict 1 tap; count 0 1; return; }
	# shellcheck disable=SC2086
	[ -z "$together" ] || prove_files 4 $together || status=$?
	# shellcheck disable=SC2086
	[ -z "$alone" ] || prove_files 1 $alone || status=$?
	good=$(grep -E '^ok [0-9]' "$folder/tap.log" | grep -vc '# skip')
	bad=$(grep -cE '^not ok [0-9]|^test/t.* Failed: 0\)$' "$folder/tap.log")
	left_out=$(grep -ciE '# skip|^test/t.*skipped:' "$folder/tap.log")
	if [ $status -ne 0 ] || [ "$good" -eq 0 ]; then
		[ "$bad" -gt 0 ] || bad=1
		grep -A 1 '^not ok' "$folder/tap.log"
		grep -vE '^ok ' "$folder/tap.log" | tail -n 150
	fi
	grep -E '^test/t.*skipped:' "$folder/tap.log"
	verdict "$bad" "tap ($good assertions)"
	count "$good" "$bad" "$left_out"
}

all="build repository layering style static_analysis model fake_clerk regress isolation tap"

# The search of the models occupies one core, and the checks that come before
# those of TAP another one.
search_models()
{
	if command -v spin >/dev/null; then
		sh test/model.sh >"$folder/search.log" 2>&1 &
		model_search=$!
	fi
}

model()
{
	wait "$model_search"
	status=$?
	model_search=
	cat "$folder/search.log"
	return $status
}

chosen()
{
	case " ${CHECKS:-$all} " in *" $1 "*) ;; *) return 1 ;; esac
}

# A name that is misspelt must not look like a check that has passed.
for name in ${CHECKS:-}; do
	case " $all " in
		*" $name "*) ;;
		*)
			verdict 1 "$name: there is no such check"
			count 0 1
			;;
	esac
done

# Nothing else is worth trying without it.  Done because others need it, it is
# none of the checks that were asked for.
[ "$failed" -ne 0 ] || check build build
chosen build || passed=0
[ "$failed" -eq 0 ] || CHECKS=none
! chosen fake_clerk || begin_fake_clerk
! chosen repository || check repository perl test/repository.pl "$folder/tracked"
! chosen layering || check layering sh test/layering.sh
! chosen style || check_with pg_bsd_indent style perl test/indent.pl --check
! chosen model || search_models
! chosen static_analysis || check static_analysis static_analysis
! chosen fake_clerk || fake_clerk
! chosen regress || installcheck regress ISOLATION=
! chosen isolation || isolation
! chosen model || check_with spin model model
! chosen tap || tap

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
