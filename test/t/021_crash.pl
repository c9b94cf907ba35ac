# Wherever its sender is killed, an invitation is sent once: the backend or the
# whole server, by SIGKILL, by an immediate stop, by cancel or terminate;
# before the claim commits, before or after the request has gone out, before
# the settling commits, during a look-up.
use strict;
use warnings;

use ClerkTest;
use CrashTest;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = clerk_cluster(
	'main', $clerk,
	conf => "$CRASH_SETTINGS\nclerk_invite.bulk_requests_per_hour = 0\n");
my $crash = CrashTest->new($node, $clerk, 'CALL');

my %emails = (
	claim => [ map { "claim$_" } 1 .. 4 ],
	unsent => [ map { "unsent$_" } 1 .. 4 ],
	# Some of them Clerk has done, some it never will.
	answer => [
		'x-hang-after--1', 'x-slow-600000--2',
		'x-hang-once--3', 'x-hang-once--4',
		'quick5'
	],
	# No answer comes, and is settled, before all are sent.
	settle => [ map { "x-together-4--settle$_" } 1 .. 4 ],
	lookup => [ 'x-drop-after--1', 'x-drop-after--2', 'x-drop-once--3' ]);

foreach my $way (@CRASH_WAYS, @STOP_WAYS)
{
	foreach my $point (sort keys %emails)
	{
		$crash->check($way, $CRASH_POINTS{$point}, $emails{$point});
	}
}

$node->stop;
done_testing();
