--
-- The extension's objects: comments, privileges, installation in any schema,
-- independence from search_path, and complete removal when it is dropped.
--
CREATE EXTENSION clerk_invite;

-- Every object has a comment, and so does every column, constraint, index and
-- trigger.
WITH members AS (
    SELECT classid, objid
    FROM pg_depend
    WHERE refclassid = 'pg_extension'::regclass
      AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clerk_invite')
      AND deptype = 'e'
      -- Some versions also count array types and row types as members.
      AND NOT (classid = 'pg_type'::regclass AND
               (objid IN (SELECT typarray FROM pg_type) OR
                objid IN (SELECT reltype FROM pg_class WHERE relkind IN ('r', 'v'))))
), objects AS (
    SELECT 'pg_extension'::regclass AS classid, oid AS objid, 0 AS objsubid
    FROM pg_extension
    WHERE extname = 'clerk_invite'
    UNION ALL
    SELECT classid, objid, 0
    FROM members
    UNION ALL
    SELECT 'pg_class'::regclass, attrelid, attnum
    FROM pg_attribute
    WHERE attnum > 0
      AND NOT attisdropped
      AND attrelid IN (
          SELECT objid FROM members JOIN pg_class ON pg_class.oid = objid
          WHERE classid = 'pg_class'::regclass AND relkind <> 'S'
          UNION
          SELECT typrelid FROM members JOIN pg_type ON pg_type.oid = objid
          WHERE classid = 'pg_type'::regclass)
    UNION ALL
    -- Includes NOT NULL constraints since version 18.
    SELECT 'pg_constraint'::regclass, oid, 0
    FROM pg_constraint
    WHERE conrelid IN (SELECT objid FROM members WHERE classid = 'pg_class'::regclass)
      AND contype <> 'n'
    UNION ALL
    SELECT 'pg_class'::regclass, indexrelid, 0
    FROM pg_index
    WHERE indrelid IN (SELECT objid FROM members WHERE classid = 'pg_class'::regclass)
    UNION ALL
    SELECT 'pg_trigger'::regclass, oid, 0
    FROM pg_trigger
    WHERE tgrelid IN (SELECT objid FROM members WHERE classid = 'pg_class'::regclass)
      AND NOT tgisinternal
)
SELECT bool_or(o.classid = 'pg_proc'::regclass) AND
       bool_or(o.classid = 'pg_type'::regclass) AND
       bool_or(o.classid = 'pg_class'::regclass AND o.objsubid > 0) AND
       bool_or(o.classid = 'pg_constraint'::regclass) AND
       bool_or(o.objid = to_regclass('clerk_invitation_outbox_pkey')) AND
       bool_or(o.classid = 'pg_trigger'::regclass) AS all_found,
       array_agg(pg_describe_object(o.classid, o.objid, o.objsubid))
           FILTER (WHERE coalesce(description, '') = '') AS without_comment
FROM objects AS o
LEFT JOIN pg_description AS d
    ON d.classoid = o.classid AND d.objoid = o.objid AND d.objsubid = o.objsubid;

-- No line of a comment is wider than a terminal.
SELECT max(length(line)) <= 80 AS fits
FROM pg_description AS d,
     LATERAL regexp_split_to_table(description, '\n') AS line
WHERE classoid IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_type'::regclass)
  AND EXISTS (SELECT FROM pg_depend AS e
              WHERE e.classid = d.classoid AND e.objid = d.objoid AND e.deptype = 'e'
                AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clerk_invite'));

-- Functions with side effects are volatile and parallel unsafe.  All run with
-- the caller's privileges, and PUBLIC cannot execute any of them, except those
-- that check for privileges themselves.
SELECT p.oid::regproc AS function, provolatile AS volatility,
       proparallel AS parallel, proisstrict AS strict,
       prosecdef AS security_definer, proconfig AS settings,
       has_function_privilege('public', p.oid, 'EXECUTE') AS public
FROM pg_proc AS p
JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
WHERE d.refclassid = 'pg_extension'::regclass
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clerk_invite')
  AND d.deptype = 'e'
ORDER BY proname COLLATE "C";

CREATE ROLE regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'granted@example.com', 'org:member');
RESET ROLE;
GRANT EXECUTE ON FUNCTION clerk_create_organization_invitation TO regress_clerk_invite;
SET ROLE regress_clerk_invite;
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'granted@example.com', 'org:member');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION clerk_create_organization_invitation FROM regress_clerk_invite;

-- Altered objects are detected.
\i test/error_of.sql
SELECT probin FROM pg_proc WHERE proname = 'clerk_worker_status' \gset
BEGIN;
CREATE FUNCTION altered_status(OUT database name, OUT pid integer) RETURNS SETOF record
AS :'probin', 'clerk_worker_status' LANGUAGE C;
ALTER TYPE clerk_organization_invitation ADD ATTRIBUTE more text;
SELECT statement, "SQLSTATE", message, hint
FROM unnest(ARRAY['SELECT altered_status()',
                  $$SELECT clerk_get_organization_invitation('org_test', 'orginv_x')$$,
                  $$SELECT clerk_list_organization_invitations('org_test')$$]) AS statement,
     error_of(statement);
ROLLBACK;
DROP FUNCTION error_of(text);

