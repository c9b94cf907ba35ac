-- webhooks.sql - bodies of webhooks, as Clerk sends them, for changes by the fuzzer
INSERT INTO webhooks
SELECT convert_to(jsonb_build_object(
           'object', 'event', 'type', type, 'timestamp', 1767225600000,
           'instance_id', 'ins_2aBcDeFgHiJkLmNoPqRsTuVwXyZ',
           'data', data,
           'event_attributes', '{"http_request": {"client_ip": "192.0.2.1", "user_agent": "fuzz"}}'::jsonb)::text,
       getdatabaseencoding())
FROM (VALUES ('pending', 'organizationInvitation.created'),
             ('accepted', 'organizationInvitation.accepted'),
             ('revoked', 'organizationInvitation.revoked')) AS event (status, type)
CROSS JOIN LATERAL (VALUES
    (jsonb_build_object('object', 'organization_invitation', 'status', status,
        'id', 'orginv_2bCdEfGhIjKlMnOpQrStUvWxYz1', 'email_address', 'ann@example.com',
        'role', 'org:member', 'organization_id', 'org_2cDeFgHiJkLmNoPqRsTuVwXyZ12',
        'url', 'https://accounts.example.com/v1/tickets/accept?ticket=secret',
        'public_metadata', '{"team": "green"}'::jsonb, 'private_metadata', '{}'::jsonb,
        'created_at', 1767225600000, 'updated_at', 1767225600000, 'expires_at', null)),
    (jsonb_build_object('id', 'orginv_1'))) AS body (data);
INSERT INTO webhooks VALUES
    ('{"type": "user.created", "data": {"id": "user_1"}}'),
    ('{"data": {"type": "organizationInvitation.accepted", "id": "orginv_1"}, "type": "x"}'),
    ('{}'), ('[]'), ('');
