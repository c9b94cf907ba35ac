--
-- Any number of people with one call: ten per request, several requests at a
-- time, rows in the order of the array.
--
-- All calls that must be rejected before they are sent use never@example.com.
-- That address is invited at the end, which would fail if one of them had been
-- sent.
--
CREATE EXTENSION clerk_invite;
\set ECHO none
\i test/error_of.sql
\set ECHO all
\pset null (null)

-- An array with this number of addresses: NAME-1@example.com and so on.
CREATE FUNCTION people(name text, count integer) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT jsonb_agg(jsonb_build_object(
        'email_address', format('%s-%s@example.com', $1, n),
        'role', 'org:member') ORDER BY n)
    FROM generate_series(1, $2) AS n
$$;

-- An array with these addresses.
CREATE FUNCTION people(VARIADIC emails text[]) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT jsonb_agg(jsonb_build_object('email_address', email, 'role', 'org:member')
                     ORDER BY position)
    FROM unnest($1) WITH ORDINALITY AS e (email, position)
$$;

-- Bulk requests counted so far.
CREATE VIEW counted AS
SELECT used AS requests FROM clerk_rate_limit_status() WHERE endpoint = 'bulk';

\x on
-- Every field that Clerk accepts, and the resulting invitations.
SELECT id ~ '^orginv_[A-Za-z0-9]{27}$' AS id_is_clerks, organization_id,
       email_address, role, role_name, status, inviter_id,
       url LIKE 'https://%' AS url_is_given, public_metadata, private_metadata,
       public_inviter_data ->> 'user_id' AS inviter_in_public_data,
       public_organization_data,
       created_at BETWEEN now() - interval '1 minute'
           AND now() + interval '1 minute' AS created_just_now,
       updated_at = created_at AS never_updated,
       expires_at - created_at AS valid_for
FROM clerk_create_organization_invitation_bulk('org_test', '[
    {"email_address": "All.Fields@Example.com", "role": "org:billing_lead",
     "inviter_user_id": "user_ines", "redirect_url": "https://app.example.com/welcome",
     "public_metadata": {"team": "blue", "n": [1.50, null, {"\"": "\\"}]},
     "private_metadata": {}, "expires_in_days": 7.0, "notify": false},
    {"email_address": "two-fields@example.com", "role": "org:member",
     "inviter_user_id": null, "redirect_url": null, "public_metadata": null,
     "private_metadata": null, "expires_in_days": null, "notify": null}]');
\x off

-- A table of people: each row gets its own invitation, in the order of the
-- array, although this fake Clerk returns them in a different order.
CREATE TABLE people (n integer, email text, role text);
INSERT INTO people
SELECT n, format('Person-%s@example.com', n), CASE n % 2 WHEN 0 THEN 'org:member' ELSE 'org:admin' END
FROM generate_series(1, 25) AS n;
SELECT requests AS before FROM counted \gset
SELECT count(*), count(DISTINCT id) AS ids, bool_and(n = ordinality) AS in_order,
       bool_and(i.role = p.role) AS with_own_role,
       bool_and(public_metadata = jsonb_build_object('n', n)) AS with_own_metadata
FROM clerk_create_organization_invitation_bulk('org_test', (
         SELECT jsonb_agg(jsonb_build_object(
                    'email_address', email, 'role', role,
                    'public_metadata', jsonb_build_object('n', n)) ORDER BY n)
         FROM people)) WITH ORDINALITY AS i
FULL JOIN people AS p ON p.email = i.email_address;
SELECT requests - :before AS requests FROM counted;

-- One invitation is also a bulk request; an empty array sends none.
SELECT requests AS before FROM counted \gset
SELECT email_address, status FROM clerk_create_organization_invitation_bulk('org_test', people('one', 1));
SELECT * FROM clerk_create_organization_invitation_bulk('org_test', '[]');
SELECT requests - :before AS requests FROM counted;

-- Clerk may return addresses with different case.
SELECT email_address FROM clerk_create_organization_invitation_bulk(
    'org_test', people('Case-1@example.com', 'x-other-case--1@example.com', 'case-3@Example.com'));

