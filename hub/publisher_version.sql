-- publisher_version.sql - version of the protocol, and the schema
SELECT format('SELECT %I.clerk_publisher_version() || '' '' || %L', schemaname, schemaname)
FROM pg_catalog.pg_publication_tables
WHERE pubname = 'clerk_invite' AND tablename = 'clerk_invitation_request' \gexec
