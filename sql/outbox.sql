--
-- The outbox as a table: which rows are accepted, who can read them, and which
-- changes by users are rejected.
--
CREATE EXTENSION clerk_invite;

-- Three columns are sufficient.
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
VALUES ('org_test', 'ann@example.com', 'org:member')
RETURNING id, state, attempts, send_after = now() AS due_now,
          enqueued_at = now() AS enqueued_now, claimed_at, settled_at;

-- The function, INSERT ... SELECT and COPY are equivalent.
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

-- Values that Clerk would certainly refuse.
CREATE FUNCTION enqueue(org_id text, email text, role text,
                        redirect text DEFAULT NULL, metadata jsonb DEFAULT NULL,
                        expires_in_days integer DEFAULT NULL,
                        inviter text DEFAULT NULL,
                        send_after timestamptz DEFAULT now())
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    violated text;
BEGIN
    INSERT INTO clerk_invitation_outbox
        (organization_id, inviter_user_id, email_address, role, redirect_url,
         public_metadata, expires_in_days, send_after)
    VALUES (org_id, inviter, email, role, redirect, metadata, expires_in_days, send_after);
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
       enqueue('org_test', E'ann@\rexample.com', 'org:member') AS line_break_address,
       enqueue('org_test', E' \t', 'org:member') AS blank_address,
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
       enqueue('org_test', 'ann@example.com', 'org:member', expires_in_days => 366) AS too_many_days,
       enqueue('org_test', 'ann@example.com', 'org:member', send_after => '-infinity') AS no_time
\gx

-- Maximum lengths are those of the synchronous functions.
SELECT argument, maximum,
       CASE argument
           WHEN 'org_id' THEN enqueue(long, 'ann@example.com', 'org:member')
           WHEN 'inviter' THEN enqueue('org_test', 'ann@example.com', 'org:member', inviter => long)
           WHEN 'email' THEN enqueue('org_test', '@' || right(long, -1), 'org:member')
           WHEN 'role' THEN enqueue('org_test', 'ann@example.com', long)
           WHEN 'redirect' THEN enqueue('org_test', 'ann@example.com', 'org:member', long)
       END
FROM (VALUES ('org_id', 255), ('inviter', 255), ('email', 320), ('role', 255),
             ('redirect', 8000)) AS a (argument, maximum),
     LATERAL (VALUES (maximum), (maximum + 1), (9000000)) AS l (length),
     LATERAL repeat('x', length) AS long;

-- White space around an address is removed, but not within it.
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
VALUES ('org_test', E'\t spaced@example.com\r\n', 'org:member'),
       ('org_test', 'with in@example.com ', 'org:member');
COPY clerk_invitation_outbox (organization_id, email_address, role) FROM stdin (FORMAT csv);
org_test, copied@example.com ,org:member
\.
SELECT clerk_enqueue_organization_invitation('org_test', NULL, E'\nfunction@example.com ', 'org:member') > 0 AS enqueued;
UPDATE clerk_invitation_outbox SET email_address = ' changed@example.com ' WHERE email_address = 'copied@example.com';
SELECT quote_literal(email_address) FROM clerk_invitation_outbox
WHERE email_address ~ 'spaced|with|copied|function|changed' ORDER BY id;

-- Ids leave room for further rows, and attempts leave room for further ones.
\set VERBOSITY terse
INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role)
VALUES (9223372036854775807, 'org_test', 'ann@example.com', 'org:member');
INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role)
VALUES (0, 'org_test', 'ann@example.com', 'org:member');
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, attempts)
VALUES ('org_test', 'ann@example.com', 'org:member', 2147483647);
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, attempts)
VALUES ('org_test', 'ann@example.com', 'org:member', -1);
\set VERBOSITY default

-- Cancel and retry return whether they have changed a row.
SELECT clerk_cancel_invitation(1) AS canceled, clerk_cancel_invitation(1) AS again,
       clerk_cancel_invitation(-1) AS no_such_row, clerk_retry_invitation(1) AS retried;
SELECT state, settled_at IS NOT NULL AS settled FROM clerk_invitation_outbox WHERE id = 1;

-- Changes by users that would lose or duplicate an invitation are rejected.
UPDATE clerk_invitation_outbox SET state = 'queued' WHERE id = 1;
UPDATE clerk_invitation_outbox SET state = 'sent' WHERE id = 4;
UPDATE clerk_invitation_outbox SET state = 'nonsense' WHERE id = 4;
UPDATE clerk_invitation_outbox SET role = 'org:admin' WHERE id = 4;
UPDATE clerk_invitation_outbox SET state = 'canceled' WHERE id = 4;
DELETE FROM clerk_invitation_outbox WHERE id = 4;
-- Rows from a dump can have any state.
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

