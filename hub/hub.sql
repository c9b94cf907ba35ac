-- hub.sql - what a hub has in its database for a publisher, beside clerk_invite
--
-- Run by add_publisher.sh as a superuser, with the extensions clerk_invite (in
-- the schema public) and dblink (in clerk_hub) there; a second run replaces
-- functions and triggers and keeps rows.
--
-- The subscription brings rows of the publisher's clerk_invitation_request.  A
-- BEFORE trigger does what each of them asks for and keeps none, so that an
-- initial copy, which may come again, finds nothing that it collides with.
-- Which row of the outbox an invitation has, and the last request that was
-- applied to it, is in clerk_hub.invitation.  All this commits with the
-- subscription's progress.
--
-- Every change of the outbox leaves a row in clerk_hub.change, which stays until
-- clerk_hub.report() has told the publisher.

BEGIN;

REVOKE ALL ON SCHEMA clerk_hub FROM PUBLIC;

CREATE TABLE IF NOT EXISTS clerk_hub.publisher (
    singleton boolean PRIMARY KEY DEFAULT true
        CONSTRAINT there_is_one_row CHECK (singleton),
    connection_string text NOT NULL,
    remote_schema text NOT NULL,
    generation text NOT NULL DEFAULT gen_random_uuid()::text,
    version bigint NOT NULL DEFAULT 0,
    confirmed_version bigint NOT NULL DEFAULT 0,
    server text,
    timeline text,
    last_foreign_request bigint NOT NULL DEFAULT 0,
    added_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE clerk_hub.publisher IS 'the publisher, in one row';
COMMENT ON COLUMN clerk_hub.publisher.singleton IS 'there is one row';
COMMENT ON COLUMN clerk_hub.publisher.connection_string IS
'how to connect to it; a secret';
COMMENT ON COLUMN clerk_hub.publisher.remote_schema IS
'where the publisher has its objects';
COMMENT ON COLUMN clerk_hub.publisher.generation IS
'identifies what this hub knows: another one is chosen if it may have forgotten
something';
COMMENT ON COLUMN clerk_hub.publisher.version IS 'number of the last report';
COMMENT ON COLUMN clerk_hub.publisher.confirmed_version IS
'number of the last report that the publisher has confirmed';
COMMENT ON COLUMN clerk_hub.publisher.timeline IS
'timeline of the publisher when the subscription was made; NULL: unknown';
COMMENT ON COLUMN clerk_hub.publisher.server IS
'system identifier and timeline of the server that has made the generation; NULL:
none has so far';
COMMENT ON COLUMN clerk_hub.publisher.last_foreign_request IS
'the last request that another generation may have received';
COMMENT ON COLUMN clerk_hub.publisher.added_at IS 'time when it was added';

CREATE TABLE IF NOT EXISTS clerk_hub.invitation (
    id bigint PRIMARY KEY,
    enqueued_at timestamptz NOT NULL,
    outbox_id bigint UNIQUE,
    request bigint NOT NULL,
    changed boolean NOT NULL DEFAULT false,
    outcome jsonb
);

COMMENT ON TABLE clerk_hub.invitation IS 'the publisher''s invitations';
COMMENT ON COLUMN clerk_hub.invitation.id IS 'id in the publisher''s outbox';
COMMENT ON COLUMN clerk_hub.invitation.enqueued_at IS
'when it was enqueued there; a publisher that was restored, or whose standby was
promoted, may give the id to another one';
COMMENT ON COLUMN clerk_hub.invitation.outbox_id IS
'id in this database''s outbox; NULL: it never came into it';
COMMENT ON COLUMN clerk_hub.invitation.request IS
'number of the last request for it that was applied';
COMMENT ON COLUMN clerk_hub.invitation.changed IS
'whether the publisher has changed what is to be sent after it had been enqueued';
COMMENT ON COLUMN clerk_hub.invitation.outcome IS
'what to report if the outbox has no row for it';

CREATE TABLE IF NOT EXISTS clerk_hub.change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    outbox_id bigint,
    invitation bigint,
    not_before timestamptz
);

