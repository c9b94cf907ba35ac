# A request and the secret key in it go only to the Clerk that is configured
# and has proven itself: certificates, plain http, redirects, proxies, and
# roles that would like it otherwise.
use strict;
use warnings;

use ClerkTest;
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;
use TestCertificates;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $authority = TestCertificates->new($folder, 'ours');
my $stranger = TestCertificates->new($folder, 'stranger');
my $clerk = ClerkTest::Fake->start('--tls', $authority->sign('good'));
my $plain = ClerkTest::Fake->start;

# What the server's environment recommends as a proxy, and for what not.
my $trap = MisbehavingServer->silent;
my $node;
{
	local @ENV{qw(http_proxy https_proxy HTTPS_PROXY ALL_PROXY all_proxy)} =
	  ($trap->url) x 5;
	local @ENV{qw(no_proxy NO_PROXY)} = ('localhost') x 2;
	$node = clerk_cluster('main', $clerk,
		conf => "clerk_invite.ca_file = '" . $authority->file . "'\n");
}
my $invited = 0;

# Certificates

my $good_on_address = 'https://127.0.0.1:' . $clerk->{port};

invites_at($clerk, $clerk->url, 'a good certificate for localhost');
invites_at($clerk, $good_on_address, 'a good certificate for 127.0.0.1');

refuses_certificate('of an unknown authority', $stranger->sign('unknown'));
refuses_certificate('for another name',
	$authority->sign('elsewhere', names => 'DNS:clerk.example.com'));
refuses_certificate('that has expired',
	$authority->sign('expired', ends => -3600));

my $result = invite_with('clerk_invite.ca_file' => $stranger->file);
is($result->{sqlstate}, '08001',
	'the authority in clerk_invite.ca_file is the one that counts');
$result = invite_with('clerk_invite.ca_file' => '');
is($result->{sqlstate}, '08001',
	'without clerk_invite.ca_file the authorities of the system count');
$result = invite_with('clerk_invite.ca_file' => "$folder/absent");
is($result->{sqlstate}, '08001',
	'a clerk_invite.ca_file that is absent does not mean no check');
$result = invite_with('clerk_invite.api_url' => "https://127.0.0.1:$plain->{port}");
is($result->{sqlstate}, '08001',
	'a server without TLS is not spoken to without TLS');
is(scalar $clerk->journal, 2,
	'no request went out under a certificate that was refused');
is(scalar $plain->journal, 0, 'nor to the server without TLS');

# Addresses

my $listener = MisbehavingServer->silent;
my $there = '127.0.0.1:' . $listener->port;
foreach my $url (
	'http://example.com',
	'http://192.0.2.1',
	'http://[2001:db8::1]',
	'http://[::ffff:192.0.2.1]',
	'http://0.0.0.0:' . $listener->port,
	'http://localhost.example.com',
	'http://127.0.0.1.example.com',
	'http://127.0.0.1@192.0.2.1',
	'http://192.0.2.1/127.0.0.1',
	'http://192.0.2.1#@127.0.0.1',
	"http://user:password\@$there",
	"https://user:password\@$there",
	"https://user\@$there",
	'file:///etc/hostname',
	"file://localhost/etc/hostname",
	"ftp://$there",
	"gopher://$there",
	"telnet://$there",
	"ws://$there",
	$there,
	'localhost',
	'https://',
	'')
{
	$result = invite_with('clerk_invite.api_url' => $url);
	is($result->{sqlstate}, '55000', "\"$url\" is refused as an address");
}
is($listener->connections, 0,
	'an address that is refused is not connected to');

invites_at($plain, "http://127.0.0.1:$plain->{port}", 'http to 127.0.0.1');
invites_at($plain, "http://localhost:$plain->{port}", 'http to localhost');

# Redirects

my $email = 'x-redirect--1@example.com';
my $before = scalar $plain->journal;
$result = invite_with('clerk_invite.api_url' => $plain->url, email => $email);
is($result->{sqlstate}, '08007', 'a redirect leaves the outcome unknown');
is(scalar $plain->journal, $before + 1, 'a redirect is not followed');

# Proxies

is($trap->connections, 0,
	"no proxy of the server's environment has been asked for anything");

my $proxy = MisbehavingServer->proxy;
$result = invite_with(
	'clerk_invite.api_url' => $plain->url,
	'clerk_invite.proxy' => $proxy->url);
is($result->{stdout}, 'pending',
	'with clerk_invite.proxy, http to loopback succeeds');
is(scalar $proxy->records, 0, '... and does not go through the proxy');

$before = scalar $clerk->journal;
$result = invite_with('clerk_invite.proxy' => $proxy->url);
is($result->{stdout}, 'pending', 'with clerk_invite.proxy, https succeeds');
is(scalar $clerk->journal, $before + 1, '... and reaches Clerk once');
my @asked = $proxy->records;
is( $asked[0],
	"CONNECT localhost:$clerk->{port} HTTP/1.1",
	'... through the proxy, whatever no_proxy says');
# ok() rather than like(): a failure must not print the key.
ok(!(grep { /authorization/i || index($_, $ClerkTest::KEY) >= 0 } @asked),
	'the proxy does not see the secret key');

my $refusing = ClerkTest::Fake->start;
$result = invite_with('clerk_invite.proxy' => $refusing->url);
is($result->{sqlstate}, '08001',
	'when the proxy refuses, certainly nothing was sent');