-- Everything is sent exactly once, however much of the result is used.
SELECT requests AS before FROM counted \gset
SELECT (clerk_create_organization_invitation_bulk('org_test', people('limit-list', 12))).email_address LIMIT 1;
SELECT email_address FROM clerk_create_organization_invitation_bulk('org_test', people('limit-from', 12)) LIMIT 1;
SELECT count(*) FROM generate_series(1, 3), clerk_create_organization_invitation_bulk('org_test', people('joined', 12));
BEGIN;
DECLARE invited CURSOR FOR
    SELECT email_address FROM clerk_create_organization_invitation_bulk('org_test', people('cursor', 12));
FETCH 2 FROM invited;
COMMIT;
SELECT requests - :before AS requests FROM counted;
SELECT split_part(email_address, '-', 1) AS part, count(*)
FROM clerk_list_organization_invitations('org_test', '{pending}')
WHERE email_address ~ '^(limit|joined|cursor)'
GROUP BY 1 ORDER BY 1;

-- Planning a call does not execute it.
EXPLAIN (COSTS OFF)
SELECT status FROM clerk_create_organization_invitation_bulk('org_test', people('planned', 1));

-- A call for each of several organizations.
SELECT o.id, count(*), min(i.organization_id), max(i.organization_id)
FROM (VALUES ('org_a'), ('org_b')) AS o (id),
     LATERAL clerk_create_organization_invitation_bulk(o.id, people('each', 11)) AS i
GROUP BY o.id ORDER BY o.id;

-- Thousands of invitations.
SELECT requests AS before FROM counted \gset
SELECT count(*), count(DISTINCT id) AS ids,
       bool_and(email_address = format('thousands-%s@example.com', ordinality)) AS in_order
FROM clerk_create_organization_invitation_bulk('org_thousands', people('thousands', 5000)) WITH ORDINALITY;
SELECT requests - :before AS requests FROM counted;

-- Their list, which is read from a temporary file after the first time.
SET work_mem = '64kB';
SELECT n, (SELECT count(*) FROM clerk_list_organization_invitations('org_thousands')
           WHERE id <> n::text) AS listed
FROM generate_series(1, 3) AS n;
RESET work_mem;

-- White space around an address is removed.
SELECT quote_literal(email_address) AS address FROM clerk_create_organization_invitation_bulk(
    'org_test', people(E'spaced-1@example.com\r\n', E'\t spaced-2@example.com', ' spaced-3@example.com '));

-- Invalid arguments.  Valid elements before them are not sent either.
CREATE FUNCTION attempt(
    invitations jsonb, org_id text DEFAULT 'org_test',
    OUT "SQLSTATE" text, OUT message text, OUT detail text, OUT hint text
)
LANGUAGE sql AS $$
    SELECT "SQLSTATE", message, detail, hint
    FROM error_of(format('SELECT count(*) FROM clerk_create_organization_invitation_bulk(%L, %L)', $2, $1))
$$;
SELECT requests AS before FROM counted \gset
\pset format unaligned
\x on
SELECT * FROM attempt(NULL);
SELECT * FROM attempt('[]', NULL);
SELECT * FROM attempt('[]', 'org_test/..');
SELECT * FROM attempt('[{"email_address": "never@example.com", "role": "org:member", "email": "ann@example.com"}]');
\x off
\pset format aligned
SELECT given, "SQLSTATE", message
FROM (VALUES
    (1, jsonb 'null'), (2, '"text"'), (3, '1'), (4, 'true'),
    (5, '{"email_address": "never@example.com", "role": "org:member"}')) AS g (n, given),
    LATERAL attempt(given)