COMMENT ON TABLE clerk_hub.change IS 'what is to be reported to the publisher';
COMMENT ON COLUMN clerk_hub.change.id IS 'number of the change';
COMMENT ON COLUMN clerk_hub.change.outbox_id IS 'row of the outbox that has changed';
COMMENT ON COLUMN clerk_hub.change.invitation IS
'invitation that has changed without one';
COMMENT ON COLUMN clerk_hub.change.not_before IS
'time before which it is not reported again; NULL: it was not reported yet';

CREATE OR REPLACE FUNCTION clerk_hub.outcome_of(o public.clerk_invitation_outbox) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.jsonb_build_object(
        'state', o.state, 'attempts', o.attempts, 'send_alone', o.send_alone,
        'next_attempt_at', o.next_attempt_at, 'consecutive_failures', o.consecutive_failures,
        'first_claimed_at', o.first_claimed_at, 'claimed_at', o.claimed_at,
        'settled_at', o.settled_at, 'invitation_id', o.invitation_id, 'status', o.status,
        'url', o.url, 'expires_at', o.expires_at, 'http_status', o.http_status,
        'error_code', o.error_code, 'error_message', o.error_message, 'trace_id', o.trace_id,
        'database_error', o.database_error)
$$;

COMMENT ON FUNCTION clerk_hub.outcome_of(public.clerk_invitation_outbox) IS
'returns what is to be reported of a row';

CREATE OR REPLACE FUNCTION clerk_hub.outcome_without_row(state text, error_code text, error_message text)
RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.jsonb_build_object(
        'state', $1, 'attempts', 0, 'send_alone', false, 'consecutive_failures', 0,
        'settled_at', pg_catalog.clock_timestamp(), 'error_code', $2, 'error_message', $3)
$$;

COMMENT ON FUNCTION clerk_hub.outcome_without_row(text, text, text) IS
'returns what is to be reported of an invitation that has no row';

CREATE OR REPLACE FUNCTION clerk_hub.note_changes() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        UPDATE clerk_hub.invitation AS i SET outcome = clerk_hub.outcome_of(r)
        FROM changed_rows AS r WHERE i.outbox_id = r.id;
    ELSIF TG_OP = 'TRUNCATE' THEN
        INSERT INTO clerk_hub.change (invitation) SELECT i.id FROM clerk_hub.invitation AS i;
        RETURN NULL;
    END IF;
    INSERT INTO clerk_hub.change (outbox_id) SELECT r.id FROM changed_rows AS r;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION clerk_hub.note_changes() IS
'notes which rows of the outbox have changed';

DROP TRIGGER IF EXISTS note_inserted ON public.clerk_invitation_outbox;
CREATE TRIGGER note_inserted AFTER INSERT ON public.clerk_invitation_outbox
REFERENCING NEW TABLE AS changed_rows
FOR EACH STATEMENT EXECUTE FUNCTION clerk_hub.note_changes();
DROP TRIGGER IF EXISTS note_updated ON public.clerk_invitation_outbox;
CREATE TRIGGER note_updated AFTER UPDATE ON public.clerk_invitation_outbox
REFERENCING NEW TABLE AS changed_rows
FOR EACH STATEMENT EXECUTE FUNCTION clerk_hub.note_changes();
DROP TRIGGER IF EXISTS note_deleted ON public.clerk_invitation_outbox;
CREATE TRIGGER note_deleted AFTER DELETE ON public.clerk_invitation_outbox
REFERENCING OLD TABLE AS changed_rows
FOR EACH STATEMENT EXECUTE FUNCTION clerk_hub.note_changes();
DROP TRIGGER IF EXISTS note_truncated ON public.clerk_invitation_outbox;
CREATE TRIGGER note_truncated AFTER TRUNCATE ON public.clerk_invitation_outbox
FOR EACH STATEMENT EXECUTE FUNCTION clerk_hub.note_changes();

