# A CALL that lasts tells how far it has come and how long the rest takes; one
# that ends because of Clerk's limits tells when it can go on.
use strict;
use warnings;

use ClerkTest;
use Test::More;
use WorkerTest;

my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster('main', $clerk,
	conf => "clerk_invite.bulk_requests_per_hour = 0\n");

check_long_run();
check_limits();

$node->stop;
done_testing();

# It is told every ten seconds, after a wave of four requests: here first after
# two of these, which take a little longer.
sub check_long_run
{
	enqueue($node, 'postgres',
		(map { "x-slow-1260--$_\@example.com" } 1 .. 10),
		(map { "more$_\@example.com" } 1 .. 5));
	my $psql = start_psql(
		$node, q(
		SET clerk_invite.max_concurrent_requests = 1;
		CALL clerk_send_invitations(10);));

	wait_until(
		'progress is told',
		sub {
			$psql->{harness}->pump_nb;
			return $psql->{stderr} =~ /invitations left.*\n/;
		});
	is( $node->safe_psql(
			'postgres',
			q(SELECT count(*) FROM pg_stat_activity
			WHERE query LIKE '%CALL%' AND state = 'active' AND pid <> pg_backend_pid())
		),
		'1',
		'progress is told while the CALL goes on');
	like(
		$psql->{stderr},
		qr/NOTICE:  invitations: 8 sent, 0 skipped, 0 failed, 0 postponed/,
		'... what has been done');
	my ($left, $seconds) = $psql->{stderr} =~
	  /NOTICE:  invitations left: (\d+), about (\d+) seconds at this rate/;
	is($left, '2', '... what this CALL has left to do');
	# Two at the pace of eight in ten seconds, on a machine that may be slow.
	ok($seconds >= 2 && $seconds <= 10, '... and how long that takes')
	  or diag("$seconds seconds");
	$psql->{harness}->finish;
	my @counts = $psql->{stderr} =~ /invitations: (\d+) sent/g;
	is("@counts", '8 10', 'in the end it tells the sum');
	return;
}

sub check_limits
{
	my $other = ClerkTest::Fake->start;
	my $settings = "SET clerk_invite.api_url = '" . $other->url . "'; ";

	my $call = attempt($node, 'postgres',
		    $settings
		  . 'SET clerk_invite.single_requests_per_hour = 3; '
		  . 'CALL clerk_send_invitations();');
	like($call->{stderr}, qr/invitations: 3 sent/,
		'a CALL sends what the limits allow');
	my ($until) = $call->{stderr} =~
	  /NOTICE:.*Clerk's rate limits are exhausted until (.*)\n/;
	is( $node->safe_psql(
			'postgres', "SELECT timestamptz '$until' - now() "
			  . "BETWEEN interval '59 minutes' AND interval '61 minutes'"),
		't',
		'... and tells until when they are used up');
	is($call->{sqlstate}, '', '... which is no error');
	is(scalar(() = $other->journal), 3, '... and asks Clerk no more');

	$call = attempt($node, 'postgres',
		    $settings
		  . 'SET clerk_invite.single_requests_per_hour = 0; '
		  . 'CALL clerk_send_invitations();');
	like(
		$call->{stderr},
		qr/NOTICE:.*no invitations are sent while .*single_requests_per_hour" and .*bulk_requests_per_hour" are 0/,
		'a CALL that may send nothing at all says why');
	unlike($call->{stderr}, qr/infinity/, '... and names no time');
	$call = attempt($node, 'postgres', $settings . 'CALL clerk_send_invitations();');
	like($call->{stderr}, qr/invitations: 2 sent/,
		'what the limits have held back is sent as soon as they allow it');
	unlike($call->{stderr}, qr/limits are exhausted/, '... without a word of limits');
	$other->stop;
	return;
}
