--
-- The error for each of Clerk's refusals: SQLSTATE, message, detail, hint; the
-- constraint name is Clerk's code, and the column name the field in question.
--
CREATE EXTENSION clerk_invite;
\set ECHO none
\i test/error_of.sql
\set ECHO all

-- The error of this invitation.  Hides the trace ID, which is random.
CREATE FUNCTION refusal(
    email text,
    inviter text DEFAULT NULL,
    org_id text DEFAULT 'org_test',
    role text DEFAULT 'org:member',
    metadata jsonb DEFAULT NULL,
    OUT "SQLSTATE" text, OUT message text, OUT detail text, OUT hint text,
    OUT constraint_name text, OUT column_name text
)
LANGUAGE sql AS $$
    SELECT "SQLSTATE", message,
           regexp_replace(detail, 'trace ID [0-9a-f]{32}', 'trace ID (32 digits)'),
           hint, constraint_name, column_name
    FROM error_of(format(
        'SELECT clerk_create_organization_invitation('
        'org_id => %L, inviter => %L, email => %L, role => %L, metadata => %L)',
        $3, $2, $1, $4, $5))
$$;

\pset format unaligned
\x on

-- Every known code.
SELECT r.*
FROM (VALUES
    (1, 400, 'organization_invitation_not_unique'),
    (2, 400, 'duplicate_record'),
    (3, 400, 'already_a_member_in_organization'),
    (4, 400, 'request_body_invalid'),
    (5, 400, 'bulk_size_exceeded'),
    (6, 400, 'api_version_invalid'),
    (7, 400, 'bad_request'),
    (8, 400, 'dev_monthly_email_limit_exceeded'),
    (9, 401, 'clerk_key_invalid'),
    (10, 401, 'authorization_header_format_invalid'),
    (11, 401, 'could_not_authenticate_request'),
    (12, 401, 'authentication_invalid'),
    (13, 402, 'insufficient_seats'),
    (14, 402, 'unsupported_subscription_plan_features'),
    (15, 403, 'organization_membership_quota_exceeded'),
    (16, 403, 'not_a_member_in_organization'),
    (17, 403, 'missing_organization_permission'),
    (18, 403, 'authorization_invalid'),
    (19, 403, 'organization_not_enabled_in_instance'),
    (20, 403, 'not_allowed_access'),
    (21, 403, 'quota_exceeded'),
    (22, 404, 'resource_not_found'),
    (23, 404, 'organization_not_found_or_unauthorized'),
    (24, 404, 'organization_invitation_not_pending'),
    (25, 409, 'conflict'),
    (26, 409, 'resource_locked'),
    (27, 409, 'role_migration_in_progress'),
    (28, 413, 'request_body_too_large'),
    (29, 415, 'unsupported_content_type'),
    (30, 422, 'form_param_missing'),
    (31, 422, 'form_param_unknown'),
    (32, 422, 'form_param_type_invalid'),
    (33, 422, 'form_param_format_invalid'),
    (34, 422, 'form_param_value_invalid'),
    (35, 422, 'form_param_exceeds_allowed_size'),
    (36, 422, 'exclusive_organization_membership'),
    (37, 429, 'too_many_requests'),
    (38, 500, 'internal_clerk_error'),
    (39, 502, 'bad_gateway'),
    (40, 503, 'service_unavailable'),
    (41, 503, 'maintenance_mode'),
    (42, 504, 'gateway_timeout')) AS e (number, status, code),
    LATERAL refusal(format('x-error-%s-%s@example.com', status, code)) AS r
ORDER BY number;

-- The time to wait: seconds, missing, or a date that is two seconds ahead.
SELECT "SQLSTATE", message, hint FROM refusal('x-429-17@example.com');
SELECT "SQLSTATE", message, hint FROM refusal('x-429-3600@example.com');
SELECT "SQLSTATE", message, hint FROM refusal('x-429-none@example.com');
-- (Three times, because on a slow machine the date may have passed.)
SELECT bool_or(hint ~ '^Nothing was created\. Try again in [1-3] seconds?\.$') AS counts_seconds_until_date
FROM generate_series(1, 3) AS n, LATERAL refusal(format('x-429-date--%s@example.com', n));
SELECT "SQLSTATE", message, detail, hint, constraint_name
FROM refusal('x-429-empty@example.com');

\x off
\pset format aligned
\pset null (null)

-- For a code that is unknown, or unknown with this status, the status decides.
SELECT status, code, "SQLSTATE", constraint_name = code AS names_code
FROM (VALUES
    (400, 'never_heard_of'),
    (401, 'never_heard_of'),
    (402, 'never_heard_of'),
    (403, 'never_heard_of'),
    (404, 'never_heard_of'),
    (405, 'method_not_allowed'),
    (409, 'never_heard_of'),
    (410, 'gone'),
    (413, 'never_heard_of'),
    (415, 'never_heard_of'),
    (418, 'never_heard_of'),
    (422, 'never_heard_of'),
    (429, 'never_heard_of'),
    (451, 'never_heard_of'),
    (500, 'never_heard_of'),
    (501, 'never_heard_of'),
    (599, 'never_heard_of')) AS e (status, code),
    LATERAL refusal(format('x-error-%s-%s--fallback@example.com', status, code)) AS r
ORDER BY status;

-- Statuses that take precedence over codes.
SELECT status, code, "SQLSTATE"
FROM (VALUES
    (401, 'duplicate_record'),
    (429, 'quota_exceeded'),
    (429, 'organization_invitation_not_unique'),
    (500, 'organization_invitation_not_unique')) AS e (status, code),
    LATERAL refusal(format('x-error-%s-%s--status@example.com', status, code)) AS r
ORDER BY status, code;

-- Codes that take precedence over the status, with any 4xx status.
SELECT status, code, "SQLSTATE"
FROM (VALUES
    (409, 'organization_invitation_not_unique'),
    (422, 'duplicate_record'),
    (403, 'already_a_member_in_organization'),
    (422, 'organization_membership_quota_exceeded'),
    (402, 'quota_exceeded')) AS e (status, code),
    LATERAL refusal(format('x-error-%s-%s--code@example.com', status, code)) AS r
ORDER BY status, code;

-- Refusals caused by real mistakes.
\pset format unaligned
\x on
SELECT "SQLSTATE" FROM refusal('twice@example.com');
SELECT * FROM refusal('twice@example.com');
SELECT * FROM refusal('Twice@Example.com');
SELECT * FROM refusal('member-ann@example.com');
SELECT * FROM refusal('ann@example.com', org_id => 'org_missing');
SELECT * FROM refusal('ann@example.com', inviter => 'user_stranger');
SELECT * FROM refusal('ann@example.com', inviter => 'user_missing');
SELECT * FROM refusal('ann@example.com', role => 'org:missing');
SELECT * FROM refusal('ann@example.com', role => 'Member');
SELECT * FROM refusal('ann@@example.com');
SELECT * FROM refusal('ann@example.com', metadata => jsonb_build_object('a', repeat('x', 8192)));

-- None of them had an effect.
SELECT "SQLSTATE" FROM refusal('ann@example.com');

-- As displayed by psql.
\x off
\pset format aligned
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'x-no-ids@example.com', 'org:member');

DROP FUNCTION refusal(text, text, text, text, jsonb);
DROP FUNCTION error_of(text);
DROP EXTENSION clerk_invite;
