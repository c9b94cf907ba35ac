--
-- An invitation does not go with its transaction: a warning tells which ones
-- stay, and where nothing may be written nobody is invited.
--
CREATE EXTENSION clerk_invite;

CREATE FUNCTION invite(name text) RETURNS text
LANGUAGE sql AS $$
    SELECT status
    FROM clerk_create_organization_invitation(
        'org_test', NULL, name || '@example.com', 'org:member')
$$;

-- The warning names the invitations.  They are hidden here because they are
-- random; the rest of this file shows warnings without them.
\setenv PGDATABASE :DBNAME
\! psql -XAtq -c BEGIN -c "SELECT invite('named')" -c ROLLBACK 2>&1 >/dev/null | sed 's/orginv_[A-Za-z0-9]*/(id)/g'
\! psql -XAtq -c BEGIN -c "SELECT invite('named-' || n) FROM generate_series(1, 3) AS n" -c ROLLBACK 2>&1 >/dev/null | sed 's/orginv_[A-Za-z0-9]*/(id)/g'
\set VERBOSITY terse
\pset tuples_only on

-- A commit is silent, and so is what comes after it.
SELECT invite('autocommit');
BEGIN;
SELECT invite('committed');
COMMIT;
BEGIN;
ROLLBACK;

-- A rollback is not, once.
BEGIN;
SELECT invite('rolled-back');
ROLLBACK;
BEGIN;
ROLLBACK;

-- A savepoint's rollback tells of those since the savepoint.
BEGIN;
SELECT invite('before-savepoint');
SAVEPOINT s;
SELECT invite('after-savepoint-1');
SELECT invite('after-savepoint-2');
ROLLBACK TO s;
ROLLBACK TO s;
SELECT invite('after-savepoint-3');
ROLLBACK TO s;
COMMIT;

-- The transaction's then tells of the others.
BEGIN;
SELECT invite('outside');
SAVEPOINT s;
SELECT invite('inside-1');
SELECT invite('inside-2');
ROLLBACK TO s;
ROLLBACK;

-- A released savepoint belongs to what is around it.
BEGIN;
SAVEPOINT s;
SELECT invite('released-1');
RELEASE s;
ROLLBACK;
BEGIN;
SELECT invite('released-2');
SAVEPOINT a;
SELECT invite('released-3');
SAVEPOINT b;
SELECT invite('released-4');
RELEASE a;
ROLLBACK;
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SELECT invite('released-5');
RELEASE b;
ROLLBACK TO a;
COMMIT;

-- Savepoints that are still open share their transaction's end.
BEGIN;
SELECT invite('open-1');
SAVEPOINT a;
SELECT invite('open-2');
SAVEPOINT b;
SELECT invite('open-3');
COMMIT;
BEGIN;
SAVEPOINT a;
SELECT invite('open-4');
ROLLBACK;

-- Leaving a PL/pgSQL block through an exception rolls it back.
DO $$
BEGIN
    PERFORM invite('block-1');
    BEGIN
        PERFORM invite('block-2');
        RAISE EXCEPTION 'out of here';
    EXCEPTION WHEN raise_exception THEN
        RAISE NOTICE 'caught';
    END;
END
$$;
-- Leaving it at its end does not.
BEGIN;
DO $$
BEGIN
    PERFORM invite('block-3');
EXCEPTION WHEN raise_exception THEN
    RAISE NOTICE 'caught';
END
$$;
ROLLBACK;

-- Code that ends its own transactions.
DO $$
BEGIN
    PERFORM invite('own-transaction-1');
    COMMIT;
    PERFORM invite('own-transaction-2');
    PERFORM invite('own-transaction-3');
    ROLLBACK;
    PERFORM invite('own-transaction-4');
END
$$;

-- A cursor invites whom it has come to.
BEGIN;
DECLARE everyone CURSOR FOR
    SELECT invite('cursor-' || n) FROM generate_series(1, 9) AS n;
FETCH 2 FROM everyone;
ROLLBACK;

-- A refusal leaves nothing behind.
BEGIN;
SAVEPOINT s;
SELECT invite('committed');
ROLLBACK TO s;
COMMIT;

-- An error later in the statement, later in the transaction, or at its commit.
-- (Sorted, because error and warning reach psql in no certain order.)
CREATE TABLE members (
    name text UNIQUE DEFERRABLE INITIALLY DEFERRED,
    status text
);
\! psql -XAtq -v VERBOSITY=terse -c "SELECT 1 / (length(invite('same-statement')) - 7)" 2>&1 | LC_ALL=C sort
\! psql -XAtq -v VERBOSITY=terse -c BEGIN -c "SELECT invite('later')" -c "SELECT 1 / 0" -c ROLLBACK 2>&1 | LC_ALL=C sort
\! psql -XAtq -v VERBOSITY=terse -c "INSERT INTO members VALUES ('x', invite('commit-1')), ('x', invite('commit-2'))" 2>&1 | LC_ALL=C sort

-- The session's end is a rollback, too, but there is nobody left to tell.
\! psql -XAtq -c BEGIN -c "SELECT invite('disconnected')" 2>&1

-- Where nothing may be written, nobody is invited.
BEGIN READ ONLY;
SELECT invite('read-only');
ROLLBACK;
\set VERBOSITY sqlstate
BEGIN;
SET TRANSACTION READ ONLY;
SELECT invite('read-only');
ROLLBACK;
SET default_transaction_read_only = on;
SELECT invite('read-only');
RESET default_transaction_read_only;
SELECT invite('read-only');

-- Nor in a parallel worker, although someone has declared the function safe.
-- The setting that makes even this query parallel got another name with 16.
BEGIN;
ALTER FUNCTION clerk_create_organization_invitation(
    text, text, text, text, text, jsonb, jsonb, integer, boolean) PARALLEL SAFE;
ALTER FUNCTION invite(text) PARALLEL SAFE;
SET LOCAL max_parallel_workers_per_gather = 2;
SELECT set_config(name, 'on', true) FROM pg_settings
WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT invite('parallel');
ROLLBACK;
SELECT invite('parallel');

-- A prepared transaction is another session's to decide: nothing is said, and
-- the next transaction in this one knows nothing of it.
SELECT setting::integer > 0 AS can_prepare FROM pg_settings
WHERE name = 'max_prepared_transactions' \gset
\if :can_prepare
BEGIN;
SELECT invite('prepared') \gset
PREPARE TRANSACTION 'regress_clerk_invite';
BEGIN;
ROLLBACK;
ROLLBACK PREPARED 'regress_clerk_invite';
\endif

DROP TABLE members;
DROP FUNCTION invite(text);
DROP EXTENSION clerk_invite;
