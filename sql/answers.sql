--
-- Responses that differ from the documentation, and lost responses.
--
-- What Clerk did is then unknown, unless the response is a refusal.  No
-- response affects the rest of the session: after each attempt, a valid
-- invitation must succeed.
--
CREATE EXTENSION clerk_invite;
\set ECHO none
\i test/error_of.sql
\set ECHO all
-- So that the nesting that is tested is too deep for every server.
SET max_stack_depth = '1MB';

-- Removes secrets, which should not be in the text anyway, so that they are not
-- shown if this test fails.
CREATE FUNCTION without_secrets(text) RETURNS text
LANGUAGE sql AS $$
    SELECT regexp_replace(regexp_replace($1,
        'sk_test_\w*', '(SECRET KEY)', 'g'),
        'ticket=[^* ]+', '(SECRET TICKET)', 'g')
$$;

-- The results of an invitation for x-BEHAVIOUR@example.com and of the one after
-- it.  Hides the trace ID, which is random, libcurl's messages, which depend on
-- its version, and most of a frequent hint.
CREATE FUNCTION attempt(
    behaviour text,
    OUT "SQLSTATE" text, OUT message text, OUT detail text, OUT hint text,
    OUT constraint_name text, OUT column_name text, OUT next_one text
)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT e.*
    INTO "SQLSTATE", message, detail, hint, constraint_name, column_name
    FROM error_of(format(
        'SELECT clerk_create_organization_invitation(''org_test'', NULL, %L, ''org:member'')',
        format('x-%s@example.com', behaviour))) AS e;
    message := without_secrets(message);
    detail := without_secrets(detail);
    hint := without_secrets(hint);
    constraint_name := without_secrets(constraint_name);
    column_name := without_secrets(column_name);
    detail := regexp_replace(detail, 'trace ID [0-9a-f]{32}', 'trace ID (32 digits)');
    detail := regexp_replace(detail, 'trace ID [0-9a-f]{16}-FRA', 'trace ID (of cf-ray)');
    IF detail NOT LIKE '%the response is too large%' THEN
        detail := regexp_replace(detail, '(Reason: ).*\.$', '\1(its words).');
    END IF;
    hint := regexp_replace(hint, 'orginv_\w{27}', '(id)');
    hint := regexp_replace(hint, '(check whether the invitation exists).*', '\1 ...');
    SELECT status INTO next_one
    FROM clerk_create_organization_invitation(
        'org_test', NULL, format('after-%s@example.com', behaviour), 'org:member');
END
$$;

\pset format unaligned
\x on

-- Pages that do not come from Clerk.
SELECT * FROM attempt('html-502');
SELECT * FROM attempt('html-200');
SELECT * FROM attempt('html-404');
SELECT * FROM attempt('redirect');

-- Empty bodies.
SELECT * FROM attempt('empty-200');
SELECT * FROM attempt('empty-400');
SELECT * FROM attempt('empty-502');

-- Truncated JSON, and a truncated body.
SELECT * FROM attempt('truncated');
SELECT * FROM attempt('half-body');

-- JSON that is not an invitation.
SELECT * FROM attempt('nested');
SELECT * FROM attempt('not-object');
SELECT * FROM attempt('wrong-type-id');
SELECT * FROM attempt('wrong-type-email_address');
SELECT * FROM attempt('wrong-type-inviter_id');
SELECT * FROM attempt('wrong-type-url');
SELECT * FROM attempt('wrong-type-created_at');
SELECT * FROM attempt('error-200-strange');

-- Characters that are not allowed in a response, or in a text value.
SELECT * FROM attempt('nul');
SELECT * FROM attempt('escaped-nul');
SELECT * FROM attempt('not-utf8');

-- Times outside the supported range.
SELECT * FROM attempt('odd-times');

-- Responses that are too large.
SELECT * FROM attempt('huge');
SELECT * FROM attempt('huge-header');