-- Ordinary roles can neither read nor change anything without grants; the
-- functions require no privileges on the table.
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
-- With privileges on some columns, a role can read these, but not the url.
GRANT SELECT (id, state) ON clerk_invitation_outbox TO regress_clerk_plain;
SET ROLE regress_clerk_plain;
SELECT state FROM clerk_invitation_outbox WHERE id = 2;
SELECT url FROM clerk_invitation_outbox;
RESET ROLE;
DROP OWNED BY regress_clerk_plain;
DROP ROLE regress_clerk_plain;

-- Roles that may insert or change rows, but are not the owner, cannot set
-- internal columns, which get their defaults.
CREATE ROLE regress_clerk_owner;
CREATE ROLE regress_clerk_app;
GRANT ALL ON clerk_invitation_outbox TO regress_clerk_app;
GRANT USAGE ON SEQUENCE clerk_invitation_outbox_id_seq TO regress_clerk_app;
SET ROLE regress_clerk_app;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, notify, send_after)
VALUES ('org_test', ' app@example.com', 'org:member', false, 'infinity')
RETURNING email_address, state, attempts;
-- Explicit values are accepted if they are the defaults.
INSERT INTO clerk_invitation_outbox
    (organization_id, email_address, role, send_after, state, attempts, send_alone, enqueued_at, url)
VALUES ('org_test', 'app2@example.com', 'org:member', 'infinity', 'queued', 0, false, now(), NULL)
RETURNING state, attempts;
RESET ROLE;
\i test/error_of.sql
-- Each internal column, with a plausible value.
CREATE TEMPORARY TABLE internal AS
SELECT attname AS name,
       CASE attname
           WHEN 'state' THEN 'canceled'
           ELSE CASE atttypid
               WHEN 'text'::regtype THEN 'x'
               WHEN 'integer'::regtype THEN '2147'
               WHEN 'bigint'::regtype THEN '2147'
               WHEN 'boolean'::regtype THEN 'true'
               WHEN 'timestamptz'::regtype THEN '2020-01-01 00:00+00'
           END
       END AS value
FROM pg_attribute
WHERE attrelid = 'clerk_invitation_outbox'::regclass AND attnum > 0 AND NOT attisdropped
  AND attname NOT IN ('id', 'organization_id', 'inviter_user_id', 'email_address', 'role', 'redirect_url',
                      'public_metadata', 'private_metadata', 'expires_in_days', 'notify', 'send_after');
GRANT SELECT ON internal TO regress_clerk_app;
SET ROLE regress_clerk_app;
SELECT name, "SQLSTATE", message, hint, column_name = name AS names_it
FROM internal, error_of(format(
    'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, %I)
     VALUES (''org_test'', ''a@example.com'', ''org:member'', %L)', name, value));
-- The same applies to COPY, to ON CONFLICT, and to one row among many.
COPY clerk_invitation_outbox (organization_id, email_address, role, attempts) FROM stdin;
org_test	a@example.com	org:member	0
org_test	b@example.com	org:member	2147483647
\.
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
VALUES ('org_test', 'conflict@example.com', 'org:member') RETURNING id \gset
INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role)
VALUES (:id, 'org_test', 'conflict@example.com', 'org:member')
ON CONFLICT (id) DO UPDATE SET attempts = 7;
-- Ids must come from the sequence.
INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role)
VALUES (:id + 1, 'org_test', 'a@example.com', 'org:member');
INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role)
VALUES (-1, 'org_test', 'a@example.com', 'org:member');
\set VERBOSITY sqlstate
INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role)
VALUES (NULL, 'org_test', 'a@example.com', 'org:member');
\set VERBOSITY default
-- Users can change what is requested, and make the allowed changes of the
-- state, which set related columns, but no other columns.
SELECT name, "SQLSTATE", message, column_name = name AS names_it
FROM internal, error_of(format(
    'UPDATE clerk_invitation_outbox SET %I = %L WHERE id = %s', name, value, :id))
WHERE name <> 'state';
UPDATE clerk_invitation_outbox SET id = id + 1000 WHERE id = :id;
UPDATE clerk_invitation_outbox SET state = 'canceled', attempts = 7 WHERE id = :id;
UPDATE clerk_invitation_outbox SET role = 'org:admin', email_address = ' changed-by-app@example.com' WHERE id = :id
RETURNING role, email_address;
UPDATE clerk_invitation_outbox SET state = 'canceled' WHERE id = :id RETURNING state, settled_at IS NOT NULL AS settled;
UPDATE clerk_invitation_outbox SET settled_at = NULL WHERE id = :id;
RESET ROLE;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after, state, attempts, send_alone,
    first_claimed_at, claimed_at, settled_at, next_attempt_at, error_code)
VALUES ('org_test', 'failed-before@example.com', 'org:member', 'infinity', 'failed', 10, true, now(), now(), now(),
    now(), 'duplicate_record') RETURNING id \gset
