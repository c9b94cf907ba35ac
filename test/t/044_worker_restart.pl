# A worker that ends before its work does is followed by another one, without
# another commit: however it was ended, also by a crash of the server, and
# whatever it was woken for.  One that fails again and again waits longer and
# longer; one that has lost its database comes no more.
use strict;
use warnings;

use ClerkTest;
use Driver;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $ROWS = 'clerk_invitation_outbox';

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');

# With debug1 the log tells of each process that is started, and with each line
# when it was.
my $node = worker_cluster(
	'main', $clerk,
	conf => q(
log_min_messages = debug1
log_line_prefix = '%n %b '
restart_after_crash = on
clerk_invite.request_timeout = '1 h'
));

check_woken();
check_woken_while_ending();
check_woken_while_looking();
check_future_row();
check_crash();
check_commits_while_restarting();
check_failing();
check_refusing_database();
check_dropped_database();
check_setting();
check_error_with_lock();
check_clock();

$node->stop;
done_testing();

# The row that has woken it is committed before it ends.
sub check_woken
{
	my @emails = ('x-hang-after--woken@example.com', 'woken@example.com');
	my $worker = hanging_worker($emails[0]);

	enqueue($node, 'postgres', $emails[1]);
	terminate($worker);
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	is(requests($clerk, @emails), '1 1',
		'what has woken a worker that is then terminated is sent, once');
	wait_until_gone($node);
	return;
}

# ... or after it was told to end.
sub check_woken_while_ending
{
	my @emails = ('x-hang-after--ending@example.com', 'ending@example.com');
	my $worker = hanging_worker($emails[0]);

	kill('STOP', $worker) or die "could not stop the worker: $!";
	terminate($worker);
	enqueue($node, 'postgres', $emails[1]);
	kill('CONT', $worker) or die "could not continue the worker: $!";
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	is(requests($clerk, @emails), '1 1',
		'what is committed while a worker ends is sent, once');
	wait_until_gone($node);
	return;
}

# At any moment: it is busy looking through many rows that are due later.
sub check_woken_while_looking
{
	$node->safe_psql('postgres', qq(
		SET clerk_invite.worker = off;
		INSERT INTO $ROWS (organization_id, email_address, role, send_after)
			SELECT 'org_test', 'many' || i || '\@example.com', 'r', 'tomorrow'
			FROM generate_series(1, 100000) AS i;
		ALTER DATABASE postgres SET enable_indexscan = off;
		ALTER DATABASE postgres SET enable_indexonlyscan = off;));
	foreach my $try (1 .. 5)
	{
		my @emails = map { "looking$try-$_\@example.com" } 1, 2;

		$node->safe_psql('postgres',
			    enqueue_sql($emails[0])
			  . '; SELECT pg_terminate_backend(pid) FROM clerk_worker_status() WHERE pid IS NOT NULL; '
			  . enqueue_sql($emails[1]));
		wait_for_states($node, 'postgres', 'sent 1', @emails);
		wait_for_worker($node, 'postgres');
	}
	pass('between two commits a worker can be terminated at any moment');
	$node->safe_psql('postgres', qq(
		ALTER DATABASE postgres RESET enable_indexscan;
		ALTER DATABASE postgres RESET enable_indexonlyscan;
		DELETE FROM $ROWS WHERE email_address LIKE 'many%'));
	terminate(worker_of($node, 'postgres'));
	wait_until_gone($node);
	return;
}

sub check_future_row
{
	my $email = 'later@example.com';

	enqueue($node, 'postgres', '1 day', $email);
	my $worker = wait_for_worker($node, 'postgres');
	terminate($worker);
	check_successor($worker, 'a worker that was terminated while a row is due later');
	forget($email);
	return;
}

# Without preload: of the server's processes the postmaster alone goes on.
sub check_crash
{
	my $email = 'crash@example.com';

	enqueue($node, 'postgres', '1 day', $email);
	my $worker = wait_for_worker($node, 'postgres');
	kill_process($node, $worker);
	wait_until('another one waits before it works',
		sub { $node->safe_psql('postgres', 'SELECT last_error FROM clerk_worker_status()') =~ /^the worker exited unexpectedly/ });
	pass('after a crash the next worker, which may be the reason, waits a while before it works');
	check_successor($worker, 'a worker that was killed');

	# One that the worker is no reason of.
	$worker = wait_for_worker($node, 'postgres');
	my $psql = start_psql($node, '');
	kill_process($node, backend_of($psql));
	eval { $psql->{harness}->finish };
	check_successor($worker, 'a worker whose server has crashed');
	forget($email);
	return;
}

