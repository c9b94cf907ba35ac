--
-- clerk_invitation_trigger(): new members become rows of the outbox, no matter
-- how they are inserted, and by which role.
--
CREATE EXTENSION clerk_invite;

-- Returns and removes the rows enqueued since the last call.
CREATE FUNCTION taken(OUT org text, OUT inviter text, OUT email text,
                      OUT role text, OUT redirect text, OUT metadata jsonb)
RETURNS SETOF record
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
        SELECT o.organization_id, o.inviter_user_id, o.email_address, o.role,
               o.redirect_url, o.public_metadata
        FROM clerk_invitation_outbox AS o ORDER BY o.id;
    TRUNCATE clerk_invitation_outbox;
END
$$;

CREATE TABLE members (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gone text,
    org_id text,
    email text UNIQUE,
    invited_by text,
    "Team Page" text,
    facts jsonb
);
ALTER TABLE members DROP COLUMN gone;

--
-- For each row, and for each statement.
--
CREATE TRIGGER invite AFTER INSERT ON members
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger(
    'org_id', 'invited_by', 'email', '=org:member');
INSERT INTO members (org_id, email, invited_by) VALUES
    ('org_1', 'ann@example.com', 'user_ines'),
    ('org_2', 'bob@example.com', NULL),
    ('org_1', NULL, 'user_ines');
SELECT DISTINCT send_after <= clock_timestamp() AS due FROM clerk_invitation_outbox;
SELECT * FROM taken();
INSERT INTO members (org_id, email) SELECT 'org_1', 'nobody' WHERE false;
INSERT INTO members (org_id, email) VALUES ('org_1', NULL);
UPDATE members SET org_id = 'org_3';
SELECT * FROM taken();
DROP TRIGGER invite ON members;

CREATE TRIGGER invite AFTER INSERT ON members
REFERENCING NEW TABLE AS "New Ones"
FOR EACH STATEMENT EXECUTE FUNCTION clerk_invitation_trigger(
    'org_id', '', 'email', '=org:admin', 'Team Page', 'facts');
INSERT INTO members (org_id, email, "Team Page", facts) VALUES
    ('org_1', 'cid@example.com', 'https://example.com/1', '{"team": "red"}'),
    ('org_2', 'dan@example.com', NULL, NULL),
    ('org_1', NULL, 'https://example.com/3', '{}');
SELECT * FROM taken();
INSERT INTO members (org_id, email) SELECT 'org_1', 'nobody' WHERE false;
INSERT INTO members (org_id, email) VALUES ('org_1', NULL);
UPDATE members SET org_id = 'org_3';
SELECT * FROM taken();
DROP TRIGGER invite ON members;

-- Both forms insert all rows of a statement by one INSERT into the outbox.
CREATE FUNCTION count_inserts() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'one INSERT of % rows', (SELECT count(*) FROM inserted);
    RETURN NULL;
END
$$;
CREATE TRIGGER count_inserts AFTER INSERT ON clerk_invitation_outbox
REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION count_inserts();
CREATE TRIGGER by_row AFTER INSERT ON members
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
INSERT INTO members (org_id, email) SELECT 'org_1', n || '@row.example.com' FROM generate_series(1, 100) AS n;
DROP TRIGGER by_row ON members;
CREATE TRIGGER by_statement AFTER INSERT ON members REFERENCING NEW TABLE AS new_ones
FOR EACH STATEMENT EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
INSERT INTO members (org_id, email) SELECT 'org_1', n || '@statement.example.com' FROM generate_series(1, 100) AS n;
DROP TRIGGER by_statement ON members;
DROP TRIGGER count_inserts ON clerk_invitation_outbox;
DROP FUNCTION count_inserts();
DELETE FROM members WHERE email LIKE '%.example.com';
TRUNCATE clerk_invitation_outbox;

-- Literals for all arguments.
CREATE TRIGGER invite AFTER INSERT ON members
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger(
    '=org_9', '=user_9', '=nine@example.com', '=a=b', '=https://example.com/9',
    '={"n": [1, "=2"]}');
INSERT INTO members DEFAULT VALUES;
SELECT * FROM taken();
DROP TRIGGER invite ON members;

