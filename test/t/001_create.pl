# The function sends the request that its arguments say, to the address that
# the settings say.
use strict;
use warnings;

use ClerkTest;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster('main', $clerk);

is($node->safe_psql('postgres', invite('ann@example.com', 'status')),
	'pending', 'a new invitation is pending');

my ($request) = $clerk->requests_for('ann@example.com');
is($request->{method}, 'POST', 'the request is a POST');
is( $request->{path},
	'/v1/organizations/org_test/invitations',
	'the organization is in the path');
is_deeply(
	$request->{body},
	{ email_address => 'ann@example.com', role => 'org:member' },
	'what is NULL is left out');
is($request->{headers}{authorization},
	'accepted', 'the request carries the key');
is($request->{headers}{'content-type'},
	'application/json', 'the body is declared as JSON');
is($request->{headers}{'clerk-api-version'},
	'2026-05-12', 'the version of the API is asked for');
like(
	$request->{headers}{'user-agent'},
	qr{^clerk_invite/\d+\.\d+ PostgreSQL/\d},
	'the request names the extension and the server');
ok(!exists $request->{headers}{expect},
	'the body is not announced and held back');

$node->safe_psql(
	'postgres', q{
	SELECT id FROM clerk_create_organization_invitation('org_test', 'user_ines',
		'bob@example.com', 'org:admin', 'https://app.example.com/welcome',
		'{"team": "red"}', '{"plan": 7}', 14, false)});
($request) = $clerk->requests_for('bob@example.com');
is_deeply(
	$request->{body},
	{
		email_address => 'bob@example.com',
		role => 'org:admin',
		inviter_user_id => 'user_ines',
		redirect_url => 'https://app.example.com/welcome',
		public_metadata => { team => 'red' },
		private_metadata => { plan => 7 },
		expires_in_days => 14,
		notify => JSON::PP::false
	},
	'every argument is sent under its name at Clerk');

my $base = $clerk->url;
my $number = 0;
foreach my $url ($base, "$base/", "$base/v1", "$base/v1/")
{
	my $email = 'form' . ++$number . '@example.com';

	$node->safe_psql('postgres',
		"SET clerk_invite.api_url = '$url'; " . invite($email));
	($request) = $clerk->requests_for($email);
	is( $request->{path},
		'/v1/organizations/org_test/invitations',
		"the API is found whether its address ends in /v1 or not ($number)");
}

$clerk->expect_violations(
	qr/ \/behind\/a\/proxy\/.*: there is no such operation$/);
$node->psql('postgres',
	"SET clerk_invite.api_url = '$base/behind/a/proxy/v1'; "
	  . invite('carl@example.com'));
($request) = $clerk->requests_for('carl@example.com');
is( $request->{path},
	'/behind/a/proxy/v1/organizations/org_test/invitations',
	'an address may have a path of its own');

$node->stop;
done_testing();
