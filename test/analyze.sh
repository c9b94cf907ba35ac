#!/bin/sh
# analyze.sh - clang's static analyzer on src/
#
# Installs what is missing and fails if the analyzer reports anything but the
# reports below.  Takes about two minutes; the part of check.sh that is called
# static_analysis is quicker, and finds other things.
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
prepare_machine clang

# known_reports: those that are wrong, as file, checker, and why; a report
# is known by the first two
known_reports()
{
	cat <<'END'
src/outbox/lookup_outcome.c core.NullDereference an element of an array has an address, also if it is compared with a pointer that may be null
END
}

reports=$(mktemp)
trap 'rm -f "$reports" "$reports.lines"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for file in src/*.c src/*/*.c; do
	echo "$file"
done | xargs -P 2 -I '{}' clang --analyze -o /dev/null \
	-isystem "$("$PG_CONFIG" --includedir-server)" -I src -D_GNU_SOURCE \
	-DCLERK_INVITE_VERSION='"1.0"' '{}' >"$reports" 2>&1 ||
	{ cat "$reports"; exit 1; }

# A line is "FILE:LINE:COLUMN: warning: TEXT [CHECKER]".
grep ': warning: ' "$reports" >"$reports.lines" || true
status=0
while read -r line; do
	file=${line%%:*}
	checker=$(echo "$line" | sed -n 's/.*\[\([a-zA-Z.]*\)\]$/\1/p')
	if known_reports | grep -q "^$file $checker "; then
		echo "known: $line"
	else
		grep -F -A 3 "$line" "$reports"
		status=1
	fi
done <"$reports.lines"
[ $status -ne 0 ] || echo "clang's analyzer reports nothing else"
exit $status
