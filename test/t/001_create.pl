# The function sends the request that its arguments say and returns Clerk's
# answer, over TLS.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster('main', $clerk);

is($node->safe_psql('postgres', invite('ann@example.com', 'status')),
	'pending', 'a new invitation is pending');

my ($request) = $clerk->requests_for('ann@example.com');
is($request->{path}, '/v1/organizations/org_test/invitations',
	'the organization is in the path');

done_testing();