-- Only updates that set an address.
CREATE TRIGGER invite AFTER INSERT OR UPDATE OF email ON members
FOR EACH ROW WHEN (NEW.email LIKE 'e%')
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
INSERT INTO members (org_id, email) VALUES ('org_1', 'eve@example.com'), ('org_1', NULL);
UPDATE members SET email = 'else-' || id || '@example.com' WHERE id = (SELECT max(id) FROM members);
UPDATE members SET org_id = 'org_4';
SELECT * FROM taken();
DROP TRIGGER invite ON members;
CREATE TRIGGER invite AFTER UPDATE ON members
REFERENCING OLD TABLE AS old_ones NEW TABLE AS new_ones
FOR EACH STATEMENT EXECUTE FUNCTION clerk_invitation_trigger(
    'org_id', '', 'email', '=org:member');
UPDATE members SET org_id = 'org_5' WHERE email LIKE 'a%';
SELECT * FROM taken();
DROP TRIGGER invite ON members;
TRUNCATE members;

--
-- Errors: how the trigger is fired.
--
SELECT clerk_invitation_trigger();
CREATE TABLE wrong (org_id text, email text);
CREATE VIEW wrong_view AS SELECT * FROM wrong;
CREATE TRIGGER before BEFORE INSERT ON wrong
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
INSERT INTO wrong VALUES ('org_1', 'a@example.com');
DROP TRIGGER before ON wrong;
CREATE TRIGGER instead INSTEAD OF INSERT ON wrong_view
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
INSERT INTO wrong_view VALUES ('org_1', 'a@example.com');
DROP VIEW wrong_view;
CREATE TRIGGER statement AFTER INSERT ON wrong
FOR EACH STATEMENT EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
INSERT INTO wrong VALUES ('org_1', 'a@example.com');
DROP TRIGGER statement ON wrong;
CREATE TRIGGER old_only AFTER UPDATE ON wrong REFERENCING OLD TABLE AS old_ones
FOR EACH STATEMENT EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
UPDATE wrong SET org_id = 'org_2';
DROP TRIGGER old_only ON wrong;
CREATE TRIGGER truncate AFTER TRUNCATE ON wrong
FOR EACH STATEMENT EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
TRUNCATE wrong;
DROP TRIGGER truncate ON wrong;
INSERT INTO wrong VALUES ('org_1', 'a@example.com');
CREATE TRIGGER delete AFTER DELETE ON wrong
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
DELETE FROM wrong;
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER delete ON wrong;

--
-- Errors: the arguments.
--
CREATE PROCEDURE try(VARIADIC arguments text[])
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TRIGGER try AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger(%s)',
        (SELECT string_agg(quote_literal(a), ', ') FROM unnest(arguments) AS a));
    BEGIN
        INSERT INTO wrong VALUES ('org_1', 'a@example.com');
    EXCEPTION WHEN others THEN
        RAISE NOTICE '% %', sqlstate, sqlerrm;
    END;
    DROP TRIGGER try ON wrong;
END
$$;
CALL try('org_id', '', 'email');
CALL try('org_id', '', 'email', '=r', '', '', '');
CALL try('', '', 'email', '=r');
CALL try('org_id', '', '', '=r');
CALL try('org_id', '', 'email', '');
CALL try('org_id', '', 'email', 'org:member');
CALL try('org_id', '', 'Email', '=r');
CALL try('org_id', 'ctid', 'email', '=r');
CALL try('org_id', '', 'email', '=r', '', '=red');
CALL try('org_id', '', 'email', '=r', '', 'email');
CALL try('org_id', '', 'email', '=r', '', '=[]');
CALL try('org_id', '', 'email', '=');
CALL try('email', '', 'email', '=r');
CALL try('org_id', '', 'org_id', '=r');
-- A complete error message.
CREATE TRIGGER invite AFTER INSERT ON wrong
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', 'role');
INSERT INTO wrong VALUES ('org_1', 'a@example.com');
DROP TRIGGER invite ON wrong;
-- A null value in a required argument is the same error as with a plain INSERT.
CREATE TRIGGER invite AFTER INSERT ON wrong
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
\set VERBOSITY terse
INSERT INTO wrong VALUES ('org_1', 'a@example.com'), (NULL, 'b@example.com');
\set VERBOSITY default
SELECT * FROM taken();
SELECT * FROM wrong;
DROP PROCEDURE try(text[]);
DROP TABLE wrong;

