# Where the library is preloaded, what was left in an outbox is sent when the
# server has started again, after a crash, and when a standby is promoted;
# without another commit.  A standby sends nothing.
use strict;
use warnings;

use ClerkTest;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = worker_cluster(
	'main', $clerk,
	allows_streaming => 1,
	conf => q(
restart_after_crash = on
max_worker_processes = 10
clerk_invite.request_timeout = '1 h'
));

my $library = ClerkTest::library_name($node);
$node->append_conf('postgresql.conf', "shared_preload_libraries = '$library'");
$node->restart;
make_database($node, $_) foreach qw(one two quiet);
$node->safe_psql('postgres',
	'CREATE DATABASE bare; CREATE DATABASE closed ALLOW_CONNECTIONS false;'
	  . 'ALTER DATABASE quiet SET clerk_invite.worker = off');

check_launcher();
check_without_key();
check_restart();
check_crash();
check_setting();
check_room();
check_standby();

$node->stop;
done_testing();

sub check_launcher
{
	is( $node->safe_psql('postgres',
			"SELECT datname IS NULL, state IS DISTINCT FROM 'active', xact_start IS NULL FROM pg_stat_activity "
			  . "WHERE backend_type = 'clerk_invite launcher'"),
		't|t|t',
		'there is a launcher, which is connected to no database');
	enqueue($node, 'one', 'commit@example.com');
	wait_for_states($node, 'one', 'sent 1', 'commit@example.com');
	pass('a commit starts a worker as it does without');
	wait_until_gone($node);
	return;
}

# Whoever has nothing to send needs no key.
sub check_without_key
{
	my $log = -s $node->logfile;

	$node->safe_psql('postgres',
		"ALTER DATABASE two SET clerk_invite.secret_key_file = 'missing.key'");
	$node->restart;
	wait_until('the launcher has had its workers',
		sub { slurp_file($node->logfile, $log) =~ /database system is ready/ && !workers($node) });
	is(attempt($node, 'two', 'CALL clerk_send_invitations();')->{sqlstate},
		'', 'a CALL that has nothing to send needs no key');
	enqueue($node, 'two', '1 day', 'no-key@example.com');
	wait_for_worker($node, 'two');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM clerk_worker_status() WHERE last_error IS NOT NULL'),
		'0', '... nor does a worker whose row is due later');
	$node->safe_psql('two', 'DELETE FROM clerk_invitation_outbox');
	wait_until_gone($node);
	unlike(slurp_file($node->logfile, $log), qr/stopped sending/,
		'... and one that has nothing to do leaves');
	is(attempt($node, 'two',
			'SET clerk_invite.worker = off; ' . enqueue_sql('no-key@example.com')
			  . '; CALL clerk_send_invitations();')->{sqlstate},
		'55000', '... but without one nothing is sent');
	$node->safe_psql('postgres', 'ALTER DATABASE two RESET clerk_invite.secret_key_file');
	$node->safe_psql('two', 'DELETE FROM clerk_invitation_outbox');
	wait_until_gone($node);
	return;
}

# What was under way, what was queued, what is due later; in two databases.
sub check_restart
{
	foreach my $case (
		[ 'a fast stop', sub { $node->stop('fast'); $node->start; } ],
		[ 'an immediate stop', sub { $node->stop('immediate'); $node->start; } ])
	{
		my ($title, $restart) = @$case;
		my $tag = $title =~ s/\W+/-/gr;
		my @emails = map { "$_-$tag\@example.com" } qw(x-hang-after- later);
		my $quiet = "quiet-$tag\@example.com";
		my $log = -s $node->logfile;

		enqueue($node, 'one', $emails[0]);
		enqueue($node, 'two', '2 s', $emails[1]);
		enqueue($node, 'quiet', $quiet);
		wait_until('a request hangs', sub { requests($clerk, $emails[0]) eq '1' });
		wait_for_worker($node, 'two');
		$restart->();
		wait_for_states($node, 'one', 'sent 1', $emails[0]);
		wait_for_states($node, 'two', 'sent 1', $emails[1]);
		is(created($clerk, @emails), '1 1',
			"after $title the server goes on sending by itself");
		is(requests($clerk, @emails), '1 1', '... nothing twice');
		wait_until_gone($node);
		is(states($node, 'quiet', $quiet),
			'queued 0', '... and nothing where clerk_invite.worker is off');
		unlike(slurp_file($node->logfile, $log), qr/(?:WARNING|ERROR|FATAL)(?!.*terminating)/,
			'... and has nothing to complain of');
	}
	return;
}

sub check_crash
{
	my $email = 'x-hang-after--crash@example.com';

	enqueue($node, 'one', $email);
	wait_until('a request hangs', sub { requests($clerk, $email) eq '1' });
	kill_process($node, worker_of($node, 'one'));
	wait_for_states($node, 'one', 'sent 1', $email);
	is(requests($clerk, $email), '1', 'after a crash the server goes on sending by itself');
	wait_until_gone($node);

	my $launcher = launcher();
	$node->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM pg_stat_activity '
		  . "WHERE backend_type = 'clerk_invite launcher'");
	wait_until('there is another launcher', sub { launcher() !~ /^(?:|$launcher)$/ });
	pass('a launcher that is terminated comes back');
	return;
}

