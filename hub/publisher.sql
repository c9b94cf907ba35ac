-- publisher.sql - the outbox of clerk_invite for a database on which no
-- extension can be installed: the publisher of a hub
--
-- Plain SQL for PostgreSQL 13 and later, for any client, without superuser:
-- creates its objects in the current schema, owned by the current role, which
-- needs CREATE on the schema and on the database (for a publication).  A second
-- run replaces functions and triggers, and keeps rows and privileges.
--
-- What applications use is the same as in the extension, under the same names:
-- clerk_invitation_outbox, clerk_enqueue_organization_invitation(),
-- clerk_invitation_trigger(), clerk_cancel_invitation(),
-- clerk_retry_invitation(), clerk_abandon_invitation(),
-- clerk_invitation_progress.  Objects whose names begin with clerk_hub, and the
-- table clerk_invitation_request, are for the hub; see hub/README.md.

DO $publisher$
DECLARE
    schema_name text := current_schema();
    is_new boolean;
    white_space text := '';
    script text := $script$
CREATE TABLE IF NOT EXISTS @schema@.clerk_invitation_outbox (
    id bigserial PRIMARY KEY
        CONSTRAINT id_leaves_room
        CHECK (id BETWEEN 1 AND 4611686018427387904),
    organization_id text NOT NULL
        CONSTRAINT organization_id_is_an_identifier
        CHECK (char_length(organization_id) <= 255 AND
               organization_id ~ '^[A-Za-z0-9_-]+$'),
    inviter_user_id text
        CONSTRAINT inviter_user_id_is_clean
        CHECK (char_length(inviter_user_id) BETWEEN 1 AND 255 AND
               inviter_user_id !~ '[\x01-\x1f\x7f]'),
    email_address text NOT NULL
        CONSTRAINT email_address_is_an_address
        CHECK (char_length(email_address) <= 320 AND
               strpos(email_address, '@') > 0 AND
               email_address !~ '[\x01-\x1f\x7f]'),
    role text NOT NULL
        CONSTRAINT role_is_clean
        CHECK (char_length(role) BETWEEN 1 AND 255 AND
               role !~ '[\x01-\x1f\x7f]'),
    redirect_url text
        CONSTRAINT redirect_url_is_clean
        CHECK (char_length(redirect_url) BETWEEN 1 AND 8000 AND
               redirect_url !~ '[\x01-\x1f\x7f]'),
    public_metadata jsonb
        CONSTRAINT public_metadata_is_a_small_object
        CHECK (jsonb_typeof(public_metadata) = 'object' AND
               octet_length(public_metadata::text) <= 8192),
    private_metadata jsonb
        CONSTRAINT private_metadata_is_a_small_object
        CHECK (jsonb_typeof(private_metadata) = 'object' AND
               octet_length(private_metadata::text) <= 8192),
    expires_in_days integer
        CONSTRAINT expires_in_days_is_from_1_to_365
        CHECK (expires_in_days BETWEEN 1 AND 365),
    notify boolean,
    send_after timestamptz NOT NULL DEFAULT now()
        CONSTRAINT send_after_is_a_time
        CHECK (send_after > '-infinity'),
    state text NOT NULL DEFAULT 'queued'
        CONSTRAINT state_is_known
        CHECK (state IN ('queued', 'sending', 'verifying', 'sent', 'skipped',
                         'failed', 'canceled')),
    attempts integer NOT NULL DEFAULT 0
        CONSTRAINT attempts_can_go_on
        CHECK (attempts BETWEEN 0 AND CASE state WHEN 'queued' THEN 10000 ELSE 20000 END),
    send_alone boolean NOT NULL DEFAULT false,
    next_attempt_at timestamptz,
    consecutive_failures integer NOT NULL DEFAULT 0,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    first_claimed_at timestamptz,
    first_claimed_clock bigint,
    claimed_at timestamptz,
    claimed_clerk_clock timestamptz,
    settled_at timestamptz,
    invitation_id text,
    status text,
    url text,
    expires_at timestamptz,
    http_status integer,
    error_code text,
    error_message text,
    trace_id text,
    database_error text
);

CREATE INDEX IF NOT EXISTS clerk_invitation_outbox_due
ON @schema@.clerk_invitation_outbox (coalesce(next_attempt_at, send_after), id)
WHERE state IN ('queued', 'sending', 'verifying');

CREATE INDEX IF NOT EXISTS clerk_invitation_outbox_settled
ON @schema@.clerk_invitation_outbox (settled_at, id, state)
WHERE state IN ('sent', 'skipped', 'failed', 'canceled');

COMMENT ON TABLE @schema@.clerk_invitation_outbox IS
'invitations to be sent to Clerk after commit, by a hub, and a record of the
results; an INSERT needs organization_id, email_address and role';
COMMENT ON SEQUENCE @schema@.clerk_invitation_outbox_id_seq IS
'generates the ids of clerk_invitation_outbox';
COMMENT ON INDEX @schema@.clerk_invitation_outbox_pkey IS
'finds a row by its id';
COMMENT ON INDEX @schema@.clerk_invitation_outbox_due IS
'finds open rows, oldest first';
COMMENT ON INDEX @schema@.clerk_invitation_outbox_settled IS
'finds rows that were settled long ago, and counts settled rows by state';
COMMENT ON CONSTRAINT clerk_invitation_outbox_pkey ON @schema@.clerk_invitation_outbox IS
'ids are unique';
COMMENT ON CONSTRAINT id_leaves_room ON @schema@.clerk_invitation_outbox IS
'higher ids would leave none for further rows';
COMMENT ON CONSTRAINT organization_id_is_an_identifier ON @schema@.clerk_invitation_outbox IS
'at most 255 characters, only those that are safe in the path of a request';
COMMENT ON CONSTRAINT inviter_user_id_is_clean ON @schema@.clerk_invitation_outbox IS
'NULL rather than empty; at most 255 characters; no control characters';
COMMENT ON CONSTRAINT email_address_is_an_address ON @schema@.clerk_invitation_outbox IS
'contains an @; at most 320 characters; no control characters; Clerk checks the
rest of the syntax';
COMMENT ON CONSTRAINT role_is_clean ON @schema@.clerk_invitation_outbox IS
'not empty; at most 255 characters; no control characters';
COMMENT ON CONSTRAINT redirect_url_is_clean ON @schema@.clerk_invitation_outbox IS
'NULL rather than empty; at most 8000 characters; no control characters';
COMMENT ON CONSTRAINT public_metadata_is_a_small_object ON @schema@.clerk_invitation_outbox IS
'Clerk accepts objects of up to 8 kB';
COMMENT ON CONSTRAINT private_metadata_is_a_small_object ON @schema@.clerk_invitation_outbox IS
'Clerk accepts objects of up to 8 kB';
COMMENT ON CONSTRAINT expires_in_days_is_from_1_to_365 ON @schema@.clerk_invitation_outbox IS
'range that Clerk allows';
COMMENT ON CONSTRAINT send_after_is_a_time ON @schema@.clerk_invitation_outbox IS
'infinity prevents an invitation from being sent; -infinity is meaningless';
COMMENT ON CONSTRAINT attempts_can_go_on ON @schema@.clerk_invitation_outbox IS
'far more than clerk_invite.max_attempts allows; queued rows have room for
further attempts';
COMMENT ON CONSTRAINT state_is_known ON @schema@.clerk_invitation_outbox IS
'the states are those in the comment on the column';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.id IS
'id of the row';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.organization_id IS
'Clerk''s identifier of the organization: org_...';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.inviter_user_id IS
'Clerk''s identifier of the inviting user, user_..., or NULL';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.email_address IS
'address to invite; surrounding white space is removed';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.role IS
'key of the role that the invited person will have, such as org:member';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.redirect_url IS
'URL to redirect to after acceptance, or NULL';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.public_metadata IS
'metadata that the frontend can read as well; an object of at most 8 kB';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.private_metadata IS
'metadata that only the backend can read; an object of at most 8 kB';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.expires_in_days IS
'days until the invitation expires, 1 to 365; NULL: Clerk''s default, 30';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.notify IS
'whether Clerk sends the e-mail; NULL: Clerk''s default, true';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.send_after IS
'time before which the invitation is not sent';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.state IS
'queued, sending, verifying (outcome unknown), sent, skipped (already invited or
a member), failed, canceled';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.attempts IS
'number of attempts to send the invitation, including one in flight';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.send_alone IS
'whether the row gets a request of its own: set after a request that it shared
was unsuccessful';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.next_attempt_at IS
'time before which the row is not processed again; NULL: send_after applies';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.consecutive_failures IS
'number of consecutive failed lookups at Clerk, or of changes that this database
refused; each one doubles the delay before the next attempt';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.enqueued_at IS
'start of the transaction that inserted the row';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.first_claimed_at IS
'time when a sender first claimed the row';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.first_claimed_clock IS
'the same time by a monotonic clock; meaningful only to senders';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.claimed_at IS
'time when a sender last claimed the row, or when its outcome became unknown';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.claimed_clerk_clock IS
'meaningful only to senders';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.settled_at IS
'time when the row reached a final state';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.invitation_id IS
'Clerk''s identifier of the invitation: orginv_...';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.status IS
'last known status of the invitation at Clerk: from when it was sent, or from
clerk_refresh_invitations()';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.url IS
'link for accepting the invitation; a secret: anyone who has it can join the
organization; NULL if status is no longer pending';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.expires_at IS
'time at which the invitation expires';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.http_status IS
'HTTP status of the last response that refused the invitation or could not be
used; NULL: there was no such response';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.error_code IS
'Clerk''s error code of the last failure';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.error_message IS
'description of the last failure';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.trace_id IS
'Clerk''s trace ID of the request that failed last; Clerk''s support needs it';
COMMENT ON COLUMN @schema@.clerk_invitation_outbox.database_error IS
'why this database refused a sender''s change of the row, for example because
of a trigger or a constraint that was added to the table; the row is set aside
until next_attempt_at; NULL: no change was refused';