--
-- Columns of any type.
--
CREATE TYPE rank AS ENUM ('org:admin', 'org:member');
CREATE DOMAIN address AS varchar(40) CHECK (VALUE LIKE '%@%');
CREATE DOMAIN facts AS jsonb;
CREATE TABLE typed (
    org_id integer,
    inviter uuid,
    email address,
    padded character(30),
    role rank,
    redirect text[],
    facts facts,
    json json,
    json_text text,
    full_role text GENERATED ALWAYS AS ('stored:' || org_id) STORED
);
CREATE TRIGGER a AFTER INSERT ON typed FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('org_id', 'inviter', 'email', 'role', 'redirect', 'facts');
CREATE TRIGGER b AFTER INSERT ON typed FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'padded', 'full_role', '', 'json');
CREATE TRIGGER c AFTER INSERT ON typed REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'padded', 'full_role', '', 'json_text');
INSERT INTO typed VALUES
    (17, '8a5e0b3c-1111-4222-8333-444455556666', 'a@example.com', 'b@example.com',
     'org:admin', '{x,"y z"}', '{"a": 1.10}', '{"a":1, "a":2}', ' {"c": "\u0041"} ');
SELECT org, inviter, email || '|' AS email, role, redirect, metadata FROM taken();
-- Values that are compressed or stored out of line.
ALTER TABLE typed ALTER json_text SET STORAGE EXTERNAL;
INSERT INTO typed (org_id, email, padded, role, facts, json, json_text)
SELECT 1, 'a@example.com', 'b@example.com', 'org:member', long, long, long
FROM (SELECT jsonb_build_object('long', repeat('x', 8000))) AS l (long);
SELECT email, length(metadata ->> 'long') FROM taken();
DROP TABLE typed;
DROP DOMAIN facts;
DROP DOMAIN address;
DROP TYPE rank;

-- Virtual generated columns have no value in a trigger.
SELECT current_setting('server_version_num')::integer >= 180000 AS has_virtual \gset
\set state 0A000
\if :has_virtual
CREATE TABLE virtual (email text, org_id text GENERATED ALWAYS AS ('org_' || email) VIRTUAL);
CREATE TRIGGER invite AFTER INSERT ON virtual FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
DO $$
BEGIN
    INSERT INTO virtual VALUES ('a@b');
EXCEPTION WHEN feature_not_supported THEN
    PERFORM set_config('test.state', sqlstate, false);
END
$$;
SELECT current_setting('test.state', true) AS state \gset
DROP TABLE virtual;
\endif
\echo :state

--
-- Ways to insert rows, each with a row trigger and with a statement trigger,
-- which are distinguished by the roles.
--
CREATE TRIGGER by_row AFTER INSERT OR UPDATE ON members FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=row');
CREATE TRIGGER by_insert AFTER INSERT ON members REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=inserted');
CREATE TRIGGER by_update AFTER UPDATE ON members REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=updated');

COPY members (org_id, email) FROM STDIN;
org_1	copy-1@example.com
org_1	copy-2@example.com
org_1	\N
\.
SELECT org, email, role FROM taken();

INSERT INTO members (org_id, email) VALUES ('org_1', 'copy-1@example.com'), ('org_1', 'new-1@example.com')
ON CONFLICT DO NOTHING;
SELECT org, email, role FROM taken();
INSERT INTO members (org_id, email) VALUES ('org_2', 'copy-1@example.com'), ('org_2', 'new-2@example.com')
ON CONFLICT (email) DO UPDATE SET org_id = excluded.org_id;
SELECT org, email, role FROM taken() ORDER BY role COLLATE "C", email COLLATE "C";

WITH added AS (
    INSERT INTO members (org_id, email) VALUES ('org_3', 'with@example.com') RETURNING email
)
SELECT * FROM added;
SELECT org, email, role FROM taken();

SELECT current_setting('server_version_num')::integer >= 150000 AS has_merge \gset
\if :has_merge
MERGE INTO members AS m
USING (VALUES ('copy-1@example.com'), ('merged@example.com')) AS v (email) ON m.email = v.email
WHEN MATCHED THEN UPDATE SET org_id = 'org_4'
WHEN NOT MATCHED THEN INSERT (org_id, email) VALUES ('org_4', v.email);
\else
UPDATE members SET org_id = 'org_4' WHERE email = 'copy-1@example.com';
INSERT INTO members (org_id, email) VALUES ('org_4', 'merged@example.com');
\endif
SELECT org, email, role FROM taken() ORDER BY role COLLATE "C", email COLLATE "C";