sub launcher
{
	return $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'clerk_invite launcher'");
}

sub check_setting
{
	my $email = 'turned-on@example.com';
	my $log;

	$node->safe_psql('postgres', 'ALTER SYSTEM SET clerk_invite.worker = off');
	$node->restart;
	enqueue($node, 'one', $email);
	$log = -s $node->logfile;
	$node->append_conf('postgresql.conf', 'log_min_messages = debug1');
	$node->restart;
	wait_until('there is a launcher', sub { launcher() ne '' });
	is(states($node, 'one', $email), 'queued 0', 'with clerk_invite.worker off nothing is sent');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET clerk_invite.worker');
	unlike(slurp_file($node->logfile, $log), qr/starting background worker process "clerk_invite worker/,
		'... and the launcher starts no worker');
	$node->reload;
	wait_for_states($node, 'one', 'sent 1', $email);
	pass('... until it is turned on');
	wait_until_gone($node);

  SKIP:
	{
		skip 'there is no /proc', 1 unless -r "/proc/$$/status";
		$node->safe_psql('postgres', 'ALTER SYSTEM SET clerk_invite.worker = off');
		my $before = switches(launcher());
		$node->reload;
		wait_until('the launcher has noticed', sub { switches(launcher()) > $before });
		wait_until_asleep(launcher());
		enqueue($node, 'one', 'turned-on-again@example.com');
		$node->safe_psql('postgres', 'ALTER SYSTEM RESET clerk_invite.worker');
		$node->reload;
		wait_for_states($node, 'one', 'sent 1', 'turned-on-again@example.com');
		pass('... or turned off and on again');
	}
	$node->append_conf('postgresql.conf', 'log_min_messages = warning');
	$node->reload;
	wait_until_gone($node);
	return;
}

# The launcher takes one of the server's places for background workers itself.
sub check_room
{
	my @emails = map { "room$_\@example.com" } 1, 2;

	$node->safe_psql($_->[0], 'SET clerk_invite.worker = off; ' . enqueue_sql('1 day', $_->[1]))
	  foreach [ 'one', $emails[0] ], [ 'two', $emails[1] ];
	$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
	$node->restart;
	wait_until('one of them has a worker', sub { join(' ', workers($node)) =~ /^(?:one|two)$/ });
	my ($first) = workers($node);
	my $second = $first eq 'one' ? 'two' : 'one';
	$node->safe_psql($first, 'DELETE FROM clerk_invitation_outbox');
	wait_for_worker($node, $second);
	pass('a launcher that finds no room tries again');

	# It does so for a commit, too.
	my $commit = attempt($node, $first, enqueue_sql('room3@example.com') . ';');
	like($commit->{stderr}, qr/WARNING:  53400:/, 'a commit that finds no room says so');
	is( $node->safe_psql('postgres',
			"SELECT state, pid IS NULL FROM clerk_worker_status() WHERE database = '$first'"),
		'wanted|t',
		'... and clerk_worker_status() tells that a worker is wanted');
  SKIP:
	{
		skip 'there is no /proc', 1 unless -r "/proc/$$/status";
		cmp_ok(wakeups(launcher(), 1),
			'<=', 4, '... while the launcher sleeps between its attempts');
	}
	$node->safe_psql($second, 'DELETE FROM clerk_invitation_outbox');
	wait_for_states($node, $first, 'sent 1', 'room3@example.com');
	pass('... and gets one when there is room, without another commit');
	wait_until_gone($node);
	$node->append_conf('postgresql.conf', 'max_worker_processes = 10');
	$node->restart;
	return;
}

sub check_standby
{
	my @emails = map { "standby$_\@example.com" } 1 .. 3;
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$node->backup('base');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	ClerkTest::write_key($standby->data_dir . '/clerk.key', $ClerkTest::KEY);
	$standby->start;
	$node->safe_psql('one', 'SET clerk_invite.worker = off; ' . enqueue_sql(@emails));
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
	is( $standby->safe_psql('one',
			"SELECT count(*) FROM clerk_invitation_outbox WHERE state = 'queued'"),
		'3',
		'a standby has the rows');
	is( $standby->safe_psql('one',
			"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'clerk%'"),
		'0',
		'... but neither a launcher nor a worker');
	is($standby->safe_psql('one', 'SELECT count(*) FROM clerk_worker_status()'),
		'0', '... as clerk_worker_status() says there, too');
	is(attempt($standby, 'one', 'CALL clerk_send_invitations();')->{sqlstate},
		'25006', '... and CALL refuses');
	is(requests($clerk, @emails), '0 0 0', '... so it has sent nothing');

	$node->stop('immediate');
	$standby->promote;
	wait_for_states($standby, 'one', 'sent 1', @emails);
	is(requests($clerk, @emails), '1 1 1', 'when it is promoted, it begins to send by itself');
	$standby->stop;
	$node->start;
	return;
}
