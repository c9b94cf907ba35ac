# A sender that was stopped while another server took over does not go on where
# it was: what it had claimed, the new one has sent meanwhile.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use WorkerTest;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $primary = worker_cluster(
	'primary', $clerk,
	allows_streaming => 1,
	conf => q(
clerk_invite.max_concurrent_requests = 1
clerk_invite.verify_delay = '1s'
));

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
ClerkTest::write_key($standby->data_dir . '/clerk.key', $ClerkTest::KEY);
$standby->start;
reconfigure($primary, "synchronous_standby_names = 'standby'");
$primary->poll_query_until('postgres',
	"SELECT sync_state = 'sync' FROM pg_stat_replication")
  or die 'the standby is not synchronous';

# All are claimed at once, and sent one by one.
my $slow = 'x-slow-500--first@example.com';
my @next = map { "next$_\@example.com" } 1 .. 3;
enqueue($primary, 'postgres', $slow, @next);
wait_until('the first is sent', sub { requests($clerk, $slow) });
my $worker = worker_of($primary, 'postgres');
kill('STOP', $worker);
is(states($primary, 'postgres', @next),
	join(', ', ('sending 1') x @next), 'the sender is stopped between two requests');
is(requests($clerk, @next), join(' ', (0) x @next), '... and has yet to send the others');

$standby->promote;
send_until_settled($standby);
like(states($standby, 'postgres', $slow, @next), qr/^(sent \d+(, )?)+$/, 'the new server sends them');
is(created($clerk, $slow, @next), join(' ', (1) x (@next + 1)), '... once');
$clerk->control('revoke_as_admin', { id => $_->{id} }) foreach $clerk->all_invitations;

# Its commits wait for a standby that is not coming back.
kill('CONT', $worker);
$primary->poll_query_until('postgres',
	"SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $worker")
  or die 'the sender does not go on';
is(created($clerk, $slow, @next), join(' ', (1) x (@next + 1)),
	'the old sender sends nothing when it goes on, though Clerk would accept it');

$standby->stop('immediate');
$primary->stop('immediate');
done_testing();
