// Lets Clerk's official client judge the fake Clerk, and print an invitation as it sees it.
//
// FAKE_CLERK_URL            where the fake listens, without /v1
// FAKE_CLERK_KEY            its secret key
// FAKE_CLERK_ORG            an organization that exists there
// FAKE_CLERK_INVITATION_ID  optional: print this invitation as one line of JSON, instead of the checks
//
// For a fake that serves TLS, NODE_EXTRA_CA_CERTS names its certificate.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createClerkClient } from '@clerk/backend';

const organizationId = required('FAKE_CLERK_ORG');
const { organizations } = createClerkClient({
  secretKey: required('FAKE_CLERK_KEY'),
  apiUrl: required('FAKE_CLERK_URL'),
  telemetry: { disabled: true },
});

try {
  if (process.env.FAKE_CLERK_INVITATION_ID) {
    await printInvitation(process.env.FAKE_CLERK_INVITATION_ID);
  } else {
    await checkAll();
    console.log('ok');
  }
} catch (error) {
  console.error(`official client: ${describe(error)}`);
  process.exitCode = 1;
}

function required(name) {
  const value = process.env[name];
  if (!value) {
    console.error(`official client: ${name} is not set`);
    process.exit(2);
  }
  return value;
}

/** What went wrong, with Clerk's own words if it was Clerk that refused. */
function describe(error) {
  const refusals = (error.errors ?? []).map(each => `${each.code}: ${each.longMessage ?? each.message}`);
  return [error.stack ?? String(error), ...refusals].join('\n  ');
}

async function checkAll() {
  const created = await checkCreate();
  await checkDuplicateIsRefused(created);
  await checkGet(created);
  const bulk = await checkCreateBulk();
  await checkList([created, ...bulk]);
  await checkRevoke(created);
}

function newAddress() {
  return `official-${randomUUID()}@example.com`;
}

async function checkCreate() {
  const emailAddress = newAddress();
  const invitation = await organizations.createOrganizationInvitation({
    organizationId,
    emailAddress,
    role: 'org:member',
    inviterUserId: 'user_1',
    redirectUrl: 'https://app.example.com/welcome',
    expiresInDays: 7,
    publicMetadata: { team: '営業部', camelCase: { stays: true } },
    privateMetadata: { badge: 7 },
  });
  assert.match(invitation.id, /^orginv_[A-Za-z0-9]{27}$/);
  assert.equal(invitation.emailAddress, emailAddress);
  assert.equal(invitation.organizationId, organizationId);
  assert.equal(invitation.role, 'org:member');
  assert.equal(invitation.roleName, 'Member');
  assert.equal(invitation.status, 'pending');
  assert.deepEqual(invitation.publicMetadata, { team: '営業部', camelCase: { stays: true } });
  assert.deepEqual(invitation.privateMetadata, { badge: 7 });
  assert.equal(invitation.expiresAt - invitation.createdAt, 7 * 24 * 60 * 60 * 1000);
  assert.match(invitation.url, /\/v1\/tickets\/accept\?ticket=/);
  return invitation;
}

async function checkDuplicateIsRefused({ emailAddress }) {
  const again = organizations.createOrganizationInvitation({
    organizationId,
    emailAddress: emailAddress.toUpperCase(),
    role: 'org:member',
  });
  await assert.rejects(again, error => {
    assert.equal(error.status, 400);
    assert.equal(error.errors[0].code, 'organization_invitation_not_unique');
    assert.ok(error.clerkTraceId);
    return true;
  });
}

async function checkGet(created) {
  const invitation = await organizations.getOrganizationInvitation({ organizationId, invitationId: created.id });
  assert.deepEqual(invitation, created);
}

async function checkCreateBulk() {
  const addresses = [newAddress(), newAddress(), newAddress()];
  const { data, totalCount } = await organizations.createOrganizationInvitationBulk(
    organizationId,
    addresses.map(emailAddress => ({ emailAddress, role: 'org:admin' })),
  );
  assert.equal(totalCount, addresses.length);
  assert.deepEqual(data.map(each => each.emailAddress).sort(), [...addresses].sort());
  assert.ok(data.every(each => each.roleName === 'Admin'));
  return data;
}

async function checkList(expected) {
  const first = await page(0);
  assert.ok(first.totalCount >= expected.length);
  assert.equal(first.data.length, 2);
  const listed = [...first.data];
  while (listed.length < first.totalCount) {
    const next = await page(listed.length);
    assert.ok(next.data.length > 0, 'the list ended early');
    listed.push(...next.data);
  }
  const ids = new Set(listed.map(each => each.id));
  assert.equal(ids.size, first.totalCount, 'an invitation came twice');
  assert.ok(expected.every(each => ids.has(each.id)), 'an invitation is missing');
}

function page(offset) {
  return organizations.getOrganizationInvitationList({
    organizationId,
    status: ['pending', 'accepted'],
    limit: 2,
    offset,
  });
}

async function checkRevoke({ id }) {
  const revoke = () =>
    organizations.revokeOrganizationInvitation({ organizationId, invitationId: id, requestingUserId: 'user_1' });
  assert.equal((await revoke()).status, 'revoked');
  await assert.rejects(revoke(), error => {
    assert.equal(error.status, 404);
    assert.equal(error.errors[0].code, 'organization_invitation_not_pending');
    return true;
  });
}

/** The client has no property for the inviter; only the untouched answer beneath shows it. */
async function printInvitation(invitationId) {
  const invitation = await organizations.getOrganizationInvitation({ organizationId, invitationId });
  const line = {
    id: invitation.id,
    organization_id: invitation.organizationId,
    email_address: invitation.emailAddress,
    role: invitation.role,
    role_name: invitation.roleName,
    status: invitation.status,
    inviter_id: invitation.raw?.inviter_id,
    public_metadata: invitation.publicMetadata,
    private_metadata: invitation.privateMetadata,
    url: invitation.url,
    created_at: invitation.createdAt,
    updated_at: invitation.updatedAt,
    expires_at: invitation.expiresAt,
  };
  console.log(JSON.stringify(line));
}
