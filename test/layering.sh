#!/bin/sh
# layering.sh - do the sources include downward only?
#
# src/README.md lists the rooms (the folders of src/) from top to bottom.  A
# file may include headers of its own room and of those below it, and the files
# of a room must not depend on each other in a circle.  Also checked: only http/
# includes libcurl, only compat.h tests versions, and every symbol that a module
# exports begins with clerk_.
set -eu
cd "$(dirname "$0")/../src"

rooms=$(sed -n 's/^\[\([a-z]*\)\/\](.*/\1/p' README.md)
failed=0
complain()
{
	echo "$*"
	failed=1
}

# Whether room $1 is below room $2.
is_below()
{
	for room in $rooms; do
		case $room in
			"$2") seen=1 ;;
			"$1") [ "${seen:-}" = 1 ]; return ;;
		esac
	done
	return 1
}

# Headers of ours that a file includes, as paths below src/.
included_by()
{
	sed -n 's/^#include "\(.*\)"$/\1/p' "$1" | while read -r header; do
		[ ! -f "$header" ] || echo "$header"
	done
}

for folder in */; do
	echo "$rooms" | grep -qx "${folder%/}" ||
		complain "README.md has no room $folder"
done
for room in $rooms; do
	[ -f "$room/README.md" ] || complain "$room/ has no README.md"
	for file in "$room"/*.[ch]; do
		for header in $(included_by "$file"); do
			case $header in
				"$room"/* | compat.h) ;;
				*/*)
					(is_below "${header%/*}" "$room") ||
						complain "$file includes $header, which is not below it" ;;
				*) complain "$file includes $header, which is above it" ;;
			esac
		done
		[ "$room" = http ] || ! grep -q '^#include <curl/' "$file" ||
			complain "$file includes libcurl's header"
	done

	# A module is a file and its header: tsort names those of a circle.
	circle=$(for file in "$room"/*.[ch]; do
		for header in $(included_by "$file"); do
			[ "${header%/*}" != "$room" ] || echo "${file%.*} ${header%.*}"
		done
	done | awk '$1 != $2' | tsort 2>&1 >/dev/null | sed 's/^tsort: *//')
	[ -z "$circle" ] || complain "in $room/ files include each other:" $circle
done
! grep -nE '(PG_VERSION_NUM|LIBCURL_VERSION_NUM) *[<>=]' *.c */*.[ch] ||
	complain 'these test a version, which is for compat.h'
! grep -l '^#include <curl/' http/http.h ||
	complain 'http.h shows libcurl to other rooms'

if [ -f ../clerk_invite.so ]; then
	for symbol in $(nm -D --defined-only ../clerk_invite.so | awk '{print $3}'); do
		case $symbol in
			clerk_* | pg_finfo_clerk_* | Pg_magic_func | _PG_init | _init | _fini) ;;
			*) complain "symbol $symbol does not begin with clerk_" ;;
		esac
	done
fi
exit $failed
