#!/bin/sh
# demo.sh [ORGANIZATION ADDRESS] - the main job, shown on a throwaway cluster
#
# Runs on a bare Debian or Ubuntu: installs what is missing, builds the
# extension, makes a PostgreSQL cluster in a temporary folder, starts a fake
# Clerk over TLS beside it, and invites people with a query, with triggers on a
# members table, now and after the commit, while Clerk is down and when its
# answer is lost, and with a pg_cron job.  Leaves the machine's own PostgreSQL
# alone, and no file or process behind.
#
# With CLERK_SECRET_KEY in the environment, and an organization and an address
# as arguments, it sends that one invitation for real instead; CLERK_API_URL is
# honoured, CLERK_ROLE is the role (org:member unless set).
set -eu

cd "$(dirname "$0")/.."
. test/machine.sh
if [ $# -ne 0 ] && { [ $# -ne 2 ] || [ -z "${CLERK_SECRET_KEY:-}" ]; }; then
	echo "usage: [CLERK_SECRET_KEY=sk_... [CLERK_API_URL=https://...]] sh test/demo.sh [ORGANIZATION ADDRESS]" >&2
	exit 2
fi
prepare_machine
make_workspace
if [ $# -eq 2 ]; then
	script=run_real_demo.sh
else
	script=run_demo.sh
	unset CLERK_SECRET_KEY
fi
# The key goes through the environment: arguments can be seen by everyone.
as_ordinary_user sh "$WORKSPACE/source/test/$script" "$WORKSPACE" "$@"
