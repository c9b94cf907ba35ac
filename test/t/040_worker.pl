# A commit that adds invitations starts a background worker, which sends them,
# stays as long as anything is open, and leaves.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = clerk_cluster('main', $clerk, worker => 1);

enqueue('first@example.com');
wait_until('the row is sent',
	sub { states('first@example.com') eq 'sent 1' });
pass('the first commit starts a worker, which sends');
wait_until('the worker is gone', sub { workers() eq '0' });
pass('it leaves when nothing is open');

$node->stop;
done_testing();

# How many workers there are.
sub workers
{
	return $node->safe_psql('postgres',
		'SELECT count(*) FROM clerk_worker_status()');
}

sub enqueue
{
	$node->safe_psql(
		'postgres',
		join(
			';',
			map {
				'INSERT INTO clerk_invitation_outbox '
				  . '(organization_id, email_address, role) '
				  . "VALUES ('org_test', '$_', 'org:member')"
			} @_));
	return;
}

sub states
{
	my $emails = join(', ', map { "'$_'" } @_);

	return $node->safe_psql('postgres',
		"SELECT string_agg(state || ' ' || attempts, ', ' ORDER BY id) "
		  . "FROM clerk_invitation_outbox WHERE email_address IN ($emails)");
}
