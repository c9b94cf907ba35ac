#!/bin/sh
# record.sh - records what the Grafana dashboard shows of a few minutes
#
# Runs on a bare Debian or Ubuntu, and leaves the machine's own PostgreSQL
# alone.  A throwaway cluster with a fake Clerk sends an import through a
# refusal for a rate limit and an outage, while a real postgres_exporter and a
# real Prometheus watch it.  Then Prometheus answers the queries of
# monitoring/clerk_invite.dashboard.json, which goes to recording.json beside
# this file; draw.py draws that.  Takes five minutes, and differs a little each
# time.
set -eu

cd "$(dirname "$0")/../.."
. test/machine.sh
prepare_machine
make_workspace
fetch_program prometheus-postgres-exporter
fetch_program prometheus
as_ordinary_user env PG_CONFIG="$PG_CONFIG" PATH="$PATH:$WORKSPACE/programs" \
	sh "$WORKSPACE/source/docs/dashboard/run.sh" "$WORKSPACE"
cp "$WORKSPACE/recording.json" docs/dashboard/recording.json