-- The extension cannot be dropped while other objects depend on it.
CREATE TABLE kept (id integer, invitation clerk_organization_invitation);
CREATE VIEW inviting AS
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'view@example.com', 'org:member');
DROP EXTENSION clerk_invite;
SELECT * FROM inviting;
DROP VIEW inviting;
DROP EXTENSION clerk_invite CASCADE;
SELECT * FROM kept;
DROP TABLE kept;

-- Nothing is left behind.
CREATE VIEW left_over AS
SELECT (SELECT count(*) FROM pg_class WHERE relname ~ '^_?clerk_') AS relations,
       (SELECT count(*) FROM pg_type WHERE typname ~ '^_?clerk_') AS types,
       (SELECT count(*) FROM pg_proc WHERE proname ~ '^_?clerk_') AS functions,
       (SELECT count(*) FROM pg_extension WHERE extname = 'clerk_invite') AS extensions;
SELECT * FROM left_over;

-- Only superusers can create the extension, because it can send data away.
\set VERBOSITY sqlstate
GRANT CREATE ON DATABASE :"DBNAME" TO regress_clerk_invite;
SET ROLE regress_clerk_invite;
CREATE EXTENSION clerk_invite;
RESET ROLE;
REVOKE CREATE ON DATABASE :"DBNAME" FROM regress_clerk_invite;
DROP ROLE regress_clerk_invite;

-- It works in any schema, whether or not the schema is in search_path.
CREATE SCHEMA "Clerk API";
CREATE EXTENSION clerk_invite SCHEMA "Clerk API";
SELECT status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'nowhere@example.com', 'org:member');
SELECT email_address, status FROM "Clerk API".clerk_create_organization_invitation(
    'org_test', NULL, 'elsewhere@example.com', 'org:member');
SET search_path = '';
SELECT email_address, status FROM "Clerk API".clerk_create_organization_invitation(
    'org_test', NULL, 'empty-path@example.com', 'org:member', metadata => '{"a": 1}');
SET search_path = "Clerk API";
SELECT email_address, status FROM clerk_create_organization_invitation(
    'org_test', NULL, 'path@example.com', 'org:member');
RESET search_path;
\set VERBOSITY default
ALTER EXTENSION clerk_invite SET SCHEMA public;
DROP EXTENSION clerk_invite;

-- Objects in search_path cannot replace those that the extension uses.
CREATE SCHEMA hostile;
CREATE TYPE hostile.clerk_organization_invitation AS (trap integer);
CREATE DOMAIN hostile.jsonb AS integer;
CREATE DOMAIN hostile.text AS integer;
CREATE FUNCTION hostile.trap() RETURNS integer
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'trapped';
END
$$;
CREATE FUNCTION hostile.now() RETURNS timestamptz
LANGUAGE sql AS $$ SELECT pg_catalog.to_timestamp(hostile.trap()) $$;
CREATE FUNCTION hostile.jsonb_in(cstring) RETURNS pg_catalog.jsonb
LANGUAGE internal STRICT AS 'int4in';
CREATE FUNCTION hostile.numeric_out(numeric) RETURNS cstring
LANGUAGE internal STRICT AS 'int4out';
CREATE FUNCTION hostile.trap_equal(pg_catalog.text, pg_catalog.text) RETURNS boolean
LANGUAGE sql AS $$ SELECT hostile.trap() OPERATOR(pg_catalog.=) 1 $$;
CREATE OPERATOR hostile.= (
    LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text,
    FUNCTION = hostile.trap_equal);
CREATE FUNCTION hostile.trap_concatenate(pg_catalog.text, pg_catalog.text)
RETURNS pg_catalog.text
LANGUAGE sql AS $$ SELECT hostile.trap()::pg_catalog.text $$;
CREATE OPERATOR hostile.|| (
    LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text,
    FUNCTION = hostile.trap_concatenate);
SET search_path = hostile, pg_catalog;
-- The traps work.
\set VERBOSITY sqlstate
SELECT 'a'::pg_catalog.text = 'a'::pg_catalog.text;
SELECT 'a'::pg_catalog.text || 'a'::pg_catalog.text;
SELECT now();
\set VERBOSITY default
CREATE EXTENSION clerk_invite SCHEMA "Clerk API";
SELECT email_address, status, public_metadata, pg_typeof(public_metadata) AS type,
       expires_at - created_at AS valid_for
FROM "Clerk API".clerk_create_organization_invitation(
    'org_test', 'user_ines', 'hostile@example.com', 'org:member',
    metadata => '{"a": 1.10}');
SELECT pg_typeof("Clerk API".clerk_create_organization_invitation(
    'org_test', NULL, 'typed@example.com', 'org:member'));

-- Temporary tables cannot either, although their schema is searched first.
CREATE TEMPORARY TABLE clerk_organization_invitation (trap integer);
SELECT email_address, status
FROM "Clerk API".clerk_create_organization_invitation(
    'org_test', NULL, 'temporary@example.com', 'org:member');
DROP TABLE pg_temp.clerk_organization_invitation;
DROP EXTENSION clerk_invite;
RESET search_path;
\set VERBOSITY terse
DROP SCHEMA hostile CASCADE;
\set VERBOSITY default

-- Again, nothing is left behind.
DROP SCHEMA "Clerk API";
SELECT * FROM left_over;
DROP VIEW left_over;
