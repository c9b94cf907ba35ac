--
-- A rollback does not undo invitations: a warning says which ones remain.  In
-- read-only transactions, nobody is invited.
--
CREATE EXTENSION clerk_invite;

CREATE FUNCTION invite(name text) RETURNS text
LANGUAGE sql AS $$
    SELECT status
    FROM clerk_create_organization_invitation(
        'org_test', NULL, name || '@example.com', 'org:member')
$$;

-- The warning names the invitations.  Their IDs are hidden here because they
-- are random; the rest of this file shows warnings without them.
\setenv PGDATABASE :DBNAME
\! psql -XAtq -c BEGIN -c "SELECT invite('named')" -c ROLLBACK 2>&1 >/dev/null | sed 's/orginv_[A-Za-z0-9]*/(id)/g'
\! psql -XAtq -c BEGIN -c "SELECT invite('named-' || n) FROM generate_series(1, 3) AS n" -c ROLLBACK 2>&1 >/dev/null | sed 's/orginv_[A-Za-z0-9]*/(id)/g'
\set VERBOSITY terse
\pset tuples_only on

-- There is no warning at a commit, nor for later transactions.
SELECT invite('autocommit');
BEGIN;
SELECT invite('committed');
COMMIT;
BEGIN;
ROLLBACK;

-- There is one warning at a rollback.
BEGIN;
SELECT invite('rolled-back');
ROLLBACK;
BEGIN;
ROLLBACK;

-- A rollback to a savepoint reports those created since the savepoint.
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

-- The rollback of the transaction then reports the others.
BEGIN;
SELECT invite('outside');
SAVEPOINT s;
SELECT invite('inside-1');
SELECT invite('inside-2');
ROLLBACK TO s;
ROLLBACK;

-- A released savepoint is merged into the enclosing (sub)transaction.
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

-- Savepoints that are still open end with their transaction.
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
-- Leaving it normally does not.
BEGIN;
DO $$
BEGIN
    PERFORM invite('block-3');
EXCEPTION WHEN raise_exception THEN
    RAISE NOTICE 'caught';
END
$$;
ROLLBACK;

-- Code that commits and rolls back by itself.
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

-- A cursor invites only those whose rows have been fetched.
BEGIN;
DECLARE everyone CURSOR FOR
    SELECT invite('cursor-' || n) FROM generate_series(1, 9) AS n;
FETCH 2 FROM everyone;
ROLLBACK;

-- A refusal creates nothing, so there is no warning.
BEGIN;
SAVEPOINT s;
SELECT invite('committed');
ROLLBACK TO s;
COMMIT;

-- An error later in the statement, later in the transaction, or at its commit.
-- (Sorted, because the error and the warning reach psql in either order.)
CREATE TABLE members (
    name text UNIQUE DEFERRABLE INITIALLY DEFERRED,
    status text
);
\! psql -XAtq -v VERBOSITY=terse -c "SELECT 1 / (length(invite('same-statement')) - 7)" 2>&1 | LC_ALL=C sort
\! psql -XAtq -v VERBOSITY=terse -c BEGIN -c "SELECT invite('later')" -c "SELECT 1 / 0" -c ROLLBACK 2>&1 | LC_ALL=C sort
\! psql -XAtq -v VERBOSITY=terse -c "INSERT INTO members VALUES ('x', invite('commit-1')), ('x', invite('commit-2'))" 2>&1 | LC_ALL=C sort

-- Disconnecting also rolls back, but there is no client to warn.
\! psql -XAtq -c BEGIN -c "SELECT invite('disconnected')" 2>&1

-- Read-only transactions do not invite anyone.
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

-- Neither do parallel workers, even if the function has been declared safe.
-- The setting that forces a parallel plan for this query was renamed in 16.
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

-- There is no warning about a prepared transaction, which any session can
-- commit or roll back, nor does it affect this session's next transaction.
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
