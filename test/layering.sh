#!/bin/sh
# layering.sh - do the sources include downward only?
#
# src/README.md lists the layers (the folders of src/) from top to bottom.  A
# file may include headers of its own layer and of those below it, and the files
# of a layer must not depend on each other in a circle.  Also checked: only http/
# includes libcurl, only compat.h tests versions, and every symbol that a module
# exports begins with clerk_.
set -eu
cd "$(dirname "$0")/../src"

layers=$(sed -n 's/^\[\([a-z]*\)\/\](.*/\1/p' README.md)
failed=0
complain()
{
	echo "$*"
	failed=1
}

for folder in */; do
	echo "$layers" | grep -qx "${folder%/}" ||
		complain "README.md has no layer $folder"
done
for layer in $layers; do
	[ -f "$layer/README.md" ] || complain "$layer/ has no README.md"
done

# FILE HEADER, for each header of ours that a file in a layer includes.
included=$(grep '^#include "' */*.[ch] | sed 's/^\(.*\):#include "\(.*\)".*/\1 \2/' |
	while read -r file header; do
		[ ! -f "$header" ] || echo "$file $header"
	done)

upward=$(echo "$included" | awk -v layers="$layers" '
	BEGIN { count = split(layers, layer); for (i = 1; i <= count; i++) depth[layer[i]] = i }
	{
		split($1, from, "/"); split($2, to, "/")
		if ($2 == "compat.h" || from[1] == to[1])
			next
		if ($2 !~ "/")
			print $1 " includes " $2 ", which is above it"
		else if (depth[to[1]] <= depth[from[1]])
			print $1 " includes " $2 ", which is not below it"
	}')
[ -z "$upward" ] || complain "$upward"

# A module is a file and its header: tsort names those of a circle.
for layer in $layers; do
	circle=$(echo "$included" | sed -n "s/\.[ch]//g; /^$layer\/.* $layer\//p" |
		awk '$1 != $2' | tsort 2>&1 >/dev/null | sed 's/^tsort: *//')
	[ -z "$circle" ] || complain "in $layer/ files include each other:" $circle
done

curl=$(grep -l '^#include <curl/' *.c */*.[ch] | grep -v '^http/' || true)
[ -z "$curl" ] || complain "these include libcurl's header outside http/:" $curl
! grep -l '^#include <curl/' http/http.h ||
	complain 'http.h shows libcurl to other layers'
! grep -nE '(PG_VERSION_NUM|LIBCURL_VERSION_NUM) *[<>=]' *.c */*.[ch] ||
	complain 'these test a version, which is for compat.h'

if [ -f ../clerk_invite.so ]; then
	for symbol in $(nm -D --defined-only ../clerk_invite.so | awk '{print $3}'); do
		case $symbol in
			clerk_* | pg_finfo_clerk_* | Pg_magic_func | _PG_init | _init | _fini) ;;
			*) complain "symbol $symbol does not begin with clerk_" ;;
		esac
	done
fi
exit $failed
