# measure_hub.pl - the times that hub.sh prints
use strict;
use warnings;

use ClerkTest;
use Hub;
use Test::More;
use WorkerTest ();

# Milliseconds, median and 99th percentile.
my @LIMITS = (5, 20);

my $commits = $ENV{COMMITS};
my $clerk = ClerkTest::Fake->start('--single-limit', '100000', '--bulk-limit', '100000');
my $hub = Hub->start('hub', $clerk,
	conf => "log_statement = none\nclerk_invite.single_requests_per_hour = 100000\n");
my $publisher = Hub::Publisher->start('shop',
	conf => "log_statement = none\ntrack_commit_timestamp = on\n");
my $number = 0;

$hub->add($publisher);
$hub->start_reports($publisher);
time_of_one() for 1 .. 10;

my @waiting = map { time_of_one() } 1 .. $commits;
my @started = map {
	WorkerTest::wait_until_gone($hub->node, $publisher->{name});
	time_of_one()
} 1 .. $commits / 10;
my @figures = show('worker waits', @waiting);

show('worker starts', @started);
ok($figures[0] <= $LIMITS[0] && $figures[1] <= $LIMITS[1], 'within the limits');
done_testing();

# Milliseconds from the commit to the request.
sub time_of_one
{
	my $email = ++$number . '@example.com';
	my $committed = $publisher->sql(
		"INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES ('org_$number', '$email', 'org:member');
		SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM clerk_invitation_outbox WHERE email_address = '$email'");

	$publisher->wait_for("SELECT state FROM clerk_invitation_outbox WHERE email_address = '$email'", 'sent');
	my ($request) = $clerk->requests_for($email);
	return $request->{time} - 1000 * $committed;
}

sub show
{
	my ($title, @times) = @_;

	@times = sort { $a <=> $b } @times;
	my @figures = map { $times[ int($_ * $#times + 0.5) ] } 0.5, 0.99;
	diag(sprintf("%-14s %d commits: median %.1f ms, 99th percentile %.1f ms", $title, scalar @times, @figures));
	return @figures;
}
