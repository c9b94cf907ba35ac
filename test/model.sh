#!/bin/sh
# model.sh - are the delivery of the outbox and the rate limit right in every
# interleaving?
#
# Installs spin and gcc where they are missing, checks the models in test/model/
# exhaustively, and then the same models with one rule broken at a time
# ("mutants"), in which spin must find what goes wrong.  test/model/README.md
# explains what is checked.  Prints a table, and ends with a status other than 0
# if a model fails, a mutant passes, a search was cut short, or a step of the
# models is not named in the source.
#
# As an ordinary user, as in check.sh, it needs spin and gcc to be there.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
if [ -n "$(missing_packages spin gcc libc6-dev)" ]; then
	refresh_package_lists
	install_packages spin gcc libc6-dev
fi
models=$PWD/test/model
folder=$(mktemp -d "${TMPDIR:-/tmp}/clerk_model.XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
failed=0

# A search ends well only if it has seen all states, with none left out for
# want of depth or memory.
# search NAME MODEL WANTED FLAG...: checks a model; WANTED is "holds" or "fails"
search()
{
	name=$1
	model=$2
	wanted=$3
	shift 3
	compiled=-DSAFETY
	how=-E
	case "$*" in *LIVENESS*)
		compiled=-DNFAIR=3
		how='-a -f'
	esac
	# A mutant's search ends soon, so that its compilation takes most of the time.
	optimize=-O2
	[ "$wanted" = holds ] || optimize=-O0
	result=broken
	(
		cd "$folder"
		spin -a "$@" "$models/$model" >spin.log &&
			gcc -w $optimize -DNOREDUCE -DMEMLIM=3500 "$compiled" -o pan pan.c &&
			# shellcheck disable=SC2086
			./pan $how -m1000000 -w22 -n >pan.log
	) || true
	log=$folder/pan.log
	if grep -q 'errors: 0$' "$log" && ! grep -qE '^Warning|max search depth|out of memory|truncated' "$log"; then
		result=holds
	elif grep -qE '^pan:1: (assertion violated|acceptance cycle)' "$log"; then
		result=fails
	fi
	verdict=ok
	if [ "$result" != "$wanted" ]; then
		verdict=FAILED
		failed=1
	fi
	printf '%-7s %-34s %9s %6s %8s  %s\n' "$verdict" "$name" \
		"$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$log" | head -n 1)" \
		"$(sed -n 's/.*depth reached \([0-9]*\),.*/\1/p' "$log" | head -n 1)" \
		"$(sed -n 's/^pan: elapsed time \([0-9.]*\) seconds.*/\1/p' "$log")" "$result"
	rm -f "$folder"/*
}

# steps: each step of a model has a line in README.md, which names a function;
# the comment on the function begins with the step's name.
steps()
{
	sed -n 's/.*STEP \([A-Z ]*[A-Z]\).*/\1/p' "$models"/*.pml | sort -u >"$folder/steps"
	[ -s "$folder/steps" ] || echo 'the models have no step'
	while read -r step; do
		place=$(sed -n "s/^$step | \`\([a-z_]*\)()\` in \`\(.*\)\`\$/\1 src\/\2/p" \
			"$models/README.md")
		if [ -z "$place" ]; then
			echo "step $step: README.md does not say where it is"
		elif ! awk -v step="$step: " -v call="${place% *}(" '
			/^\/\*/ { comment = "" }
			/^(\/\*| \*)/ { comment = comment substr($0, 4) "\n" }
			index($0, call) == 1 { if (index(comment, step) == 1 || index(comment, "\n" step) == 1) found = 1 }
			END { exit !found }' "${place#* }"; then
			echo "step $step: the comment on ${place% *}() in ${place#* } does not begin with it"
		fi
	done <"$folder/steps"
}

printf '%-7s %-34s %9s %6s %8s  %s\n' '' '' states depth seconds result
complaints=$(steps)
if [ -n "$complaints" ]; then
	echo "$complaints"
	failed=1
fi

search 'delivery, two people' delivery.pml holds
search '  with a standby' delivery.pml holds -DSTANDBY
search 'delivery, one person' delivery.pml holds -DONE_PERSON
search '  with a standby' delivery.pml holds -DONE_PERSON -DSTANDBY
search 'liveness, two people' delivery.pml holds -DLIVENESS
search 'liveness, one person' delivery.pml holds -DLIVENESS -DONE_PERSON
search 'rate limit' rate_limit.pml holds

search 'mutant: no fence' delivery.pml fails -DMUTANT_NO_FENCE
search 'mutant: fence without attempt' delivery.pml fails -DMUTANT_FENCE_WITHOUT_ATTEMPT
search 'mutant: claim not committed' delivery.pml fails -DMUTANT_CLAIM_UNCOMMITTED
search 'mutant: only pending ones count' delivery.pml fails -DMUTANT_PENDING_ONLY
search 'mutant: empty lookup believed' delivery.pml fails -DMUTANT_EMPTY_BELIEVED
search 'mutant: delay ends at settling' delivery.pml fails -DMUTANT_DELAY_AT_SETTLE
search 'mutant: skipped at once' delivery.pml fails -DMUTANT_SKIPPED_AT_ONCE
search 'mutant: standby not awaited' delivery.pml fails -DSTANDBY -DMUTANT_STANDBY_NOT_AWAITED

search 'not covered: arrives too late' delivery.pml fails -DLATE
search 'not covered: asynchronous standby' delivery.pml fails -DSTANDBY -DASYNCHRONOUS
search 'not covered: person removed' delivery.pml fails -DREMOVAL
search 'not covered: ambiguous' delivery.pml fails -DONE_PERSON -DAMBIGUOUS

search 'mutant: check without lock' rate_limit.pml fails -DMUTANT_CHECKED_WITHOUT_LOCK
search 'mutant: held ones not counted' rate_limit.pml fails -DMUTANT_HELD_NOT_COUNTED
search 'mutant: leaves a bucket early' rate_limit.pml fails -DMUTANT_LEAVES_EARLY
search 'mutant: leaves in its tick' rate_limit.pml fails -DMUTANT_LEAVES_IN_ITS_TICK
search 'mutant: leaves with its first' rate_limit.pml fails -DMUTANT_FIRST_INSTEAD_OF_LATEST
search 'mutant: counts from its start' rate_limit.pml fails -DMUTANT_COUNTS_FROM_START
search 'mutant: file written too late' rate_limit.pml fails -DMUTANT_FILE_AFTER_SENDING
search 'mutant: ended counts as not sent' rate_limit.pml fails -DMUTANT_ENDED_IS_NOT_SENT
exit $failed
