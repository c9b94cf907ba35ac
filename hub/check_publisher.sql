-- check_publisher.sql - why a database cannot be a hub's publisher, in one
-- sentence after "unusable: "; nothing if it can be one
--
-- Run at the publisher, as the role that the hub logs in as.
WITH found AS (
    SELECT max(p.schemaname) AS schema_name
    FROM pg_catalog.pg_publication_tables AS p
    WHERE p.pubname = 'clerk_invite' AND p.tablename = 'clerk_invitation_request'
), can AS (
    SELECT has_schema_privilege(n.oid, 'USAGE') AS use_schema,
           has_table_privilege(t.oid, 'SELECT') AND
           (SELECT bool_and(has_function_privilege(p.oid, 'EXECUTE'))
            FROM pg_catalog.pg_proc AS p
            WHERE p.pronamespace = n.oid AND
                  p.proname IN ('clerk_publisher_version', 'clerk_hub_report', 'clerk_hub_take_over')) AS work
    FROM found AS f
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = f.schema_name
    JOIN pg_catalog.pg_class AS t ON t.relnamespace = n.oid AND t.relname = 'clerk_invitation_request'
)
SELECT 'unusable: ' || CASE
    WHEN current_setting('server_version_num')::integer < 130000 THEN
        'it is PostgreSQL ' || current_setting('server_version') || ', but a publisher must be version 13 or later'
    WHEN pg_is_in_recovery() THEN
        'it is a standby; name the primary'
    WHEN current_setting('wal_level') <> 'logical' THEN
        'its wal_level is "' || current_setting('wal_level') || '" and must be "logical"'
    WHEN current_setting('server_encoding') = 'SQL_ASCII' THEN
        'its encoding is SQL_ASCII, so that nobody knows which characters it holds'
    WHEN f.schema_name IS NULL THEN
        'it has no publication "clerk_invite"; run hub/publisher.sql in database "' || current_database() || '" first'
    WHEN NOT c.use_schema OR NOT coalesce(c.work, false) THEN
        'role "' || current_user || '" may not do what a hub does; as the owner of the outbox, run: SELECT '
        || quote_ident(f.schema_name) || '.clerk_grant_to_hub(' || quote_literal(current_user) || ')'
END
FROM found AS f LEFT JOIN can AS c ON true;