ORDER BY n;
SELECT n, "SQLSTATE", message, detail
FROM (VALUES
    (1, jsonb 'null'),
    (2, '"never@example.com"'),
    (3, '7'),
    (4, '[]'),
    (5, '[{"email_address": "never@example.com", "role": "org:member"}]'),
    (6, '{}'),
    (11, '{"role": "org:member"}'),
    (12, '{"role": "org:member", "email_address": null}'),
    (13, '{"role": "org:member", "email_address": ""}'),
    (14, '{"role": "org:member", "email_address": "never"}'),
    (15, '{"role": "org:member", "email_address": "never@example.com\nann@example.com"}'),
    (16, '{"role": "org:member", "email_address": 7}'),
    (17, '{"role": "org:member", "email_address": ["never@example.com"]}'),
    (18, '{"role": "org:member", "email_address": {"a": 1}}'),
    (21, '{"email_address": "never@example.com"}'),
    (22, '{"email_address": "never@example.com", "role": null}'),
    (23, '{"email_address": "never@example.com", "role": ""}'),
    (24, '{"email_address": "never@example.com", "role": "org:member\t"}'),
    (25, '{"email_address": "never@example.com", "role": true}'),
    (31, '{"email_address": "never@example.com", "role": "org:member", "inviter_user_id": ""}'),
    (32, '{"email_address": "never@example.com", "role": "org:member", "inviter_user_id": 1}'),
    (33, '{"email_address": "never@example.com", "role": "org:member", "redirect_url": ""}'),
    (34, '{"email_address": "never@example.com", "role": "org:member", "redirect_url": "https://example.com\r\n"}'),
    (41, '{"email_address": "never@example.com", "role": "org:member", "public_metadata": []}'),
    (42, '{"email_address": "never@example.com", "role": "org:member", "public_metadata": "{}"}'),
    (43, '{"email_address": "never@example.com", "role": "org:member", "private_metadata": 1}'),
    (51, '{"email_address": "never@example.com", "role": "org:member", "expires_in_days": "7"}'),
    (52, '{"email_address": "never@example.com", "role": "org:member", "expires_in_days": 0}'),
    (53, '{"email_address": "never@example.com", "role": "org:member", "expires_in_days": 366}'),
    (54, '{"email_address": "never@example.com", "role": "org:member", "expires_in_days": -1}'),
    (55, '{"email_address": "never@example.com", "role": "org:member", "expires_in_days": 7.5}'),
    (56, '{"email_address": "never@example.com", "role": "org:member", "expires_in_days": 4294967303}'),
    (57, '{"email_address": "never@example.com", "role": "org:member", "expires_in_days": 1e1000}'),
    (61, '{"email_address": "never@example.com", "role": "org:member", "notify": "true"}'),
    (62, '{"email_address": "never@example.com", "role": "org:member", "notify": 1}'),
    (71, '{"email_address": "never@example.com", "role": "org:member", "": 1}'),
    (72, '{"email_address": "never@example.com", "role": "org:member", "emailAddress": null}'),
    (73, '{"email_address": "never@example.com", "role": "org:member", "rol": 1}')) AS g (n, element),
    LATERAL attempt(people('unsent-1@example.com', 'unsent-2@example.com') || jsonb_build_array(element))
ORDER BY n;

-- Duplicate addresses, with any case and at any distance.
SELECT "SQLSTATE", message, detail
FROM attempt(people('a@example.com', 'Never@example.com', 'b@example.com', 'b@EXAMPLE.com', 'nevER@example.com'));
SELECT "SQLSTATE", message, detail
FROM attempt(people('unsent', 30) || people('UNSENT-30@example.com') || people('unsent', 1));
SELECT "SQLSTATE", message, detail
FROM attempt(people('a@example.com', 'Never@example.com', ' never@example.com'));

-- Maximum lengths are those of the function for one invitation.
SELECT name, message
FROM (VALUES ('role', 255), ('inviter_user_id', 255), ('redirect_url', 8000), ('email_address', 320)) AS f (name, maximum),
     LATERAL attempt(people('unsent-1@example.com') || jsonb_build_array(
         '{"email_address": "never@example.com", "role": "org:member"}' ||
         jsonb_build_object(name, repeat('@', maximum + 1))));
SELECT requests - :before AS requests FROM counted;
SELECT email_address, expires_at - created_at AS valid_for
FROM clerk_create_organization_invitation_bulk('org_test', '[
    {"email_address": "never@example.com", "role": "org:member", "expires_in_days": 1},
    {"email_address": "longest@example.com", "role": "org:member", "expires_in_days": 365}]');

