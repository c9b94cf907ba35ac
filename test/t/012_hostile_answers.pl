# Answers that are made to do harm: nothing in them reaches a message that is a
# secret, forges lines or upsets the session.
use strict;
use warnings;

use ClerkTest;
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = clerk_cluster('main', undef,
	extra => [ '--encoding=UTF8', '--locale=C' ]);
my $key = $ClerkTest::KEY;
my $ticket = 'TICKETthatNobodyMaySee';

# Invites at a server that gives this answer; verbose, with what follows.
sub invite_at
{
	my ($server, $then) = @_;

	return attempt($node, 'postgres',
		"SET clerk_invite.api_url = '" . $server->url . "';\nBEGIN;\n"
		  . invite('ann@example.com') . ";\n"
		  . ($then // "ROLLBACK;\nSELECT 'alive';\n"));
}

# Identifiers that are none.

foreach my $case (
	[ 'a line break' => '{"id": "orginv_1\nERROR:  forged"}' ],
	[ 'Japanese' => '{"id": "orginv_\u30e1"}' ],
	[ 'half a megabyte' => '{"id": "' . 'x' x 500_000 . '"}' ],
	[ 'the key' => qq({"id": "$key-", "url": 5}) ],
	[ 'the key and a mistyped field' => qq({"id": "$key", "url": 5}) ],
	[
		'a URL' => qq({"id": "https://x/y?ticket=$ticket", "url": 5})
	])
{
	my ($name, $body) = @$case;
	my $server = MisbehavingServer->answering('200 OK', [], $body);
	my $result = invite_at($server);

	is($result->{sqlstate}, '08007', "an identifier with $name is refused");
	unlike($result->{stderr}, qr/^ERROR:  forged/m, '... forges no line');
	cmp_ok(length $result->{stderr}, '<', 5000, '... makes no long message');
	ok(index($result->{stderr}, $key) < 0 && index($result->{stderr}, $ticket) < 0,
		'... and no secret is in the messages');
	like($result->{stdout}, qr/alive/, '... and the session goes on');
}

# An identifier that the client cannot show does not upset the rollback.
my $server = MisbehavingServer->answering('200 OK', [],
	"{\"id\": \"orginv_\xe6\x97\xa5\"}");
my $result = attempt($node, 'postgres',
	"SET client_encoding = 'LATIN1'; SET clerk_invite.api_url = '"
	  . $server->url . "';\n"
	  . "BEGIN;\n" . invite('ann@example.com') . ";\nROLLBACK;\nSELECT 'alive';\n");
unlike($result->{stderr}, qr/AbortTransaction/,
	'a rollback does not fail on an identifier');
like($result->{stdout}, qr/alive/, '... and the session goes on');

# The key in a header.
foreach my $header ('x-clerk-trace-id', 'cf-ray')
{
	foreach my $status ('400 Bad Request', '200 OK')
	{
		$server = MisbehavingServer->answering($status, ["$header: $key"],
			'{"errors": []}');
		$result = invite_at($server);
		like($result->{stderr}, qr/trace ID \*+/,
			"$header is quoted in a $status");
		ok(index($result->{stderr}, $key) < 0, '... without the key');
	}
}

# Retry-After of any size.
foreach my $seconds ('99999999999999999999', '-1', 'soon')
{
	$server = MisbehavingServer->answering('429 Too Many Requests',
		["Retry-After: $seconds"], '');
	$result = invite_at($server);
	is($result->{sqlstate}, '53400', "Retry-After: $seconds is survived");
	unlike($result->{stderr}, qr/in -/, '... and nothing is due in the past');
}

# Very many objects, which need more memory than the text that they are in.
my $psql = start_psql($node, '', '--set=VERBOSITY=verbose');
my $peak = peak_memory_of($psql);
$server = MisbehavingServer->answering('200 OK', [],
	'{"data": [' . join(',', ('{}') x 1_300_000) . ']}');
my (undef, $said) = run_in_psql($psql,
	"SET clerk_invite.api_url = '" . $server->url . "';\n"
	  . "SELECT * FROM clerk_list_organization_invitations('org_test');");
like($said, qr/ERROR:  08006: .*DETAIL:  .*"data" has too many elements/s,
	'a list of a million is refused');
cmp_ok(peak_memory_of($psql) - $peak, '<', 100 * 1024,
	'... without memory for each element');
send_to_psql($psql, '\q');
$psql->{harness}->finish;

# A body that never pauses: the statement can be ended, and says that its
# request had gone out.
$server = MisbehavingServer->babbling;
foreach my $attempt (1 .. 5)
{
	$result = attempt($node, 'postgres',
		"SET clerk_invite.api_url = '" . $server->url . "';\n"
		  . "SET statement_timeout = '300ms';\n"
		  . invite('ann@example.com') . ";\n");
	is($result->{sqlstate}, '57014', "a babbling server is left ($attempt)");
	like($result->{stderr}, qr/WARNING:  08007: the request to Clerk had already been sent/,
		'... with a warning that the request had gone out');
}

# The proxy's password.
foreach my $proxy (
	'http://user:PASSWORD pass@localhost:3128',
	'htps://user:PASSWORD@localhost',
	'http://user:PASS/WORD@localhost:3128')
{
	$result = attempt($node, 'postgres',
		"SET clerk_invite.api_url = 'https://localhost:1';\n"
		  . "SET clerk_invite.proxy = '$proxy';\n"
		  . invite('ann@example.com') . ";\n");
	is($result->{sqlstate}, '08001', 'an unusable proxy is an error');
	unlike($result->{stderr}, qr/PASS/, '... without its password');
}

# Addresses that cannot be one.
foreach my $url ('http://127.0.0.1:99999', 'http://127.0.0.1:1/a b',
	"http://127.0.0.1:1/\xc3\xa4", 'http://127.0.0.1:1/?a', 'http://127.0.0.1:1/#a')
{
	$result = attempt($node, 'postgres',
		"SET clerk_invite.api_url = '$url';\n" . invite('ann@example.com') . ";\n");
	is($result->{sqlstate}, '55000', "the address $url cannot be used");
}

# A mistaken SET before the library is loaded costs a warning, not the session.
my $clerk = ClerkTest::Fake->start;
$node->append_conf('postgresql.conf', "clerk_invite.api_url = '" . $clerk->url . "'\n");
$node->reload;
$result = attempt($node, 'postgres',
	"SET clerk_invite.secret_key = 'sk_test_mistaken';\n"
	  . invite('bob@example.com', 'status') . ";\n");
is($result->{stdout}, 'pending', 'a mistaken SET of the key is ignored');

# A server without a postmaster.
$node->stop;
my ($stdout, $stderr);
my $sql = invite('single@example.com', 'status') . "\n";
IPC::Run::run(
	[
		'postgres', '--single', '-D', $node->data_dir, 'postgres'
	],
	'<', \$sql, '>', \$stdout, '2>', \$stderr);
like($stdout, qr/status = "pending"/, 'a standalone backend can invite');

done_testing();
