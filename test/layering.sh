#!/bin/sh
# layering.sh - do the sources call downwards only?
#
# Each module of src/ stands on a floor (docs/internals.md has the table with
# their purposes); a file may include the headers of floors below its own, and
# its own header.  Also checked: only http.c knows libcurl, and every symbol that a module shows
# to the others begins with clerk_.
set -eu
cd "$(dirname "$0")/../src"

floor_of()
{
	case $1 in
		compat) echo 0 ;;
		secret_key | socket_set | url_rules) echo 1 ;;
		guc | json_wire) echo 2 ;;
		http | json_reader | outbox | rate_limit | rollback_warning) echo 3 ;;
		clerk_error) echo 4 ;;
		clerk_api) echo 5 ;;
		delivery) echo 6 ;;
		functions | rate_limit_status | send_invitations | trigger) echo 7 ;;
		clerk_invite) echo 8 ;;
		*) echo "no floor is known for $1" >&2; return 1 ;;
	esac
}

failed=0
complain()
{
	echo "$*"
	failed=1
}

for file in *.c *.h; do
	module=${file%.*}
	floor=$(floor_of "$module") || failed=1
	for header in *.h; do
		included=${header%.h}
		grep -q "^#include \"$header\"" "$file" || continue
		[ "$included" != "$module" ] || continue
		[ "$(floor_of "$included")" -lt "$floor" ] ||
			complain "$file includes $header, which is not below it"
	done
	if [ "$file" != http.c ] && grep -q '^#include <curl/' "$file"; then
		complain "$file includes libcurl's header"
	fi
done

if [ -f ../clerk_invite.so ]; then
	for symbol in $(nm -D --defined-only ../clerk_invite.so | awk '{print $3}'); do
		case $symbol in
			clerk_* | pg_finfo_clerk_* | Pg_magic_func | _PG_init | _init | _fini) ;;
			*) complain "symbol $symbol does not begin with clerk_" ;;
		esac
	done
fi
exit $failed
