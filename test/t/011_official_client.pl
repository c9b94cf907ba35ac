# Clerk's official client and the SQL function see the same invitation; and the
# fake Clerk, which all other tests rely on, passes the client's own checks.
#
# The client comes from npm's registry.  CLERK_TEST_REQUIRE_NODE makes it an
# error if it cannot be had.
use strict;
use warnings;

use ClerkTest;
use File::Copy qw(copy);
use IPC::Run ();
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();

# Whether a program of the client's succeeds, its output and its errors.  They
# do not go into this test's output: they may hold an invitation's url.
sub run_client
{
	my (@command) = @_;
	my ($output, $errors) = ('', '');

	# Nothing of it stays behind in anyone's home.
	local %ENV = (
		%ENV,
		HOME => $folder,
		npm_config_cache => "$folder/cache",
		npm_config_update_notifier => 'false');
	my $succeeded = eval {
		IPC::Run::run(
			\@command, '>', \$output, '2>', \$errors,
			init => sub { chdir $folder or die "could not chdir: $!" });
	};

	append_to_file("$PostgreSQL::Test::Utils::log_path/official_client.log",
		"@command\n" . ($errors =~ s/ticket=[\w.-]+/ticket=.../gr) . "\n");
	return ($succeeded, $output, $errors);
}

sub do_without
{
	my ($reason) = @_;

	die "$reason\n" if $ENV{CLERK_TEST_REQUIRE_NODE};
	plan skip_all => $reason;
}

foreach my $program (qw(node npm))
{
	my ($succeeded) = run_client($program, '--version');

	do_without("$program is missing") unless $succeeded;
}

foreach my $file (qw(package.json check.mjs))
{
	copy("$ClerkTest::TEST_FOLDER/official_client/$file", $folder)
	  or die "could not copy $file: $!";
}
my ($installed, undef, $reason) = run_client('npm', 'install', '--no-audit',
	'--no-fund', '--no-package-lock', '--engine-strict', '--fetch-retries=1');
if (!$installed)
{
	do_without('node is too old for the client')
	  if $reason =~ /EBADENGINE/;
	do_without("npm's registry cannot be reached")
	  if $reason =~
	  /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT/;
	die "could not install the client:\n$reason";
}

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

	my ($passed) = run_client('node', 'check.mjs');
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
		my ($read, $output) = run_client('node', 'check.mjs');
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
