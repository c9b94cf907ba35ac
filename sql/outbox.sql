--
-- The outbox as a table: what may go in and how, who may see it, and which
-- changes by hand are refused.
--
CREATE EXTENSION clerk_invite;

-- Three columns are enough.
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
VALUES ('org_test', 'ann@example.com', 'org:member')
RETURNING id, state, attempts, send_after = now() AS due_now,
          enqueued_at = now() AS enqueued_now, claimed_at, settled_at;

-- The function, INSERT ... SELECT and COPY are equal ways in.
SELECT clerk_enqueue_organization_invitation('org_test', 'user_ines',
    'bob@example.com', 'org:admin', 'https://app.example.com',
    '{"team": "red"}', '{"plan": 7}', 14, false, '2040-01-01 00:00+00') AS id;
SELECT clerk_enqueue_organization_invitation(
    org_id => 'org_test', inviter => NULL, email => 'cleo@example.com',
    role => 'org:member', send_after => '2040-01-01 00:00+00') AS id;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
SELECT 'org_test', name || '@example.com', 'org:member'
FROM unnest(ARRAY['dan', 'eve']) AS name;
COPY clerk_invitation_outbox (organization_id, email_address, role, expires_in_days) FROM stdin;
org_test	fay@example.com	org:member	1
org_test	gus@example.com	org:member	365
\.
SELECT id, inviter_user_id, email_address, role, redirect_url, public_metadata,
       private_metadata, expires_in_days, notify, send_after > now() AS later, state
FROM clerk_invitation_outbox
ORDER BY id;

-- What Clerk would refuse for certain.
CREATE FUNCTION enqueue(org_id text, email text, role text,
                        redirect text DEFAULT NULL, metadata jsonb DEFAULT NULL,
                        expires_in_days integer DEFAULT NULL,
                        inviter text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    violated text;
BEGIN
    INSERT INTO clerk_invitation_outbox
        (organization_id, inviter_user_id, email_address, role, redirect_url,
         public_metadata, expires_in_days)
    VALUES (org_id, inviter, email, role, redirect, metadata, expires_in_days);
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS violated = CONSTRAINT_NAME;
    RETURN SQLSTATE || ' ' || coalesce(nullif(violated, ''), SQLERRM);
END
$$;
SELECT enqueue(NULL, 'ann@example.com', 'org:member') AS no_organization,
       enqueue('org_test', NULL, 'org:member') AS no_address,
       enqueue('org_test', 'ann@example.com', NULL) AS no_role \gx
SELECT enqueue('', 'ann@example.com', 'org:member') AS empty_organization,
       enqueue('../users', 'ann@example.com', 'org:member') AS path_organization,
       enqueue(E'org_test\n', 'ann@example.com', 'org:member') AS line_break_organization,
       enqueue('org_test', '', 'org:member') AS empty_address,
       enqueue('org_test', 'ann', 'org:member') AS no_address_at_all,
       enqueue('org_test', E'ann@example.com\r', 'org:member') AS line_break_address,
       enqueue('org_test', 'ann@example.com', '') AS empty_role,
       enqueue('org_test', 'ann@example.com', E'org:\tmember') AS tab_role,
       enqueue('org_test', 'ann@example.com', 'org:member', '') AS empty_redirect,
       enqueue('org_test', 'ann@example.com', 'org:member', inviter => '') AS empty_inviter,
       enqueue('org_test', 'ann@example.com', 'org:member', metadata => '[1]') AS array_metadata,
       enqueue('org_test', 'ann@example.com', 'org:member', metadata => 'null') AS null_metadata,
       enqueue('org_test', 'ann@example.com', 'org:member',
               metadata => jsonb_build_object('a', repeat('x', 8192))) AS large_metadata,
       enqueue('org_test', 'ann@example.com', 'org:member',
               metadata => jsonb_build_object('a', repeat('x', 8192 - 9))) AS just_fitting_metadata,
       enqueue('org_test', 'ann@example.com', 'org:member', expires_in_days => 0) AS no_days,
       enqueue('org_test', 'ann@example.com', 'org:member', expires_in_days => 366) AS too_many_days
\gx

-- Cancel and retry tell whether they did something.
SELECT clerk_cancel_invitation(1) AS canceled, clerk_cancel_invitation(1) AS again,
       clerk_cancel_invitation(-1) AS no_such_row, clerk_retry_invitation(1) AS retried;
SELECT state, settled_at IS NOT NULL AS settled FROM clerk_invitation_outbox WHERE id = 1;

-- Changes by hand: what loses or doubles an invitation is refused.
UPDATE clerk_invitation_outbox SET state = 'queued' WHERE id = 1;
UPDATE clerk_invitation_outbox SET state = 'sent' WHERE id = 4;
UPDATE clerk_invitation_outbox SET state = 'nonsense' WHERE id = 4;
UPDATE clerk_invitation_outbox SET role = 'org:admin' WHERE id = 4;
UPDATE clerk_invitation_outbox SET state = 'canceled' WHERE id = 4;
DELETE FROM clerk_invitation_outbox WHERE id = 4;
-- A dump may have rows in every state.
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, state)
SELECT 'org_test', state || '@example.com', 'org:member', state
FROM unnest(ARRAY['sending', 'verifying', 'sent', 'skipped', 'failed', 'canceled']) AS state;
UPDATE clerk_invitation_outbox SET role = 'org:admin' WHERE email_address = 'sending@example.com';
UPDATE clerk_invitation_outbox SET state = 'queued' WHERE email_address = 'verifying@example.com';
DELETE FROM clerk_invitation_outbox WHERE email_address = 'verifying@example.com';
SELECT email_address, clerk_cancel_invitation(id) AS canceled, clerk_retry_invitation(id) AS retried
FROM clerk_invitation_outbox
WHERE email_address ~ '^(sending|verifying|sent|skipped|failed|canceled)@'
ORDER BY id;
SELECT state, attempts, settled_at FROM clerk_invitation_outbox
WHERE email_address = 'failed@example.com';

