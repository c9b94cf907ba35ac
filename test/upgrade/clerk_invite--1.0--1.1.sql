/* clerk_invite--1.0--1.1.sql: a next version, for 054_upgrade.pl */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION clerk_invite UPDATE TO '1.1'" to load this file. \quit

ALTER TABLE @extschema@.clerk_invitation_outbox
    ADD COLUMN campaign text DEFAULT 'none'
        CONSTRAINT campaign_is_clean
        CHECK (campaign <> '' AND campaign !~ '[\x01-\x1f\x7f]');

COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.campaign IS
'what the invitation is a part of, for your own statistics';

CREATE OR REPLACE FUNCTION @extschema@.clerk_cancel_invitation(id bigint)
RETURNS boolean
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH canceled AS (
        UPDATE @extschema@.clerk_invitation_outbox AS o
        SET state = 'canceled', campaign = 'canceled'
        WHERE o.id = $1 AND o.state = 'queued'
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM canceled)
$$;

COMMENT ON FUNCTION @extschema@.clerk_cancel_invitation(bigint) IS
'cancels an invitation as version 1.1 does';

-- Wakes the worker, which then looks whether its library still fits, or starts
-- one.  Each script ends so.
UPDATE @extschema@.clerk_invitation_outbox SET state = state WHERE false;
