--
-- The progress view of the outbox: its numbers, its estimate, and who can read
-- it.
--
CREATE EXTENSION clerk_invite;

-- In a session that has not loaded the library, with no open rows.
\connect -
SELECT * FROM clerk_invitation_progress;

-- Counts by state; rows that are due, and for how long.
BEGIN;
INSERT INTO clerk_invitation_outbox
    (organization_id, email_address, role, state, send_after, next_attempt_at)
SELECT 'org_test', state || i || '@example.com', 'org:member', state,
       CASE WHEN i = 1 THEN timestamptz '2040-01-01 00:00+00'
            ELSE now() - interval '1 hour' + i * interval '1 s' END,
       CASE WHEN i = 2 AND state <> 'sent' THEN now() - interval '2 hours 3 minutes' END
FROM unnest(ARRAY['sent', 'skipped', 'failed', 'canceled', 'queued', 'sending',
                  'verifying']) WITH ORDINALITY AS s (state, n),
     generate_series(1, n) AS i;
SELECT * FROM clerk_invitation_progress;
COMMIT;
DELETE FROM clerk_invitation_outbox WHERE state = 'queued';
SELECT queued, due, time_to_empty FROM clerk_invitation_progress;
TRUNCATE clerk_invitation_outbox;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
VALUES ('org_test', 'later@example.com', 'org:member', now() + interval '1 day');
SELECT queued, due, overdue, time_to_empty FROM clerk_invitation_progress;

-- In days and whole seconds.
BEGIN;
UPDATE clerk_invitation_outbox SET send_after = now() - interval '75 hours 0.9 seconds';
SELECT overdue FROM clerk_invitation_progress;
COMMIT;

-- A row fits in 120 columns with counts of five digits and times in ISO style,
-- unless an invitation has been due for days.
SELECT sum(greatest(length(attname),
                    CASE format_type(atttypid, NULL)
                        WHEN 'bigint' THEN length('10000')
                        WHEN 'interval' THEN length(CASE attname
                            WHEN 'overdue' THEN '15:00:00' ELSE '1 day 15:00:00' END)
                        ELSE length('250 + 50')
                    END) + 3) - 1 <= 120 AS fits
FROM pg_attribute
WHERE attrelid = 'clerk_invitation_progress'::regclass AND attnum > 0;

-- The estimate, with 250 single requests and 50 bulk requests an hour, none of
-- them used so far.
CREATE FUNCTION time_to_empty(organizations integer, invitations integer,
                              must_go_alone integer DEFAULT 0)
RETURNS interval LANGUAGE sql AS $$
    TRUNCATE clerk_invitation_outbox;
    INSERT INTO clerk_invitation_outbox
        (organization_id, email_address, role, send_alone)
    SELECT 'org_' || o, i || '@example.com', 'org:member', i <= must_go_alone
    FROM generate_series(1, organizations) AS o, generate_series(1, invitations) AS i;
    SELECT time_to_empty FROM clerk_invitation_progress
$$;
SELECT time_to_empty(1, 750) AS what_an_hour_allows,
       time_to_empty(1, 1500) AS twice_that,
       time_to_empty(1, 3000) AS one_organization,
       time_to_empty(3000, 1) AS an_organization_each,
       time_to_empty(200, 5) AS fives,
       time_to_empty(1, 1500, 1500) AS all_alone,
       time_to_empty(30, 1000) AS days;

-- One budget or both can be 0.
SET clerk_invite.bulk_requests_per_hour = 0;
SELECT time_to_empty(1, 500) AS singles_only;
RESET clerk_invite.bulk_requests_per_hour;
SET clerk_invite.single_requests_per_hour = 0;
SELECT time_to_empty(1, 1000) AS bulks_only;
SET clerk_invite.bulk_requests_per_hour = 0;
SELECT single_left, bulk_left, more_at, time_to_empty
FROM clerk_invitation_progress, clerk_invitation_progress_limits();

-- No budget is left: nothing is sent before the time when more can be sent.
SET clerk_invite.single_requests_per_hour = 1;
SELECT single_left, bulk_left, budget_left, more_at,
       time_to_empty IS NOT NULL AS estimated
FROM clerk_invitation_progress, clerk_invitation_progress_limits();
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'ann@example.com', 'org:member');
SELECT time_to_empty(1, 1) BETWEEN '59 minutes' AND '61 minutes' AS an_hour;
SELECT single_left, bulk_left,
       more_at - now() BETWEEN '59 minutes' AND '61 minutes' AS an_hour
FROM clerk_invitation_progress_limits();
RESET clerk_invite.single_requests_per_hour;
RESET clerk_invite.bulk_requests_per_hour;
SELECT single_left, bulk_left, more_at FROM clerk_invitation_progress_limits();

-- Nothing can be sent to an endpoint that Clerk has closed.
\set VERBOSITY sqlstate
SELECT clerk_create_organization_invitation(
    'org_test', NULL, 'x-429-600@example.com', 'org:member');
\set VERBOSITY default
SELECT single_left, bulk_left, more_at FROM clerk_invitation_progress_limits();
SET clerk_invite.bulk_requests_per_hour = 0;
SELECT single_left, bulk_left,
       more_at - now() BETWEEN '9 minutes' AND '10 minutes' AS ten_minutes,
       time_to_empty BETWEEN '9 minutes' AND '10 minutes' AS not_before
FROM clerk_invitation_progress, clerk_invitation_progress_limits();
RESET clerk_invite.bulk_requests_per_hour;

-- Without a key, only the counts are available.
SET clerk_invite.secret_key_file = '';
SELECT queued, due, budget_left, single_left, bulk_left, more_at, time_to_empty
FROM clerk_invitation_progress, clerk_invitation_progress_limits();
RESET clerk_invite.secret_key_file;

-- Only its owner can read the view; a grant on it suffices for other roles.
CREATE ROLE regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT queued FROM clerk_invitation_progress;
SELECT * FROM clerk_invitation_progress_limits();
RESET ROLE;
GRANT SELECT (queued, time_to_empty) ON clerk_invitation_progress TO regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT queued, time_to_empty FROM clerk_invitation_progress;
SELECT failed FROM clerk_invitation_progress;
RESET ROLE;
REVOKE SELECT (queued, time_to_empty) ON clerk_invitation_progress FROM regress_clerk_invite;
GRANT SELECT ON clerk_invitation_progress TO regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT queued, failed, time_to_empty FROM clerk_invitation_progress;
SELECT bulk_left FROM clerk_invitation_progress_limits();
SELECT count(*) FROM clerk_invitation_outbox;
SELECT count(*) FROM clerk_rate_limit_status();
RESET ROLE;
REVOKE SELECT ON clerk_invitation_progress FROM regress_clerk_invite;

-- A view on this view requires the privilege to read this one as well.
CREATE VIEW on_view AS SELECT queued FROM clerk_invitation_progress;
GRANT SELECT ON on_view TO regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT * FROM on_view;
RESET ROLE;

DROP EXTENSION clerk_invite CASCADE;

-- It uses the extension's schema, regardless of search_path.
CREATE SCHEMA elsewhere;
CREATE EXTENSION clerk_invite SCHEMA elsewhere;
SET search_path = '';
SELECT queued, time_to_empty FROM elsewhere.clerk_invitation_progress;
RESET search_path;

DROP EXTENSION clerk_invite;
DROP SCHEMA elsewhere;
DROP FUNCTION time_to_empty;
DROP ROLE regress_clerk_invite;