# Another one waits for what is due later, connected, without another commit.
sub check_successor
{
	my ($worker, $title) = @_;

	wait_until(
		"there is another worker",
		sub {
			my $pid = $node->safe_psql('postgres', q(
				SELECT w.pid FROM clerk_worker_status() AS w JOIN pg_stat_activity AS a USING (pid)
				WHERE w.state = 'waiting' AND a.datname = w.database AND w.last_error IS NULL));
			return $pid ne '' && $pid != $worker;
		});
	pass("$title is followed by another one");
	return;
}

sub forget
{
	my ($email) = @_;

	$node->safe_psql('postgres', "DELETE FROM $ROWS WHERE email_address = '$email'");
	wait_until_gone($node);
	return;
}

# Another process is on its way: a commit needs no second one.
sub check_commits_while_restarting
{
	my @emails = ('x-hang-after--restarting@example.com',
		map { "restarting$_\@example.com" } 1 .. 10);
	my $before = starts();

	terminate(hanging_worker($emails[0]));
	wait_until('clerk_worker_status() tells that one is on its way',
		sub { state_of('postgres') eq 'restarting|t' });
	enqueue($node, 'postgres', $_) foreach @emails[ 1 .. 10 ];
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	is(starts() - $before, 2, 'commits in between start no other worker');
	is(created($clerk, @emails), join(' ', (1) x @emails), '... and each row is sent once');
	wait_until_gone($node);
	return;
}

# Whenever it takes a row on, it ends; and somebody commits all the time.
sub check_failing
{
	my @emails = map { "failing$_\@example.com" } 1 .. 4;
	my $log = -s $node->logfile;
	my @times;

	$node->safe_psql('postgres', qq(
		CREATE FUNCTION end_process() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN PERFORM pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid()); RETURN NULL; END';
		CREATE TRIGGER end_process AFTER UPDATE ON $ROWS
			FOR EACH STATEMENT EXECUTE FUNCTION end_process();));
	wait_until(
		'five have been started',
		sub {
			enqueue($node, 'postgres', 'x-500--commit@example.com');
			@times = slurp_file($node->logfile, $log) =~
			  /^([\d.]+) \S+ DEBUG:  starting background worker process "clerk_invite worker/mg;
			return @times >= 5;
		});
	# The time before they connect, which the log does not show, comes to it.
	my @gaps = map { $times[ $_ + 1 ] - $times[$_] } 0 .. 3;
	note 'seconds between the starts of workers that fail: ', join(' ', map { sprintf('%.1f', $_) } @gaps);
	cmp_ok($gaps[0], '>=', 0.9, 'a worker that fails is started again after a second');
	cmp_ok($gaps[3], '>=', 2.9, '... and then later and later, whatever is committed');
	wait_until('it waits', sub { state_of('postgres') eq 'waiting|f' });
	is($node->safe_psql('postgres', 'SELECT last_error FROM clerk_worker_status()'),
		"the worker exited unexpectedly; see the server log",
		'... and clerk_worker_status() says so');
	is($node->safe_psql('postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'clerk%' AND datname IS NOT NULL"),
		'0', '... while nobody who wants the database for himself has to wait');
	$node->safe_psql('postgres',
		"DROP FUNCTION end_process() CASCADE; DELETE FROM $ROWS WHERE email_address LIKE '%commit\@%'");
	enqueue($node, 'postgres', @emails);
	$node->reload;
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	pass('... until nothing fails any more, with a reload at once');
	wait_until_gone($node);
	return;
}

sub check_refusing_database
{
	my $email = 'refused@example.com';
	my $log;

	make_database($node, 'refusing');
	enqueue($node, 'refusing', '1 day', $email);
	my $worker = wait_for_worker($node, 'refusing');
	$log = -s $node->logfile;
	$node->safe_psql('postgres', 'ALTER DATABASE refusing ALLOW_CONNECTIONS false');
	terminate($worker);
	check_gone_for_good($log, 'a worker whose database takes no connections any more');
	is(scalar(() = slurp_file($node->logfile, $log) =~ /FATAL: .*not currently accepting connections/g),
		1, '... and the log tells once why');
	$node->safe_psql('postgres', 'ALTER DATABASE refusing ALLOW_CONNECTIONS true');
	enqueue($node, 'refusing', 'accepted@example.com');
	wait_for_states($node, 'refusing', 'sent 1', 'accepted@example.com');
	pass('... and the next commit starts another one');
	return;
}