-- Prepared statements, with the table altered between executions.
PREPARE add(text) AS INSERT INTO members (org_id, email) VALUES ('org_1', $1);
EXECUTE add('prepared-1@example.com');
ALTER TABLE members ADD added text DEFAULT 'x';
EXECUTE add('prepared-2@example.com');
ALTER TABLE members DROP added;
EXECUTE add('prepared-3@example.com');
DEALLOCATE add;
SELECT org, email, role FROM taken();

-- More rows than fit into work_mem, in order.
SET work_mem = '64kB';
INSERT INTO members (org_id, email) SELECT 'org_1', n || '@example.com' FROM generate_series(1, 5000) AS n;
RESET work_mem;
SELECT role, count(*), min(id) < max(id) AS distinct,
       array_agg(email_address ORDER BY id) =
           (SELECT array_agg(n || '@example.com' ORDER BY n) FROM generate_series(1, 5000) AS n) AS in_order
FROM clerk_invitation_outbox GROUP BY role ORDER BY role COLLATE "C";
TRUNCATE members, clerk_invitation_outbox;

--
-- Together with other triggers.
--
CREATE FUNCTION tell() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% % %', tg_name, tg_level, tg_op;
    RETURN NULL;
END
$$;
CREATE FUNCTION add_guest() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.email NOT LIKE 'guest%' THEN
        INSERT INTO members (org_id, email) VALUES (NEW.org_id, 'guest-of-' || NEW.email);
        BEGIN
            INSERT INTO members (org_id, email) VALUES (NEW.org_id, 'guest-lost@example.com');
            RAISE EXCEPTION 'no';
        EXCEPTION WHEN raise_exception THEN
            NULL;
        END;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER aaa AFTER INSERT ON members FOR EACH STATEMENT EXECUTE FUNCTION tell();
CREATE TRIGGER zzz AFTER INSERT ON members FOR EACH STATEMENT EXECUTE FUNCTION tell();
INSERT INTO members (org_id, email) VALUES ('org_1', 'ann@example.com');
SELECT org, email, role FROM taken();
CREATE TRIGGER guest AFTER INSERT ON members FOR EACH ROW EXECUTE FUNCTION add_guest();
SET client_min_messages = warning;
INSERT INTO members (org_id, email) VALUES ('org_1', 'bob@example.com'), ('org_1', 'cid@example.com');
RESET client_min_messages;
SELECT org, email, role FROM taken() ORDER BY role COLLATE "C", email COLLATE "C";
DROP TRIGGER guest ON members;
DROP TRIGGER aaa ON members;
DROP TRIGGER zzz ON members;

-- A trigger that disables other triggers does not affect rows collected before.
CREATE FUNCTION replicate() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('session_replication_role', 'replica', true);
    RETURN NULL;
END
$$;
CREATE TRIGGER aaa AFTER INSERT ON members FOR EACH ROW EXECUTE FUNCTION replicate();
INSERT INTO members (org_id, email) VALUES ('org_1', 'replica@example.com');
SELECT org, email, role FROM taken() WHERE role = 'row';
DROP TRIGGER aaa ON members;
DROP FUNCTION replicate();
DELETE FROM members WHERE email LIKE 'replica%';

-- A foreign key action is part of the statement that causes it.
CREATE TABLE orgs (id text PRIMARY KEY);
INSERT INTO orgs VALUES ('org_1');
ALTER TABLE members ADD FOREIGN KEY (org_id) REFERENCES orgs ON UPDATE CASCADE;
UPDATE orgs SET id = 'org_2';
SELECT org, email, role FROM taken() ORDER BY role COLLATE "C", email COLLATE "C";
ALTER TABLE members DROP CONSTRAINT members_org_id_fkey;
DROP TABLE orgs;