-- Refusals.  The trace IDs, and the IDs in the warning, are random.
CREATE FUNCTION refusal(
    invitations jsonb, org_id text DEFAULT 'org_test',
    OUT "SQLSTATE" text, OUT message text, OUT detail text, OUT hint text,
    OUT constraint_name text, OUT column_name text
)
LANGUAGE sql AS $$
    SELECT "SQLSTATE", message,
           regexp_replace(detail, 'trace ID [0-9a-f]+(-FRA)?', 'trace ID (id)'),
           hint, constraint_name, column_name
    FROM error_of(format('SELECT count(*) FROM clerk_create_organization_invitation_bulk(%L, %L)', $2, $1))
$$;
\set VERBOSITY terse
\pset format unaligned
\x on

-- A refused request creates none of its ten invitations; other requests do, and
-- the error says so.
SELECT * FROM refusal(people('alone-1@example.com', 'ONE-1@example.com', 'alone-3@example.com'));
SELECT * FROM refusal(people('named', 8) || people('one-1@example.com', 'CASE-3@example.com') || people('others', 14));
SELECT * FROM refusal(people('first', 10) || people('member-ann@example.com'));
SELECT * FROM refusal(people('one', 1) || people('second', 10) || people('member-ann@example.com'));
SELECT * FROM refusal(people('x-error-403-not_allowed_access--1@example.com', 'other@example.com'));
SELECT * FROM refusal(people('one', 1));

-- Refusals that are not about a particular address.
SELECT * FROM refusal(people('nobody', 12), 'org_missing');
SELECT * FROM refusal('[{"email_address": "nobody@example.com", "role": "Member"}]');
SELECT * FROM refusal(people('nobody', 1) || '[{"email_address": "nobody@example.com", "role": "org:missing"}]');
SELECT * FROM refusal(people('x-error-401-clerk_key_invalid--1@example.com', 'nobody@example.com'));
SELECT * FROM refusal(people('x-error-403-organization_membership_quota_exceeded--1@example.com', 'nobody@example.com'));
SELECT * FROM refusal(people('x-error-409-resource_locked--1@example.com', 'nobody@example.com'));
SELECT * FROM refusal(people('x-echo-key@example.com', 'nobody@example.com'));

-- If bulk requests were not atomic, a refused one could create some of its
-- invitations.  This could not be detected.
SELECT "SQLSTATE", detail FROM refusal(people('part-1@example.com', 'x-partly-error-400-bad_request@example.com'));

-- The time to wait.
SELECT * FROM refusal(people('x-429-17@example.com', 'nobody@example.com'));
SELECT * FROM refusal(people('waiting', 10) || people('x-429-17--2@example.com', 'nobody@example.com'));
SELECT "SQLSTATE", hint FROM refusal(people('x-429-none@example.com'));

-- Synchronous calls are counted, but not held back by Clerk's limits.
SELECT endpoint, closed_until > now() AS closed FROM clerk_rate_limit_status();
SELECT status FROM clerk_create_organization_invitation_bulk('org_test', people('held-back', 1));
SET clerk_invite.bulk_requests_per_hour = 0;
SELECT status FROM clerk_create_organization_invitation_bulk('org_test', people('no-budget', 1));
RESET clerk_invite.bulk_requests_per_hour;

-- Requests that are not sent.
SELECT "SQLSTATE", message, hint, detail ~ '^Reason: .*\. Nothing was created\.$' AS with_reason
FROM error_of($$
    SET clerk_invite.api_url = 'http://127.0.0.1:1';
    SELECT clerk_create_organization_invitation_bulk('org_test', people('not-sent', 2))$$);
SELECT "SQLSTATE", message, detail, hint
FROM error_of($$
    SET clerk_invite.secret_key_file = '/nonexistent/clerk.key';
    SELECT clerk_create_organization_invitation_bulk('org_test', people('not-sent', 2))$$);
RESET clerk_invite.api_url;
RESET clerk_invite.secret_key_file;