-- An ordinary role sees and does nothing of it until it is granted; the
-- functions need no privilege on the table.
CREATE ROLE regress_clerk_plain;
SET ROLE regress_clerk_plain;
SELECT count(*) FROM clerk_invitation_outbox;
SELECT nextval('clerk_invitation_outbox_id_seq');
SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'x@example.com', 'org:member');
SELECT clerk_cancel_invitation(2);
SELECT clerk_retry_invitation(2);
CALL clerk_send_invitations();
RESET ROLE;
GRANT EXECUTE ON FUNCTION clerk_enqueue_organization_invitation, clerk_cancel_invitation
TO regress_clerk_plain;
SET ROLE regress_clerk_plain;
SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'x@example.com', 'org:member') > 0 AS enqueued;
SELECT clerk_cancel_invitation(2) AS canceled;
SELECT count(*) FROM clerk_invitation_outbox;
RESET ROLE;
-- Who is granted some columns can read these, and not the url.
GRANT SELECT (id, state) ON clerk_invitation_outbox TO regress_clerk_plain;
SET ROLE regress_clerk_plain;
SELECT state FROM clerk_invitation_outbox WHERE id = 2;
SELECT url FROM clerk_invitation_outbox;
RESET ROLE;
DROP OWNED BY regress_clerk_plain;
DROP ROLE regress_clerk_plain;

-- A rollback leaves nothing to send.
BEGIN;
SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'gone@example.com', 'org:member') > 0 AS enqueued;
SAVEPOINT s;
SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'gone-too@example.com', 'org:member') > 0 AS enqueued;
ROLLBACK TO s;
ROLLBACK;
SELECT count(*) FROM clerk_invitation_outbox WHERE email_address LIKE 'gone%';

-- Metadata that is stored out of line reaches Clerk, in every wave of a CALL.
SET clerk_invite.max_concurrent_requests = 1;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, public_metadata)
SELECT 'org_test', 'large' || n || '@example.com', 'org:member', jsonb_build_object('text', noise)
FROM generate_series(1, 6) AS n,
LATERAL (SELECT string_agg(md5(n || ' ' || i), '') AS noise FROM generate_series(1, 240) AS i) AS made;
SELECT pg_relation_size(reltoastrelid) > 0 AS out_of_line
FROM pg_class WHERE oid = 'clerk_invitation_outbox'::regclass;
SET client_min_messages = warning;
CALL clerk_send_invitations();
RESET client_min_messages;
SELECT state, count(*) FROM clerk_invitation_outbox
WHERE email_address LIKE 'large%' GROUP BY state;

DROP FUNCTION enqueue;
DROP EXTENSION clerk_invite;
