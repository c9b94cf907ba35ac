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
'invitation to a Clerk organization, as Clerk''s Backend API describes it; a field that Clerk leaves out is NULL';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.id IS
'Clerk''s identifier of the invitation: orginv_...';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.organization_id IS
'Clerk''s identifier of the organization: org_...';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.email_address IS
'address that is invited';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.role IS
'key of the role that the invited person will have, such as org:member';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.role_name IS
'name of that role for people to read';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.status IS
'pending, accepted, revoked, expired, or what Clerk may add to these';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.inviter_id IS
'Clerk''s identifier of the inviting user: user_...; NULL if there is none';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.url IS
'link that accepts the invitation; a secret: it lets its bearer join the organization';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.public_metadata IS
'metadata that the frontend can read, too';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.private_metadata IS
'metadata that only the backend can read';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.public_inviter_data IS
'public facts about the inviter';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.public_organization_data IS
'public facts about the organization; given in lists across organizations only';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.created_at IS
'time of creation, by Clerk''s clock';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.updated_at IS
'time of the last change, by Clerk''s clock';
COMMENT ON COLUMN @extschema@.clerk_organization_invitation.expires_at IS
'time from which the invitation can no longer be accepted';

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
'invites an e-mail address to a Clerk organization, now (Clerk''s CreateOrganizationInvitation); in: organization ID, inviting user''s ID or NULL, address, role key, URL to go to after acceptance, public and private metadata (objects), days until it expires (1 to 365, Clerk''s default 30), whether Clerk sends the e-mail (default true); out: the invitation; raises 22004, 22021, 22023 (arguments, or refused by Clerk), 22P05 (created, but the answer is not of the database''s encoding), 23505 (pending or a member already), 25000 (parallel operation), 25006 (read-only transaction), 28000 (key not accepted), 42501 (not allowed), 53400 (rate limit or quota), 55000 (no key), 55006 (Clerk cannot at the moment), 57014 (canceled), 08001 (not sent), 08007 (outcome unknown)';