-- A value in request that the hub does not know changes nothing there, whereas a
-- column that its copy of the table lacks would stop the subscription.
CREATE TABLE IF NOT EXISTS @schema@.clerk_invitation_request (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    invitation bigint,
    request jsonb,
    enqueued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    received_at timestamptz
);

CREATE INDEX IF NOT EXISTS clerk_invitation_request_invitation
ON @schema@.clerk_invitation_request (invitation, id);

CREATE INDEX IF NOT EXISTS clerk_invitation_request_waiting
ON @schema@.clerk_invitation_request (enqueued_at)
WHERE received_at IS NULL;

COMMENT ON TABLE @schema@.clerk_invitation_request IS
'what the hub is to do, in the order of ids for each invitation: published, and
removed when the hub has reported the outcome; not for users';
COMMENT ON COLUMN @schema@.clerk_invitation_request.id IS
'number of the request';
COMMENT ON COLUMN @schema@.clerk_invitation_request.kind IS
'invite, change, cancel, retry, abandon, truncate (cancel whatever is queued)';
COMMENT ON COLUMN @schema@.clerk_invitation_request.invitation IS
'id of the row of clerk_invitation_outbox; NULL: all rows';
COMMENT ON COLUMN @schema@.clerk_invitation_request.request IS
'the row as it was then: what is to be sent, enqueued_at, by which a row is known
from another one that had its id, and error_code';
COMMENT ON COLUMN @schema@.clerk_invitation_request.enqueued_at IS
'time of the request';
COMMENT ON COLUMN @schema@.clerk_invitation_request.received_at IS
'time when the hub reported that it has the request';
COMMENT ON INDEX @schema@.clerk_invitation_request_invitation IS
'finds the requests for an invitation';
COMMENT ON INDEX @schema@.clerk_invitation_request_waiting IS
'finds the requests that the hub has not received';

CREATE TABLE IF NOT EXISTS @schema@.clerk_hub_status (
    singleton boolean PRIMARY KEY DEFAULT true
        CONSTRAINT there_is_one_row CHECK (singleton),
    generation text,
    version bigint NOT NULL DEFAULT 0,
    server text,
    last_report_at timestamptz,
    budget_left text,
    time_to_empty interval,
    mask_key bytea NOT NULL
        DEFAULT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()),
    notify_channel text
        CONSTRAINT notify_channel_is_a_name
        CHECK (octet_length(notify_channel) BETWEEN 1 AND 63)
);

INSERT INTO @schema@.clerk_hub_status DEFAULT VALUES ON CONFLICT DO NOTHING;

COMMENT ON TABLE @schema@.clerk_hub_status IS
'the hub, in one row; its owner may change notify_channel only';
COMMENT ON COLUMN @schema@.clerk_hub_status.singleton IS
'there is one row';
COMMENT ON COLUMN @schema@.clerk_hub_status.generation IS
'which hub this database has; NULL: it has had none';
COMMENT ON COLUMN @schema@.clerk_hub_status.version IS
'number of that hub''s last report';
COMMENT ON COLUMN @schema@.clerk_hub_status.server IS
'system identifier of that hub''s server';
COMMENT ON COLUMN @schema@.clerk_hub_status.last_report_at IS
'time of that hub''s last report';
COMMENT ON COLUMN @schema@.clerk_hub_status.budget_left IS
'as in clerk_invitation_progress, when the hub last reported';
COMMENT ON COLUMN @schema@.clerk_hub_status.time_to_empty IS
'as in clerk_invitation_progress, when the hub last reported';
COMMENT ON COLUMN @schema@.clerk_hub_status.mask_key IS
'what the hub masks urls with; a secret';
COMMENT ON COLUMN @schema@.clerk_hub_status.notify_channel IS
'channel on which settled invitations are announced: id and state, as by the
extension''s setting clerk_invite.notify_channel; NULL: none';

CREATE OR REPLACE FUNCTION @schema@.clerk_publisher_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 1';

COMMENT ON FUNCTION @schema@.clerk_publisher_version() IS
'returns the version of the protocol between publisher and hub';

CREATE OR REPLACE FUNCTION @schema@.clerk_invitation_outbox_guard() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    internal CONSTANT text[] := ARRAY['state', 'attempts', 'send_alone',
        'next_attempt_at', 'consecutive_failures', 'enqueued_at', 'first_claimed_at',
        'first_claimed_clock', 'claimed_at', 'claimed_clerk_clock', 'settled_at',
        'invitation_id', 'status', 'url', 'expires_at', 'http_status', 'error_code', 'error_message', 'trace_id',
        'database_error'];
    anew CONSTANT text[] := ARRAY['attempts', 'send_alone', 'next_attempt_at',
        'consecutive_failures', 'first_claimed_at', 'first_claimed_clock', 'settled_at',
        'database_error'];
    by_owner boolean;
    canceled boolean := false;
    queued_again boolean := false;
    before jsonb;
    after jsonb;
    last_number bigint;
    choice text;
    message text;