--
-- After a rollback, nobody is invited.
--
BEGIN;
INSERT INTO members (org_id, email) VALUES ('org_1', 'stays@example.com');
SAVEPOINT s;
INSERT INTO members (org_id, email) VALUES ('org_1', 'goes@example.com');
ROLLBACK TO s;
INSERT INTO members (org_id, email) VALUES ('org_1', 'returns@example.com');
COMMIT;
SELECT org, email, role FROM taken();
BEGIN;
INSERT INTO members (org_id, email) VALUES ('org_1', 'undone@example.com');
ROLLBACK;
CREATE FUNCTION refuse() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'refused';
END
$$;
CREATE TRIGGER refuse AFTER INSERT ON members FOR EACH STATEMENT EXECUTE FUNCTION refuse();
\set VERBOSITY terse
INSERT INTO members (org_id, email) VALUES ('org_1', 'refused@example.com');
\set VERBOSITY default
DROP TRIGGER refuse ON members;
SELECT org, email, role FROM taken();
DROP FUNCTION refuse();

-- A deferred trigger fires at commit, or at SET CONSTRAINTS.
DROP TRIGGER by_row ON members;
DROP TRIGGER by_insert ON members;
DROP TRIGGER by_update ON members;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON members
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
BEGIN;
INSERT INTO members (org_id, email) VALUES ('org_1', 'late-1@example.com'), ('org_1', 'late-2@example.com');
SAVEPOINT s;
INSERT INTO members (org_id, email) VALUES ('org_1', 'late-3@example.com');
ROLLBACK TO s;
SELECT org, email, role FROM taken();
COMMIT;
SELECT org, email, role FROM taken();
BEGIN;
INSERT INTO members (org_id, email) VALUES ('org_1', 'late-4@example.com'), ('org_1', NULL);
SET CONSTRAINTS at_commit IMMEDIATE;
SELECT org, email, role FROM taken();
INSERT INTO members (org_id, email) VALUES ('org_1', 'late-5@example.com');
SELECT org, email, role FROM taken();
COMMIT;
DROP TRIGGER at_commit ON members;

--
-- Partitions, each with a different order of columns, and inheritance
-- children.
--
CREATE TABLE parts (org_id text, email text) PARTITION BY LIST (org_id);
CREATE TABLE part_1 PARTITION OF parts FOR VALUES IN ('org_1');
CREATE TABLE part_2 (gone integer, email text, more integer, org_id text);
ALTER TABLE part_2 DROP gone, DROP more;
ALTER TABLE parts ATTACH PARTITION part_2 FOR VALUES IN ('org_2');
CREATE TRIGGER by_row AFTER INSERT ON parts FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=row');
CREATE TRIGGER by_statement AFTER INSERT ON parts REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=statement');
INSERT INTO parts VALUES ('org_1', '1@example.com'), ('org_2', '2@example.com'),
    ('org_1', '3@example.com'), ('org_2', '4@example.com');
SELECT org, email, role FROM taken() ORDER BY role COLLATE "C", email COLLATE "C";
COPY parts FROM STDIN;
org_2	5@example.com
org_1	6@example.com
\.
SELECT org, email, role FROM taken() ORDER BY role COLLATE "C", email COLLATE "C";
INSERT INTO part_2 (org_id, email) VALUES ('org_2', '7@example.com');
SELECT org, email, role FROM taken();
DROP TABLE parts;
CREATE TABLE child (extra integer) INHERITS (members);
CREATE TRIGGER by_update AFTER UPDATE ON members REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=updated');
INSERT INTO child (id, org_id, email) VALUES (1, 'org_1', 'child@example.com');
UPDATE members SET org_id = 'org_5' WHERE email LIKE 'child%';
SELECT org, email, role FROM taken();
DROP TRIGGER by_update ON members;
DROP TABLE child;

--
-- Privileges.  Roles that insert members need none on the outbox.
--
SET client_min_messages = warning;
CREATE ROLE regress_clerk_owner;
CREATE ROLE regress_clerk_app;
CREATE SCHEMA app AUTHORIZATION regress_clerk_owner;
GRANT EXECUTE ON FUNCTION clerk_invitation_trigger() TO regress_clerk_owner;
-- A type whose text form is the current user.
CREATE TYPE spy;
CREATE FUNCTION spy_in(cstring) RETURNS spy LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION spy_out(spy) RETURNS cstring LANGUAGE internal STABLE STRICT AS 'current_user';
CREATE TYPE spy (INPUT = spy_in, OUTPUT = spy_out, INTERNALLENGTH = 4, PASSEDBYVALUE, ALIGNMENT = int4);
CREATE DOMAIN spy_domain AS spy;
RESET client_min_messages;
-- The outbox's owner may have triggers on it.
CREATE FUNCTION tell_rights() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.redirect_url := concat_ws(' ', 'as owner:', current_user = session_user,
                                  'with', current_setting('search_path'));
    RETURN NEW;