$result = invite_with('clerk_invite.proxy' => $trap->url,
	'clerk_invite.connect_timeout' => 300);
is($result->{sqlstate}, '08001',
	'when the proxy is silent, certainly nothing was sent');
is(scalar $clerk->journal, $before + 1, '... and Clerk got nothing');
my $trapped = $trap->connections;

# Roles

$node->safe_psql(
	'postgres', "
	CREATE ROLE plain LOGIN;
	GRANT EXECUTE ON FUNCTION clerk_create_organization_invitation TO plain;
	CREATE FUNCTION invite_for_all(email text) RETURNS text
	SECURITY DEFINER LANGUAGE plpgsql AS \$\$
	BEGIN
		RETURN (clerk_create_organization_invitation(
			'org_test', NULL, email, 'org:member')).status;
	END \$\$;");
ClerkTest::write_key($node->data_dir . '/other.key',
	'sk_test_of_somebody_else');
$node->append_conf('postgresql.conf',
	"clerk_invite.proxy = '" . $proxy->url . "'\n");
$node->reload;
$node->poll_query_until('postgres', 'SHOW clerk_invite.proxy', $proxy->url);

# What a role might like, and what would come of it: a request at another
# server, another key at ours, or no request at all.
my $evil = ClerkTest::Fake->start('--secret-key', 'sk_test_of_somebody_else');
my $evil_proxy = MisbehavingServer->silent;
my %wishes = (
	api_url => $evil->url,
	ca_file => $stranger->file,
	proxy => $evil_proxy->url,
	secret_key_file => 'other.key');

foreach my $name (sort keys %wishes)
{
	my $setting = "clerk_invite.$name";
	my $set = "SET $setting = '$wishes{$name}';";

	is_unmoved("SET $setting before the library is loaded",
		sub { as_plain($set . invite($_[0], 'status')) });
	is_unmoved("SET $setting before a SECURITY DEFINER function",
		sub { as_plain("$set SELECT invite_for_all('$_[0]')") });
	is_unmoved("a function of the role's own with SET $setting",
		sub { as_plain(function_with($set, invite($_[0], 'status'))) });
	is_unmoved(
		"$setting among the connection's options",
		sub {
			local $ENV{PGOPTIONS} = "-c $setting=$wishes{$name}";
			return as_plain(invite($_[0], 'status'));
		});
	foreach my $command (
		"SET $setting = ''",
		"SET LOCAL $setting = ''",
		"SELECT set_config('$setting', '', false)",
		"ALTER ROLE plain SET $setting = ''",
		"ALTER SYSTEM SET $setting = ''")
	{
		my $load = invite('plain' . ++$invited . '@example.com', 'status');

		is(as_plain("$load; $command")->{sqlstate},
			'42501', "a role may not run $command");
	}
}
is(scalar $evil->journal, 0, 'the other server was never asked');
is($evil_proxy->connections, 0, 'the other proxy was never connected to');
is($trap->connections, $trapped,
	"nor was the one in the server's environment");

$node->stop;
done_testing();

# Invites with these settings, as superuser.
sub invite_with
{
	my (%settings) = @_;
	my $email = delete $settings{email} // 'i' . ++$invited . '@example.com';
	my $sql = join('', map { "SET $_ = '$settings{$_}'; " } sort keys %settings);

	return attempt($node, 'postgres', $sql . invite($email, 'status'));
}

sub invites_at
{
	my ($fake, $url, $title) = @_;
	my $email = 'at' . ++$invited . '@example.com';
	my $result = invite_with('clerk_invite.api_url' => $url, email => $email);

	is($result->{stdout}, 'pending', "$title is accepted");
	is(scalar $fake->requests_for($email), 1, '... and sent a request');
	return;
}

sub refuses_certificate
{
	my ($kind, @files) = @_;
	my $fake = ClerkTest::Fake->start('--tls', @files);
	my $result = invite_with('clerk_invite.api_url' => $fake->url);

	is($result->{sqlstate}, '08001', "a certificate $kind is refused");
	is(scalar $fake->journal, 0, '... before anything is sent');
	return;
}

# Runs SQL as the unprivileged role, in a session that has not loaded the
# library yet.
sub as_plain
{
	my ($sql) = @_;

	return attempt($node, 'postgres', $sql, extra_params => [ '-U', 'plain' ]);
}

# A function that a role can make for itself, and a call of it.
sub function_with
{
	my ($set, $query) = @_;

	$set =~ s/;$//;
	return "CREATE FUNCTION pg_temp.mine() RETURNS text LANGUAGE sql $set "
	  . "AS \$\$ $query \$\$; SELECT pg_temp.mine();";
}

# Whether what a role does leaves its request where it belongs, or is refused.
sub is_unmoved
{
	my ($title, $code) = @_;
	my $email = 'plain' . ++$invited . '@example.com';
	my $passed = () = $proxy->records;
	my $result = $code->($email);
	my ($request) = $clerk->requests_for($email);

  SKIP:
	{
		skip "$title is refused", 2
		  if $result->{stderr} =~
		  /(?:ERROR|FATAL): .*permission denied to set parameter/
		  && !$request
		  && $passed == (() = $proxy->records);
		is($result->{stdout}, 'pending',
			"$title does not keep a role from inviting");
		is( $request && $request->{status},
			200,
			'... where it is configured, with the key that is configured');
		cmp_ok(scalar $proxy->records,
			'>', $passed, '... through the proxy that is configured');
	}
	return;
}