BEGIN
    SELECT pg_has_role(c.relowner, 'USAGE') INTO by_owner FROM pg_class AS c WHERE c.oid = TG_RELID;

    -- The hub's report, made with the owner's rights.  What a trigger does
    -- because of it is done by hand.
    IF TG_OP = 'UPDATE' AND by_owner AND pg_trigger_depth() = 1 AND
       current_setting('clerk_invite.reporting', true) = 'on'
    THEN
        RETURN NEW;
    END IF;

    IF TG_OP <> 'INSERT' THEN
        IF OLD.state IN ('sending', 'verifying') OR
           (TG_OP = 'UPDATE' AND OLD.state <> NEW.state AND
            NOT (OLD.state = 'queued' AND NEW.state = 'canceled') AND
            NOT (OLD.state = 'failed' AND NEW.state = 'queued'))
        THEN
            RAISE object_not_in_prerequisite_state USING
                MESSAGE = CASE
                    WHEN TG_OP = 'DELETE' THEN format('cannot delete an invitation that is %s', OLD.state)
                    WHEN OLD.state = NEW.state THEN format('cannot change an invitation that is %s', OLD.state)
                    ELSE format('cannot change an invitation from "%s" to "%s"', OLD.state, NEW.state)
                END,
                HINT = 'Use clerk_cancel_invitation() while it is queued, and clerk_retry_invitation() when it has failed.';
        END IF;
        IF TG_OP = 'DELETE' THEN
            RETURN OLD;
        END IF;
        IF NEW.state IS NULL THEN
            RAISE not_null_violation USING MESSAGE = 'the state of an invitation must not be null';
        END IF;
        canceled := OLD.state <> NEW.state AND NEW.state = 'canceled';
        queued_again := OLD.state <> NEW.state AND NEW.state = 'queued';
    END IF;

    IF NOT by_owner THEN
        after := to_jsonb(NEW);
        IF TG_OP = 'INSERT' THEN
            before := jsonb_build_object('state', 'queued', 'attempts', 0, 'send_alone', false,
                'consecutive_failures', 0, 'enqueued_at', now());
            message := 'permission denied to set "%s" of an invitation';
            SELECT min(name) INTO choice FROM unnest(internal) AS name
            WHERE after -> name IS DISTINCT FROM coalesce(before -> name, 'null');
            IF choice IS NULL THEN
                -- Who may not use the sequence cannot have got the number there.
                IF has_sequence_privilege(pg_get_serial_sequence('@schema@.clerk_invitation_outbox', 'id'), 'USAGE') THEN
                    last_number := pg_sequence_last_value(pg_get_serial_sequence('@schema@.clerk_invitation_outbox', 'id')::regclass);
                END IF;
                IF NEW.id <= 0 OR NEW.id > coalesce(last_number, 0) THEN
                    choice := 'id';
                END IF;
            END IF;
        ELSE
            before := to_jsonb(OLD);
            message := 'permission denied to change "%s" of an invitation';
            SELECT min(name) INTO choice FROM unnest(internal || 'id'::text) AS name
            WHERE after -> name IS DISTINCT FROM before -> name AND name <> 'state' AND
                  NOT (queued_again AND name = ANY (anew)) AND NOT (canceled AND name = 'settled_at');
        END IF;
        IF choice IS NOT NULL THEN
            RAISE insufficient_privilege USING
                MESSAGE = format(message, choice),
                DETAIL = format('Only the owner of table "%s" may do that.', TG_TABLE_NAME),
                HINT = CASE TG_OP WHEN 'INSERT' THEN 'Omit the column.'
                    ELSE 'Use clerk_cancel_invitation() while it is queued, and clerk_retry_invitation() when it has failed.' END,
                SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, COLUMN = choice;
        END IF;
    END IF;

    -- With more white space than that a text is no address.
    IF octet_length(NEW.email_address) <= 8192 THEN
        NEW.email_address := btrim(NEW.email_address, @white_space@);
    END IF;
    IF canceled THEN
        NEW.settled_at := clock_timestamp();
    END IF;
    IF queued_again THEN
        -- What was created since the first claim is still the row's own if
        -- nobody knows its outcome.
        IF OLD.error_code = 'outcome_unknown' THEN
            NEW.first_claimed_at := OLD.first_claimed_at;
            NEW.first_claimed_clock := OLD.first_claimed_clock;
        ELSE
            NEW.first_claimed_at := NULL;
            NEW.first_claimed_clock := NULL;
        END IF;
        NEW.attempts := 0;
        NEW.send_alone := false;
        NEW.next_attempt_at := NULL;
        NEW.consecutive_failures := 0;
        NEW.settled_at := NULL;
        NEW.database_error := NULL;
    END IF;
    RETURN NEW;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_invitation_outbox_guard() IS
'keeps clerk_invitation_outbox consistent: users can change the state only from
queued to canceled and from failed to queued, and cannot change rows that are
sending or verifying; only the owner can set internal columns (state and all
columns after it); removes white space around addresses
raises: 42501, 55000';

CREATE OR REPLACE FUNCTION @schema@.clerk_invitation_outbox_keep_numbers_ahead() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    highest bigint;
    last_number bigint;
BEGIN
    SELECT max(o.id) INTO highest FROM @schema@.clerk_invitation_outbox AS o;
    SELECT s.last_value - (NOT s.is_called)::integer INTO last_number
    FROM @schema@.clerk_invitation_outbox_id_seq AS s;

    -- Others may draw numbers meanwhile: a short way is gone step by step, and a
    -- long one ends further than they get.
    IF highest > last_number + 1000 THEN
        PERFORM setval('@schema@.clerk_invitation_outbox_id_seq', highest + 1000);
    ELSIF highest > last_number THEN
        WHILE nextval('@schema@.clerk_invitation_outbox_id_seq') < highest LOOP
        END LOOP;
    END IF;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_invitation_outbox_keep_numbers_ahead() IS
'keeps the sequence ahead of the ids of restored rows';

