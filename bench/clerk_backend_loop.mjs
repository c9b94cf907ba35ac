// Invites people with Clerk's client for JavaScript, one after the other.
//
// Arguments: URL, organization, calls.  Prints the microseconds of the first call, and those of a call of the others.

import { createClerkClient } from '@clerk/backend';

const [url, organizationId, calls] = process.argv.slice(2);
const { organizations } = createClerkClient({
  secretKey: 'sk_test_benchmark',
  apiUrl: url,
  telemetry: { disabled: true },
});

async function invite(number) {
  const { id } = await organizations.createOrganizationInvitation({
    organizationId,
    emailAddress: `ann-${number}@example.com`,
    role: 'org:member',
    publicMetadata: { team: 'red' },
  });
  if (!id.startsWith('orginv_')) {
    throw new Error('not an invitation');
  }
}

const begun = performance.now();
await invite(0);
const connected = performance.now();
for (let number = 1; number <= calls; number++) {
  await invite(number);
}
const ended = performance.now();
console.log(((connected - begun) * 1000).toFixed(2), (((ended - connected) * 1000) / calls).toFixed(2));
process.exit();
