#!/bin/sh
# add_publisher.sh DATABASE - sets up the hub's database for one publisher
#
# CLERK_PUBLISHER in the environment is the publisher's connection string, URI
# or keywords, with a role that may replicate.  The hub's server is the one that
# psql connects to as a superuser; the database is made if it is not there.  Can
# be run again at any time, and must be if the connection string changes.
#
# A publisher that cannot be used is refused: says why in a sentence, and ends
# with status 3.  Any other status but 0: try again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
database=$1

# The connection string is a secret: it is in no process's arguments, and no
# statement with it is logged.  psql's own status 3 is not that of a refusal.
hub()
{
	PGOPTIONS="${PGOPTIONS:-} -c client_min_messages=warning -c log_statement=none \
-c log_min_error_statement=panic -c log_min_duration_statement=-1 -c search_path=pg_catalog" \
		psql -XAtq -v ON_ERROR_STOP=1 "$@" || return 1
}

# with_parameter NAME VALUE: the connection string with a parameter, unless it
# has that one
with_parameter()
{
	case $CLERK_PUBLISHER in
		*"$1="*) ;;
		postgres://*\?* | postgresql://*\?*) CLERK_PUBLISHER="$CLERK_PUBLISHER&$1=$2" ;;
		postgres://* | postgresql://*) CLERK_PUBLISHER="$CLERK_PUBLISHER?$1=$2" ;;
		*) CLERK_PUBLISHER="$CLERK_PUBLISHER $1=$2" ;;
	esac
}

refuse()
{
	printf '%s\n' "$0: the publisher of \"$database\" cannot be used: $1" >&2
	exit 3
}

# at_publisher CONNECTION FILE: runs SQL there
at_publisher()
{
	export CLERK_CONNECTION="$1" CLERK_SCRIPT="$2"
	PGOPTIONS='' psql -XAtq -v ON_ERROR_STOP=1 -d "${PGDATABASE:-postgres}" <<'SQL' || return 1
\set connection `printenv CLERK_CONNECTION`
\set script `printenv CLERK_SCRIPT`
\connect -reuse-previous=off :connection
\i :script
SQL
}

: "${CLERK_PUBLISHER:?must be the connection string of the publisher}"
case $CLERK_PUBLISHER in
	*[![:space:]]*) ;;
	*) refuse 'its connection string is empty' ;;
esac
with_parameter connect_timeout 10
# Without these, a connection whose other end has vanished lasts two hours.
with_parameter keepalives_idle 10
with_parameter keepalives_interval 5
with_parameter keepalives_count 3
with_parameter tcp_user_timeout 30000

output=$(at_publisher "$CLERK_PUBLISHER" "$here/check_publisher.sql" 2>&1) ||
	{ printf '%s\n' "$0: cannot connect to the publisher of \"$database\": $output" >&2; exit 1; }
# A warning at connection, such as one about a collation's version, is no reason.
reason=$(printf '%s\n' "$output" | sed -n 's/^unusable: //p')
[ -z "$reason" ] || refuse "$reason"
version=$(at_publisher "$CLERK_PUBLISHER" "$here/publisher_version.sql")
[ "${version%% *}" = 1 ] ||
	refuse "its publisher.sql has version ${version%% *} of the protocol, but this hub has version 1; update the older one"
schema=${version#* }
given=$CLERK_PUBLISHER
with_parameter replication database
reason=$(at_publisher "$CLERK_PUBLISHER" "$here/identify_system.sql" 2>&1 >/dev/null) ||
	refuse "it does not let the hub replicate (role attribute REPLICATION, or what the provider has for it): $reason"
CLERK_PUBLISHER=$given
export CLERK_PUBLISHER schema

exists=$(echo "SELECT 1 FROM pg_database WHERE datname = :'database'" |
	hub -d "${PGDATABASE:-postgres}" -v database="$database")
[ -n "$exists" ] || echo "CREATE DATABASE :\"database\" ENCODING 'UTF8' TEMPLATE template0" |
	hub -d "${PGDATABASE:-postgres}" -v database="$database"

hub -d "$database" <<SQL
CREATE SCHEMA IF NOT EXISTS clerk_hub;
CREATE EXTENSION IF NOT EXISTS clerk_invite SCHEMA public;
CREATE EXTENSION IF NOT EXISTS dblink SCHEMA clerk_hub;
\\i $here/hub.sql
\\set connection \`printenv CLERK_PUBLISHER\`
\\set schema \`printenv schema\`
BEGIN;
INSERT INTO clerk_hub.publisher AS p (connection_string, remote_schema)
VALUES (:'connection', :'schema')
ON CONFLICT (singleton) DO UPDATE
SET connection_string = excluded.connection_string, remote_schema = excluded.remote_schema;
CREATE SCHEMA IF NOT EXISTS :"schema";
CREATE TABLE IF NOT EXISTS :"schema".clerk_invitation_request (
    id bigint,
    kind text,
    invitation bigint,
    request jsonb,
    enqueued_at timestamptz,
    received_at timestamptz
);
REVOKE ALL ON TABLE :"schema".clerk_invitation_request FROM PUBLIC;
DROP TRIGGER IF EXISTS apply ON :"schema".clerk_invitation_request;
CREATE TRIGGER apply BEFORE INSERT ON :"schema".clerk_invitation_request
FOR EACH ROW EXECUTE FUNCTION clerk_hub.apply_request();
ALTER TABLE :"schema".clerk_invitation_request ENABLE ALWAYS TRIGGER apply;
COMMENT ON TABLE :"schema".clerk_invitation_request IS 'where the subscription brings the publisher''s requests; always empty';
COMMENT ON TRIGGER apply ON :"schema".clerk_invitation_request IS 'does what is requested';
SELECT EXISTS (SELECT FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid
               WHERE s.subname = 'clerk_invite' AND d.datname = current_database() AND
                     s.subconninfo <> :'connection') AS has_moved \\gset
\\if :has_moved
ALTER SUBSCRIPTION clerk_invite CONNECTION :'connection';
\\endif
COMMIT;
CALL clerk_hub.connect();
SQL