-- Connections closed or reset, before and after the request was processed.
SELECT * FROM attempt('drop');
SELECT * FROM attempt('drop-after');
SELECT * FROM attempt('reset');
SELECT * FROM attempt('reset-after');
SELECT * FROM attempt('500-after');

-- Refusals with more, fewer or other fields than documented.
SELECT * FROM attempt('several-errors');
SELECT * FROM attempt('no-meta');
SELECT * FROM attempt('no-trace');
SELECT * FROM attempt('no-ids');
SELECT * FROM attempt('errors-not-array');
SELECT * FROM attempt('errors-empty');

-- The secret key, and the ticket in an invitation's url, are not disclosed.
SELECT * FROM attempt('echo-key');
SELECT "SQLSTATE", message, regexp_replace(detail, '\?\*+', '?(asterisks)') AS detail,
       hint, constraint_name, column_name, next_one
FROM attempt('echo-url');
SELECT behaviour, r::text LIKE '%(SECRET%' AS gives_secret_away
FROM unnest(ARRAY['echo-key--2', 'echo-url--2']) AS behaviour,
     LATERAL attempt(behaviour) AS r;

\x off
\pset format aligned

-- A second attempt shows what happened: an invitation that was created before
-- the response was lost is pending, and Clerk refuses a second one.
CREATE FUNCTION status_of_second_try(behaviour text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    address text := format('x-%s@example.com', behaviour);
    reason text;
BEGIN
    BEGIN
        PERFORM clerk_create_organization_invitation(
            'org_test', NULL, address, 'org:member');
        RETURN 'was not lost';
    EXCEPTION WHEN transaction_resolution_unknown THEN
        NULL;
    END;
    RETURN (SELECT status
            FROM clerk_create_organization_invitation(
                'org_test', NULL, address, 'org:member'));
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS reason = CONSTRAINT_NAME;
    RETURN reason;
END
$$;
SELECT behaviour, status_of_second_try(behaviour)
FROM unnest(ARRAY[
    'drop-once', 'reset-once', '500-once', 'html-502-once',
    'drop-after-once', 'reset-after-once', '500-after-once',
    'html-502-after-once', 'empty-200-after-once',
    'half-body-once', 'truncated-once', 'nul-once', 'not-utf8-once',
    'wrong-type-url-once', 'odd-times-once', 'huge-header-once']) AS behaviour;

-- Missing fields become null, and additional fields are ignored.
\pset null (null)
\x on
SELECT id ~ '^orginv_' AS id_is_clerks, organization_id, email_address, role,
       role_name, status, inviter_id, url, public_metadata, private_metadata,
       public_inviter_data, public_organization_data,
       created_at IS NOT NULL AS created_at_is_given,
       updated_at IS NOT NULL AS updated_at_is_given, expires_at
FROM clerk_create_organization_invitation(
    'org_test', 'user_ines', 'x-minimal@example.com', 'org:member');
SELECT organization_id, email_address, role, role_name, status
FROM clerk_create_organization_invitation(
    'org_test', 'user_ines', 'x-extra@example.com', 'org:member');
\x off

-- Times have milliseconds, which are preserved.  (It is unlikely that all ten
-- are whole seconds.)
SELECT bool_and(created_at BETWEEN clock_timestamp() - interval '1 minute'
                    AND clock_timestamp() + interval '1 minute') AS just_now,
       bool_and(created_at = date_trunc('milliseconds', created_at)) AS milliseconds,
       bool_or(created_at <> date_trunc('second', created_at)) AS fractions,
       bool_and(expires_at - created_at = interval '30 days') AS exact
FROM generate_series(1, 10) AS n,
     LATERAL clerk_create_organization_invitation(
         'org_test', NULL, format('time-%s@example.com', n), 'org:member');

DROP FUNCTION attempt(text);
DROP FUNCTION without_secrets(text);
DROP FUNCTION error_of(text);
DROP FUNCTION status_of_second_try(text);
DROP EXTENSION clerk_invite;
