# Clerk's official client and the SQL function see the same invitation; and the
# fake Clerk, which all other tests rely on, passes the client's own checks.
#
# The client comes from npm's registry; see NodePackages.
use strict;
use warnings;

use ClerkTest;
use JSON::PP qw(decode_json);
use NodePackages;
use PostgreSQL::Test::Utils;
use Test::More;

my $client = NodePackages->install_or_skip('official_client', qw(package.json check.mjs));
my $folder = $client->folder;
my $certificate = "$folder/cert.pem";
system_or_bail(
	'openssl', 'req', '-x509', '-newkey', 'rsa:2048',
	'-nodes', '-batch', '-days', '2',
	'-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost',
	'-keyout', "$folder/key.pem", '-out', $certificate);
# The client has other headers, and repeats the status.
my @client = ('--any-client', '--repeated-status', 'all');
my %clerk = (
	http => ClerkTest::Fake->start(@client),
	https => ClerkTest::Fake->start(
		@client, '--tls', $certificate, "$folder/key.pem"));
my $node = clerk_cluster(
	'main', undef,
	extra => [ '--encoding=UTF8', '--locale=C' ],
	conf => "clerk_invite.ca_file = '$certificate'");

# Both give times in milliseconds, as Clerk does.
my $as_json = 'to_jsonb(i) || jsonb_build_object('
  . join(', ',
	map { "'$_', (extract(epoch FROM $_) * 1000)::bigint" }
	  qw(created_at updated_at expires_at))
  . ')';

# What the client has no property for.
my @sql_only = qw(public_inviter_data public_organization_data);

foreach my $scheme (qw(http https))
{
	local $ENV{FAKE_CLERK_URL} = $clerk{$scheme}->url;
	local $ENV{FAKE_CLERK_KEY} = $ClerkTest::KEY;
	local $ENV{FAKE_CLERK_ORG} = 'org_test';
	local $ENV{NODE_EXTRA_CA_CERTS} = $certificate;

	my ($passed) = $client->run('node', 'check.mjs');
	ok($passed, "the client's own checks pass over $scheme");

	foreach my $case (
		[ 'with addresses and role only', 'plain', 'NULL', '' ],
		[
			'with everything there is',
			'full',
			q('user_1'),
			q(, redirect => 'https://app.example.com/welcome',
				metadata => '{"team": "営業部", "camelCase": {"keys stay": [1, true, null]}}',
				private_metadata => '{"badge": 7.5, "note": "\"quoted\"\n"}',
				expires_in_days => 14, notify => false)
		])
	{
		my ($what, $name, $inviter, $arguments) = @$case;
		my $row = decode_json(
			$node->safe_psql(
				'postgres', qq(
			SET clerk_invite.api_url = '$ENV{FAKE_CLERK_URL}';
			SELECT $as_json FROM clerk_create_organization_invitation(
				'org_test', $inviter, '$name\@example.com', 'org:member'
				$arguments) AS i)));

		local $ENV{FAKE_CLERK_INVITATION_ID} = $row->{id};
		my ($read, $output) = $client->run('node', 'check.mjs');
		ok($read, "the client reads the invitation $what over $scheme");

		my $seen = eval { decode_json($output) } // {};
		my $url = delete $row->{url};
		my $seen_url = delete $seen->{url};
		ok( defined $url && defined $seen_url && $url eq $seen_url,
			"client and function see the same url $what over $scheme");
		delete @{$row}{@sql_only};
		is_deeply($row, $seen,
			"client and function see the same invitation $what over $scheme");
	}
}

done_testing();
