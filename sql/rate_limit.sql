--
-- The request budgets: settings and status.
--
CREATE EXTENSION clerk_invite;

-- The settings, their ranges, and who can change them.
SELECT name, setting, unit, context, min_val, max_val
FROM pg_settings
WHERE name ~ '^clerk_invite\.(.*_per_hour|rate_limit_window)$'
ORDER BY name COLLATE "C";
\set VERBOSITY sqlstate
SET clerk_invite.single_requests_per_hour = -1;
SET clerk_invite.bulk_requests_per_hour = -1;
SET clerk_invite.single_requests_per_hour = 0;
SET clerk_invite.bulk_requests_per_hour = 2147483647;
SET clerk_invite.rate_limit_window = '2s';
ALTER SYSTEM SET clerk_invite.rate_limit_window = '999ms';
CREATE ROLE regress_clerk_invite;
SET ROLE regress_clerk_invite;
SET clerk_invite.single_requests_per_hour = 1000;
SET clerk_invite.bulk_requests_per_hour = 1000;
SELECT * FROM clerk_rate_limit_status();
\set VERBOSITY default
RESET ROLE;
GRANT EXECUTE ON FUNCTION clerk_rate_limit_status TO regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT count(*) FROM clerk_rate_limit_status();
RESET ROLE;

-- A limit of 0 never allows a request; the maximum limit works.
SELECT endpoint, requests_per_window, remaining > 0 AS remains, available_at,
       closed_until
FROM clerk_rate_limit_status();
RESET clerk_invite.single_requests_per_hour;
RESET clerk_invite.bulk_requests_per_hour;

-- A call is counted, and a 429 closes the endpoint.
SELECT used AS used_before FROM clerk_rate_limit_status() WHERE endpoint = 'single' \gset
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'ann@example.com', 'org:member');
SELECT endpoint, used - :used_before * (endpoint = 'single')::integer AS used,
       used + remaining = requests_per_window AS adds_up, available_at, closed_until
FROM clerk_rate_limit_status();
\set VERBOSITY sqlstate
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'x-429-600@example.com', 'org:member');
\set VERBOSITY default
SELECT endpoint, closed_until > now() + interval '590 seconds' AS closed,
       available_at = closed_until AS available_then
FROM clerk_rate_limit_status();

-- Without a key, there is no instance to report on.
SET clerk_invite.secret_key_file = '/nonexistent/clerk.key';
SELECT * FROM clerk_rate_limit_status();
RESET clerk_invite.secret_key_file;

DROP EXTENSION clerk_invite;
DROP ROLE regress_clerk_invite;
