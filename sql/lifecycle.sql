--
-- Getting, listing and revoking invitations.
--
CREATE EXTENSION clerk_invite;
\set ECHO none
\i test/error_of.sql
\set ECHO all
\pset null (null)

SELECT id AS ann FROM clerk_create_organization_invitation(
    'org_test', 'user_ines', 'ann@example.com', 'org:member',
    metadata => '{"team": "blue"}', private_metadata => '{"n": 1}') \gset
SELECT id AS bob FROM clerk_create_organization_invitation(
    'org_test', NULL, 'bob@example.com', 'org:admin') \gset
SELECT id AS eve FROM clerk_create_organization_invitation(
    'org_other', NULL, 'eve@example.com', 'org:member') \gset

-- A single invitation with all of its fields.
\x on
SELECT id = :'ann' AS is_ann, organization_id, email_address, role, role_name,
       status, inviter_id, url LIKE 'https://%' AS url_is_given,
       public_metadata, private_metadata,
       public_inviter_data ->> 'user_id' AS inviter_in_public_data,
       public_organization_data, created_at IS NOT NULL AS created,
       updated_at = created_at AS never_updated,
       expires_at - created_at AS valid_for
FROM clerk_get_organization_invitation('org_test', :'ann');
\x off

-- After revocation, Clerk returns no url, and refuses to revoke again.
SELECT id = :'bob' AS is_bob, email_address, status, url,
       updated_at >= created_at AS updated
FROM clerk_revoke_organization_invitation('org_test', :'bob', 'user_ines');
SELECT status FROM clerk_get_organization_invitation('org_test', :'bob');
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'bob@example.com', 'org:member');

-- Other refusals.  The IDs and the trace ID are random.
CREATE FUNCTION refusal(
    call text,
    OUT "SQLSTATE" text, OUT message text, OUT detail text, OUT hint text,
    OUT constraint_name text, OUT column_name text
)
LANGUAGE sql AS $$
    SELECT "SQLSTATE", regexp_replace(message, 'orginv_\w{27}', '(id)'),
           regexp_replace(detail, 'trace ID [0-9a-f]{32}', 'trace ID (32 digits)'),
           regexp_replace(hint, 'orginv_\w{27}', '(id)'), constraint_name,
           column_name
    FROM error_of('SELECT ' || call)
$$;
\pset format unaligned
\x on
SELECT * FROM refusal(format('clerk_revoke_organization_invitation(%L, %L)', 'org_test', :'bob'));
SELECT * FROM refusal('clerk_revoke_organization_invitation(''org_test'', ''orginv_none'')');
SELECT * FROM refusal(format('clerk_revoke_organization_invitation(%L, %L)', 'org_test', :'eve'));
SELECT * FROM refusal(format('clerk_revoke_organization_invitation(%L, %L, %L)', 'org_test', :'ann', 'user_stranger'));
SELECT * FROM refusal(format('clerk_revoke_organization_invitation(%L, %L, %L)', 'org_test', :'ann', 'user_missing'));
SELECT * FROM refusal('clerk_get_organization_invitation(''org_test'', ''orginv_none'')');
SELECT * FROM refusal('clerk_get_organization_invitation(''org_missing'', ''orginv_none'')');
SELECT * FROM refusal('clerk_list_organization_invitations(''org_missing'')');
SELECT * FROM refusal('clerk_list_organization_invitations(''org_test'', ''{open}'')');
SELECT * FROM refusal('clerk_list_instance_organization_invitations(''{open}'')');
\x off
\pset format aligned
SELECT status FROM clerk_get_organization_invitation('org_test', :'ann');