END
$$;
CREATE TRIGGER tell_rights BEFORE INSERT ON clerk_invitation_outbox
FOR EACH ROW EXECUTE FUNCTION tell_rights();

SET ROLE regress_clerk_owner;
SET search_path = app, public;
CREATE TABLE app.members (org_id text, inviter public.spy, email text, role public.spy_domain);
CREATE TRIGGER by_row AFTER INSERT ON app.members FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('org_id', 'inviter', 'email', '=row');
CREATE TRIGGER by_statement AFTER INSERT ON app.members REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', 'role');
GRANT USAGE ON SCHEMA app TO regress_clerk_app;
GRANT INSERT ON app.members TO regress_clerk_app;
INSERT INTO app.members VALUES ('org_1', '0', 'ann@example.com', '0');
SET ROLE regress_clerk_app;
INSERT INTO app.members VALUES ('org_1', '0', 'bob@example.com', '0');
SELECT current_user, current_setting('search_path') AS search_path;
\set VERBOSITY sqlstate
SELECT * FROM clerk_invitation_outbox;
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES ('o', 'a@b', 'r');
-- An error while the owner's privileges are in effect gives them back.
BEGIN;
SAVEPOINT s;
INSERT INTO app.members VALUES ('org_1', '0', 'no address', '0');
ROLLBACK TO s;
SELECT current_user, current_setting('search_path') AS search_path;
SELECT * FROM clerk_invitation_outbox;
ROLLBACK;
\set VERBOSITY default
DO $$
BEGIN
    INSERT INTO app.members VALUES ('org_1', '0', 'no address', '0');
EXCEPTION WHEN check_violation THEN
    RAISE NOTICE '%: "%", "%"', sqlerrm, current_user, current_setting('search_path');
END
$$;
RESET ROLE;
RESET search_path;
SELECT * FROM taken();
DROP TRIGGER tell_rights ON clerk_invitation_outbox;
DROP FUNCTION tell_rights();

