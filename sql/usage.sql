--
-- How to call the function, and what it returns: in a query, joined to a table,
-- from PL/pgSQL, and from a trigger.
--
CREATE EXTENSION clerk_invite;

-- The columns of the result type.
SELECT attname AS column, format_type(atttypid, atttypmod) AS type
FROM pg_attribute
WHERE attrelid = (SELECT typrelid FROM pg_type
                  WHERE oid = 'clerk_organization_invitation'::regtype)
ORDER BY attnum;

\pset null (null)
\x on

-- The six arguments that most invitations have, by position.  The id is random
-- and the url is a secret: only their format is shown.
SELECT id ~ '^orginv_[A-Za-z0-9]{27}$' AS id_is_clerks, organization_id,
       email_address, role, role_name, status, inviter_id,
       url LIKE 'https://%' AS url_is_given, public_metadata, private_metadata,
       public_inviter_data ->> 'user_id' AS inviter_in_public_data,
       public_organization_data,
       created_at BETWEEN now() - interval '1 minute'
           AND now() + interval '1 minute' AS created_just_now,
       updated_at = created_at AS never_updated,
       expires_at - created_at AS valid_for
FROM clerk_create_organization_invitation(
    'org_test', 'user_ines', 'six@example.com', 'org:billing_lead',
    'https://app.example.com/welcome', '{"team": "blue"}');

-- Four arguments are sufficient, and the inviter may be null.
SELECT email_address, inviter_id, public_inviter_data, public_metadata,
       private_metadata
FROM clerk_create_organization_invitation(
    'org_test', NULL, 'four@example.com', 'org:member');

-- All nine, by name and in any order.
SELECT email_address, role, inviter_id, public_metadata, private_metadata,
       expires_at - created_at AS valid_for
FROM clerk_create_organization_invitation(
    notify => false,
    expires_in_days => 7,
    private_metadata => '{"cost_center": 4711}',
    metadata => '{"team": "red"}',
    redirect => 'https://app.example.com/welcome',
    role => 'org:admin',
    email => 'nine@example.com',
    inviter => 'user_ines',
    org_id => 'org_test');

-- Positional arguments followed by named ones.
SELECT email_address, expires_at - created_at AS valid_for
FROM clerk_create_organization_invitation(
    'org_test', NULL, 'mixed@example.com', 'org:member', expires_in_days => 1);

\x off

-- One column of the result, without FROM.
SELECT (clerk_create_organization_invitation(
    'org_test', NULL, 'column@example.com', 'org:member')).status;

-- Everyone in a table.
CREATE TABLE people (email text, may_bill boolean);
INSERT INTO people VALUES
    ('lateral-1@example.com', false),
    ('lateral-2@example.com', true),
    ('lateral-3@example.com', false);
SELECT p.email, i.role_name, i.status
FROM people AS p,
     LATERAL clerk_create_organization_invitation(
         'org_test', NULL, p.email,
         CASE WHEN p.may_bill THEN 'org:billing_lead' ELSE 'org:member' END) AS i
ORDER BY p.email;

-- Invitations stored as they are created.
CREATE TABLE invitations (email text PRIMARY KEY, id text NOT NULL);
TRUNCATE people;
INSERT INTO people VALUES ('stored-1@example.com'), ('stored-2@example.com');
INSERT INTO invitations
SELECT i.email_address, i.id
FROM people AS p,
     LATERAL clerk_create_organization_invitation(
         'org_test', NULL, p.email, 'org:member') AS i
RETURNING email, id ~ '^orginv_' AS has_an_id;
SELECT count(*), count(DISTINCT id) FROM invitations;

-- Or stored as a whole, in a column of the composite type.
CREATE TABLE whole_invitations (invitation clerk_organization_invitation);
INSERT INTO whole_invitations
SELECT i
FROM clerk_create_organization_invitation(
    'org_test', NULL, 'whole@example.com', 'org:member') AS i;
SELECT (invitation).email_address, (invitation).status FROM whole_invitations;

-- In PL/pgSQL, inviting somebody again is a unique_violation like any other;
-- the constraint name distinguishes a pending invitation from a membership.
CREATE FUNCTION invite(email text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    invitation clerk_organization_invitation;
    reason text;
BEGIN
    invitation := clerk_create_organization_invitation(
        'org_test', NULL, email, 'org:member');
    RETURN invitation.status;
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS reason = CONSTRAINT_NAME;
    RETURN 'not again: ' || reason;
END
$$;
SELECT invite('plpgsql@example.com');
SELECT invite('plpgsql@example.com');
SELECT invite('member@example.com');

-- A user-defined trigger that invites new members.  If Clerk refuses an
-- invitation, the row is not inserted.
CREATE TABLE members (
    organization_id text NOT NULL,
    email text NOT NULL,
    role text NOT NULL DEFAULT 'org:member',
    invitation_id text
);
CREATE FUNCTION invite_member() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    SELECT id INTO NEW.invitation_id
    FROM clerk_create_organization_invitation(
        org_id => NEW.organization_id, inviter => NULL,
        email => NEW.email, role => NEW.role);
    RETURN NEW;
END
$$;
CREATE TRIGGER invite_member BEFORE INSERT ON members
    FOR EACH ROW EXECUTE FUNCTION invite_member();
INSERT INTO members (organization_id, email) VALUES
    ('org_test', 'trigger-1@example.com'),
    ('org_test', 'trigger-2@example.com'),
    ('org_other', 'trigger-1@example.com');
\set VERBOSITY sqlstate
INSERT INTO members (organization_id, email) VALUES ('org_test', 'trigger-1@example.com');
INSERT INTO members (organization_id, email) VALUES ('org_missing', 'trigger-3@example.com');
\set VERBOSITY terse
SELECT organization_id, email, invitation_id ~ '^orginv_' AS invited
FROM members ORDER BY 1, 2;

-- PostgreSQL expands (f(...)).* to one call for each column.  Clerk refuses the
-- second one, and the warning reports the invitation from the first one.
DO $$
DECLARE
    everything record;
    reason text;
BEGIN
    SELECT (clerk_create_organization_invitation(
        'org_test', NULL, 'star@example.com', 'org:member')).*
    INTO everything;
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS reason = CONSTRAINT_NAME;
    RAISE NOTICE 'refused: %', reason;
END
$$;

-- In FROM it is called once, regardless of the number of columns.
SELECT count(*) AS rows, count(id) AS ids, count(url) AS urls
FROM (SELECT i.*
      FROM (VALUES ('from@example.com')) AS p (email),
           LATERAL clerk_create_organization_invitation(
               'org_test', NULL, p.email, 'org:member') AS i) AS everything;

-- Planning a call does not execute it.
EXPLAIN (COSTS OFF)
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'planned@example.com', 'org:member');
PREPARE planned AS
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'planned@example.com', 'org:member');
EXECUTE planned;
DEALLOCATE planned;

DROP TABLE people, invitations, whole_invitations, members;
DROP FUNCTION invite(text);
DROP FUNCTION invite_member();
DROP EXTENSION clerk_invite;
