# The libraries of Svix and of Standard Webhooks sign webhooks that the function
# accepts, through a real HTTP server in front of the database; and they accept
# what these tests sign.
use strict;
use warnings;

use ClerkTest;
use HTTP::Tiny;
use IPC::Run ();
use JSON::PP qw(decode_json encode_json);
use NodePackages;
use PostgreSQL::Test::Utils;
use Test::More;
use WebhookTest;

my $programs = NodePackages->install_or_skip('webhook_sender',
	qw(package.json server.mjs sign.mjs verify.mjs));
my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster('main', $clerk, conf => "clerk_invite.webhook_secret_file = 'webhook.secret'\n");

$ENV{WEBHOOK_SECRET} = new_secret();
ClerkTest::write_key($node->data_dir . '/webhook.secret', $ENV{WEBHOOK_SECRET});
$node->safe_psql(
	'postgres', q(
	CREATE ROLE web LOGIN;
	GRANT EXECUTE ON FUNCTION clerk_receive_webhook(text, jsonb) TO web;
	INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
	VALUES ('org_test', 'ann@example.com', 'org:member');
	CALL clerk_send_invitations();));
my $id = $node->safe_psql('postgres', 'SELECT invitation_id FROM clerk_invitation_outbox');

check_signers();
check_signer_of_tests();
$node->stop;
done_testing();

sub check_signers
{
	# Characters beyond ASCII: the signature is one of bytes.
	local $ENV{WEBHOOK_BODY} = event('accepted', $id, note => 'Gr\u00fc\u00dfe') =~ s/\\\\u00fc/\xc3\xbc/r;
	my ($signed, $output) = $programs->run('node', 'sign.mjs');
	ok($signed, 'both libraries sign');
	my ($svix, $standard) = map { decode_json($_) } split(/\n/, $output);
	my $server = start_server();

	is(post($server, $ENV{WEBHOOK_BODY}, $svix), '200 updated', 'Svix\'s webhook is received by HTTP');
	is(post($server, $ENV{WEBHOOK_BODY}, $standard), '200 unchanged', '... and that of Standard Webhooks');
	is(post($server, $ENV{WEBHOOK_BODY}, $svix), '401 ', 'a copy is refused with 401');
	is(post($server, "$ENV{WEBHOOK_BODY} ", { %$svix, 'svix-id' => 'msg_2' }), '401 ', 'another body is refused with 401');
	is(post($server, $ENV{WEBHOOK_BODY}, {}), '400 ', 'a request without signature is refused with 400');
	unlink($node->data_dir . '/webhook.secret') or die;
	is(post($server, $ENV{WEBHOOK_BODY}, $standard), '500 ', 'without a secret, the sender is to try again');
	ClerkTest::write_key($node->data_dir . '/webhook.secret', $ENV{WEBHOOK_SECRET});
	is($node->safe_psql('postgres', 'SELECT status, url IS NULL FROM clerk_invitation_outbox'),
		'accepted|t', 'the row has the status');
	$server->{harness}->kill_kill;
	return;
}

sub start_server
{
	my $server = { output => '' };

	local %ENV = (
		$programs->environment,
		PGHOST => $node->host,
		PGPORT => $node->port,
		PGUSER => 'web',
		PGDATABASE => 'postgres');
	$server->{harness} = IPC::Run::start(
		[ 'node', 'server.mjs' ],
		'<', \undef,
		'>', \$server->{output},
		'2>', \$server->{errors},
		init => sub { chdir $programs->folder or die });
	wait_until('the server listens',
		sub { $server->{harness}->pump_nb; $server->{output} =~ /^(\d+)\n/ });
	($server->{port}) = $server->{output} =~ /^(\d+)/;
	return $server;
}

sub post
{
	my ($server, $body, $headers) = @_;
	my $response = HTTP::Tiny->new->post("http://127.0.0.1:$server->{port}/",
		{ content => $body, headers => { 'content-type' => 'application/json', %$headers } });

	return "$response->{status} $response->{content}";
}

sub check_signer_of_tests
{
	my $webhook = signed(event('accepted', $id), secret => $ENV{WEBHOOK_SECRET}, prefix => 'webhook-');

	local $ENV{WEBHOOK_BODY} = $webhook->{body};
	local $ENV{WEBHOOK_HEADERS} = encode_json($webhook->{headers});
	my (undef, $output) = $programs->run('node', 'verify.mjs');
	is($output, "ok\n", 'both libraries accept what these tests sign');
	local $ENV{WEBHOOK_BODY} = "$webhook->{body} ";
	(undef, $output) = $programs->run('node', 'verify.mjs');
	is($output, '', '... and nothing else');
	return;
}