sub check_dropped_database
{
	wait_for_worker($node, 'refusing');
	my $log = -s $node->logfile;

	$node->safe_psql('postgres', 'DROP DATABASE refusing WITH (FORCE)');
	check_gone_for_good($log, 'a worker whose database was dropped');
	unlike(slurp_file($node->logfile, $log), qr/FATAL:  (?!terminating)/,
		'... without a word');
	return;
}

# The postmaster does not start it any more.
sub check_gone_for_good
{
	my ($log, $title) = @_;

	wait_until("$title is forgotten",
		sub { slurp_file($node->logfile, $log) =~ /DEBUG:  unregistering background worker "clerk_invite worker/ });
	is(join(' ', workers($node)), '', "$title comes no more");
	return;
}

sub check_setting
{
	my $log;

	enqueue($node, 'postgres', '1 day', 'off@example.com');
	my $worker = wait_for_worker($node, 'postgres');
	$node->safe_psql('postgres', 'ALTER DATABASE postgres SET clerk_invite.worker = off');
	$log = -s $node->logfile;
	terminate($worker);
	check_gone_for_good($log, 'a worker that the database does not want any more');
	$node->safe_psql('postgres',
		"ALTER DATABASE postgres RESET clerk_invite.worker; DELETE FROM $ROWS WHERE email_address = 'off\@example.com'");
	return;
}

# An error outside of a transaction, with a lock held that any other process
# would wait for without end; the worker, too.
sub check_error_with_lock
{
	my $library = Driver::build('worker_error_driver');
	my $key_file = $node->data_dir . '/clerk.key';
	my $email = 'lock@example.com';
	my $log = -s $node->logfile;

	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$library'");
	$node->restart;
	ClerkTest::write_key($key_file, $ClerkTest::KEY =~ s/0000/1111/r);
	enqueue($node, 'postgres', $email);
	wait_until('there is an error',
		sub { slurp_file($node->logfile, $log) =~ /ERROR:  an error while a lock is held/ });
	ClerkTest::write_key($key_file, $ClerkTest::KEY);
	wait_for_states($node, 'postgres', 'sent 1', $email);
	pass('an error outside of a transaction leaves no lock behind');
	wait_until_gone($node);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
	$node->restart;
	return;
}

# The clock is a day ahead, and put right while the worker waits.
sub check_clock
{
	my $clock = $node->data_dir . '/clock';
	my $email = 'clock@example.com';

	set_clock($clock, 24 * 60 * 60);
	$node->stop;
	{
		local $ENV{LD_PRELOAD} = Driver::build_replacement('wall_clock_driver');
		local $ENV{CLERK_TEST_CLOCK} = $clock;
		$node->start;
	}
	my $psql = start_psql($node, "SET clerk_invite.worker = off;");
	cmp_ok($node->safe_psql('postgres', 'SELECT extract(epoch FROM now())') - time, '>', 80000,
		"the server's clock is ahead");
	run_in_psql($psql, enqueue_sql('x-hang-after--clock@example.com') . ';');
	send_to_psql($psql, 'CALL clerk_send_invitations();');
	wait_until('the CALL has sent it',
		sub { requests($clerk, 'x-hang-after--clock@example.com') eq '1' });
	enqueue($node, 'postgres', $email);
	wait_for_worker($node, 'postgres');
	set_clock($clock, 0);
	$node->safe_psql('postgres', "UPDATE $ROWS SET send_after = now() WHERE email_address = '$email'");
	$node->safe_psql('postgres',
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%' AND state = 'active'");
	output_of_psql($psql);
	$psql->{harness}->finish;
	wait_for_states($node, 'postgres', 'sent 1', $email);
	pass('a worker waits as long as it has to, whatever the clock says meanwhile');
	$node->restart;
	return;
}

# The clock is ahead by so many seconds.
sub set_clock
{
	my ($file, $seconds) = @_;

	unlink "$file.new";
	append_to_file("$file.new", "$seconds\n");
	rename("$file.new", $file) or die "could not set the clock: $!";
	return;
}

# The worker is in the middle of a request.
sub hanging_worker
{
	my ($email) = @_;

	enqueue($node, 'postgres', $email);
	wait_until('a request hangs', sub { requests($clerk, $email) eq '1' });
	return worker_of($node, 'postgres');
}

sub terminate
{
	my ($worker) = @_;

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	return;
}

# Its state, and whether it has no process.
sub state_of
{
	my ($database) = @_;

	return $node->safe_psql('postgres',
		"SELECT state, pid IS NULL FROM clerk_worker_status() WHERE database = '$database'");
}

# How many workers have been started, ever.
sub starts
{
	return scalar(() = slurp_file($node->logfile) =~
		  /starting background worker process "clerk_invite worker/g);
}
