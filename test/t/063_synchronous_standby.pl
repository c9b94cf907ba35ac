# A claim that no synchronous standby has is no claim: if the wait for one is
# canceled, nothing is sent.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use WorkerTest;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $primary = worker_cluster('primary', $clerk, allows_streaming => 1);

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
reconfigure($primary, "synchronous_standby_names = 'standby'");
$primary->poll_query_until('postgres',
	"SELECT sync_state = 'sync' FROM pg_stat_replication")
  or die 'the standby is not synchronous';

enqueue($primary, 'postgres', 'confirmed@example.com');
wait_for_states($primary, 'postgres', 'sent 1', 'confirmed@example.com');
pass('with a standby that confirms, an invitation is sent');
wait_until_gone($primary, 'postgres');

foreach my $level (qw(on remote_write remote_apply off))
{
	my $email = "canceled-$level\@example.com";

	reconfigure($primary, "synchronous_commit = $level");
	$standby->stop('immediate');
	# The inserting session itself waits for nobody.
	$primary->safe_psql('postgres',
		'SET synchronous_commit = local; ' . enqueue_sql($email));
	for (1 .. 2)
	{
		my $worker = wait_for_standby();
		my $log = -s $primary->logfile;

		$primary->safe_psql('postgres', "SELECT pg_cancel_backend($worker)");
		wait_until('the wait is canceled',
			sub { slurp_file($primary->logfile, $log) =~ /canceling wait for synchronous/ });
	}
	is(requests($clerk, $email), 0,
		"with synchronous_commit = $level nothing is sent if the wait is canceled");
	$standby->start;
	my $back = time;
	wait_for_states($primary, 'postgres', 'sent 1', $email);
	cmp_ok(time - $back, '<', 30, '... the worker soon tries again') if $level eq 'on';
	is(created($clerk, $email), 1, '... until the standby is back');
}
like(
	slurp_file($primary->logfile),
	qr/stopped sending invitations: the wait for a synchronous standby was canceled/,
	'the log tells why');

$standby->stop;
reconfigure($primary, "synchronous_standby_names = ''");
$primary->stop;
done_testing();

# The worker that waits for one.
sub wait_for_standby
{
	my $waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' "
	  . "AND backend_type = 'clerk_invite worker'";

	$primary->poll_query_until('postgres', "SELECT count(*) = 1 $waiting")
	  or die 'no worker waits for the standby';
	return $primary->safe_psql('postgres', "SELECT pid $waiting");
}
