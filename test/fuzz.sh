#!/bin/sh
# fuzz.sh [--responses N] [--webhooks N] [--calls N] [--seed S] - mutated
# responses and webhooks through the code that reads Clerk's, and odd arguments
# through all SQL functions, under AddressSanitizer and UndefinedBehaviorSanitizer
#
# Installs what is missing, changes the fake Clerk's responses N times
# (1,000,000) by the seed, and gives them to the decoder in databases of several
# encodings; does the same with the bodies and headers of webhooks (1,000,000);
# then makes N calls (10,000) in SQL, see test/t/076_arguments.pl.  Prints the
# outcomes and the line coverage of the decoder.  Fails after a crash, a leak, a
# forged webhook that is accepted, or any other error than about the data; the
# message has the seed and the number.  Takes about ten minutes.
set -eu

responses=1000000
webhooks=1000000
calls=10000
seed=1
while [ $# -gt 0 ]; do
	case $1 in
		--responses) responses=$2 ;;
		--webhooks) webhooks=$2 ;;
		--calls) calls=$2 ;;
		--seed) seed=$2 ;;
		*)
			echo "usage: $0 [--responses N] [--webhooks N] [--calls N] [--seed S]" >&2
			exit 2
			;;
	esac
	shift 2
done

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine libipc-run-perl perl
make_workspace
as_ordinary_user env PG_CONFIG="$PG_CONFIG" RESPONSES="$responses" \
	WEBHOOKS="$webhooks" \
	FUZZ_CALLS="$calls" FUZZ_SEED="$seed" TMPDIR="$WORKSPACE" HOME="$WORKSPACE" \
	sh "$WORKSPACE/source/test/run_fuzz.sh" "$WORKSPACE"