-- Some changes of the extension's fire no other triggers.
ALTER TABLE public.clerk_invitation_outbox
    ENABLE ALWAYS TRIGGER note_inserted,
    ENABLE ALWAYS TRIGGER note_updated,
    ENABLE ALWAYS TRIGGER note_deleted,
    ENABLE ALWAYS TRIGGER note_truncated;

COMMENT ON TRIGGER note_inserted ON public.clerk_invitation_outbox IS 'for clerk_hub.report()';
COMMENT ON TRIGGER note_updated ON public.clerk_invitation_outbox IS 'for clerk_hub.report()';
COMMENT ON TRIGGER note_deleted ON public.clerk_invitation_outbox IS 'for clerk_hub.report()';
COMMENT ON TRIGGER note_truncated ON public.clerk_invitation_outbox IS 'for clerk_hub.report()';

CREATE OR REPLACE FUNCTION clerk_hub.apply_request() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known clerk_hub.invitation;
    old_state text;
    foreign_until bigint;
    row_id bigint;
    is_unknown boolean;
    wanted public.clerk_invitation_outbox;
    made_by text;
BEGIN
    -- A server that was promoted or restored applies nothing before
    -- clerk_hub.connect() has seen to what it may have forgotten.
    SELECT p.server INTO made_by FROM clerk_hub.publisher AS p;
    IF split_part(made_by, '/', 2) <> left(pg_walfile_name(pg_current_wal_lsn()), 8) THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'this hub was promoted or restored',
            HINT = 'CALL clerk_hub.connect() copies anew what is open.';
    END IF;

    -- An apply worker of this subscription does nothing but this, and what it
    -- does is as good as done by hand: the outbox's own triggers must fire.
    IF current_setting('session_replication_role') <> 'origin' THEN
        PERFORM set_config('session_replication_role', 'origin', false);
    END IF;

    IF NEW.kind = 'truncate' THEN
        PERFORM public.clerk_cancel_invitation(i.outbox_id)
        FROM clerk_hub.invitation AS i JOIN public.clerk_invitation_outbox AS o ON o.id = i.outbox_id
        WHERE i.request < NEW.id AND o.state = 'queued';
        RETURN NULL;
    END IF;

    SELECT i.* INTO known FROM clerk_hub.invitation AS i WHERE i.id = NEW.invitation;
    IF known.enqueued_at <> (NEW.request ->> 'enqueued_at')::timestamptz THEN
        DELETE FROM clerk_hub.invitation AS i WHERE i.id = known.id;
        known := NULL;
    END IF;
    -- Comes again with a copy of what is open.  The publisher has not got the
    -- report, or has lost it with a primary that its standby replaces.
    IF known.request >= NEW.id THEN
        INSERT INTO clerk_hub.change (invitation) VALUES (NEW.invitation);
        RETURN NULL;
    END IF;
    SELECT o.state INTO old_state FROM public.clerk_invitation_outbox AS o WHERE o.id = known.outbox_id;

    IF NEW.kind = 'cancel' OR NEW.kind = 'abandon' THEN
        IF known.id IS NULL THEN
            INSERT INTO clerk_hub.invitation (id, enqueued_at, request, outcome)
            VALUES (NEW.invitation, (NEW.request ->> 'enqueued_at')::timestamptz, NEW.id,
                CASE NEW.kind WHEN 'cancel' THEN clerk_hub.outcome_without_row('canceled', NULL, NULL)
                ELSE clerk_hub.outcome_without_row('failed', 'outcome_unknown', NEW.request ->> 'reason') END);
        ELSIF NEW.kind = 'cancel' THEN
            PERFORM public.clerk_cancel_invitation(known.outbox_id);
        ELSE
            PERFORM public.clerk_abandon_invitation(known.outbox_id, NEW.request ->> 'reason');
        END IF;
    ELSIF NEW.kind = 'change' AND known.id IS NOT NULL THEN
        wanted := jsonb_populate_record(NULL::public.clerk_invitation_outbox, NEW.request);
        UPDATE public.clerk_invitation_outbox AS o
        SET organization_id = wanted.organization_id, inviter_user_id = wanted.inviter_user_id,
            email_address = wanted.email_address, role = wanted.role,
            redirect_url = wanted.redirect_url, public_metadata = wanted.public_metadata,
            private_metadata = wanted.private_metadata, expires_in_days = wanted.expires_in_days,
            notify = wanted.notify, send_after = wanted.send_after
        WHERE o.id = known.outbox_id AND o.state = 'queued';
        UPDATE clerk_hub.invitation AS i SET changed = true WHERE i.id = known.id;
    ELSIF NEW.kind = 'retry' AND old_state = 'failed' THEN
        PERFORM public.clerk_retry_invitation(known.outbox_id);
    ELSIF (NEW.kind IN ('invite', 'change') AND known.id IS NULL) OR
          (NEW.kind = 'retry' AND old_state IS NULL)
    THEN
        SELECT p.last_foreign_request INTO foreign_until FROM clerk_hub.publisher AS p;
        wanted := jsonb_populate_record(NULL::public.clerk_invitation_outbox, NEW.request);
        -- The publisher's clock may be ahead of this one.
        IF wanted.send_after <= wanted.enqueued_at THEN
            wanted.send_after := least(wanted.send_after, now());
        END IF;
        -- Clerk is asked first whether there is an invitation already.  A minute
        -- is more than the clocks of servers differ that keep time.
        is_unknown := wanted.send_after <= now() AND
            (NEW.id <= foreign_until OR (NEW.kind = 'retry' AND wanted.error_code = 'outcome_unknown'));
        BEGIN
            INSERT INTO public.clerk_invitation_outbox (organization_id, inviter_user_id,
                email_address, role, redirect_url, public_metadata, private_metadata,
                expires_in_days, notify, send_after, state, attempts, first_claimed_at, claimed_at)
            VALUES (wanted.organization_id, wanted.inviter_user_id, wanted.email_address,
                wanted.role, wanted.redirect_url, wanted.public_metadata, wanted.private_metadata,
                wanted.expires_in_days, wanted.notify, wanted.send_after,
                CASE WHEN is_unknown THEN 'verifying' ELSE 'queued' END,
                is_unknown::integer,
                CASE WHEN is_unknown THEN least(wanted.enqueued_at, now()) - interval '1 minute' END,
                CASE WHEN is_unknown THEN clock_timestamp() END)
            RETURNING id INTO row_id;
            INSERT INTO clerk_hub.invitation AS i (id, enqueued_at, outbox_id, request)
            VALUES (NEW.invitation, wanted.enqueued_at, row_id, NEW.id)
            ON CONFLICT (id) DO UPDATE SET outbox_id = excluded.outbox_id,
                request = excluded.request, outcome = NULL;
        EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
            -- Whatever the publisher's constraints have let through must not
            -- hold up the others.
            INSERT INTO clerk_hub.invitation AS i (id, enqueued_at, request, outcome)
            VALUES (NEW.invitation, wanted.enqueued_at, NEW.id,
                clerk_hub.outcome_without_row('failed', 'refused_by_hub', SQLERRM))
            ON CONFLICT (id) DO UPDATE SET outbox_id = NULL,
                request = excluded.request, outcome = excluded.outcome;
        END;
    ELSIF NEW.kind NOT IN ('invite', 'change', 'retry') THEN
        RAISE feature_not_supported USING
            MESSAGE = format('this hub does not know requests of the kind "%s"', NEW.kind),
            HINT = 'Update the hub.';
    END IF;

    UPDATE clerk_hub.invitation AS i SET request = NEW.id
    WHERE i.id = NEW.invitation AND i.request < NEW.id;
    INSERT INTO clerk_hub.change (invitation) VALUES (NEW.invitation);
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION clerk_hub.apply_request() IS
'does what the publisher asks for; keeps no row';

