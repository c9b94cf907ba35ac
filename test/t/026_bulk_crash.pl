# Wherever its sender is killed, what it sends in bulk is sent once, as what it
# sends one by one is; and so it is if the sender is the background worker,
# after whose death the server goes on by itself.
use strict;
use warnings;

use ClerkTest;
use CrashTest;
use WorkerTest;
use Test::More;

my @LIMITS = ('--single-limit', '100000', '--bulk-limit', '100000');

# Two of an organization are worth a bulk request.
my $BUDGETS = q(
clerk_invite.single_requests_per_hour = 100000
clerk_invite.bulk_requests_per_hour = 100000
);

# Each list is a request: a batch, or a single one.
my %LISTS = (
	claim => [ [ map { "claim$_" } 1 .. 3 ], ['claim4'], [ 'claim5', 'claim6' ] ],
	unsent => [ [ map { "unsent$_" } 1 .. 3 ], ['unsent4'] ],
	# Some of them Clerk has done, some it never will.
	answer => [
		[ 'before1', 'x-hang-after--2', 'after3' ],
		['x-hang-after--4'],
		[ 'x-hang-once--5', 'beside6' ],
		['x-hang-once--7'],
		[ 'quick8', 'quick9' ]
	],
	# No answer comes, and is settled, before all are sent.
	settle => [
		[ 'x-together-3--1', 'settle2', 'settle3' ],
		['x-together-3--4'],
		[ 'x-together-3--5', 'settle6' ]
	]);

my $clerk = ClerkTest::Fake->start(@LIMITS);

check_call();
check_worker();
done_testing();

sub check_call
{
	my $node = clerk_cluster('call', $clerk, conf => $CRASH_SETTINGS . $BUDGETS);
	my $crash = CrashTest->new($node, $clerk, 'CALL');

	check_crashes($crash);
	$node->stop;
	return;
}

sub check_worker
{
	my $node =
	  worker_cluster('worker', $clerk, conf => $CRASH_SETTINGS . $BUDGETS);
	my $library = ClerkTest::library_name($node);

	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = '$library'");
	$node->restart;
	check_crashes(CrashTest->new($node, $clerk, 'worker'));
	check_faults($node);
	$node->stop;
	return;
}

sub check_crashes
{
	my ($crash) = @_;

	foreach my $way (@CRASH_WAYS)
	{
		foreach my $point (sort keys %LISTS)
		{
			$crash->check($way, $CRASH_POINTS{$point}, @{ $LISTS{$point} });
		}
	}
	return;
}

# What happens to an answer while the worker is well, alone and in a batch.
sub check_faults
{
	my ($node) = @_;
	my @faults = qw(drop-before-once drop-after 500-after half-body);
	my @batched = map { ("x-$_--batch\@example.com", "beside-$_\@example.com") } @faults;
	my @single = map { "x-$_--single\@example.com" } @faults;
	my $number = 0;
	my @rows = (
		(map { 'org_batch' . int($number++ / 2) . "', '$_" } @batched),
		(map { 'org_single' . $number++ . "', '$_" } @single));

	$node->safe_psql('postgres',
		'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES '
		  . join(', ', map { "('$_', 'org:member')" } @rows));
	wait_until('all is settled',
		sub { states($node, 'postgres', @batched, @single) !~ /queued|sending|verifying/ });
	is( states($node, 'postgres', @batched, @single),
		join(', ', (('sent 2') x 2, ('sent 1') x 6), ('sent 2', ('sent 1') x 3)),
		'whatever becomes of an answer, a worker sends every row');
	is( created($clerk, @batched, @single),
		join(' ', (1) x (@batched + @single)),
		'... with one invitation each');
	is(scalar(grep { ref $_->{body} eq 'ARRAY' } $clerk->requests_for($batched[2])),
		1, '... what belongs together in bulk');
	return;
}