SET ROLE regress_clerk_app;
UPDATE clerk_invitation_outbox SET state = 'queued', error_code = NULL WHERE id = :id;
UPDATE clerk_invitation_outbox SET state = 'queued', claimed_at = NULL WHERE id = :id;
UPDATE clerk_invitation_outbox SET state = 'queued', attempts = -5 WHERE id = :id
RETURNING attempts, send_alone, first_claimed_at, claimed_at IS NOT NULL AS was_claimed, settled_at, next_attempt_at,
    error_code;
RESET ROLE;
-- The owner, who need not be a superuser, can, and so can members of its role.
GRANT CREATE ON SCHEMA public TO regress_clerk_owner;
ALTER TABLE clerk_invitation_outbox OWNER TO regress_clerk_owner;
REVOKE CREATE ON SCHEMA public FROM regress_clerk_owner;
SET ROLE regress_clerk_owner;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, state)
VALUES ('org_test', 'owned@example.com', 'org:member', 'sent') RETURNING state;
RESET ROLE;
GRANT regress_clerk_owner TO regress_clerk_app;
SET ROLE regress_clerk_app;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, state)
VALUES ('org_test', 'owned-too@example.com', 'org:member', 'sent') RETURNING state;
RESET ROLE;
ALTER TABLE clerk_invitation_outbox OWNER TO CURRENT_USER;
DROP OWNED BY regress_clerk_app, regress_clerk_owner;
DROP ROLE regress_clerk_app, regress_clerk_owner;
DROP FUNCTION error_of(text);
DROP TABLE internal;

-- Rows that are inserted with ids, as by a restore or a subscription, do not
-- conflict with generated ids, even if the sequence is set back afterwards.
SELECT last_value AS last FROM clerk_invitation_outbox_id_seq \gset
INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role, send_after)
SELECT :last + n, 'org_test', 'restored' || n || '@example.com', 'org:member', 'infinity'
FROM generate_series(1, 3) AS n;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
VALUES ('org_test', 'next@example.com', 'org:member', 'infinity') RETURNING id - :last AS after;
SELECT setval('clerk_invitation_outbox_id_seq', :last) = :last AS set_back;
SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'next@example.com', 'org:member',
    send_after => 'infinity') - :last AS after;
-- An id far ahead, in a transaction that is rolled back.
BEGIN;
INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role, send_after)
VALUES (:last + 1000000, 'org_test', 'far@example.com', 'org:member', 'infinity');
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
VALUES ('org_test', 'next@example.com', 'org:member', 'infinity') RETURNING id - :last AS after;
ROLLBACK;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
VALUES ('org_test', 'next@example.com', 'org:member', 'infinity') RETURNING id - :last AS after;

-- Rows that are inserted in replica role are copied from another database,
-- whatever that says of them, and it is in vain to change their state here.
BEGIN;
SET LOCAL session_replication_role = replica;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, state, copied)
SELECT 'org_test', state || '@copied', 'org:member', state, false
FROM unnest(ARRAY['queued', 'sending', 'failed']) AS state;
SELECT clerk_enqueue_organization_invitation('org_test', NULL, ' enqueued@own ', 'org:member',
    send_after => 'infinity') > 0 AS enqueued;
COMMIT;
SELECT email_address, state, copied FROM clerk_invitation_outbox WHERE email_address ~ '@(copied|own)' ORDER BY id;
SELECT email_address, clerk_cancel_invitation(id) AS canceled, clerk_retry_invitation(id) AS retried,
    clerk_abandon_invitation(id) AS abandoned
FROM clerk_invitation_outbox WHERE email_address LIKE '%@copied' ORDER BY id;
UPDATE clerk_invitation_outbox SET state = 'canceled' WHERE email_address = 'queued@copied';
UPDATE clerk_invitation_outbox SET state = 'sent', copied = false WHERE email_address = 'sending@copied';
UPDATE clerk_invitation_outbox SET copied = false, send_after = 'infinity' WHERE email_address LIKE '%@copied'
RETURNING email_address, state, copied;
-- From then on they are as guarded as others.
DELETE FROM clerk_invitation_outbox WHERE email_address = 'sending@copied';
SELECT clerk_cancel_invitation(id) AS canceled FROM clerk_invitation_outbox WHERE email_address = 'queued@copied';
UPDATE clerk_invitation_outbox SET copied = true WHERE email_address = 'failed@copied' RETURNING copied;
SELECT clerk_abandon_invitation(id) AS abandoned FROM clerk_invitation_outbox WHERE email_address = 'sending@copied';

-- After a rollback there is nothing to send.
BEGIN;
SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'gone@example.com', 'org:member') > 0 AS enqueued;
SAVEPOINT s;
SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'gone-too@example.com', 'org:member') > 0 AS enqueued;
ROLLBACK TO s;
ROLLBACK;
SELECT count(*) FROM clerk_invitation_outbox WHERE email_address LIKE 'gone%';

-- Metadata that is stored out of line reaches Clerk, in every batch of a CALL.
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