-- As in publisher.sql.
CREATE OR REPLACE FUNCTION clerk_hub.mask(data bytea, key bytea, once text) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT pg_catalog.decode(pg_catalog.string_agg(pg_catalog.lpad(pg_catalog.to_hex(
               ('x' || pg_catalog.encode(pg_catalog.substr($1, 8 * n + 1, 8), 'hex'))::bit(64)::bigint
               OPERATOR(pg_catalog.#)
               ('x' || pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256($2 ||
                   pg_catalog.convert_to($3 || ':' || n, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
           ), 16, '0'), '' ORDER BY n), 'hex')
    FROM pg_catalog.generate_series(0, (pg_catalog.octet_length($1) - 1) / 8) AS n
$$;

COMMENT ON FUNCTION clerk_hub.mask(bytea, bytea, text) IS
'masks, and unmasks, a secret in the hub''s report
in: the secret, padded to a multiple of eight bytes; the key; and a text with
  which no other secret is masked';

CREATE OR REPLACE PROCEDURE clerk_hub.open_connection()
LANGUAGE plpgsql AS $$
DECLARE
    connection text;
BEGIN
    IF 'clerk_publisher' = ANY (clerk_hub.dblink_get_connections()) THEN
        PERFORM clerk_hub.dblink_disconnect('clerk_publisher');
    END IF;
    SELECT p.connection_string INTO STRICT connection FROM clerk_hub.publisher AS p;
    PERFORM clerk_hub.dblink_connect('clerk_publisher', connection);
    PERFORM clerk_hub.dblink_exec('clerk_publisher',
        'SET statement_timeout = ''5min''; SET search_path = pg_catalog; '
        'SET DateStyle = ISO; SET IntervalStyle = postgres; SET bytea_output = hex');
END
$$;

COMMENT ON PROCEDURE clerk_hub.open_connection() IS
'connects to the publisher; for the other procedures';

CREATE OR REPLACE FUNCTION clerk_hub.remote(statement text) RETURNS text
LANGUAGE sql AS $$
    SELECT r.value FROM clerk_hub.dblink('clerk_publisher', $1) AS r (value text)
$$;

COMMENT ON FUNCTION clerk_hub.remote(text) IS
'returns what a query at the publisher does; for the procedures';

CREATE OR REPLACE PROCEDURE clerk_hub.connect()
LANGUAGE plpgsql AS $$
DECLARE
    publisher clerk_hub.publisher;
    this_server text;
    remote_status jsonb;
    remote_timeline text;
    remote_version integer;
    prefix text;
    slot text;
    slot_state text;
    is_subscribed boolean;
    deadline timestamptz;
    last_request bigint;
BEGIN
    IF NOT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('clerk_hub'), 0) THEN
        RAISE object_in_use USING MESSAGE = 'another session works for this publisher';
    END IF;
    CALL clerk_hub.open_connection();
    SELECT p.* INTO STRICT publisher FROM clerk_hub.publisher AS p;
    SELECT s.system_identifier || '/' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8)
    INTO this_server FROM pg_catalog.pg_control_system() AS s;
    is_subscribed := EXISTS (
        SELECT FROM pg_catalog.pg_subscription AS s JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid
        WHERE s.subname = 'clerk_invite' AND d.datname = pg_catalog.current_database());

    remote_status := clerk_hub.remote(pg_catalog.format(
        'SELECT to_jsonb(s) - ''notify_channel'' FROM %I.clerk_hub_status AS s', publisher.remote_schema));
    prefix := 'clerk_hub_' || clerk_hub.remote(
        'SELECT oid FROM pg_database WHERE datname = current_database()') || '_';
    slot := prefix || pg_catalog.left(publisher.generation, 8);
    slot_state := clerk_hub.remote(pg_catalog.format(
        'SELECT wal_status FROM pg_replication_slots WHERE slot_name = %L', slot));
    remote_version := clerk_hub.remote('SHOW server_version_num');
    BEGIN
        remote_timeline := clerk_hub.remote('SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)');
    EXCEPTION WHEN OTHERS THEN
        -- Not every service has these functions.
        remote_timeline := NULL;
    END;

    -- A publisher may have been restored, or a standby of it promoted, with the
    -- slot: the subscription would skip what has an earlier position in its WAL
    -- than what came from the old server.
    IF is_subscribed AND slot_state <> 'lost' AND
       publisher.server = this_server AND
       publisher.timeline IS NOT DISTINCT FROM remote_timeline AND
       remote_status ->> 'generation' = publisher.generation AND
       (remote_status ->> 'version')::bigint BETWEEN publisher.confirmed_version AND publisher.version
    THEN
        RETURN;
    END IF;

    -- The subscription is made anew, and so everything that is open is copied.
    IF is_subscribed THEN
        ALTER SUBSCRIPTION clerk_invite DISABLE;
        ALTER SUBSCRIPTION clerk_invite SET (slot_name = NONE);
        DROP SUBSCRIPTION clerk_invite;
        COMMIT;
    END IF;

    -- Who has a slot may have received any request until now.
    deadline := pg_catalog.clock_timestamp() + interval '3 seconds';
    WHILE clerk_hub.remote(pg_catalog.format(
        'SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active AND '
        'starts_with(slot_name, %L)', prefix)) <> '0'
    LOOP
        IF pg_catalog.clock_timestamp() > deadline THEN
            RAISE object_in_use USING MESSAGE = 'another hub is connected to this publisher',
                HINT = 'A publisher has one hub. Stop the other one first.';
        END IF;
        PERFORM pg_catalog.pg_sleep(0.1);
    END LOOP;
    PERFORM clerk_hub.remote(pg_catalog.format(
        'SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots '
        'WHERE database = current_database() AND NOT active AND '
        '(starts_with(slot_name, %L) OR slot_name ~ (''^pg_[0-9]+_sync_[0-9]+_'' || %L || ''$''))',
        prefix, pg_catalog.split_part(coalesce(remote_status ->> 'server', '-'), '/', 1)));

    -- What this hub does not know may have been sent if there was another hub,
    -- or if this one has forgotten something.
    IF publisher.server IS DISTINCT FROM this_server OR
       (remote_status ->> 'generation' = publisher.generation AND
        (remote_status ->> 'version')::bigint > publisher.version)
    THEN
        publisher.generation := pg_catalog.gen_random_uuid()::text;
    END IF;
    slot := prefix || pg_catalog.left(publisher.generation, 8);
    -- A failover slot is for synchronized_standby_slots: the hub then receives
    -- no request that a standby lacks.
    PERFORM clerk_hub.remote(pg_catalog.format(
        'SELECT pg_create_logical_replication_slot(%L, ''pgoutput''%s)::text', slot,
        CASE WHEN remote_version >= 170000 THEN ', failover => true' ELSE '' END));
    last_request := clerk_hub.remote(pg_catalog.format(
        'SELECT coalesce(max(id), 0) FROM %I.clerk_invitation_request', publisher.remote_schema));
    IF remote_status ->> 'generation' IS NULL OR remote_status ->> 'generation' = publisher.generation THEN
        last_request := publisher.last_foreign_request;
    ELSE
        -- What is queued here may have been sent as well.
        PERFORM pg_catalog.set_config('session_replication_role', 'replica', true);
        UPDATE public.clerk_invitation_outbox AS o
        SET state = 'verifying', attempts = greatest(o.attempts, 1),
            first_claimed_at = coalesce(o.first_claimed_at, o.enqueued_at - interval '1 minute'),
            claimed_at = pg_catalog.clock_timestamp()
        FROM clerk_hub.invitation AS i
        WHERE i.outbox_id = o.id AND o.state = 'queued' AND o.send_after <= pg_catalog.now();
        PERFORM pg_catalog.set_config('session_replication_role', 'origin', true);
        -- Wakes the worker.
        UPDATE public.clerk_invitation_outbox SET role = role WHERE false;
    END IF;
    UPDATE clerk_hub.publisher AS p
    SET generation = publisher.generation, server = this_server, timeline = remote_timeline,
        version = CASE WHEN p.generation = publisher.generation THEN p.version ELSE 0 END,
        confirmed_version = 0,
        last_foreign_request = greatest(p.last_foreign_request, last_request);
    COMMIT;

    PERFORM clerk_hub.remote(pg_catalog.format('SELECT %I.clerk_hub_take_over(%L, %L)::text',
        publisher.remote_schema, publisher.generation, this_server));
    BEGIN
        EXECUTE pg_catalog.format(
            'CREATE SUBSCRIPTION clerk_invite CONNECTION %L PUBLICATION clerk_invite '
            'WITH (create_slot = false, slot_name = %L, copy_data = true%s)',
            publisher.connection_string, slot,
            CASE WHEN least(remote_version, pg_catalog.current_setting('server_version_num')::integer) >= 170000
                 THEN ', failover = true' ELSE '' END);
    EXCEPTION WHEN OTHERS THEN
        -- The context would tell the connection string.
        RAISE USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM;
    END;
    COMMIT;
END
$$;

COMMENT ON PROCEDURE clerk_hub.connect() IS
'makes the subscription, or makes it anew if the publisher has lost its slot, if
the publisher had another hub, or if either database was restored or promoted;
otherwise does nothing; can be called again after any failure
raises: 55006 (another hub is connected, or another session is here)';

CREATE OR REPLACE PROCEDURE clerk_hub.report(
    duration interval DEFAULT '0', heartbeat interval DEFAULT '10 seconds'
)
LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := pg_catalog.clock_timestamp() + duration;
    next_heartbeat timestamptz := '-infinity';
    publisher clerk_hub.publisher;
    slot_state text;
    mask_key bytea;
    ids bigint[];
    states jsonb;
    progress jsonb;
    postponed bigint[];
BEGIN
    IF NOT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('clerk_hub'), 0) THEN
        RAISE object_in_use USING MESSAGE = 'another session works for this publisher';
    END IF;
    CALL clerk_hub.open_connection();
    SELECT p.* INTO STRICT publisher FROM clerk_hub.publisher AS p;
    mask_key := clerk_hub.remote(pg_catalog.format(
        'SELECT mask_key::text FROM %I.clerk_hub_status', publisher.remote_schema));
    LOOP
        WITH batch AS (
            SELECT c.id, c.outbox_id, c.invitation FROM clerk_hub.change AS c
            WHERE c.not_before IS NULL OR c.not_before <= pg_catalog.clock_timestamp()
            ORDER BY c.id LIMIT 500
        ), known AS (
            SELECT i.* FROM clerk_hub.invitation AS i
            WHERE i.outbox_id IN (SELECT b.outbox_id FROM batch AS b)
            UNION
            SELECT i.* FROM clerk_hub.invitation AS i
            WHERE i.id IN (SELECT b.invitation FROM batch AS b)
        )
        SELECT (SELECT pg_catalog.array_agg(b.id) FROM batch AS b),
               (SELECT pg_catalog.jsonb_agg(
                    pg_catalog.jsonb_build_object('id', k.id, 'enqueued_at', k.enqueued_at, 'request', k.request) ||
                    CASE WHEN o.id IS NOT NULL THEN clerk_hub.outcome_of(o)
                         ELSE coalesce(k.outcome, clerk_hub.outcome_without_row('failed',
                             'outcome_unknown', 'the hub has lost the invitation')) END ||
                    CASE WHEN k.changed AND o.id IS NOT NULL
                         THEN pg_catalog.jsonb_build_object('sent_as', pg_catalog.to_jsonb(o) - 'url')
                         ELSE '{}' END)
                FROM known AS k LEFT JOIN public.clerk_invitation_outbox AS o ON o.id = k.outbox_id)
        INTO ids, states;

        IF ids IS NOT NULL OR pg_catalog.clock_timestamp() >= next_heartbeat THEN
            -- Only what has committed here is reported, so that a publisher
            -- never knows of a higher number than the hub it comes from.
            UPDATE clerk_hub.publisher AS p SET version = p.version + 1 RETURNING p.* INTO publisher;
            IF pg_catalog.clock_timestamp() >= next_heartbeat THEN
                SELECT pg_catalog.jsonb_build_object('budget_left', v.budget_left, 'time_to_empty', v.time_to_empty)
                INTO progress FROM public.clerk_invitation_progress AS v;
                slot_state := clerk_hub.remote(pg_catalog.format(
                    'SELECT wal_status FROM pg_replication_slots WHERE slot_name = %L AND database = current_database()',
                    (SELECT s.subslotname FROM pg_catalog.pg_subscription AS s
                     JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid
                     WHERE s.subname = 'clerk_invite' AND d.datname = pg_catalog.current_database())));
                IF slot_state IS NULL OR slot_state = 'lost' THEN
                    RAISE object_not_in_prerequisite_state USING
                        MESSAGE = 'the publisher has lost the replication slot of this hub',
                        HINT = 'CALL clerk_hub.connect() copies anew what is open.';
                END IF;
                next_heartbeat := pg_catalog.clock_timestamp() + heartbeat;
            END IF;
            COMMIT;
            SELECT pg_catalog.jsonb_agg(e || CASE WHEN e ->> 'url' IS NULL THEN '{}' ELSE
                pg_catalog.jsonb_build_object('url', pg_catalog.encode(clerk_hub.mask(
                    pg_catalog.convert_to(e ->> 'url' || pg_catalog.repeat(' ',
                        (8 - pg_catalog.octet_length(pg_catalog.convert_to(e ->> 'url', 'UTF8')) % 8) % 8), 'UTF8'),
                    mask_key, pg_catalog.concat_ws(':', publisher.generation, publisher.version, e ->> 'id')), 'hex')) END)
            INTO states FROM pg_catalog.jsonb_array_elements(states) AS e;
            postponed := clerk_hub.remote(pg_catalog.format(
                'SELECT %I.clerk_hub_report(%L, %s, %L, %L)', publisher.remote_schema,
                publisher.generation, publisher.version, progress, coalesce(states, '[]')));

            WITH told AS (
                DELETE FROM clerk_hub.change AS c
                WHERE c.id = ANY (ids) AND NOT EXISTS (
                    SELECT FROM clerk_hub.invitation AS i
                    WHERE i.id = ANY (postponed) AND (i.id = c.invitation OR i.outbox_id = c.outbox_id))
            )
            UPDATE clerk_hub.change AS c
            SET not_before = pg_catalog.clock_timestamp() + interval '1 second'
            WHERE c.id = ANY (ids) AND EXISTS (
                SELECT FROM clerk_hub.invitation AS i
                WHERE i.id = ANY (postponed) AND (i.id = c.invitation OR i.outbox_id = c.outbox_id));
            UPDATE clerk_hub.publisher AS p SET confirmed_version = publisher.version;
            -- What has no row any more, and is known to the publisher, is over.
            DELETE FROM clerk_hub.invitation AS i
            USING pg_catalog.jsonb_array_elements(states) AS e
            WHERE i.id = (e ->> 'id')::bigint AND i.request = (e ->> 'request')::bigint AND
                  i.outcome IS NOT NULL AND i.id <> ALL (postponed) AND
                  NOT EXISTS (SELECT FROM public.clerk_invitation_outbox AS o WHERE o.id = i.outbox_id);
            COMMIT;
        ELSE
            EXIT WHEN pg_catalog.clock_timestamp() >= until;
            COMMIT;
            PERFORM pg_catalog.pg_sleep(0.1);
        END IF;
    END LOOP;
END
$$;

COMMENT ON PROCEDURE clerk_hub.report(interval, interval) IS
'tells the publisher what has become of its invitations
in: how long to go on when there is nothing to tell, and how often to tell the
  publisher at least that the hub is there
raises: 55006 (another session reports, or the publisher has another hub), 55000
  (the slot is lost, or this database was set back: CALL clerk_hub.connect())';

REVOKE ALL ON ALL TABLES IN SCHEMA clerk_hub FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA clerk_hub FROM PUBLIC;

COMMIT;
