#!/bin/sh
# layering.sh - do the sources call downwards only?
#
# Each module of src/ stands on a floor (docs/internals.md has the table with
# their purposes); a file may include the headers of floors below its own, and
# its own header.  Also checked: only the files of http know libcurl, and
# domain_name.c its functions for URLs; among the files of http calls go
# downwards, too; and every symbol that a module shows to the others
# begins with clerk_.
set -eu
cd "$(dirname "$0")/../src"

floor_of()
{
	case $1 in
		compat) echo 0 ;;
		budget_file | domain_name | monotonic_clock | owner_rights | planner | secret_key | shared_memory | socket_set) echo 1 ;;
		statement_table | url_rules) echo 1 ;;
		guc | json_wire | outbox_statement | server_clock | worker_slots) echo 2 ;;
		email_address | http | json_reader | outbox_lock | outbox_retention) echo 3 ;;
		outbox_numbers | outbox_set_aside | rate_limit | rollback_warning | white_space) echo 3 ;;
		clerk_error | invitation_json | outbox) echo 4 ;;
		clerk_api | installed_extension | outbox_by_hand | outbox_guard | outbox_status) echo 5 ;;
		arguments | invitation_pages | procedure | statement_request | verdict) echo 6 ;;
		invitations_argument | shipment | status_refresh) echo 7 ;;
		delivery) echo 8 ;;
		bulk_invitations | functions | invitation_progress | list_invitations) echo 9 ;;
		rate_limit_status | refresh_invitations | trigger) echo 9 ;;
		worker | worker_status) echo 9 ;;
		launcher | worker_wakeup) echo 10 ;;
		clerk_invite | send_invitations) echo 11 ;;
		*) echo "no floor is known for $1" >&2; return 1 ;;
	esac
}

# The files of http are one module, with one header among them.
module_of()
{
	case $1 in
		http_event_loop | http_internal | http_transfer) echo http ;;
		*) echo "$1" ;;
	esac
}

failed=0
complain()
{
	echo "$*"
	failed=1
}

for file in *.c *.h; do
	module=$(module_of "${file%.*}")
	floor=$(floor_of "$module") || failed=1
	for header in *.h; do
		included=$(module_of "${header%.h}")
		grep -q "^#include \"$header\"" "$file" || continue
		[ "$included" != "$module" ] || continue
		[ "$(floor_of "$included")" -lt "$floor" ] ||
			complain "$file includes $header, which is not below it"
	done
	if [ "$module" != http ] || [ "$file" = http.h ]; then
		[ "$file" = domain_name.c ] || ! grep -q -e '^#include <curl/' -e '^#include "http_internal.h"' "$file" ||
			complain "$file includes libcurl's header"
	fi
done
! grep -n 'clerk_http_[a-z_]*(' http_event_loop.c http_transfer.c ||
	complain 'these call http.c, which is above them'
! grep -n 'clerk_event_loop_[a-z_]*(' http_transfer.c ||
	complain 'http_transfer.c calls http_event_loop.c, which is above it'

if [ -f ../clerk_invite.so ]; then
	for symbol in $(nm -D --defined-only ../clerk_invite.so | awk '{print $3}'); do
		case $symbol in
			clerk_* | pg_finfo_clerk_* | Pg_magic_func | _PG_init | _init | _fini) ;;
			*) complain "symbol $symbol does not begin with clerk_" ;;
		esac
	done
fi
exit $failed