--
-- A hostile search_path.
--
CREATE SCHEMA hostile;
CREATE TABLE hostile.clerk_invitation_outbox (LIKE clerk_invitation_outbox INCLUDING DEFAULTS);
CREATE TABLE hostile.clerk_new_rows (LIKE clerk_invitation_outbox INCLUDING DEFAULTS);
CREATE DOMAIN hostile.text AS integer;
CREATE FUNCTION hostile.trap(pg_catalog.text, pg_catalog.text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'trapped';
END
$$;
CREATE OPERATOR hostile.~ (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = hostile.trap);
CREATE TEMP TABLE clerk_invitation_outbox (LIKE clerk_invitation_outbox INCLUDING DEFAULTS);
CREATE TEMP TABLE clerk_new_rows (LIKE clerk_invitation_outbox INCLUDING DEFAULTS);
SET search_path = hostile, pg_temp, pg_catalog;
INSERT INTO app.members VALUES ('org_1', '0', 'cid@example.com', '0');
RESET search_path;
SELECT count(*) FROM hostile.clerk_invitation_outbox;
SELECT count(*) FROM pg_temp.clerk_invitation_outbox;
DROP TABLE pg_temp.clerk_invitation_outbox, pg_temp.clerk_new_rows;
SELECT org, email FROM taken();
SET client_min_messages = warning;
DROP SCHEMA hostile CASCADE;
DROP SCHEMA app CASCADE;
DROP TYPE spy CASCADE;
REVOKE EXECUTE ON FUNCTION clerk_invitation_trigger() FROM regress_clerk_owner;
RESET client_min_messages;
DROP ROLE regress_clerk_owner;
DROP ROLE regress_clerk_app;

--
-- Nothing is enqueued while clerk_invite.enqueue is off, which every role can
-- set.
--
CREATE FUNCTION stop_enqueueing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SET clerk_invite.enqueue = off;
    RETURN NULL;
END
$$;
CREATE ROLE regress_clerk_app;
GRANT INSERT, SELECT ON members TO regress_clerk_app;
CREATE TRIGGER invite_row AFTER INSERT ON members FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('=org_row', '', 'email', '=org:member');
CREATE TRIGGER invite_statement AFTER INSERT ON members REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
EXECUTE FUNCTION clerk_invitation_trigger('=org_statement', '', 'email', '=org:member');
CREATE CONSTRAINT TRIGGER invite_deferred AFTER INSERT ON members INITIALLY DEFERRED FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('=org_deferred', '', 'email', '=org:member');
SET ROLE regress_clerk_app;
SET clerk_invite.enqueue = off;
INSERT INTO members (email) VALUES ('silent1@example.com'), ('silent2@example.com');
COPY members (email) FROM stdin;
silent3@example.com
\.
RESET clerk_invite.enqueue;
INSERT INTO members (email) VALUES ('loud@example.com');
-- For one transaction, including triggers deferred to its end.
BEGIN;
SET LOCAL clerk_invite.enqueue = off;
INSERT INTO members (email) VALUES ('local@example.com');
COMMIT;
RESET ROLE;
SELECT org, email FROM taken();
-- Rows that were collected before it was turned off are enqueued.
CREATE TRIGGER invite_row_stop AFTER INSERT ON members FOR EACH ROW EXECUTE FUNCTION stop_enqueueing();
INSERT INTO members (email) VALUES ('collected@example.com'), ('too-late@example.com');
SHOW clerk_invite.enqueue;
RESET clerk_invite.enqueue;
SELECT org, email FROM taken();
DROP TRIGGER invite_row_stop ON members;
DROP TRIGGER invite_row ON members;
DROP TRIGGER invite_statement ON members;
DROP TRIGGER invite_deferred ON members;
DROP FUNCTION stop_enqueueing();
DROP OWNED BY regress_clerk_app;
DROP ROLE regress_clerk_app;

--
-- The outbox is altered, re-created, and moved to other schemas in one session.
--
CREATE TRIGGER invite AFTER INSERT ON members FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
INSERT INTO members (org_id, email) VALUES ('org_1', 'before@example.com');
ALTER TABLE clerk_invitation_outbox ADD CONSTRAINT no_more CHECK (email_address NOT LIKE 'altered%');
\set VERBOSITY terse
INSERT INTO members (org_id, email) VALUES ('org_1', 'altered@example.com');
DROP FUNCTION taken();
DROP EXTENSION clerk_invite;
DROP EXTENSION clerk_invite CASCADE;
INSERT INTO members (org_id, email) VALUES ('org_1', 'without@example.com');
CREATE EXTENSION clerk_invite;
CREATE TRIGGER invite AFTER INSERT ON members FOR EACH ROW
EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
INSERT INTO members (org_id, email) VALUES ('org_1', 'anew@example.com');
SELECT email_address FROM clerk_invitation_outbox;
DROP EXTENSION clerk_invite CASCADE;
CREATE SCHEMA "Clerk API";
CREATE EXTENSION clerk_invite SCHEMA "Clerk API";
CREATE TRIGGER invite AFTER INSERT ON members REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
EXECUTE FUNCTION "Clerk API".clerk_invitation_trigger('org_id', '', 'email', '=org:member');
INSERT INTO members (org_id, email) VALUES ('org_1', 'elsewhere@example.com');
ALTER SCHEMA "Clerk API" RENAME TO clerk;
CREATE SCHEMA "Clerk API";
CREATE TABLE "Clerk API".clerk_invitation_outbox (LIKE clerk.clerk_invitation_outbox INCLUDING DEFAULTS);
INSERT INTO members (org_id, email) VALUES ('org_1', 'renamed@example.com');
SELECT email_address FROM clerk.clerk_invitation_outbox ORDER BY id;
SELECT email_address FROM "Clerk API".clerk_invitation_outbox;

DROP SCHEMA "Clerk API" CASCADE;
DROP TABLE members;
DROP FUNCTION tell();
DROP FUNCTION add_guest();
DROP EXTENSION clerk_invite;
DROP SCHEMA clerk;
