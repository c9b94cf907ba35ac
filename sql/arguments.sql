--
-- Arguments that are rejected before anything is sent, and arguments that reach
-- Clerk unchanged.
--
-- All calls that must be rejected use never@example.com.  The last call invites
-- that address, which would fail if one of them had been sent.
--
CREATE EXTENSION clerk_invite;
\pset null (null)

-- The status of the new invitation, or the error.  Hides characters that the
-- database encoding may lack, or that would break the line.
CREATE FUNCTION attempt(
    org_id text DEFAULT 'org_test',
    inviter text DEFAULT NULL,
    email text DEFAULT 'never@example.com',
    role text DEFAULT 'org:member',
    redirect text DEFAULT NULL,
    metadata jsonb DEFAULT NULL,
    private_metadata jsonb DEFAULT NULL,
    expires_in_days integer DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT status
            FROM clerk_create_organization_invitation(
                $1, $2, $3, $4, $5, $6, $7, $8));
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ': ' || regexp_replace(SQLERRM, '[^ -~]+', '?', 'g');
END
$$;

-- Converts JSON escapes to text; null if the database encoding lacks one of the
-- characters.
CREATE FUNCTION unescaped(text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ('"' || $1 || '"')::jsonb #>> '{}';
EXCEPTION WHEN untranslatable_character OR feature_not_supported THEN
    RETURN NULL;
END
$$;

-- Required arguments that are null.
SELECT attempt(org_id => NULL);
SELECT attempt(email => NULL);
SELECT attempt(role => NULL);

-- The inviter may be null.
SELECT attempt(inviter => NULL, email => 'nobody@example.com');

-- Empty arguments.
SELECT attempt(org_id => '');
SELECT attempt(inviter => '');
SELECT attempt(email => '');
SELECT attempt(role => '');
SELECT attempt(redirect => '');

-- Organization IDs that could change the path of the request.
SELECT attempt(org_id => org_id)
FROM (VALUES
    ('../users'),
    ('..'),
    ('.'),
    ('org_test/../users'),
    ('org_test/invitations'),
    ('a/b?c#d'),
    ('org_test?'),
    ('org_test#'),
    ('org_1%2f..'),
    ('org%00'),
    ('org 1'),
    (' org_test'),
    ('org_test '),
    ('org_test;'),
    ('org@test'),
    ('org\test'),
    ('org"test'),
    ('{org_test}'),
    (coalesce(unescaped('org_t\u00e9st'), 'org_t?st')),
    (coalesce(unescaped('org_\uff11'), 'org_?')),
    (coalesce(unescaped('org\u2044test'), 'org?test'))) AS refused (org_id);

-- Letters, digits, underscores and hyphens are left for Clerk to check.
SELECT attempt(org_id => 'org-test_X9', email => 'hyphen@example.com');

-- Control characters at any position.
CREATE FUNCTION with_control_character(
    code integer, place text, value text
) RETURNS text
LANGUAGE sql AS $$
    SELECT CASE $2
        WHEN 'first' THEN chr($1) || $3
        WHEN 'last' THEN $3 || chr($1)
        ELSE overlay($3 PLACING chr($1) FROM 4 FOR 0)
    END
$$;
WITH every_one AS (
    SELECT argument, code, place,
           CASE argument
               WHEN 'org_id' THEN attempt(
                   org_id => with_control_character(code, place, 'org_test'))
               WHEN 'inviter' THEN attempt(
                   inviter => with_control_character(code, place, 'user_ines'))
               WHEN 'email' THEN attempt(
                   email => with_control_character(code, place, 'never@example.com'))
               WHEN 'role' THEN attempt(
                   role => with_control_character(code, place, 'org:member'))
               WHEN 'redirect' THEN attempt(
                   redirect => with_control_character(code, place, 'https://example.com'))
           END AS outcome
    FROM unnest(ARRAY['org_id', 'inviter', 'email', 'role', 'redirect']) AS argument,
         (SELECT generate_series(1, 31) UNION SELECT 127) AS c (code),
         unnest(ARRAY['first', 'middle', 'last']) AS place
    -- White space around an address is allowed, and removed.
    WHERE argument <> 'email' OR place = 'middle' OR code NOT BETWEEN 9 AND 13
)
SELECT argument, outcome, count(*)
FROM every_one
GROUP BY argument, outcome
ORDER BY argument COLLATE "C", outcome COLLATE "C";

-- Maximum lengths in characters: one character more is rejected.
CREATE FUNCTION attempt_of_length(argument text, length integer) RETURNS text
LANGUAGE sql AS $$
    SELECT CASE argument
        WHEN 'org_id' THEN attempt(org_id => repeat('x', length))
        WHEN 'inviter' THEN attempt(inviter => repeat('x', length))
        WHEN 'email' THEN attempt(email => repeat('x', length - 12) || '@example.com')
        WHEN 'role' THEN attempt(role => repeat('x', length))
        WHEN 'redirect' THEN attempt(email => 'long@example.com',
            redirect => 'https://example.com/' || repeat('x', length - 20))
    END
$$;
SELECT argument, maximum,
       attempt_of_length(argument, maximum) !~ 'argument' AS taken,
       attempt_of_length(argument, maximum + 1) AS refused,
       attempt_of_length(argument, 9000000) = attempt_of_length(argument, maximum + 1) AS very_long
FROM (VALUES ('org_id', 255), ('inviter', 255), ('email', 320), ('role', 255),
             ('redirect', 8000)) AS a (argument, maximum);
\i test/error_of.sql
SELECT statement, message
FROM unnest(ARRAY[
    $$clerk_get_organization_invitation(repeat('x', 256), 'orginv_x')$$,
    $$clerk_get_organization_invitation('org_test', repeat('x', 256))$$,
    $$clerk_revoke_organization_invitation(repeat('x', 256), 'orginv_x')$$,
    $$clerk_revoke_organization_invitation('org_test', repeat('x', 256))$$,
    $$clerk_revoke_organization_invitation('org_test', 'orginv_x', repeat('x', 256))$$,
    $$clerk_list_organization_invitations(repeat('x', 256))$$,
    $$clerk_list_organization_invitations('org_test', email => repeat('x', 321))$$,
    $$clerk_list_organization_invitations('org_test', ARRAY[repeat('x', 256)])$$,
    $$clerk_list_organization_invitations('org_test', array_fill('pending'::text, ARRAY[101]))$$,
    $$clerk_list_instance_organization_invitations(ARRAY[repeat('x', 256)])$$,
    $$clerk_list_instance_organization_invitations(query => repeat('x', 321))$$,
    $$clerk_create_organization_invitation_bulk(repeat('x', 256), '[]')$$
]) AS statement, error_of('SELECT ' || statement);
DROP FUNCTION error_of(text);
DROP FUNCTION attempt_of_length(text, integer);

-- As from a careless import: two lines in one field, or an injected header.
SELECT attempt(email => E'never@example.com\nbob@example.com');
SELECT attempt(role => E'org:member\r\nX-Evil: 1');

-- Settings cannot inject a header either.
\set VERBOSITY sqlstate
SET clerk_invite.api_version = E'2026-05-12\r\nX-Evil: 1';
SET clerk_invite.api_version = E'2026-05-12\n';
\set VERBOSITY default
SELECT code, attempt()
FROM unnest(ARRAY[10, 13]) AS code,
     set_config('clerk_invite.api_url',
                'http://127.0.0.1/' || chr(code) || 'X-Evil: 1', false);
RESET clerk_invite.api_url;

-- An address without @ is rejected; everything else is left for Clerk to check.
SELECT attempt(email => 'never');
SELECT attempt(email => 'never.example.com');
SELECT attempt(email => '@');
SELECT attempt(email => 'never @example.com');

-- Metadata must be an object.
SELECT metadata, attempt(metadata => metadata) AS public,
       attempt(private_metadata => metadata) AS private
FROM (VALUES
    (jsonb '[]'),
    ('[{"a": 1}]'),
    ('"text"'),
    ('1'),
    ('true'),
    ('null')) AS refused (metadata);
SELECT attempt(metadata => '{}', private_metadata => '{}',
               email => 'empty-objects@example.com');

-- Days until expiration.
SELECT days, attempt(expires_in_days => days)
FROM unnest(ARRAY[0, 366, -1, 2147483647, -2147483648]) AS days;
SELECT days, expires_at - created_at AS valid_for
FROM unnest(ARRAY[1, 30, 365, NULL]) AS days,
     LATERAL clerk_create_organization_invitation(
         'org_test', NULL, format('days-%s@example.com', days), 'org:member',
         expires_in_days => days)
ORDER BY days;

-- Addresses in any script are sent and returned unchanged.  Those that the
-- database encoding cannot represent are skipped.
CREATE FUNCTION crosses_unchanged(address text) RETURNS boolean
LANGUAGE sql AS $$
    SELECT address IS NULL
        OR (SELECT email_address = address
            FROM clerk_create_organization_invitation(
                'org_test', NULL, address, 'org:member'))
$$;
SELECT script, crosses_unchanged(unescaped(escaped))
FROM (VALUES
    ('Latin', 'Ann.O''Hara+tag%x!#$&*/=?^_`{|}~-@Example.COM'),
    ('quotes and backslashes', '\"an\\n\"<>&@example.com'),
    ('Latin with accents', 'j\u00fcrgen.\u00d8@m\u00fcller.example'),
    ('combining accents', 'ju\u0308rgen@example.com'),
    ('Greek', '\u03b4\u03bf\u03ba\u03b9\u03bc\u03ae@\u03c0\u03b1\u03c1\u03ac\u03b4\u03b5\u03b9\u03b3\u03bc\u03b1.example'),
    ('Cyrillic', '\u043f\u043e\u0447\u0442\u0430@\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444'),
    ('Hebrew', '\u05d3\u05d5\u05d0\u05e8@example.com'),
    ('Arabic', '\u0645\u062b\u0627\u0644@\u0645\u0648\u0642\u0639.example'),
    ('Devanagari', '\u0921\u093e\u0915@\u0909\u0926\u093e\u0939\u0930\u0923.example'),
    ('Thai', '\u0e17\u0e14\u0e2a\u0e2d\u0e1a@example.com'),
    ('Chinese', '\u6d4b\u8bd5@\u4f8b\u5b50.\u516c\u53f8'),
    ('Japanese', '\u5c71\u7530\u3055\u3093@\u30e1\u30fc\u30eb.example'),
    ('Korean', '\ud14c\uc2a4\ud2b8@\uc608.example'),
    ('beyond the first plane', '\ud83d\ude00\ud840\udc00@\ud83c\udf55.example'))
    AS addresses (script, escaped);

-- Unicode white space around an address is removed, and so are some other
-- invisible characters; white space within an address is for Clerk to check.
-- Characters that the database encoding lacks are skipped.
CREATE FUNCTION is_taken_off(space text) RETURNS boolean
LANGUAGE sql AS $$
    SELECT space IS NULL
        OR (SELECT email_address = format('spaced-%s@example.com', md5(space))
            FROM clerk_create_organization_invitation('org_test', NULL,
                format('%1$s %1$sspaced-%2$s@example.com %1$s%1$s', space, md5(space)),
                'org:member'))
$$;
SELECT name, is_taken_off(unescaped(escaped))
FROM (VALUES
    ('space', ' '), ('tab', '\t'), ('line break', '\n'), ('vertical tab', '\u000b'),
    ('form feed', '\f'), ('Windows line break', '\r\n'), ('next line', '\u0085'),
    ('no-break space', '\u00a0'), ('ogham space', '\u1680'), ('en quad', '\u2000'),
    ('thin space', '\u2009'), ('zero width space', '\u200b'), ('line separator', '\u2028'),
    ('paragraph separator', '\u2029'), ('narrow no-break space', '\u202f'),
    ('mathematical space', '\u205f'), ('ideographic space', '\u3000'),
    ('byte order mark', '\ufeff')) AS spaces (name, escaped);
SELECT attempt(email => E' \t\r\n'), attempt(email => E' never@\texample.com '),
       attempt(email => ' never @example.com ');
-- A joiner is invisible, too, but remains, because some scripts need it.
SELECT crosses_unchanged(unescaped('\u200djoined@example.com\u200d'));
-- White space around the address to filter by is removed as well.
SELECT email_address
FROM clerk_list_organization_invitations('org_test', email => E'\tspaced-' || md5(' ') || E'@example.com\n');

-- None of the rejected calls was sent.
SELECT attempt();

DROP FUNCTION attempt(text, text, text, text, text, jsonb, jsonb, integer);
DROP FUNCTION unescaped(text);
DROP FUNCTION with_control_character(integer, text, text);
DROP FUNCTION crosses_unchanged(text);
DROP FUNCTION is_taken_off(text);
DROP EXTENSION clerk_invite;