CREATE OR REPLACE FUNCTION @schema@.clerk_invitation_outbox_request() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO @schema@.clerk_invitation_request (kind, invitation, request)
        SELECT 'invite', n.id, @schema@.clerk_hub_request(n.organization_id, n.inviter_user_id,
               n.email_address, n.role, n.redirect_url, n.public_metadata, n.private_metadata,
               n.expires_in_days, n.notify, n.send_after, n.enqueued_at, n.error_code)
        FROM new_rows AS n WHERE n.state = 'queued' ORDER BY n.id;
    ELSIF TG_OP = 'UPDATE' THEN
        IF pg_trigger_depth() = 1 AND current_setting('clerk_invite.reporting', true) = 'on' THEN
            RETURN NULL;
        END IF;
        INSERT INTO @schema@.clerk_invitation_request (kind, invitation, request)
        SELECT c.kind, c.id, c.request
        FROM (SELECT n.id,
                     CASE WHEN o.state = 'queued' AND n.state = 'canceled' THEN 'cancel'
                          WHEN o.state = 'failed' AND n.state = 'queued' THEN 'retry'
                          WHEN n.state = 'queued' THEN 'change' END AS kind,
                     o.state AS old_state,
                     @schema@.clerk_hub_request(o.organization_id, o.inviter_user_id,
                         o.email_address, o.role, o.redirect_url, o.public_metadata,
                         o.private_metadata, o.expires_in_days, o.notify, o.send_after,
                         o.enqueued_at, o.error_code) AS old_request,
                     @schema@.clerk_hub_request(n.organization_id, n.inviter_user_id,
                         n.email_address, n.role, n.redirect_url, n.public_metadata,
                         n.private_metadata, n.expires_in_days, n.notify, n.send_after,
                         n.enqueued_at, o.error_code) AS request
              FROM old_rows AS o JOIN new_rows AS n ON n.id = o.id) AS c
        WHERE c.kind IN ('cancel', 'retry') OR (c.kind = 'change' AND c.old_request <> c.request)
        ORDER BY c.id;
        PERFORM pg_notify(s.notify_channel, n.id || ' canceled')
        FROM @schema@.clerk_hub_status AS s, old_rows AS o JOIN new_rows AS n ON n.id = o.id
        WHERE s.notify_channel IS NOT NULL AND o.state = 'queued' AND n.state = 'canceled';
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO @schema@.clerk_invitation_request (kind, invitation, request)
        SELECT 'cancel', o.id, jsonb_build_object('enqueued_at', o.enqueued_at)
        FROM old_rows AS o WHERE o.state = 'queued' ORDER BY o.id;
    ELSE
        -- What comes before it means nothing any more, whatever the order in
        -- which a hub copies it.
        DELETE FROM @schema@.clerk_invitation_request;
        INSERT INTO @schema@.clerk_invitation_request (kind) VALUES ('truncate');
    END IF;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_invitation_outbox_request() IS
'adds to clerk_invitation_request what a change of clerk_invitation_outbox means
for the hub';

CREATE OR REPLACE FUNCTION @schema@.clerk_hub_request(
    organization_id text, inviter_user_id text, email_address text, role text,
    redirect_url text, public_metadata jsonb, private_metadata jsonb,
    expires_in_days integer, notify boolean, send_after timestamptz,
    enqueued_at timestamptz, error_code text
) RETURNS jsonb
LANGUAGE sql STABLE AS $function$
    SELECT pg_catalog.jsonb_build_object('organization_id', $1, 'inviter_user_id', $2,
        'email_address', $3, 'role', $4, 'redirect_url', $5, 'public_metadata', $6,
        'private_metadata', $7, 'expires_in_days', $8, 'notify', $9, 'send_after', $10,
        'enqueued_at', $11, 'error_code', $12)
$function$;

COMMENT ON FUNCTION @schema@.clerk_hub_request(text, text, text, text, text, jsonb, jsonb,
    integer, boolean, timestamptz, timestamptz, text) IS
'returns what the hub must know of a row; not for users';

DROP TRIGGER IF EXISTS guard ON @schema@.clerk_invitation_outbox;
CREATE TRIGGER guard
BEFORE INSERT OR UPDATE OR DELETE ON @schema@.clerk_invitation_outbox
FOR EACH ROW EXECUTE FUNCTION @schema@.clerk_invitation_outbox_guard();

DROP TRIGGER IF EXISTS guard_numbers ON @schema@.clerk_invitation_outbox;
CREATE TRIGGER guard_numbers
BEFORE INSERT ON @schema@.clerk_invitation_outbox
FOR EACH STATEMENT EXECUTE FUNCTION @schema@.clerk_invitation_outbox_keep_numbers_ahead();

DROP TRIGGER IF EXISTS request_inserted ON @schema@.clerk_invitation_outbox;
CREATE TRIGGER request_inserted
AFTER INSERT ON @schema@.clerk_invitation_outbox
REFERENCING NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION @schema@.clerk_invitation_outbox_request();

DROP TRIGGER IF EXISTS request_updated ON @schema@.clerk_invitation_outbox;
CREATE TRIGGER request_updated
AFTER UPDATE ON @schema@.clerk_invitation_outbox
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION @schema@.clerk_invitation_outbox_request();

DROP TRIGGER IF EXISTS request_deleted ON @schema@.clerk_invitation_outbox;
CREATE TRIGGER request_deleted
AFTER DELETE ON @schema@.clerk_invitation_outbox
REFERENCING OLD TABLE AS old_rows
FOR EACH STATEMENT EXECUTE FUNCTION @schema@.clerk_invitation_outbox_request();

DROP TRIGGER IF EXISTS request_truncated ON @schema@.clerk_invitation_outbox;
CREATE TRIGGER request_truncated
AFTER TRUNCATE ON @schema@.clerk_invitation_outbox
FOR EACH STATEMENT EXECUTE FUNCTION @schema@.clerk_invitation_outbox_request();

COMMENT ON TRIGGER guard ON @schema@.clerk_invitation_outbox IS
'rejects changes that would lose an invitation, send it twice, or block others';
COMMENT ON TRIGGER guard_numbers ON @schema@.clerk_invitation_outbox IS
'keeps the sequence ahead of the ids of restored rows';
COMMENT ON TRIGGER request_inserted ON @schema@.clerk_invitation_outbox IS
'tells the hub';
COMMENT ON TRIGGER request_updated ON @schema@.clerk_invitation_outbox IS
'tells the hub';
COMMENT ON TRIGGER request_deleted ON @schema@.clerk_invitation_outbox IS
'tells the hub';
COMMENT ON TRIGGER request_truncated ON @schema@.clerk_invitation_outbox IS
'tells the hub';

