#!/bin/sh
# with_fake_clerk.sh COMMAND...: runs a command with a fake Clerk beside it
#
# pg_regress starts each psql through this (--launcher), so each test file has
# a Clerk of its own and leaves nothing to the next.  What violates Clerk's
# contract (fake_clerk/contract.json) ends up behind the command's output, where
# no test expects it, unless it does.  PGOPTIONS carries the
# fake's address and a key file to the sessions, and keeps the background worker,
# which knows neither, from sending what they commit.  The server must keep the key
# file, since it accepts only one of its own: it is made and removed by it, in
# its data directory.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
key=sk_test_fakeclerk000000000000000000000000000
key_file=clerk_invite_test_$$.key

as_superuser()
{
	psql -X -q -v ON_ERROR_STOP=1 -d postgres -c "$1"
}

cleanup()
{
	# The fake ends with its standard input.
	exec 9>&-
	wait
	sed "s/^/violates Clerk's contract: /" "$folder/violations" || true
	as_superuser "COPY (SELECT) TO PROGRAM 'cat >/dev/null; rm -f $key_file'"
	rm -rf "$folder"
}

mkfifo "$folder/life" "$folder/port"
python3 "$here/fake_clerk.py" --exit-with-stdin --secret-key "$key" \
	--bulk-limit 10000 --violations "$folder/violations" \
	<"$folder/life" >"$folder/port" &
exec 9>"$folder/life"
trap cleanup EXIT
read -r port <"$folder/port"
as_superuser "COPY (SELECT '$key') TO PROGRAM 'umask 077; cat >$key_file'"

export FAKE_CLERK_URL="http://127.0.0.1:$port"
PGOPTIONS="${PGOPTIONS:-} -c clerk_invite.api_url=$FAKE_CLERK_URL"
PGOPTIONS="$PGOPTIONS -c clerk_invite.secret_key_file=$key_file"
PGOPTIONS="$PGOPTIONS -c clerk_invite.worker=off"
export PGOPTIONS
"$@" 9>&-
