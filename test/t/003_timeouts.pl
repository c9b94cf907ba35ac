# clerk_invite.connect_timeout and clerk_invite.request_timeout hold in every
# phase of a request, and the SQLSTATE tells whether Clerk may have it.
use strict;
use warnings;

use ClerkTest;
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

# The limit to hold, in milliseconds: long enough to reach each phase.  An
# hour stands for none.
my $LIMIT = 500;
my $NONE = 3600 * 1000;

# How much later than that a call may end, in the best of so many attempts:
# the machine may have other things to do.
my $LATE = 300;
my $ATTEMPTS = 3;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $unreachable = MisbehavingServer->unreachable;
my $silent = MisbehavingServer->silent;
my $node;
{
	local $ENV{LD_PRELOAD} = MisbehavingServer::hung_name_server();
	$node = clerk_cluster('main', $clerk);
}
my $invited = 0;

my @before_sending = (
	{ name => 'while the name server hangs', url => 'https://hung.invalid' },
	{ name => 'while connecting hangs', url => $unreachable->url },
	{ name => 'in a stalled TLS handshake', url => $silent->url('https') });
my @after_sending = (
	{
		name => 'while the answer is awaited',
		url => $clerk->url,
		behaviour => 'hang'
	},
	{
		name => 'while the answer trickles in',
		url => $clerk->url,
		behaviour => 'trickle'
	});

foreach my $phase (@before_sending)
{
	check_limit($phase, 'connect_timeout', $LIMIT, $NONE, '08001');
	check_limit($phase, 'request_timeout', $NONE, $LIMIT, '08001');
}
foreach my $phase (@after_sending)
{
	check_limit($phase, 'request_timeout', $NONE, $LIMIT, '08007');

	# connect_timeout is over once the request is on its way.
	check_limit($phase, 'request_timeout after a shorter connect_timeout',
		int($LIMIT / 2), $LIMIT, '08007');
}

$node->stop;
done_testing();

# Invites in a new session with both limits (milliseconds), and looks at how
# and when that ends.
sub check_limit
{
	my ($phase, $setting, $connect, $request, $sqlstate) = @_;
	my $title = "$setting $phase->{name}";
	my $best;

	for (1 .. $ATTEMPTS)
	{
		my $run = invite_within($phase, $connect, $request);

		$best = $run if !$best || $run->{late} < $best->{late};
		last if $best->{late} < $LATE;
	}
	cmp_ok($best->{late}, '<', $LATE,
		"$title ends the call at most $LATE ms after the limit");
	# Clocks of a millisecond's grain may round.
	cmp_ok($best->{late}, '>', -5, "$title does not end it before the limit");
	my @sqlstates = $best->{stderr} =~ /ERROR:  (\w{5}):/g;
	is("@sqlstates", $sqlstate, "$title gives $sqlstate");
	is($best->{next}, "pending\n", "after $title the session invites again");
	return;
}

sub invite_within
{
	my ($phase, $connect, $request) = @_;
	my $name = $phase->{behaviour} ? "x-$phase->{behaviour}" : 'invite';
	my $email = "$name--" . ++$invited . '@example.com';
	my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');
	my %run;

	run_in_psql($psql,
			"SET clerk_invite.api_url = '$phase->{url}'; "
		  . "SET clerk_invite.connect_timeout = $connect; "
		  . "SET clerk_invite.request_timeout = $request;");
	my $begun = now();
	(undef, $run{stderr}) = run_in_psql($psql, invite($email) . ';');
	$run{late} = now() - $begun - $LIMIT;
	($run{next}) = run_in_psql($psql,
		'RESET ALL; ' . invite("next-$invited\@example.com", 'status') . ';');
	$psql->{harness}->finish;
	return \%run;
}

sub now
{
	return clock_gettime(CLOCK_MONOTONIC) * 1000;
}