CREATE OR REPLACE FUNCTION @schema@.clerk_enqueue_organization_invitation(
    org_id text,
    inviter text,
    email text,
    role text,
    redirect text DEFAULT NULL,
    metadata jsonb DEFAULT NULL,
    private_metadata jsonb DEFAULT NULL,
    expires_in_days integer DEFAULT NULL,
    notify boolean DEFAULT NULL,
    send_after timestamptz DEFAULT now()
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    new_id bigint;
BEGIN
    INSERT INTO @schema@.clerk_invitation_outbox AS o (organization_id, inviter_user_id,
        email_address, role, redirect_url, public_metadata, private_metadata,
        expires_in_days, notify, send_after)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    RETURNING o.id INTO new_id;
    RETURN new_id;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_enqueue_organization_invitation(
    text, text, text, text, text, jsonb, jsonb, integer, boolean, timestamptz) IS
'adds an invitation to clerk_invitation_outbox, which is sent after commit
in: the organization, the inviting user or NULL, the address, the role, and
  what the columns of the same names are for
out: the id of the row
raises: 23502, 23514 (arguments that Clerk would certainly refuse)';

CREATE OR REPLACE FUNCTION @schema@.clerk_cancel_invitation(id bigint) RETURNS boolean
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    PERFORM set_config('clerk_invite.reporting', 'off', true);
    UPDATE @schema@.clerk_invitation_outbox AS o SET state = 'canceled'
    WHERE o.id = $1 AND o.state = 'queued';
    RETURN FOUND;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_cancel_invitation(bigint) IS
'cancels a queued invitation in clerk_invitation_outbox; if the hub has sent it
meanwhile, the row becomes sent when the hub reports that
in: the id of the row
out: whether the invitation was canceled; false if it is not queued';

CREATE OR REPLACE FUNCTION @schema@.clerk_retry_invitation(id bigint) RETURNS boolean
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    PERFORM set_config('clerk_invite.reporting', 'off', true);
    UPDATE @schema@.clerk_invitation_outbox AS o SET state = 'queued'
    WHERE o.id = $1 AND o.state = 'failed';
    RETURN FOUND;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_retry_invitation(bigint) IS
'queues a failed invitation in clerk_invitation_outbox again
in: the id of the row
out: whether the invitation was queued; false if it has not failed';

CREATE OR REPLACE FUNCTION @schema@.clerk_abandon_invitation(id bigint, reason text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    enqueued_at timestamptz;
BEGIN
    IF $1 IS NULL THEN
        RETURN NULL;
    END IF;
    IF @schema@.clerk_cancel_invitation($1) THEN
        RETURN true;
    END IF;
    SELECT o.enqueued_at INTO enqueued_at FROM @schema@.clerk_invitation_outbox AS o
    WHERE o.id = $1 AND o.state IN ('sending', 'verifying') FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO @schema@.clerk_invitation_request (kind, invitation, request)
    VALUES ('abandon', $1, jsonb_build_object('reason', $2, 'enqueued_at', enqueued_at));
    RETURN true;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_abandon_invitation(bigint, text) IS
'abandons an invitation in clerk_invitation_outbox: a queued one becomes
canceled; the hub is asked to abandon one whose outcome is unknown, which then
becomes failed, with the error code outcome_unknown
in: the id of the row, and a reason to be included in error_message
out: whether the invitation was canceled, or the hub is asked; false if it is
  settled; NULL if the id is NULL';

-- The owner's rights are those of whoever has run this script, and what is
-- called with them must be nobody else's.  Values are turned into text by their
-- types' output functions only: those of base types are a superuser's, and the
-- server's own ones serve all other types.  A cast could be anyone's.
CREATE OR REPLACE FUNCTION @schema@.clerk_invitation_trigger() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    arguments CONSTANT text[] := '{org_id,inviter,email,role,redirect,metadata}';
    expressions text[] := '{}';
    condition text := 'true';
    argument text;
    number_of_column smallint;
    base_type oid;
    value text;
    rows_from text;
    new_table text;
BEGIN
    IF TG_WHEN <> 'AFTER' THEN
        RAISE trigger_protocol_violated USING
            MESSAGE = format('trigger "%s" on "%s" must be an AFTER trigger', TG_NAME, TG_TABLE_NAME),
            DETAIL = 'Only an AFTER trigger is guaranteed to see the final rows.';
    END IF;
    IF TG_OP NOT IN ('INSERT', 'UPDATE') THEN
        RAISE trigger_protocol_violated USING
            MESSAGE = format('trigger "%s" on "%s" must be for INSERT or UPDATE only', TG_NAME, TG_TABLE_NAME),
            DETAIL = 'DELETE and TRUNCATE leave no row to invite.';
    END IF;
    IF TG_LEVEL = 'STATEMENT' THEN
        SELECT t.tgnewtable INTO new_table FROM pg_trigger AS t
        WHERE t.tgrelid = TG_RELID AND t.tgname = TG_NAME;
        IF new_table IS NULL THEN
            RAISE trigger_protocol_violated USING
                MESSAGE = format('statement trigger "%s" on "%s" must have a transition table of new rows',
                    TG_NAME, TG_TABLE_NAME),
                HINT = 'Add REFERENCING NEW TABLE AS new_members, or make it FOR EACH ROW.';
        END IF;
    END IF;
    IF NOT coalesce(nullif(current_setting('clerk_invite.enqueue', true), ''), 'on')::boolean THEN
        RETURN NULL;
    END IF;

    IF TG_NARGS NOT BETWEEN 4 AND 6 THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('trigger "%s" must have %s to %s arguments, not %s', TG_NAME, 4, 6, TG_NARGS),
            HINT = 'The arguments are org_id, inviter, email, role, redirect, and metadata; the last two are optional.';
    END IF;
    FOR i IN 1 .. 6 LOOP
        argument := CASE WHEN i <= TG_NARGS THEN TG_ARGV[i - 1] ELSE '' END;
        IF argument = '' AND i IN (1, 3, 4) THEN
            RAISE invalid_parameter_value USING
                MESSAGE = format('argument "%s" of trigger "%s" must not be empty', arguments[i], TG_NAME);
        END IF;
        IF argument = '' THEN
            value := 'NULL';
        ELSIF left(argument, 1) = '=' THEN
            value := quote_literal(substr(argument, 2));
        ELSE
            number_of_column := NULL;
            SELECT a.attnum,
                   CASE WHEN t.typtype = 'd' THEN (
                       WITH RECURSIVE domain AS (
                           SELECT t.typbasetype AS type
                           UNION ALL
                           SELECT b.typbasetype FROM domain AS d JOIN pg_type AS b ON b.oid = d.type
                           WHERE b.typtype = 'd')
                       SELECT d.type FROM domain AS d JOIN pg_type AS b ON b.oid = d.type
                       WHERE b.typtype <> 'd')
                   ELSE t.oid END
            INTO number_of_column, base_type
            FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
            WHERE a.attrelid = TG_RELID AND a.attname::text = argument AND
                  a.attnum > 0 AND NOT a.attisdropped AND
                  a.attgenerated IN ('', 's');
            IF number_of_column IS NULL THEN
                PERFORM FROM pg_attribute AS a
                WHERE a.attrelid = TG_RELID AND a.attname::text = argument AND a.attgenerated NOT IN ('', 's');
                IF FOUND THEN
                    RAISE feature_not_supported USING
                        MESSAGE = format('column "%s" of table "%s" is not stored', argument, TG_TABLE_NAME),
                        DETAIL = 'The server does not compute virtual generated columns for triggers.',
                        HINT = 'Make the column STORED.';
                END IF;
                RAISE undefined_column USING
                    MESSAGE = format('column "%s" of table "%s" does not exist', argument, TG_TABLE_NAME),
                    HINT = 'A trigger argument is the name of a column, or "=" followed by a literal value.';
            END IF;
            value := format(
                CASE WHEN base_type IN ('text'::regtype, 'varchar'::regtype) THEN 'r.%1$I::text'
                     WHEN base_type = 'bpchar'::regtype THEN 'rtrim(CASE WHEN num_nulls(r.%1$I) = 0 THEN format(''%%s'', r.%1$I) END, '' '')'
                     WHEN base_type = 'jsonb'::regtype AND i = 6 THEN 'r.%1$I::jsonb'
                     ELSE 'CASE WHEN num_nulls(r.%1$I) = 0 THEN format(''%%s'', r.%1$I) END' END,
                argument);
            IF i = 3 THEN
                condition := format('num_nulls(r.%I) = 0', argument);
            END IF;
        END IF;
        expressions := expressions || (value || CASE i WHEN 6 THEN '::jsonb' ELSE '::text' END);
    END LOOP;

    rows_from := CASE TG_LEVEL WHEN 'ROW' THEN '(SELECT $1.*)' ELSE quote_ident(new_table) END;
    value := format(
        'INSERT INTO @schema@.clerk_invitation_outbox (organization_id, inviter_user_id, '
        'email_address, role, redirect_url, public_metadata) SELECT %s FROM %s AS r WHERE %s',
        array_to_string(expressions, ', '), rows_from, condition);
    IF TG_LEVEL = 'ROW' THEN
        EXECUTE value USING NEW;
    ELSE
        EXECUTE value;
    END IF;
    RETURN NULL;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_invitation_trigger() IS
'trigger for a table of members: adds an invitation to
clerk_invitation_outbox for each new row, AFTER INSERT [OR UPDATE], FOR EACH
ROW or FOR EACH STATEMENT with REFERENCING NEW TABLE
arguments, in the order of clerk_enqueue_organization_invitation: org_id,
  inviter, email, role [, redirect [, metadata]], each the name of a column,
  or = and a literal, or '''' for none; rows whose address is NULL are
  skipped; does nothing if clerk_invite.enqueue is off
raises: 39P01 (not fired as described), 42703 (no such column), 22023
  (invalid arguments)';

CREATE OR REPLACE FUNCTION @schema@.clerk_hub_take_over(generation text, server text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    UPDATE @schema@.clerk_hub_status AS s
    SET generation = $1, version = 0, server = $2, last_report_at = NULL,
        budget_left = NULL, time_to_empty = NULL
    WHERE s.generation IS DISTINCT FROM $1;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_hub_take_over(text, text) IS
'makes a hub the one that this database has; for the hub
in: the hub''s generation, and its server''s system identifier';

-- A report is a statement, and statements may be logged: what is secret in it is
-- masked with a key that is in no statement.  Each mask is used once.  The same
-- function is in hub.sql.
CREATE OR REPLACE FUNCTION @schema@.clerk_hub_mask(data bytea, key bytea, once text) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT AS $function$
    SELECT pg_catalog.decode(pg_catalog.string_agg(pg_catalog.lpad(pg_catalog.to_hex(
               ('x' || pg_catalog.encode(pg_catalog.substr($1, 8 * n + 1, 8), 'hex'))::bit(64)::bigint
               OPERATOR(pg_catalog.#)
               ('x' || pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256($2 ||
                   pg_catalog.convert_to($3 || ':' || n, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
           ), 16, '0'), '' ORDER BY n), 'hex')
    FROM pg_catalog.generate_series(0, (pg_catalog.octet_length($1) - 1) / 8) AS n
$function$;

COMMENT ON FUNCTION @schema@.clerk_hub_mask(bytea, bytea, text) IS
'masks, and unmasks, a secret in the hub''s report
in: the secret, padded to a multiple of eight bytes; the key; and a text with
  which no other secret is masked';

CREATE OR REPLACE FUNCTION @schema@.clerk_hub_apply(states jsonb, ids bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    final CONSTANT text[] := '{sent,skipped,failed,canceled}';
    announced bigint;
BEGIN
    PERFORM set_config('clerk_invite.reporting', 'on', true);
    WITH report AS (
        SELECT r.*, s.sent_as, s.request
        FROM jsonb_array_elements(states) AS element,
             jsonb_populate_record(NULL::@schema@.clerk_invitation_outbox, element) AS r,
             jsonb_to_record(element) AS s (sent_as jsonb, request bigint)
    ), updated AS (
        UPDATE @schema@.clerk_invitation_outbox AS o
        SET state = r.state, attempts = r.attempts, send_alone = r.send_alone,
            next_attempt_at = r.next_attempt_at, consecutive_failures = r.consecutive_failures,
            first_claimed_at = r.first_claimed_at, claimed_at = r.claimed_at,
            settled_at = r.settled_at, invitation_id = r.invitation_id, status = r.status,
            url = r.url, expires_at = r.expires_at, http_status = r.http_status,
            error_code = r.error_code, error_message = r.error_message, trace_id = r.trace_id,
            database_error = r.database_error,
            organization_id = coalesce(p.organization_id, o.organization_id),
            inviter_user_id = CASE WHEN p IS NULL THEN o.inviter_user_id ELSE p.inviter_user_id END,
            email_address = coalesce(p.email_address, o.email_address),
            role = coalesce(p.role, o.role),
            redirect_url = CASE WHEN p IS NULL THEN o.redirect_url ELSE p.redirect_url END,
            public_metadata = CASE WHEN p IS NULL THEN o.public_metadata ELSE p.public_metadata END,
            private_metadata = CASE WHEN p IS NULL THEN o.private_metadata ELSE p.private_metadata END,
            expires_in_days = CASE WHEN p IS NULL THEN o.expires_in_days ELSE p.expires_in_days END,
            notify = CASE WHEN p IS NULL THEN o.notify ELSE p.notify END,
            send_after = coalesce(p.send_after, o.send_after)
        FROM report AS r
             JOIN @schema@.clerk_invitation_outbox AS old ON old.id = r.id
             LEFT JOIN LATERAL jsonb_populate_record(NULL::@schema@.clerk_invitation_outbox, r.sent_as) AS p
                 ON r.sent_as IS NOT NULL
        WHERE o.id = r.id AND r.id = ANY (ids) AND
              NOT EXISTS (SELECT FROM @schema@.clerk_invitation_request AS q
                          WHERE q.invitation = r.id AND q.id > r.request) AND
              (r.sent_as IS NOT NULL OR
               (o.state, o.attempts, o.send_alone, o.next_attempt_at, o.consecutive_failures,
                o.first_claimed_at, o.claimed_at, o.settled_at, o.invitation_id, o.status, o.url,
                o.expires_at, o.http_status, o.error_code, o.error_message, o.trace_id,
                o.database_error) IS DISTINCT FROM
               (r.state, r.attempts, r.send_alone, r.next_attempt_at, r.consecutive_failures,
                r.first_claimed_at, r.claimed_at, r.settled_at, r.invitation_id, r.status, r.url,
                r.expires_at, r.http_status, r.error_code, r.error_message, r.trace_id,
                r.database_error))
        RETURNING o.id, o.state, old.state AS old_state
    )
    SELECT count(pg_notify(s.notify_channel, u.id || ' ' || u.state)) INTO announced
    FROM updated AS u, @schema@.clerk_hub_status AS s
    WHERE s.notify_channel IS NOT NULL AND u.state <> u.old_state AND u.state = ANY (final);
    PERFORM set_config('clerk_invite.reporting', 'off', true);

    -- A request is kept until the last one for its invitation is settled: a hub
    -- that is rebuilt has nothing but these.
    DELETE FROM @schema@.clerk_invitation_request AS q
    USING jsonb_to_recordset(states) AS r (id bigint, request bigint, state text)
    WHERE q.invitation = r.id AND q.id <= r.request AND r.state = ANY (final) AND
          NOT EXISTS (SELECT FROM @schema@.clerk_invitation_request AS newer
                      WHERE newer.invitation = r.id AND newer.id > r.request);
    UPDATE @schema@.clerk_invitation_request AS q SET received_at = clock_timestamp()
    FROM jsonb_to_recordset(states) AS r (id bigint, request bigint)
    WHERE q.invitation = r.id AND q.id <= r.request AND q.received_at IS NULL;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_hub_apply(jsonb, bigint[]) IS
'applies what the hub reports about these rows, which are locked';

CREATE OR REPLACE FUNCTION @schema@.clerk_hub_report(
    generation text, version bigint, progress jsonb, states jsonb
) RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    hub @schema@.clerk_hub_status;
    locked bigint[];
    postponed bigint[];
    element jsonb;
BEGIN
    SELECT s.* INTO hub FROM @schema@.clerk_hub_status AS s FOR UPDATE;
    IF hub.generation IS DISTINCT FROM $1 THEN
        RAISE object_in_use USING MESSAGE = 'another hub has taken over this database',
            HINT = 'Do not run this hub any longer.';
    END IF;
    IF $2 <= hub.version THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = format('report %s of the hub is not newer than report %s', $2, hub.version),
            HINT = 'The hub has been set back, perhaps by a restore.';
    END IF;
    UPDATE @schema@.clerk_hub_status AS s
    SET version = $2, last_report_at = clock_timestamp(),
        budget_left = $3 ->> 'budget_left', time_to_empty = ($3 ->> 'time_to_empty')::interval;

    -- What a transaction of a user's has locked comes with a later report.
    SELECT coalesce(array_agg(l.id), '{}') INTO locked
    FROM (SELECT o.id
          FROM @schema@.clerk_invitation_outbox AS o
          WHERE o.id IN (SELECT (e ->> 'id')::bigint FROM jsonb_array_elements($4) AS e)
          ORDER BY o.id FOR UPDATE SKIP LOCKED) AS l;
    SELECT coalesce(array_agg(o.id), '{}') INTO postponed
    FROM @schema@.clerk_invitation_outbox AS o
    WHERE o.id IN (SELECT (e ->> 'id')::bigint FROM jsonb_array_elements($4) AS e) AND
          o.id <> ALL (locked);
    SELECT coalesce(jsonb_agg(e || CASE WHEN e ->> 'url' IS NULL THEN '{}' ELSE jsonb_build_object(
               'url', rtrim(convert_from(@schema@.clerk_hub_mask(decode(e ->> 'url', 'hex'), hub.mask_key,
                   concat_ws(':', $1, $2, e ->> 'id')), 'UTF8'))) END), '[]')
    INTO states
    FROM jsonb_array_elements($4) AS e
    WHERE (e ->> 'id')::bigint <> ALL (postponed) AND
          -- A row that this database has lost, in a restore or a failover, may
          -- have left its id to another.
          NOT EXISTS (SELECT FROM @schema@.clerk_invitation_outbox AS o
                      WHERE o.id = (e ->> 'id')::bigint AND
                            o.enqueued_at <> (e ->> 'enqueued_at')::timestamptz);

    BEGIN
        PERFORM @schema@.clerk_hub_apply(states, locked);
        RETURN postponed;
    EXCEPTION WHEN OTHERS THEN
        IF jsonb_array_length(states) < 2 AND SQLSTATE ~ '^(40|53|54|57|58|XX)' THEN
            RAISE;
        END IF;
    END;

    -- Something that is attached to the table refuses one of the changes.  The
    -- others are not to wait for it.
    FOR element IN SELECT e FROM jsonb_array_elements(states) AS e LOOP
        BEGIN
            PERFORM @schema@.clerk_hub_apply(jsonb_build_array(element), locked);
        EXCEPTION WHEN OTHERS THEN
            IF SQLSTATE ~ '^(40|53|54|57|58|XX)' THEN
                RAISE;
            END IF;
            RAISE WARNING USING MESSAGE = format(
                'could not record what became of invitation %s: %s', element ->> 'id', SQLERRM);
            postponed := postponed || (element ->> 'id')::bigint;
        END;
    END LOOP;
    RETURN postponed;
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_hub_report(text, bigint, jsonb, jsonb) IS
'records what became of invitations; for the hub
in: the hub''s generation, the number of the report, budget_left and
  time_to_empty, and an array of rows as they are at the hub, each with the
  number of the last request that the hub has applied to it (request), with its
  url masked, and with what was sent if that was changed too late (sent_as)
out: ids of the rows that could not be changed now
raises: 55006 (another hub has taken over), 55000 (not newer than the last
  report)';

CREATE OR REPLACE VIEW @schema@.clerk_invitation_progress AS
WITH counted AS (
    SELECT state, count(*) AS count,
           count(*) FILTER (WHERE state IN ('queued', 'verifying') AND
                            coalesce(next_attempt_at, send_after) <= now()) AS due,
           min(coalesce(next_attempt_at, send_after)) FILTER (WHERE state IN ('queued', 'verifying') AND
               coalesce(next_attempt_at, send_after) <= now()) AS oldest_due
    FROM @schema@.clerk_invitation_outbox
    WHERE state IN ('queued', 'sending', 'verifying')
    GROUP BY state
    UNION ALL
    SELECT state, count(*), 0, NULL
    FROM @schema@.clerk_invitation_outbox
    WHERE state IN ('sent', 'skipped', 'failed', 'canceled')
    GROUP BY state
), summed AS (
    SELECT coalesce(sum(count) FILTER (WHERE state = 'queued'), 0)::bigint AS queued,
           coalesce(sum(count) FILTER (WHERE state = 'sending'), 0)::bigint AS sending,
           coalesce(sum(count) FILTER (WHERE state = 'verifying'), 0)::bigint AS verifying,
           coalesce(sum(count) FILTER (WHERE state = 'sent'), 0)::bigint AS sent,
           coalesce(sum(count) FILTER (WHERE state = 'skipped'), 0)::bigint AS skipped,
           coalesce(sum(count) FILTER (WHERE state = 'failed'), 0)::bigint AS failed,
           coalesce(sum(count) FILTER (WHERE state = 'canceled'), 0)::bigint AS canceled,
           coalesce(sum(due), 0)::bigint AS due,
           min(oldest_due) AS oldest_due
    FROM counted
), waiting AS (
    SELECT count(*) AS count, min(enqueued_at) AS oldest
    FROM @schema@.clerk_invitation_request
    WHERE received_at IS NULL AND kind <> 'truncate'
)
SELECT s.queued, s.sending, s.verifying, s.sent, s.skipped, s.failed, s.canceled, s.due,
       justify_hours(date_trunc('second', now() - s.oldest_due)) AS overdue,
       h.budget_left,
       CASE WHEN s.queued + s.sending + s.verifying > 0 THEN h.time_to_empty END AS time_to_empty,
       w.count AS waiting,
       CASE WHEN w.oldest IS NOT NULL
            THEN justify_hours(greatest(clock_timestamp() - w.oldest, interval '0'))
       END AS lag,
       h.last_report_at
FROM summed AS s, waiting AS w, @schema@.clerk_hub_status AS h;

COMMENT ON VIEW @schema@.clerk_invitation_progress IS
'progress of clerk_invitation_outbox, in one row';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.queued IS
'invitations to be sent, including those scheduled for later';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.sending IS
'invitations whose request is in flight';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.verifying IS
'invitations whose outcome is unknown so far';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.sent IS
'invitations that were sent';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.skipped IS
'invitations of people who were already invited or members';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.failed IS
'invitations that have failed';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.canceled IS
'invitations that were canceled';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.due IS
'invitations to be sent or looked up now, also counted in queued and verifying';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.overdue IS
'how long the oldest due invitation has been due, in whole seconds; NULL: none
is due';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.budget_left IS
'number of single + bulk requests that Clerk''s limits allowed when the hub last
reported';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.time_to_empty IS
'estimate of the time needed to send all queued invitations, when the hub last
reported';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.waiting IS
'requests that the hub has not reported to have received';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.lag IS
'how long the oldest of these has been waiting; NULL: there is none';
COMMENT ON COLUMN @schema@.clerk_invitation_progress.last_report_at IS
'time when the hub last reported; NULL: not yet';

CREATE OR REPLACE FUNCTION @schema@.clerk_grant_to_hub(hub_role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA @schema@ TO %I', hub_role);
    EXECUTE format('GRANT SELECT ON @schema@.clerk_invitation_request, @schema@.clerk_hub_status TO %I', hub_role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION @schema@.clerk_publisher_version(), '
        '@schema@.clerk_hub_take_over(text, text), '
        '@schema@.clerk_hub_report(text, bigint, jsonb, jsonb) TO %I', hub_role);
END
$function$;

COMMENT ON FUNCTION @schema@.clerk_grant_to_hub(name) IS
'grants what the hub''s role needs, except for REPLICATION, which only an
administrator can grant
in: the role that the hub logs in as';

REVOKE ALL ON TABLE @schema@.clerk_invitation_outbox, @schema@.clerk_invitation_request,
    @schema@.clerk_hub_status, @schema@.clerk_invitation_progress FROM PUBLIC;
REVOKE ALL ON SEQUENCE @schema@.clerk_invitation_outbox_id_seq FROM PUBLIC;
REVOKE ALL ON FUNCTION
    @schema@.clerk_publisher_version(),
    @schema@.clerk_invitation_outbox_guard(),
    @schema@.clerk_invitation_outbox_keep_numbers_ahead(),
    @schema@.clerk_invitation_outbox_request(),
    @schema@.clerk_hub_request(text, text, text, text, text, jsonb, jsonb, integer, boolean,
        timestamptz, timestamptz, text),
    @schema@.clerk_enqueue_organization_invitation(text, text, text, text, text, jsonb, jsonb,
        integer, boolean, timestamptz),
    @schema@.clerk_cancel_invitation(bigint),
    @schema@.clerk_retry_invitation(bigint),
    @schema@.clerk_abandon_invitation(bigint, text),
    @schema@.clerk_invitation_trigger(),
    @schema@.clerk_hub_take_over(text, text),
    @schema@.clerk_hub_mask(bytea, bytea, text),
    @schema@.clerk_hub_apply(jsonb, bigint[]),
    @schema@.clerk_hub_report(text, bigint, jsonb, jsonb),
    @schema@.clerk_grant_to_hub(name)
FROM PUBLIC;
$script$;
    code_point integer;
    grant_to record;
BEGIN
    IF current_setting('server_version_num')::integer < 130000 THEN
        RAISE EXCEPTION 'a publisher must be PostgreSQL 13 or later';
    END IF;
    IF schema_name IS NULL THEN
        RAISE EXCEPTION 'no schema has been selected to create in' USING ERRCODE = '3F000',
            HINT = 'Set search_path.';
    END IF;
    IF schema_name ~ '["$''\\]' OR schema_name ~ '^pg_' THEN
        RAISE EXCEPTION 'schema "%" cannot be used', schema_name USING ERRCODE = '42939',
            HINT = 'Its name must not contain any of "$''\, and must not begin with pg_.';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'clerk_invite') THEN
        RAISE EXCEPTION 'this database has the extension clerk_invite, which needs no hub'
            USING ERRCODE = '55000';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_publication_tables
               WHERE pubname = 'clerk_invite' AND
                     (schemaname, tablename) <> (schema_name, 'clerk_invitation_request'))
    THEN
        RAISE EXCEPTION 'publication "clerk_invite" of this database has other tables'
            USING ERRCODE = '55000', HINT = 'A database has one outbox.';
    END IF;

    -- What Unicode has as White_Space, U+200B and U+FEFF, as far as the
    -- database's encoding has them.
    FOREACH code_point IN ARRAY ARRAY[9, 10, 11, 12, 13, 32, 133, 160, 5760] ||
        ARRAY(SELECT n FROM generate_series(8192, 8203) AS n) ||
        ARRAY[8232, 8233, 8239, 8287, 12288, 65279]
    LOOP
        CONTINUE WHEN code_point > 127 AND current_setting('server_encoding') = 'SQL_ASCII';
        BEGIN
            white_space := white_space || convert_from(
                CASE WHEN code_point < 128 THEN set_byte('\x00', 0, code_point)
                     WHEN code_point < 2048 THEN set_byte(set_byte('\x0000',
                         0, 192 + code_point / 64), 1, 128 + code_point % 64)
                     ELSE set_byte(set_byte(set_byte('\x000000',
                         0, 224 + code_point / 4096), 1, 128 + code_point / 64 % 64),
                         2, 128 + code_point % 64)
                END, 'UTF8');
        EXCEPTION WHEN untranslatable_character THEN
            NULL;
        END;
    END LOOP;

    is_new := to_regclass(format('%I.clerk_invitation_outbox', schema_name)) IS NULL;
    PERFORM set_config('client_min_messages', 'warning', true);
    EXECUTE replace(replace(script, '@schema@', quote_ident(schema_name)),
                    '@white_space@', quote_literal(white_space));

    -- Default privileges may have given others what is only the owner's.
    IF is_new THEN
        FOR grant_to IN
            SELECT DISTINCT CASE WHEN c.relkind = 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
                   c.oid::regclass::text AS name, a.grantee
            FROM pg_catalog.pg_class AS c, LATERAL aclexplode(c.relacl) AS a
            WHERE c.relnamespace = schema_name::regnamespace AND c.relkind IN ('r', 'v', 'S') AND
                  c.relname ~ '^clerk_(invitation_(outbox|request|progress)|hub_status)' AND
                  a.grantee NOT IN (0, c.relowner)
            UNION ALL
            SELECT DISTINCT 'FUNCTION', p.oid::regprocedure::text, a.grantee
            FROM pg_catalog.pg_proc AS p, LATERAL aclexplode(p.proacl) AS a
            WHERE p.pronamespace = schema_name::regnamespace AND
                  (p.proname ~ '^clerk_(invitation|hub)_' OR
                   p.proname IN ('clerk_enqueue_organization_invitation', 'clerk_cancel_invitation',
                       'clerk_retry_invitation', 'clerk_abandon_invitation', 'clerk_grant_to_hub',
                       'clerk_publisher_version')) AND
                  a.grantee NOT IN (0, p.proowner)
        LOOP
            EXECUTE format('REVOKE ALL ON %s %s FROM %s', grant_to.kind, grant_to.name,
                           grant_to.grantee::regrole);
        END LOOP;
    END IF;

    IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = 'clerk_invite') THEN
        EXECUTE format('CREATE PUBLICATION clerk_invite FOR TABLE %I.clerk_invitation_request '
                       'WITH (publish = ''insert'')', schema_name);
    ELSIF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = 'clerk_invite') THEN
        EXECUTE format('ALTER PUBLICATION clerk_invite ADD TABLE %I.clerk_invitation_request',
                       schema_name);
    END IF;
    COMMENT ON PUBLICATION clerk_invite IS 'what the hub is to do';
    IF current_setting('wal_level') <> 'logical' THEN
        RAISE WARNING 'wal_level is "%", but a hub needs "logical"', current_setting('wal_level');
    END IF;
    IF current_setting('max_slot_wal_keep_size') = '-1' THEN
        RAISE WARNING 'max_slot_wal_keep_size is -1, so what is kept for a hub that is down can fill the disk'
            USING HINT = 'Set it to what you can spare: nothing is lost with the hub''s slot.';
    END IF;
END
$publisher$;
