/* clerk_invite--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION clerk_invite" to load this file. \quit

CREATE TYPE @extschema@.clerk_organization_invitation AS (
    id text,
    organization_id text,
    email_address text,
    role text,
    role_name text,
    status text,
    inviter_id text,
    url text,
    public_metadata jsonb,
    private_metadata jsonb,
    public_inviter_data jsonb,
    public_organization_data jsonb,
    created_at timestamptz,
    updated_at timestamptz,
    expires_at timestamptz
);

COMMENT ON TYPE @extschema@.clerk_organization_invitation IS
'invitation to a Clerk organization, as Clerk''s Backend API describes it; a
field that Clerk leaves out is NULL';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.id IS
'Clerk''s identifier of the invitation: orginv_...';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.organization_id IS
'Clerk''s identifier of the organization: org_...';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.email_address IS
'invited e-mail address';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.role IS
'key of the role that the invited person will have, such as org:member';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.role_name IS
'display name of that role';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.status IS
'pending, accepted, revoked, expired, or a status that Clerk adds later';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.inviter_id IS
'Clerk''s identifier of the inviting user: user_...; NULL if there is none';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.url IS
'link for accepting the invitation; a secret: anyone who has it can join the
organization';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.public_metadata IS
'metadata that the frontend can read as well';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.private_metadata IS
'metadata that only the backend can read';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.public_inviter_data IS
'public data about the inviter';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.public_organization_data IS
'public data about the organization; only in lists across organizations';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.created_at IS
'time of creation, by Clerk''s clock';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.updated_at IS
'time of the last change, by Clerk''s clock';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.expires_at IS
'time at which the invitation expires';

CREATE FUNCTION @extschema@.clerk_create_organization_invitation(
    org_id text,
    inviter text,
    email text,
    role text,
    redirect text DEFAULT NULL,
    metadata jsonb DEFAULT NULL,
    private_metadata jsonb DEFAULT NULL,
    expires_in_days integer DEFAULT NULL,
    notify boolean DEFAULT NULL
)
RETURNS @extschema@.clerk_organization_invitation
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_create_organization_invitation(
    text, text, text, text, text, jsonb, jsonb, integer, boolean) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_create_organization_invitation(
    text, text, text, text, text, jsonb, jsonb, integer, boolean) IS
'immediately invites an e-mail address to a Clerk organization (Clerk''s
CreateOrganizationInvitation)
in: organization ID, inviting user''s ID or NULL, address (surrounding white
  space is removed), role key, URL to redirect to after acceptance, public
  and private metadata (objects), days until expiration (1 to 365, Clerk''s
  default 30), whether Clerk sends the e-mail (default true)
out: the invitation
raises: 22004, 22021, 22023 (invalid arguments, or refused by Clerk), 22P05
  (created, but the response cannot be converted to the database encoding),
  23505 (already pending or a member), 25000 (parallel operation), 25006
  (read-only transaction), 28000 (key not accepted), 42501 (not allowed),
  53400 (rate limit or quota), 55000 (no key, or the library does not match
  the SQL objects), 55006 (conflict at Clerk), 57014 (canceled), 08001 (not
  sent), 08007 (outcome unknown)';

CREATE FUNCTION @extschema@.clerk_create_organization_invitation_bulk(
    org_id text,
    invitations jsonb
)
RETURNS SETOF @extschema@.clerk_organization_invitation
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_create_organization_invitation_bulk(text, jsonb) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_create_organization_invitation_bulk(text, jsonb) IS
'immediately invites any number of e-mail addresses to a Clerk organization,
ten per request (Clerk''s CreateOrganizationInvitationBulk); sends all of them
regardless of any LIMIT; a refused request creates none of its invitations and
ends the function; the DETAIL says how many others were created, and these
remain
in: organization ID, array of objects with email_address and role, and
  optionally inviter_user_id, redirect_url, public_metadata,
  private_metadata, expires_in_days, notify
out: the invitations, in the order of the array
raises: as clerk_create_organization_invitation';

CREATE FUNCTION @extschema@.clerk_get_organization_invitation(
    org_id text,
    invitation_id text
)
RETURNS @extschema@.clerk_organization_invitation
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_get_organization_invitation(text, text) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_get_organization_invitation(text, text) IS
'gets an invitation from Clerk (Clerk''s GetOrganizationInvitation)
in: organization ID, invitation ID
out: the invitation in its current form
raises: 22004, 22023 (invalid arguments, or no such invitation), 22P05 (the
  response cannot be converted to the database encoding), 25000 (parallel
  operation), 28000 (key not accepted), 42501 (not allowed), 53400 (rate
  limit), 55000 (no key, or the library does not match the SQL objects),
  57014 (canceled), 08001 (not sent), 08006 (no usable response)';

CREATE FUNCTION @extschema@.clerk_revoke_organization_invitation(
    org_id text,
    invitation_id text,
    requesting_user text DEFAULT NULL
)
RETURNS @extschema@.clerk_organization_invitation
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_revoke_organization_invitation(text, text, text) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_revoke_organization_invitation(text, text, text) IS
'immediately revokes a pending invitation (Clerk''s
RevokeOrganizationInvitation)
in: organization ID, invitation ID, revoking user''s ID or NULL
out: the revoked invitation
raises: 22004, 22023 (invalid arguments, or no such pending invitation),
  22P05 (revoked, but the response cannot be converted to the database
  encoding), 25000 (parallel operation), 25006 (read-only transaction),
  28000 (key not accepted), 42501 (not allowed), 53400 (rate limit), 55000
  (no key, or the library does not match the SQL objects), 55006 (conflict
  at Clerk), 57014 (canceled), 08001 (not sent), 08007 (outcome unknown)';

-- A function in FROM is executed to completion before its first row is used.
-- Therefore the list functions are SQL functions, which the planner inlines,
-- around functions in the SELECT list that return one row at a time.  EXECUTE
-- on the latter is not revoked from PUBLIC: they check that the caller has
-- EXECUTE on the functions around them.
CREATE FUNCTION @extschema@.clerk_read_organization_invitations(
    org_id text,
    status text[],
    email text
)
RETURNS SETOF @extschema@.clerk_organization_invitation
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.clerk_read_organization_invitations(text, text[], text) IS
'implementation of clerk_list_organization_invitations(), with the same
arguments, results and errors; call that function instead';

CREATE FUNCTION @extschema@.clerk_list_organization_invitations(
    org_id text,
    status text[] DEFAULT NULL,
    email text DEFAULT NULL
)
RETURNS SETOF @extschema@.clerk_organization_invitation
LANGUAGE sql STABLE PARALLEL UNSAFE
AS $$
    SELECT (list.invitation).*
    FROM (SELECT @extschema@.clerk_read_organization_invitations(org_id, status, email)
              AS invitation) AS list
$$;

REVOKE ALL ON FUNCTION @extschema@.clerk_list_organization_invitations(text, text[], text) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_list_organization_invitations(text, text[], text) IS
'lists an organization''s invitations, oldest first (Clerk''s
ListOrganizationInvitations)
in: organization ID, statuses (pending, accepted, revoked, expired) or NULL
  for all, address or NULL for all
out: the invitations; each one that belongs to the list the whole time is
  returned exactly once; pages of 200 are read on demand, so a LIMIT saves
  requests; Clerk filters by one status, while with several, invitations of
  all statuses are read
raises: 22004, 22023 (invalid arguments, or no such organization), 22P05 (a
  response cannot be converted to the database encoding), 25000 (parallel
  operation), 28000 (key not accepted), 42501 (not allowed), 53400 (rate
  limit), 55000 (no key, or the library does not match the SQL objects),
  57014 (canceled), 08001 (not sent), 08006 (no usable response)';

CREATE FUNCTION @extschema@.clerk_read_instance_organization_invitations(
    status text[],
    query text
)
RETURNS SETOF @extschema@.clerk_organization_invitation
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION @extschema@.clerk_read_instance_organization_invitations(text[], text) IS
'implementation of clerk_list_instance_organization_invitations(), with the
same arguments, results and errors; call that function instead';

CREATE FUNCTION @extschema@.clerk_list_instance_organization_invitations(
    status text[] DEFAULT NULL,
    query text DEFAULT NULL
)
RETURNS SETOF @extschema@.clerk_organization_invitation
LANGUAGE sql STABLE PARALLEL UNSAFE
AS $$
    SELECT (list.invitation).*
    FROM (SELECT @extschema@.clerk_read_instance_organization_invitations(status, query)
              AS invitation) AS list
$$;

REVOKE ALL ON FUNCTION @extschema@.clerk_list_instance_organization_invitations(text[], text) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_list_instance_organization_invitations(text[], text) IS
'lists the invitations of all organizations of the Clerk instance, oldest
first (Clerk''s ListInstanceOrganizationInvitations)
in: statuses (pending, accepted, revoked, expired) or NULL for all; address
  or NULL for all
out and raises: as clerk_list_organization_invitations, and also
  public_organization_data';

-- The length limits are the same as in arguments.h, which says where they come
-- from.  The length is checked first, to avoid costly checks of very long
-- values.
CREATE TABLE @extschema@.clerk_invitation_outbox (
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
    database_error text,
    copied boolean NOT NULL DEFAULT false
);

SELECT pg_catalog.pg_extension_config_dump('@extschema@.clerk_invitation_outbox', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.clerk_invitation_outbox_id_seq', '');

-- Rows that are due, oldest first.  Copied rows are in none of the indexes that
-- senders read: another database sends them, however many there are.
CREATE INDEX clerk_invitation_outbox_due
ON @extschema@.clerk_invitation_outbox (coalesce(next_attempt_at, send_after), id)
WHERE state = 'queued' AND NOT copied;

-- Rows that are in flight, or were left in this state by a sender.
CREATE INDEX clerk_invitation_outbox_unsettled
ON @extschema@.clerk_invitation_outbox (coalesce(next_attempt_at, send_after), id)
WHERE state IN ('sending', 'verifying') AND NOT copied;

-- The row that an invitation belongs to.
CREATE INDEX clerk_invitation_outbox_invitation_id
ON @extschema@.clerk_invitation_outbox (invitation_id)
WHERE invitation_id IS NOT NULL;

-- Rows whose status may have changed at Clerk.
CREATE INDEX clerk_invitation_outbox_pending
ON @extschema@.clerk_invitation_outbox (organization_id, id)
WHERE state = 'sent' AND invitation_id IS NOT NULL AND
      coalesce(status, 'pending') = 'pending' AND NOT copied;

-- Settled rows, oldest first, to be removed, and to be counted by state.
CREATE INDEX clerk_invitation_outbox_settled
ON @extschema@.clerk_invitation_outbox (settled_at, id, state)
WHERE state IN ('sent', 'skipped', 'failed', 'canceled') AND NOT copied;

-- Rows that are set aside because this database refuses to change them.
CREATE INDEX clerk_invitation_outbox_set_aside
ON @extschema@.clerk_invitation_outbox (id)
WHERE database_error IS NOT NULL AND state IN ('queued', 'sending', 'verifying') AND NOT copied;

REVOKE ALL ON TABLE @extschema@.clerk_invitation_outbox FROM PUBLIC;
REVOKE ALL ON SEQUENCE @extschema@.clerk_invitation_outbox_id_seq FROM PUBLIC;

COMMENT ON TABLE @extschema@.clerk_invitation_outbox IS
'invitations to be sent to Clerk after commit, and a record of the results; an
INSERT needs organization_id, email_address and role';
COMMENT ON SEQUENCE @extschema@.clerk_invitation_outbox_id_seq IS
'generates the ids of clerk_invitation_outbox';
COMMENT ON INDEX @extschema@.clerk_invitation_outbox_due IS
'finds rows that are due';
COMMENT ON INDEX @extschema@.clerk_invitation_outbox_unsettled IS
'finds rows whose outcome is unknown';
COMMENT ON INDEX @extschema@.clerk_invitation_outbox_invitation_id IS
'finds the row that an invitation belongs to';
COMMENT ON INDEX @extschema@.clerk_invitation_outbox_pending IS
'finds rows whose last known status is pending';
COMMENT ON INDEX @extschema@.clerk_invitation_outbox_settled IS
'finds rows that were settled long ago, and counts settled rows by state';
COMMENT ON INDEX @extschema@.clerk_invitation_outbox_set_aside IS
'finds rows that are set aside';
COMMENT ON INDEX @extschema@.clerk_invitation_outbox_pkey IS
'finds a row by its id';
COMMENT ON CONSTRAINT clerk_invitation_outbox_pkey ON @extschema@.clerk_invitation_outbox IS
'ids are unique';
COMMENT ON CONSTRAINT id_leaves_room ON @extschema@.clerk_invitation_outbox IS
'higher ids would leave none for further rows';
COMMENT ON CONSTRAINT organization_id_is_an_identifier ON @extschema@.clerk_invitation_outbox IS
'at most 255 characters, only those that are safe in the path of a request';
COMMENT ON CONSTRAINT inviter_user_id_is_clean ON @extschema@.clerk_invitation_outbox IS
'NULL rather than empty; at most 255 characters; no control characters';
COMMENT ON CONSTRAINT email_address_is_an_address ON @extschema@.clerk_invitation_outbox IS
'contains an @; at most 320 characters; no control characters; Clerk checks the
rest of the syntax';
COMMENT ON CONSTRAINT role_is_clean ON @extschema@.clerk_invitation_outbox IS
'not empty; at most 255 characters; no control characters';
COMMENT ON CONSTRAINT redirect_url_is_clean ON @extschema@.clerk_invitation_outbox IS
'NULL rather than empty; at most 8000 characters; no control characters';
COMMENT ON CONSTRAINT public_metadata_is_a_small_object ON @extschema@.clerk_invitation_outbox IS
'Clerk accepts objects of up to 8 kB';
COMMENT ON CONSTRAINT private_metadata_is_a_small_object ON @extschema@.clerk_invitation_outbox IS
'Clerk accepts objects of up to 8 kB';
COMMENT ON CONSTRAINT expires_in_days_is_from_1_to_365 ON @extschema@.clerk_invitation_outbox IS
'range that Clerk allows';
COMMENT ON CONSTRAINT send_after_is_a_time ON @extschema@.clerk_invitation_outbox IS
'infinity prevents an invitation from being sent; -infinity is meaningless';
COMMENT ON CONSTRAINT attempts_can_go_on ON @extschema@.clerk_invitation_outbox IS
'far more than clerk_invite.max_attempts allows; queued rows have room for
further attempts';
COMMENT ON CONSTRAINT state_is_known ON @extschema@.clerk_invitation_outbox IS
'the states are those in the comment on the column';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.id IS
'id of the row';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.organization_id IS
'Clerk''s identifier of the organization: org_...';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.inviter_user_id IS
'Clerk''s identifier of the inviting user, user_..., or NULL';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.email_address IS
'address to invite; surrounding white space is removed';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.role IS
'key of the role that the invited person will have, such as org:member';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.redirect_url IS
'URL to redirect to after acceptance, or NULL';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.public_metadata IS
'metadata that the frontend can read as well; an object of at most 8 kB';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.private_metadata IS
'metadata that only the backend can read; an object of at most 8 kB';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.expires_in_days IS
'days until the invitation expires, 1 to 365; NULL: Clerk''s default, 30';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.notify IS
'whether Clerk sends the e-mail; NULL: Clerk''s default, true';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.send_after IS
'time before which the invitation is not sent';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.state IS
'queued, sending, verifying (outcome unknown), sent, skipped (already invited or
a member), failed, canceled';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.attempts IS
'number of attempts to send the invitation, including one in flight';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.send_alone IS
'whether the row gets a request of its own: set after a request that it shared
was unsuccessful';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.next_attempt_at IS
'time before which the row is not processed again; NULL: send_after applies';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.consecutive_failures IS
'number of consecutive failed lookups at Clerk, or of changes that this database
refused; each one doubles the delay before the next attempt';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.enqueued_at IS
'start of the transaction that inserted the row';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.first_claimed_at IS
'time when a sender first claimed the row';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.first_claimed_clock IS
'the same time by a monotonic clock; meaningful only to senders';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.claimed_at IS
'time when a sender last claimed the row, or when its outcome became unknown';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.claimed_clerk_clock IS
'time of the last claim by Clerk''s clock, as far as it was known then;
meaningful only to senders';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.settled_at IS
'time when the row reached a final state';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.invitation_id IS
'Clerk''s identifier of the invitation: orginv_...';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.status IS
'last known status of the invitation at Clerk: from when it was sent, or from
clerk_refresh_invitations()';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.url IS
'link for accepting the invitation; a secret: anyone who has it can join the
organization; NULL if status is no longer pending';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.expires_at IS
'time at which the invitation expires';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.http_status IS
'HTTP status of the last response that refused the invitation or could not be
used; NULL: there was no such response';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.error_code IS
'Clerk''s error code of the last failure';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.error_message IS
'description of the last failure';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.trace_id IS
'Clerk''s trace ID of the request that failed last; Clerk''s support needs it';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.database_error IS
'why this database refused a sender''s change of the row, for example because
of a trigger or a constraint that was added to the table; the row is set aside
until next_attempt_at; NULL: no change was refused';
COMMENT ON COLUMN @extschema@.clerk_invitation_outbox.copied IS
'whether the row was copied from another database, by a subscription or a
session in replica role: that database sends it, and this one does not; the
owner can set it to false to have the row sent here';

CREATE FUNCTION @extschema@.clerk_invitation_outbox_guard()
RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C;

REVOKE ALL ON FUNCTION @extschema@.clerk_invitation_outbox_guard() FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_invitation_outbox_guard() IS
'keeps clerk_invitation_outbox consistent: users can change the state only from
queued to canceled and from failed to queued, and cannot change rows that are
sending or verifying; only the owner can set internal columns (state and all
columns after it); removes white space around addresses; marks rows that are
copied from another database
raises: 42501, 55000';

CREATE TRIGGER guard
BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.clerk_invitation_outbox
FOR EACH ROW EXECUTE FUNCTION @extschema@.clerk_invitation_outbox_guard();

COMMENT ON TRIGGER guard ON @extschema@.clerk_invitation_outbox IS
'rejects changes that would lose an invitation, send it twice, or block others;
marks copied rows';

CREATE TRIGGER guard_numbers
BEFORE INSERT ON @extschema@.clerk_invitation_outbox
FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.clerk_invitation_outbox_guard();

COMMENT ON TRIGGER guard_numbers ON @extschema@.clerk_invitation_outbox IS
'keeps the sequence ahead of the ids of restored rows';

CREATE FUNCTION @extschema@.clerk_invitation_outbox_wake_worker()
RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C;

REVOKE ALL ON FUNCTION @extschema@.clerk_invitation_outbox_wake_worker() FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_invitation_outbox_wake_worker() IS
'starts or wakes the background worker when the transaction commits, unless
clerk_invite.worker is off';

CREATE TRIGGER wake_worker
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON @extschema@.clerk_invitation_outbox
FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.clerk_invitation_outbox_wake_worker();

-- In replica role these tell rows that are copied from another database from
-- those that a trigger adds.
ALTER TABLE @extschema@.clerk_invitation_outbox
    ENABLE ALWAYS TRIGGER guard,
    ENABLE ALWAYS TRIGGER guard_numbers,
    ENABLE ALWAYS TRIGGER wake_worker;

COMMENT ON TRIGGER wake_worker ON @extschema@.clerk_invitation_outbox IS
'starts or wakes the background worker when the transaction commits';

CREATE FUNCTION @extschema@.clerk_enqueue_organization_invitation(
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
)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_enqueue_organization_invitation(
    text, text, text, text, text, jsonb, jsonb, integer, boolean, timestamptz) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_enqueue_organization_invitation(
    text, text, text, text, text, jsonb, jsonb, integer, boolean, timestamptz) IS
'adds an invitation to clerk_invitation_outbox, which is sent after commit
in: as clerk_create_organization_invitation, and the time before which the
  invitation is not sent
out: the id of the row
raises: 23502, 23514 (arguments that Clerk would certainly refuse)';

CREATE FUNCTION @extschema@.clerk_cancel_invitation(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_cancel_invitation(bigint) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_cancel_invitation(bigint) IS
'cancels a queued invitation in clerk_invitation_outbox
in: the id of the row
out: whether the invitation was canceled; false if it is no longer queued, or
  was copied from another database';

CREATE FUNCTION @extschema@.clerk_retry_invitation(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_retry_invitation(bigint) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_retry_invitation(bigint) IS
'queues a failed invitation in clerk_invitation_outbox again
in: the id of the row
out: whether the invitation was queued; false if it has not failed, or was
  copied from another database';

CREATE FUNCTION @extschema@.clerk_abandon_invitation(id bigint, reason text DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_abandon_invitation(bigint, text) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_abandon_invitation(bigint, text) IS
'abandons an invitation in clerk_invitation_outbox: one whose outcome is unknown
becomes failed, with the error code outcome_unknown, and a queued one becomes
canceled; sends no request to Clerk, and does not fire user triggers
in: the id of the row, and a reason to be included in error_message
out: whether the invitation was abandoned; false if it is settled, if its
  request is in flight, or if it was copied from another database; NULL if the
  id is NULL';

CREATE TABLE @extschema@.clerk_webhook_receipt (
    id text PRIMARY KEY,
    sent_at timestamptz NOT NULL
);

-- Which of them can be removed.
CREATE INDEX clerk_webhook_receipt_sent_at
ON @extschema@.clerk_webhook_receipt (sent_at);

REVOKE ALL ON @extschema@.clerk_webhook_receipt FROM PUBLIC;

COMMENT ON TABLE @extschema@.clerk_webhook_receipt IS
'which webhooks clerk_receive_webhook() has received in the last ten minutes;
not for users';

COMMENT ON COLUMN @extschema@.clerk_webhook_receipt.id IS
'id of the webhook, from its header svix-id or webhook-id';

COMMENT ON COLUMN @extschema@.clerk_webhook_receipt.sent_at IS
'time when it was last sent, by its signed header';

COMMENT ON CONSTRAINT clerk_webhook_receipt_pkey ON @extschema@.clerk_webhook_receipt IS
'a webhook takes effect once';

COMMENT ON INDEX @extschema@.clerk_webhook_receipt_pkey IS
'finds a webhook by its id';

COMMENT ON INDEX @extschema@.clerk_webhook_receipt_sent_at IS
'finds webhooks that are old enough to be forgotten';

CREATE FUNCTION @extschema@.clerk_receive_webhook(body text, headers jsonb)
RETURNS text
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION @extschema@.clerk_receive_webhook(text, jsonb) FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_receive_webhook(text, jsonb) IS
'receives a webhook of Clerk''s: if it is signed with a secret from
clerk_invite.webhook_secret_file, gives the invitation''s row of
clerk_invitation_outbox the status that the event tells
(organizationInvitation.created, .accepted, .revoked); sends no request to Clerk
in: the body exactly as it was received, and an object of header names (in any
  case) and values
out: what was done: updated, unchanged (the row had that status, or a final
  one), unknown (no row has the invitation), ignored (another event), duplicate
  (it was received before)
raises: PT400 (not a webhook), PT401 (not signed with the secret, more than five
  minutes old, or a copy of one that was received), 55000 (no secret)';

CREATE TABLE @extschema@.clerk_enqueue_signal (
    never boolean CONSTRAINT always_empty CHECK (false)
);

REVOKE ALL ON @extschema@.clerk_enqueue_signal FROM PUBLIC;

COMMENT ON TABLE @extschema@.clerk_enqueue_signal IS
'always empty: its trigger inserts what clerk_invitation_trigger() has
collected for each row of a statement, when the statement''s row triggers have
fired; not for users';

COMMENT ON COLUMN @extschema@.clerk_enqueue_signal.never IS
'there are no values';

COMMENT ON CONSTRAINT always_empty ON @extschema@.clerk_enqueue_signal IS
'no row can be inserted';

CREATE FUNCTION @extschema@.clerk_insert_enqueued()
RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C;

REVOKE ALL ON FUNCTION @extschema@.clerk_insert_enqueued() FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_insert_enqueued() IS
'inserts into clerk_invitation_outbox what clerk_invitation_trigger() has
collected
raises: what the outbox''s constraints raise';

CREATE TRIGGER insert_enqueued
AFTER UPDATE ON @extschema@.clerk_enqueue_signal
FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.clerk_insert_enqueued();

-- What a session in replica role or an apply worker collects is inserted, too.
ALTER TABLE @extschema@.clerk_enqueue_signal ENABLE ALWAYS TRIGGER insert_enqueued;

COMMENT ON TRIGGER insert_enqueued ON @extschema@.clerk_enqueue_signal IS
'inserts the rows that have been collected';

CREATE FUNCTION @extschema@.clerk_invitation_trigger()
RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C;

-- EXECUTE is needed to create a trigger with this function, not to fire one.
REVOKE ALL ON FUNCTION @extschema@.clerk_invitation_trigger() FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_invitation_trigger() IS
'trigger for a table of members: adds an invitation to
clerk_invitation_outbox for each new row, AFTER INSERT [OR UPDATE], FOR EACH
ROW or FOR EACH STATEMENT with REFERENCING NEW TABLE
arguments, in the order of clerk_create_organization_invitation: org_id,
  inviter, email, role [, redirect [, metadata]], each the name of a column,
  or = and a literal, or '''' for none; rows whose address is NULL are
  skipped; does nothing if clerk_invite.enqueue is off
raises: 39P01 (not fired as described), 42703 (no such column), 22023
  (invalid arguments)';

CREATE PROCEDURE @extschema@.clerk_send_invitations(max_invitations integer DEFAULT NULL)
AS 'MODULE_PATHNAME'
LANGUAGE C;

REVOKE ALL ON PROCEDURE @extschema@.clerk_send_invitations(integer) FROM PUBLIC;

COMMENT ON PROCEDURE @extschema@.clerk_send_invitations(integer) IS
'immediately sends the rows that are due in clerk_invitation_outbox, in several
transactions that it commits; does nothing if another session is sending
in: maximum number of invitations to send, NULL for all
raises: 2D000 (inside a transaction block), 28000 (key not accepted), 55000
  (no key, or the library does not match the SQL objects)';

CREATE PROCEDURE @extschema@.clerk_refresh_invitations()
AS 'MODULE_PATHNAME'
LANGUAGE C;

REVOKE ALL ON PROCEDURE @extschema@.clerk_refresh_invitations() FROM PUBLIC;

COMMENT ON PROCEDURE @extschema@.clerk_refresh_invitations() IS
'updates the status of the sent invitations in clerk_invitation_outbox whose
last known status is pending (Clerk''s ListInstanceOrganizationInvitations and
ListOrganizationInvitations), in several transactions that it commits; sets
url to NULL where status is no longer pending; reports in a NOTICE how many
have changed
raises: 2D000 (inside a transaction block), 25006 (read-only transaction),
  28000 (key not accepted), 55000 (no key, or the library does not match the
  SQL objects)';

CREATE FUNCTION @extschema@.clerk_rate_limit_status(
    OUT endpoint text,
    OUT requests_per_window integer,
    OUT used integer,
    OUT remaining integer,
    OUT available_at timestamptz,
    OUT closed_until timestamptz
)
RETURNS SETOF record
AS 'MODULE_PATHNAME'
LANGUAGE C STABLE PARALLEL RESTRICTED;

REVOKE ALL ON FUNCTION @extschema@.clerk_rate_limit_status() FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_rate_limit_status() IS
'shows the request budgets for the URL and key in this session''s settings,
which all sessions of the server with the same URL and key share
out: one row for each endpoint that Clerk limits, single (one invitation per
  request) and bulk: requests allowed in a window
  (clerk_invite.rate_limit_window, an hour), requests sent in the window
  that ends now, requests that remain, time when the next one can be sent
  (NULL: now), time until which Clerk has closed the endpoint (NULL: it is
  open)
raises: 55000 (no key, or the library does not match the SQL objects)';

CREATE FUNCTION @extschema@.clerk_worker_status(
    OUT database name,
    OUT pid integer,
    OUT state text,
    OUT started_at timestamptz,
    OUT next_run_at timestamptz,
    OUT last_error text
)
RETURNS SETOF record
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE;

REVOKE ALL ON FUNCTION @extschema@.clerk_worker_status() FROM PUBLIC;

COMMENT ON FUNCTION @extschema@.clerk_worker_status() IS
'shows the state of the background workers of the server, one row for each
database that has a worker
out: database, process ID, state (wanted: the server had no free worker slot;
  starting, restarting, sending, waiting), time when the worker was started
  or requested, latest time of its next run, error that keeps it from sending
  or has set rows aside (NULL: none)
raises: 55000 (the library does not match the SQL objects)';

CREATE FUNCTION @extschema@.clerk_invitation_progress_limits(
    OUT single_limit integer,
    OUT single_left integer,
    OUT bulk_limit integer,
    OUT bulk_left integer,
    OUT more_at timestamptz,
    OUT limit_window interval
)
RETURNS record
AS 'MODULE_PATHNAME'
LANGUAGE C STABLE PARALLEL RESTRICTED;

-- Not revoked from PUBLIC: it checks for the privilege to read the view.
COMMENT ON FUNCTION @extschema@.clerk_invitation_progress_limits() IS
'returns Clerk''s limits for clerk_invitation_progress
out: for single and for bulk requests, the number allowed in a window and
  the number that can be sent now; time when more can be sent (NULL: now);
  length of a window; all NULL without a key
raises: 42501 (no privilege to read that view), 55000 (the library does not
  match the SQL objects)';

-- How long the limits delay the queue depends on how its rows are grouped into
-- requests.  Each organization's invitations form pieces: groups of ten, a
-- remainder, and rows that must be sent alone.  If the largest pieces go by
-- bulk requests and the others by single requests, the time needed is that of
-- the budget that lasts longer, so it is shortest if both budgets are used up
-- at the same time.  The query looks for this point among the pieces of each
-- size.
CREATE VIEW @extschema@.clerk_invitation_progress AS
WITH organization AS (
    SELECT count(*) AS queued,
           count(*) FILTER (WHERE send_alone) AS alone,
           count(*) FILTER (WHERE coalesce(next_attempt_at, send_after) <= now()) AS due,
           min(coalesce(next_attempt_at, send_after)) AS oldest_due
    FROM @extschema@.clerk_invitation_outbox
    WHERE state = 'queued' AND NOT copied
    GROUP BY organization_id
), queue AS (
    SELECT coalesce(sum(queued), 0)::bigint AS queued,
           coalesce(sum(due), 0)::bigint AS due,
           min(oldest_due) AS oldest_due
    FROM organization
), unsettled AS (
    SELECT count(*) FILTER (WHERE state = 'sending') AS sending,
           count(*) FILTER (WHERE state = 'verifying') AS verifying,
           count(*) FILTER (WHERE verifying_due <= now()) AS due,
           min(verifying_due) AS oldest_due
    FROM (SELECT state,
                 CASE state WHEN 'verifying'
                     THEN coalesce(next_attempt_at, send_after) END AS verifying_due
          FROM @extschema@.clerk_invitation_outbox
          WHERE state IN ('sending', 'verifying') AND NOT copied) AS row
), settled AS (
    SELECT coalesce(sum(count) FILTER (WHERE state = 'sent'), 0)::bigint AS sent,
           coalesce(sum(count) FILTER (WHERE state = 'skipped'), 0)::bigint AS skipped,
           coalesce(sum(count) FILTER (WHERE state = 'failed'), 0)::bigint AS failed,
           coalesce(sum(count) FILTER (WHERE state = 'canceled'), 0)::bigint AS canceled
    FROM (SELECT state, count(*) AS count
          FROM @extschema@.clerk_invitation_outbox
          WHERE state IN ('sent', 'skipped', 'failed', 'canceled') AND NOT copied
          GROUP BY state) AS state
), limits AS MATERIALIZED (
    SELECT * FROM @extschema@.clerk_invitation_progress_limits()
), piece AS (
    SELECT piece.size, sum(piece.count)::float8 AS count
    FROM organization,
         LATERAL (VALUES (10, (queued - alone) / 10),
                         ((queued - alone) % 10, 1),
                         (1, alone)) AS piece (size, count)
    WHERE piece.size > 0 AND piece.count > 0
    GROUP BY piece.size
), larger_by_bulk AS (
    SELECT size, count,
           coalesce(sum(count) OVER larger, 0) AS bulks,
           sum(size * count) OVER () - coalesce(sum(size * count) OVER larger, 0) AS singles
    FROM piece
    WINDOW larger AS (ORDER BY size DESC
                      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), some_by_bulk AS (
    SELECT bulks + added AS bulks, singles - size * added AS singles
    FROM larger_by_bulk, limits,
         LATERAL (SELECT least(greatest(
                      (bulk_limit * (singles - single_left) - single_limit * (bulks - bulk_left)) /
                      nullif(single_limit::float8 + bulk_limit * size, 0), 0), count) AS added) AS balance
), packing AS (
    SELECT min(greatest(
               CASE WHEN bulks > bulk_left
                    THEN coalesce((bulks - bulk_left) / nullif(bulk_limit, 0), 'Infinity')
                    ELSE 0 END,
               CASE WHEN singles > single_left
                    THEN coalesce((singles - single_left) / nullif(single_limit, 0), 'Infinity')
                    ELSE 0 END)) AS windows
    FROM some_by_bulk, limits
)
SELECT queue.queued, sending, verifying, sent, skipped, failed, canceled,
       queue.due + unsettled.due AS due,
       CASE WHEN queue.due + unsettled.due > 0
            THEN justify_hours(date_trunc('second',
                     now() - least(queue.oldest_due, unsettled.oldest_due)))
       END AS overdue,
       single_left || ' + ' || bulk_left AS budget_left,
       CASE WHEN queue.queued + sending + verifying > 0 AND single_limit IS NOT NULL
            THEN CASE WHEN queue.queued = 0 THEN interval '0'
                      WHEN windows < 'Infinity' AND more_at IS DISTINCT FROM 'infinity'
                      THEN justify_hours(make_interval(secs => ceil(greatest(
                               windows * extract(epoch FROM limit_window),
                               extract(epoch FROM more_at - now()))::float8)))
                 END
       END AS time_to_empty
FROM queue, unsettled, settled, limits, packing;

REVOKE ALL ON TABLE @extschema@.clerk_invitation_progress FROM PUBLIC;

COMMENT ON VIEW @extschema@.clerk_invitation_progress IS
'progress of clerk_invitation_outbox, in one row: exact counts, and an estimate
of the remaining time; without rows that were copied from another database,
which sends them';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.queued IS
'invitations to be sent, including those scheduled for later';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.sending IS
'invitations whose request is in flight, or was when their sender ended';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.verifying IS
'invitations whose outcome is unknown so far';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.sent IS
'invitations that were sent';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.skipped IS
'invitations of people who were already invited or members';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.failed IS
'invitations that have failed';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.canceled IS
'invitations that were canceled';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.due IS
'invitations to be sent or looked up now, also counted in queued and verifying';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.overdue IS
'how long the oldest due invitation has been due, in whole seconds; NULL: none
is due';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.budget_left IS
'number of single + bulk requests that Clerk''s limits allow now, as text; each
has a row of its own in clerk_rate_limit_status(); NULL: there is no key';
COMMENT ON COLUMN @extschema@.clerk_invitation_progress.time_to_empty IS
'estimate of the time needed to send all queued invitations within Clerk''s
limits, optimally grouped, as if all of them were due; the limits are those for
the URL and key in the session''s settings; NULL: nothing is open, the limits
do not allow any requests, or there is no key';