-- Unknown outcomes.
SELECT * FROM refusal(people('x-500@example.com', 'unknown@example.com'));
SELECT * FROM refusal(people('x-500-after@example.com', 'unknown-1@example.com'));
SELECT "SQLSTATE", message, hint FROM refusal(people('x-half-body@example.com', 'unknown-2@example.com'));
SELECT "SQLSTATE", message, hint FROM refusal(people('x-drop-after@example.com', 'unknown-3@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('x-truncated@example.com', 'unknown-4@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('x-html-200@example.com', 'unknown@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('x-empty-200@example.com', 'unknown@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('x-not-object@example.com', 'unknown@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('x-html-502@example.com', 'unknown@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('x-redirect@example.com', 'unknown@example.com'));

-- An unknown outcome takes precedence over refusals.
SELECT * FROM refusal(people('one', 1) || people('worst', 9) || people('x-500-after--2@example.com')
                      || people('worse', 9) || people('created', 5));

-- Responses that do not match the request.  The invitations that they name were
-- created nevertheless.
SELECT * FROM refusal(people('left-1@example.com', 'x-left-out@example.com', 'left-3@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('else-1@example.com', 'x-someone-else--1@example.com', 'x-someone-else--2@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('twice-1@example.com', 'x-twice@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('no-1@example.com', 'x-without-email_address@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('no-2@example.com', 'x-without-id@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('type-1@example.com', 'x-wrong-type-role_name@example.com'));
SELECT "SQLSTATE", detail FROM refusal(people('type-2@example.com', 'x-wrong-type-data@example.com'));
\x off

-- If a single address is left on both sides, the two belong together.
SELECT email_address FROM clerk_create_organization_invitation_bulk(
    'org_test', people('else-2@example.com', 'x-someone-else--3@example.com', 'else-3@example.com'));
\pset format aligned

-- Responses with missing or additional fields.
SELECT email_address, status, public_metadata, created_at IS NOT NULL AS created
FROM clerk_create_organization_invitation_bulk('org_test', people('x-minimal@example.com', 'little@example.com'));
SELECT email_address, status
FROM clerk_create_organization_invitation_bulk('org_test', people('x-extra@example.com', 'much@example.com'));

-- After a failure no further request is started: of five requests, one at a
-- time, the third is the last one sent.
SET clerk_invite.max_concurrent_requests = 1;
SELECT requests AS before FROM counted \gset
SELECT "SQLSTATE", detail FROM refusal(people('halt', 20) || people('x-429-17--halt@example.com') || people('never', 29));
SELECT requests - :before AS requests FROM counted;
SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', people('never', 29));
RESET clerk_invite.max_concurrent_requests;

-- A rollback does not undo invitations.
BEGIN;
SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', people('rolled-back', 12));
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', people('savepoint', 2));
ROLLBACK TO s;
SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', people('kept', 2));
COMMIT;

-- Read-only transactions do not invite anyone, and neither do parallel workers,
-- even if somebody has declared the function parallel safe.
BEGIN READ ONLY;
SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', people('read-only', 2));
ROLLBACK;
SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', people('read-only', 2));
BEGIN;
ALTER FUNCTION clerk_create_organization_invitation_bulk(text, jsonb) PARALLEL SAFE;
SET LOCAL max_parallel_workers_per_gather = 2;
SELECT set_config(name, 'on', true) AS parallel FROM pg_settings
WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', '[{"email_address": "p@example.com", "role": "org:member"}]');
ROLLBACK;

-- Only superusers can execute the function until it is granted.
CREATE ROLE regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', '[]');
RESET ROLE;
GRANT EXECUTE ON FUNCTION clerk_create_organization_invitation_bulk TO regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT email_address FROM clerk_create_organization_invitation_bulk('org_test', people('granted', 2));
RESET ROLE;
REVOKE EXECUTE ON FUNCTION clerk_create_organization_invitation_bulk FROM regress_clerk_invite;
DROP ROLE regress_clerk_invite;
\set VERBOSITY default

DROP FUNCTION attempt(jsonb, text);
DROP FUNCTION refusal(jsonb, text);
DROP VIEW counted;
DROP TABLE people;
DROP FUNCTION people(text, integer);
DROP FUNCTION people(text[]);
DROP FUNCTION error_of(text);
DROP EXTENSION clerk_invite;
