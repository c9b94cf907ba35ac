# Requests are frugal and never repeated: connections are kept and renewed,
# no POST goes out twice, an answer takes bounded memory, and nothing is left
# behind.
use strict;
use warnings;

use ClerkTest;
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;
use TestCertificates;

# The largest answer that is read, and what it may cost, in kB.
my $BOUND = 4 * 1024;
my $COST = 4 * $BOUND;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $authority = TestCertificates->new($folder, 'ours');
my $stranger = TestCertificates->new($folder, 'stranger');
my $tls = ClerkTest::Fake->start('--single-limit', '100000', '--tls',
	$authority->sign('good'));
my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = clerk_cluster('main', $clerk,
	conf => "clerk_invite.ca_file = '" . $authority->file . "'\n");
my $invited = 0;

# Connections are kept

check_reuse($clerk, 'http');
check_reuse($tls, 'TLS');

my $idle = MisbehavingServer->closing_idle_connections;
my $psql = start_session($idle->url);
foreach my $call (1 .. 3)
{
	is(invite_in($psql, "idle$call\@example.com"),
		'pending',
		$call == 1
		? 'an invitation succeeds'
		: 'after the idle connection was closed, the next call succeeds');
	wait_until('the connection is closed',
		sub { $call == grep { $_ eq 'closed' } $idle->records });
}
is_deeply([ grep { /^request/ } $idle->records ],
	[ map { "request idle$_\@example.com" } 1 .. 3 ],
	'... and each invitation was sent once');
$psql->{harness}->finish;

# No POST goes out twice

my $losing = MisbehavingServer->losing_every_second_answer;
$psql = start_session($losing->url);
is(invite_in($psql, 'kept@example.com'),
	'pending', 'the first invitation on a connection succeeds');
is(invite_in($psql, 'lost@example.com'),
	'08007', 'a kept connection that is closed on a request is an unknown outcome');
is_deeply(
	[ $losing->records ],
	[ 'request kept@example.com', 'request lost@example.com' ],
	'... and the request was sent once');
is(invite_in($psql, 'again@example.com'),
	'pending', '... and the next call succeeds on a new connection');
$psql->{harness}->finish;

$psql = start_session($clerk->url);
foreach my $end (qw(drop reset half-body))
{
	foreach my $connection ('kept', 'new')
	{
		my $email = "x-$end--$connection\@example.com";

		invite_in($psql, "before-$end\@example.com") if $connection eq 'kept';
		is(invite_in($psql, $email),
			'08007', "x-$end on a $connection connection is an unknown outcome");
		is(scalar $clerk->requests_for($email),
			1, '... and the request was sent once');
	}
}
$psql->{harness}->finish;

# An answer takes bounded memory

SKIP:
{
	skip 'this system does not show memory in /proc', 5
	  unless -r '/proc/self/status';

	$psql = start_session($clerk->url);
	invite_in($psql, 'small@example.com');
	my $before = peak_memory_of($psql);
	is(invite_in($psql, 'x-huge--1@example.com'),
		'08007', 'an answer of 64 MiB leaves the outcome unknown');
	like(
		$psql->{stderr},
		qr/the response is too large/,
		'... since it is cut off');
	cmp_ok(peak_memory_of($psql) - $before,
		'<', $COST, "... and costs less than $COST kB");
	is(invite_in($psql, 'x-huge-header--1@example.com'),
		'08007', "an answer's header of 256 kB is cut off");
	is(invite_in($psql, 'after-huge@example.com'),
		'pending', 'after that the session invites again');
	$psql->{harness}->finish;
}

# Nothing is left behind

SKIP:
{
	skip 'this system does not show descriptors in /proc', 2
	  unless -d '/proc/self/fd';

	$psql = start_session($clerk->url);
	call_in_every_way($psql, 1);
	my $before = descriptors($psql);
	call_in_every_way($psql, 20);
	cmp_ok(descriptors($psql), '<=', $before,
		'200 calls that succeed, fail and are given up leave no descriptor');
	is(invite_in($psql, 'after-all@example.com'),
		'pending', 'after that the session invites again');
	$psql->{harness}->finish;
}

$node->stop;
done_testing();

# A psql whose session talks to this server.
sub start_session
{
	my ($url) = @_;
	my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');

	run_in_psql($psql, "SET clerk_invite.api_url = '$url';");
	return $psql;
}

# Invites in that session; returns the invitation's status or the SQLSTATE.
sub invite_in
{
	my ($psql, $email) = @_;
	my ($stdout, $stderr) =
	  run_in_psql($psql, invite($email, 'status') . ';');

	chomp $stdout;
	return $stderr =~ /ERROR:  (\w{5}):/ ? $1 : $stdout;
}

# Whether a session's calls share a connection until one is given up.
sub check_reuse
{
	my ($fake, $over) = @_;
	my $psql = start_session($fake->url);
	my $connection = sub {
		my ($email) = @_;

		invite_in($psql, $email);
		return join(' ', map { $_->{connection} } $fake->requests_for($email));
	};

	my $first = $connection->('first@example.com');
	is( join(' ', map { $connection->("reuse$_\@example.com") } 1 .. 4),
		"$first $first $first $first",
		"calls over $over in one session share a connection");
	is($connection->('x-error-404-resource_not_found--1@example.com'),
		$first, "a refusal over $over is part of that");
	is($connection->('after-refusal@example.com'),
		$first, "... and does not end it");

	run_in_psql($psql, "SET statement_timeout = 300;");
	is($connection->('x-hang--1@example.com'),
		$first, "a call over $over that is aborted was on it, too");
	run_in_psql($psql, "RESET statement_timeout;");
	my $second = $connection->('after-abort@example.com');
	like($second, qr/^\d+$/, "the next call over $over is sent once");
	isnt($second, $first, '... on a new connection');
	is($connection->('after-that@example.com'),
		$second, '... which is kept for the one after that');
	$psql->{harness}->finish;
	return;
}

# Ten calls in one session, so many times: most of them fail.
sub call_in_every_way
{
	my ($psql, $rounds) = @_;
	my $sql = '';

	foreach my $name (
		'good', 'good',
		'x-error-400-bad_request', 'x-error-429-too_many_requests',
		'x-drop', 'x-reset',
		'x-half-body', 'x-502')
	{
		$sql .= call_and_ignore($clerk, $name);
	}
	$sql .= "SET statement_timeout = 50;\n"
	  . call_and_ignore($clerk, 'x-hang')
	  . "RESET statement_timeout; SET clerk_invite.ca_file = '"
	  . $stranger->file . "';\n"
	  . call_and_ignore($tls, 'good')
	  . "RESET clerk_invite.ca_file;\n";
	for (1 .. $rounds)
	{
		run_in_psql($psql, $sql =~ s/NUMBER/++$invited/ger);
	}
	run_in_psql($psql, "SET clerk_invite.api_url = '" . $clerk->url . "';");
	return;
}

sub call_and_ignore
{
	my ($fake, $name) = @_;

	return "SET clerk_invite.api_url = '" . $fake->url . "';\n"
	  . invite("$name--NUMBER\@example.com", 'status') . ";\n";
}

sub descriptors
{
	my ($psql) = @_;
	my $pid = backend_of($psql);

	return scalar(() = glob("/proc/$pid/fd/*"));
}