-- Invalid arguments are not sent.
SELECT call, "SQLSTATE", message
FROM unnest(ARRAY[
    'clerk_get_organization_invitation(NULL, ''orginv_1'')',
    'clerk_get_organization_invitation(''org_test'', NULL)',
    'clerk_get_organization_invitation(''org_test/..'', ''orginv_1'')',
    'clerk_get_organization_invitation(''org_test'', ''bulk/..'')',
    'clerk_get_organization_invitation(''org_test'', '''')',
    'clerk_revoke_organization_invitation(NULL, ''orginv_1'')',
    'clerk_revoke_organization_invitation(''org_test'', NULL)',
    'clerk_revoke_organization_invitation(''org_test'', ''..'')',
    'clerk_revoke_organization_invitation(''org_test'', ''orginv_1'', '''')',
    'clerk_list_organization_invitations(NULL)',
    'clerk_list_organization_invitations(''org?'')',
    'clerk_list_organization_invitations(''org_test'', ''{}'')',
    'clerk_list_organization_invitations(''org_test'', ''{pending,NULL}'')',
    'clerk_list_organization_invitations(''org_test'', ARRAY[''pending'', ''''])',
    'clerk_list_organization_invitations(''org_test'', ''{pending,open}'')',
    'clerk_list_organization_invitations(''org_test'', email => '''')',
    'clerk_list_organization_invitations(''org_test'', email => E''a\n@b'')',
    'clerk_list_instance_organization_invitations(''{}'')',
    'clerk_list_instance_organization_invitations(query => '''')'
    ]) AS call, LATERAL refusal(call) AS r;

-- Lists are in order of creation.  Clerk applies all filters, except that on
-- several statuses.
SELECT email_address, status, public_organization_data
FROM clerk_list_organization_invitations('org_test');
SELECT email_address, status FROM clerk_list_organization_invitations('org_test', '{revoked}');
SELECT email_address, status
FROM clerk_list_organization_invitations('org_test', '{revoked,pending}', 'BOB@example.com');
SELECT email_address, status FROM clerk_list_organization_invitations('org_test', '{expired}');
SELECT count(*) FROM clerk_list_organization_invitations('org_test', email => 'a&b=c+d%#@example.com');
SELECT organization_id, email_address, status,
       public_organization_data ->> 'name' AS organization
FROM clerk_list_instance_organization_invitations();
SELECT email_address FROM clerk_list_instance_organization_invitations('{pending}', 'BOB@EXAMPLE.com');
SELECT email_address FROM clerk_list_instance_organization_invitations(query => 'eve@example.com');

-- In the SELECT list, as one column; and joined to a table.
SELECT (clerk_list_organization_invitations('org_other')).email_address;
SELECT org_id, i.email_address
FROM (VALUES ('org_other'), ('org_none'), ('org_test')) AS o (org_id),
     LATERAL clerk_list_organization_invitations(org_id, '{pending}') AS i;

-- In read-only transactions, reading is allowed, but revoking is not.
BEGIN READ ONLY;
SELECT status FROM clerk_get_organization_invitation('org_test', :'ann');
SELECT count(*) FROM clerk_list_organization_invitations('org_test');
SELECT count(*) FROM clerk_list_instance_organization_invitations();
SELECT status FROM clerk_revoke_organization_invitation('org_test', 'orginv_1');
ROLLBACK;

-- None of the functions can be executed in a parallel worker, even if somebody
-- has declared them parallel safe.
\set VERBOSITY terse
BEGIN;
SELECT format('ALTER FUNCTION %s PARALLEL SAFE', oid::regprocedure) FROM pg_proc
WHERE proname ~ '^clerk_(get|list|revoke)_' \gexec
SET LOCAL max_parallel_workers_per_gather = 2;
SELECT set_config(name, 'on', true) AS parallel FROM pg_settings
WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SAVEPOINT s;
SELECT status FROM clerk_get_organization_invitation('org_test', 'orginv_1');
ROLLBACK TO s;
SELECT status FROM clerk_revoke_organization_invitation('org_test', 'orginv_1');
ROLLBACK TO s;
SELECT status FROM clerk_list_organization_invitations('org_test');
ROLLBACK TO s;
SELECT status FROM clerk_list_instance_organization_invitations();
ROLLBACK;
\set VERBOSITY default

DROP FUNCTION refusal(text);
DROP FUNCTION error_of(text);
DROP EXTENSION clerk_invite;
