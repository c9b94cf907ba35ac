# A commit that adds invitations starts a background worker, or wakes the one
# that is there.  It sends at once what is due, and at its time what is due
# later, stays as long as anything is open, and leaves.
use strict;
use warnings;

use ClerkTest;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

# A row that keeps the worker there.
my $FUTURE = 'future@example.com';

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');

# With debug1 the log tells of each process that is started.
my $node = worker_cluster(
	'main', $clerk,
	conf => q(
log_min_messages = debug1
max_prepared_transactions = 2
));

check_life();
check_ways_in();
check_what_starts_none();
check_calls();
check_future_row();
check_delay();
check_idle();
check_slow_start();
check_failing_row();
check_last_error();
check_outage();
check_error();
check_other_sender();
check_many_senders();
check_locked_row();
check_prepared_transaction();
check_setting();
check_privileges();
# Last, since whoever reads the fake's journal reads all of it.
check_many_commits();

$node->stop;
done_testing();

sub check_life
{
	my $before = starts();

	enqueue($node, 'postgres', 'first@example.com');
	wait_for_states($node, 'postgres', 'sent 1', 'first@example.com');
	is(starts() - $before, 1, 'the first commit starts a worker, which sends');
	my $first = wait_for_worker($node, 'postgres');
	is( $node->safe_psql(
			'postgres', qq(
			SELECT w.state, w.next_run_at > now() - interval '1 s', w.last_error IS NULL,
				w.started_at = a.backend_start OR w.started_at BETWEEN
				a.backend_start AND a.backend_start + interval '10 s',
				a.backend_type, record_image_eq(ROW(w.database), ROW(a.datname)), a.state,
				a.xact_start IS NULL
			FROM clerk_worker_status() AS w JOIN pg_stat_activity AS a USING (pid)
			WHERE w.database = 'postgres')),
		'waiting|t|t|t|clerk_invite worker|t|idle|t',
		'it is seen, waiting, in clerk_worker_status() and pg_stat_activity');
	wait_until_gone($node);
	wait_until('the process is gone', sub { !kill(0, $first) });
	pass('when nothing is open any more, it leaves');
	is($node->safe_psql('postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'clerk%'"),
		'0',
		'... and leaves no process behind');

	enqueue($node, 'postgres', 'second@example.com');
	wait_for_states($node, 'postgres', 'sent 1', 'second@example.com');
	is(starts() - $before, 2, 'the next commit starts another one');
	wait_until_gone($node);
	return;
}

# However a row comes to be queued, its commit starts a worker.
sub check_ways_in
{
	my $rows = 'clerk_invitation_outbox';
	my $columns = '(organization_id, email_address, role, send_after)';
	my $number = 0;

	$node->safe_psql(
		'postgres', qq(
		SET clerk_invite.worker = off;
		CREATE TABLE by_row (org text, email text);
		CREATE TRIGGER invite AFTER INSERT ON by_row FOR EACH ROW
			EXECUTE FUNCTION clerk_invitation_trigger('org', '', 'email', '=org:member');
		CREATE TABLE by_statement (org text, email text);
		CREATE TRIGGER invite AFTER INSERT ON by_statement
			REFERENCING NEW TABLE AS new_ones FOR EACH STATEMENT
			EXECUTE FUNCTION clerk_invitation_trigger('org', '', 'email', '=org:member');
		INSERT INTO $rows (organization_id, email_address, role, state, send_after)
			VALUES ('org_test', 'retried\@example.com', 'org:member', 'failed', 'tomorrow');));
	foreach my $case (
		[ 'INSERT ... SELECT', "INSERT INTO $rows $columns SELECT 'org_test', '%s', 'r', 'tomorrow'" ],
		[ 'COPY', "COPY $rows $columns FROM PROGRAM 'echo org_test,%s,r,tomorrow' (FORMAT csv)" ],
		[ 'the function', "SELECT clerk_enqueue_organization_invitation('org_test', NULL, '%s', 'r', send_after => 'tomorrow')" ],
		[ 'clerk_retry_invitation()', "SELECT clerk_retry_invitation(id) FROM $rows WHERE state = 'failed'" ],
		[ 'a row trigger', "INSERT INTO by_row VALUES ('org_test', '%s')" ],
		[ 'a statement trigger', "INSERT INTO by_statement VALUES ('org_test', '%s')" ])
	{
		my ($title, $sql) = @$case;
		my $email = 'way' . ++$number . '@example.com';
		my $before = starts();

		$node->safe_psql('postgres', sprintf($sql, $email));
		wait_until("$title starts a worker", sub { starts() > $before });
		if ($title =~ /trigger/)
		{
			wait_for_states($node, 'postgres', 'sent 1', $email);
		}
		else
		{
			wait_for_worker($node, 'postgres');
			$node->safe_psql('postgres', "DELETE FROM $rows WHERE state = 'queued'");
		}
		wait_until_gone($node);
		is(starts() - $before, 1, "$title starts a worker");
	}
	return;
}

sub check_what_starts_none
{
	my $before = starts();
	my $rows = 'clerk_invitation_outbox';

	foreach my $case (
		[ 'a rollback', 'BEGIN; %s; ROLLBACK' ],
		[ 'a statement that fails', 'BEGIN; %s; SELECT 1 / 0; COMMIT' ],
		[ 'an UPDATE of no row', "UPDATE $rows SET role = role WHERE id < 0" ],
		[ 'an INSERT of no row', "INSERT INTO $rows SELECT * FROM $rows WHERE id < 0" ],
		[ 'a DELETE', "DELETE FROM $rows WHERE email_address = 'first\@example.com'" ],
		[ 'worker = off in the session', 'SET clerk_invite.worker = off; %s' ],
		[
			'worker = off in the transaction',
			'BEGIN; SET LOCAL clerk_invite.worker = off; %s; COMMIT'
		])
	{
		my ($title, $sql) = @$case;

		$node->psql('postgres',
			sprintf($sql, enqueue_sql('1 day', 'none@example.com')));
		is(join(' ', workers($node)), '', "$title starts no worker");
	}
	is(starts(), $before, '... not even for a moment');
	$node->safe_psql('postgres',
		"DELETE FROM $rows WHERE email_address = 'none\@example.com'");

	# What remains of the transaction counts.
	$node->safe_psql('postgres',
		    'BEGIN; '
		  . enqueue_sql('kept@example.com')
		  . '; SAVEPOINT a; '
		  . enqueue_sql('undone@example.com')
		  . '; ROLLBACK TO a; COMMIT');
	wait_for_states($node, 'postgres', 'sent 1', 'kept@example.com');
	is(requests($clerk, 'kept@example.com', 'undone@example.com'),
		'1 0', 'what is rolled back to a savepoint is not sent');
	wait_until_gone($node);
	return;
}

# What a CALL itself does to rows starts and wakes no worker.  What it leaves
# open is a worker's when it has ended.
sub check_calls
{
	my $rows = 'clerk_invitation_outbox';
	my $quiet = 'SET client_min_messages = error;';
	my $off = 'SET clerk_invite.worker = off;';
	my @emails = map { "call$_\@example.com" } 1 .. 3;
	my $before = starts();

	$node->safe_psql('postgres', "$off " . enqueue_sql(@emails));
	$node->safe_psql('postgres', "$quiet CALL clerk_send_invitations()");
	is(states($node, 'postgres', @emails), 'sent 1, sent 1, sent 1', 'a CALL sends all');
	$clerk->control('accept', { id => $node->safe_psql('postgres',
		"SELECT invitation_id FROM $rows WHERE email_address = '$emails[0]'") });
	$node->safe_psql('postgres', "$quiet CALL clerk_refresh_invitations()");
	is($node->safe_psql('postgres', "SELECT status FROM $rows WHERE email_address = '$emails[0]'"),
		'accepted', '... and another one learns what became of it');
	is(join(' ', workers($node)), '', '... without a worker');
	is(starts(), $before, '... even for a moment');

	# The trigger of somebody who wants to invite more in the middle of it.
	$node->safe_psql('postgres', qq(
		CREATE FUNCTION follow_up() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			INSERT INTO public.$rows (organization_id, email_address, role)
				VALUES ('org_test', 'follow-up-' || NEW.email_address, 'org:member');
			RETURN NULL;
		END \$\$;
		CREATE TRIGGER follow_up AFTER UPDATE ON $rows FOR EACH ROW
			WHEN (NEW.status IN ('accepted', 'revoked')) EXECUTE FUNCTION follow_up();));
	$clerk->control('accept', { id => $node->safe_psql('postgres',
		"SELECT invitation_id FROM $rows WHERE email_address = '$emails[1]'") });
	$node->safe_psql('postgres', "$quiet CALL clerk_refresh_invitations()");
	wait_for_states($node, 'postgres', 'sent 1', "follow-up-$emails[1]");
	is(starts() - $before, 1, 'what a trigger inserts in the middle of a CALL starts a worker');
	$node->safe_psql('postgres', 'DROP FUNCTION follow_up() CASCADE');
	wait_until_gone($node);

	# Rows that a CALL leaves: not taken, and to be tried again later.
	@emails = map { "left$_\@example.com" } 1, 2;
	$node->safe_psql('postgres',
		"$quiet $off " . enqueue_sql(@emails) . '; RESET clerk_invite.worker; CALL clerk_send_invitations(1)');
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	pass('what a CALL is not to send a worker sends');
	wait_until_gone($node);
	$node->safe_psql('postgres',
		"$quiet $off " . enqueue_sql('x-500-once--postponed@example.com')
		  . '; RESET clerk_invite.worker; CALL clerk_send_invitations()');
	wait_for_states($node, 'postgres', 'sent 2', 'x-500-once--postponed@example.com');
	pass('... and what it has postponed');
	wait_until_gone($node);

	# A worker that waits for something else.
	enqueue($node, 'postgres', '1 day', $FUTURE);
	my $worker = wait_for_worker($node, 'postgres');
	$node->safe_psql('postgres',
		"$quiet $off " . enqueue_sql('x-500-once--woken@example.com')
		  . '; RESET clerk_invite.worker; CALL clerk_send_invitations()');
	wait_for_states($node, 'postgres', 'sent 2', 'x-500-once--woken@example.com');
	is(worker_of($node, 'postgres'), $worker, '... for which it wakes the one that is there');
	$before = starts();
	$node->safe_psql('postgres',
		"$quiet $off DELETE FROM $rows WHERE email_address = '$FUTURE'; "
		  . enqueue_sql('x-500-once--off@example.com') . '; CALL clerk_send_invitations()');
	$node->safe_psql('postgres',
		"UPDATE $rows SET role = role WHERE email_address = '$emails[0]'");
	wait_until_gone($node);
	is(starts(), $before, '... unless workers are off for the session');
	return;
}

sub check_future_row
{
	my ($due) = $node->safe_psql('postgres',
		enqueue_sql('1500 ms', 'later@example.com')
		  . ' RETURNING extract(epoch FROM send_after) * 1000');
	my $worker = wait_for_worker($node, 'postgres');

	is( $node->safe_psql(
			'postgres', q(
			SELECT abs(extract(epoch FROM w.next_run_at - o.send_after)) < 0.1
			FROM clerk_worker_status() AS w, clerk_invitation_outbox AS o
			WHERE o.email_address = 'later@example.com')),
		't',
		'the worker waits for a row that is due later');
	wait_for_states($node, 'postgres', 'sent 1', 'later@example.com');
	my ($request) = $clerk->requests_for('later@example.com');
	my $late = $request->{time} - $due;
	note sprintf('it was sent %.0f ms after it was due', $late);
	# The fake cuts its time to the millisecond.
	cmp_ok($late, '>=', -1, '... and does not send it earlier');
	cmp_ok($late, '<', 500, '... nor much later');
	is(worker_of($node, 'postgres'), $worker, '... and is the same all the time');

	# What is due earlier than what it waits for.
	enqueue($node, 'postgres', '1 day', $FUTURE);
	wait_for_worker($node, 'postgres');
	is( $node->safe_psql('postgres',
			"SELECT next_run_at <= now() + interval '1 min' FROM clerk_worker_status()"),
		't',
		'it looks once a minute, since not all commits can wake it');
	enqueue($node, 'postgres', '200 ms', 'sooner@example.com');
	wait_for_states($node, 'postgres', 'sent 1', 'sooner@example.com');
	is(worker_of($node, 'postgres'),
		$worker, 'it stays as long as a row is due later');
	return;
}

# From the INSERT, which is before the commit, to the arrival of the request.
sub check_delay
{
	my $psql = start_psql($node, '');
	my @delays;

	wait_for_worker($node, 'postgres');
	foreach my $number (1 .. 50)
	{
		my $email = "delay$number\@example.com";
		my $insert = enqueue_sql($email);
		my ($begun) = run_in_psql($psql,
			"SELECT extract(epoch FROM clock_timestamp()) * 1000; $insert;");

		wait_until("$email is sent", sub { requests($clerk, $email) eq '1' });
		my ($request) = $clerk->requests_for($email);
		push @delays, $request->{time} - $begun;
		wait_for_worker($node, 'postgres');
	}
	$psql->{harness}->finish;
	@delays = sort { $a <=> $b } @delays;
	my $median = ($delays[24] + $delays[25]) / 2;
	note sprintf(
		'milliseconds from INSERT to request: median %.1f, least %.1f, most %.1f',
		$median, @delays[ 0, -1 ]);
	cmp_ok($median, '<', 20,
		'a commit that finds a worker is sent within 20 ms (median of 50)');
	return;
}

# While it waits its process is not scheduled at all.
sub check_idle
{
  SKIP:
	{
		skip 'there is no /proc', 1 unless -r "/proc/$$/status";
		is(wakeups(wait_for_worker($node, 'postgres'), 2),
			0, 'a worker that waits does nothing but wait');
	}
	$node->safe_psql('postgres',
		"DELETE FROM clerk_invitation_outbox WHERE email_address = '$FUTURE'");
	wait_until_gone($node);
	pass('a worker whose last row is deleted leaves');
	return;
}

# The postmaster is busy, and commits come faster than it starts a worker.
sub check_slow_start
{
	my @emails = map { "slow$_\@example.com" } 1 .. 20;
	my $psql = start_psql($node, '');
	my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	my $before = starts();

	run_in_psql($psql, 'SELECT 1;');
	kill('STOP', $postmaster) or die "could not stop the postmaster: $!";
	my ($stdout) = run_in_psql($psql,
		join('', map { enqueue_sql($_) . ';' } @emails)
		  . 'SELECT state, pid IS NULL FROM clerk_worker_status();');
	kill('CONT', $postmaster) or die "could not continue the postmaster: $!";
	is($stdout, "starting|t\n", 'a worker that is not there yet is seen as starting');
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	is(starts() - $before, 1, 'commits ask for a worker once while it starts');
	wait_until_gone($node);

	# After a while it is taken for lost, and another one asked for; both come.
	@emails = map { "late$_\@example.com" } 1, 2;
	install_slots_driver($node);
	run_in_psql($psql, 'SELECT driver_age_starts(0);');
	$before = starts();
	kill('STOP', $postmaster) or die "could not stop the postmaster: $!";
	run_in_psql($psql,
		    enqueue_sql($emails[0])
		  . '; SELECT driver_age_starts(10); '
		  . enqueue_sql($emails[1]) . '; '
		  . enqueue_sql('1 day', $FUTURE) . ';');
	kill('CONT', $postmaster) or die "could not continue the postmaster: $!";
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	wait_until('two were started', sub { starts() - $before == 2 });
	my $worker = wait_for_worker($node, 'postgres');
	wait_until(
		'one of them has left',
		sub {
			return $node->safe_psql('postgres',
				"SELECT array_agg(pid) FROM pg_stat_activity WHERE backend_type LIKE 'clerk%'"
			) eq "{$worker}";
		});
	pass('of two workers that were asked for one stays');
	is(requests($clerk, @emails), '1 1', '... and each row is sent once');
	$node->safe_psql('postgres',
		"DELETE FROM clerk_invitation_outbox WHERE email_address = '$FUTURE'");
	$psql->{harness}->finish;
	wait_until_gone($node);
	return;
}

# Whether there is a worker or not when they begin.
sub check_many_commits
{
	foreach my $case ([ 'a worker that waits', 'warm' ], [ 'no worker', 'cold' ])
	{
		my ($title, $name) = @$case;
		my @emails = map { "$name$_\@example.com" } 1 .. 1000;
		my @psql = map { start_psql($node, '') } 1 .. 4;

		if ($name eq 'warm')
		{
			enqueue($node, 'postgres', '1 day', $FUTURE);
			wait_for_worker($node, 'postgres');
		}
		my $before = starts();
		my $waiting = 'clerk_invitation_outbox WHERE email_address LIKE '
		  . "'$name%' AND state <> 'sent'";

		foreach my $i (0 .. 3)
		{
			send_to_psql($psql[$i], join(';', map { enqueue_sql($_) }
				@emails[ 250 * $i .. 250 * $i + 249 ]) . ';');
		}
		output_of_psql($_) foreach @psql;
		wait_until("a thousand rows are sent with $title",
			sub { $node->safe_psql('postgres', "SELECT count(*) FROM $waiting") eq '0' });
		$_->{harness}->finish foreach @psql;
		is(starts() - $before, $name eq 'cold' ? 1 : 0,
			"1000 commits of four sessions with $title do with one worker");
		my %requests;
		$requests{ $_->{body}{email_address} // '' }++
		  foreach grep { ref $_->{body} eq 'HASH' } $clerk->journal;
		is_deeply([ map { $requests{$_} } @emails ],
			[ (1) x 1000 ], '... each is sent once');
		$node->safe_psql('postgres',
			"DELETE FROM clerk_invitation_outbox WHERE email_address = '$FUTURE'");
		wait_until_gone($node);
	}
	return;
}

sub check_failing_row
{
	my @failing = ('x-error-409-conflict--always@example.com', 'x-500--always@example.com');
	my @others = map { "beside$_\@example.com" } 1 .. 20;
	my $attempts = "SELECT min(attempts) FROM clerk_invitation_outbox WHERE email_address LIKE '%always%'";

	$node->safe_psql('postgres',
		'ALTER DATABASE postgres SET clerk_invite.max_attempts = 1000');
	enqueue($node, 'postgres', @failing);
	wait_until('both rows fail again and again',
		sub { $node->safe_psql('postgres', $attempts) > 2 });
	my $begun = time;
	foreach my $email (@others)
	{
		enqueue($node, 'postgres', $email);
	}
	wait_for_states($node, 'postgres', 'sent 1', @others);
	note sprintf('%d rows took %.1f s', scalar @others, time - $begun);
	my $then = $node->safe_psql('postgres', $attempts);
	wait_until('they fail on',
		sub { $node->safe_psql('postgres', $attempts) > $then });
	is(created($clerk, @others), join(' ', (1) x @others),
		'rows that always fail do not delay the others');
	$node->safe_psql('postgres',
		'ALTER DATABASE postgres RESET clerk_invite.max_attempts');
	stop_worker();
	wait_until(
		'the failing rows are given up',
		sub {
			enqueue($node, 'postgres', 'push' . int(time * 1000) . '@example.com');
			return $node->safe_psql('postgres',
				"SELECT count(*) FROM clerk_invitation_outbox "
				  . "WHERE email_address LIKE '%always%' AND state = 'failed'") eq '2';
		});
	wait_until_gone($node);
	return;
}

# What keeps it from sending is in the log once, and in clerk_worker_status().
sub check_last_error
{
	my $key_file = $node->data_dir . '/clerk.key';
	my $wrong = $ClerkTest::KEY =~ s/0000/1111/r;
	my $log = -s $node->logfile;
	my $asked = $clerk->journal;

	ClerkTest::write_key($key_file, $wrong);
	enqueue($node, 'postgres', map { "key$_\@example.com" } 1 .. 3);
	wait_until('Clerk is asked three times in vain',
		sub { $clerk->journal >= $asked + 3 });
	wait_for_worker($node, 'postgres');
	is( $node->safe_psql('postgres', 'SELECT last_error FROM clerk_worker_status()'),
		'Clerk does not accept the secret key',
		'clerk_worker_status() tells what keeps a worker from sending');
	wait_until('it has tried again', sub { $clerk->journal >= $asked + 9 });
	ClerkTest::write_key($key_file, $ClerkTest::KEY);
	wait_for_states($node, 'postgres', 'sent 1', map { "key$_\@example.com" } 1 .. 3);
	my $said = slurp_file($node->logfile, $log);
	is(scalar(() = $said =~ /LOG:  stopped sending invitations: Clerk does not accept/g),
		1, '... and the log tells it once');
	is(scalar(() = $said =~ /LOG:  resumed sending invitations/g),
		1, '... and when it is over');
	ok(index($said, $wrong) < 0, '... without the key');
	wait_for_worker($node, 'postgres');
	is($node->safe_psql('postgres', 'SELECT last_error FROM clerk_worker_status()'),
		'', '... and then nothing keeps the worker any more');
	wait_until_gone($node);
	return;
}

# Nobody listens where Clerk should be: all rows wait together.
sub check_outage
{
	my $nobody = ClerkTest::Fake->start;
	my $url = $nobody->url;
	my @emails = map { "outage$_\@example.com" } 1 .. 12;

	$nobody->stop;
	$node->safe_psql(
		'postgres', qq(
		ALTER DATABASE postgres SET clerk_invite.api_url = '$url';
		ALTER DATABASE postgres SET clerk_invite.retry_delay = '1h';));
	enqueue($node, 'postgres', @emails);
	wait_for_worker($node, 'postgres');
	is( $node->safe_psql(
			'postgres', q(
			SELECT last_error LIKE 'could not connect%', next_run_at - now()
				BETWEEN interval '59 min' AND interval '60 min'
			FROM clerk_worker_status())),
		't|t',
		'when Clerk cannot be reached, the whole queue waits for the retry delay');
	is( states($node, 'postgres', @emails),
		join(', ', ('queued 0') x 12),
		'... and no row has lost an attempt');
	$node->safe_psql(
		'postgres', q(
		ALTER DATABASE postgres RESET clerk_invite.api_url;
		ALTER DATABASE postgres RESET clerk_invite.retry_delay;));
	stop_worker();
	enqueue($node, 'postgres', 'outage-over@example.com');
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	is(created($clerk, @emails), join(' ', (1) x 12), '... until it can');
	wait_until_gone($node);
	return;
}

# An error of a user's trigger: it goes on, and nothing is sent twice.
sub check_error
{
	my $log = -s $node->logfile;
	my @emails = map { "error$_\@example.com" } 1 .. 3;

	$node->safe_psql(
		'postgres', q(
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN RAISE 'not now'; END $$;
		CREATE TRIGGER refuse BEFORE UPDATE ON clerk_invitation_outbox
			FOR EACH ROW WHEN (NEW.state = 'sent') EXECUTE FUNCTION refuse();));
	enqueue($node, 'postgres', @emails);
	wait_until('each has failed twice',
		sub { (() = slurp_file($node->logfile, $log) =~ /is set aside: not now/g) >= 6 });
	wait_until(
		'the worker says so',
		sub {
			return $node->safe_psql('postgres', 'SELECT last_error FROM clerk_worker_status()') eq
			  '3 set aside: not now (SQLSTATE P0001)';
		});
	pass('a worker that meets an error says so, and what it is');
	wait_until(
		'it keeps no other session from sending',
		sub {
			return $node->safe_psql('postgres',
				"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") eq '0';
		});
	$node->safe_psql('postgres', 'DROP TRIGGER refuse ON clerk_invitation_outbox');
	$node->reload;
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	is(created($clerk, @emails), '1 1 1', '... and goes on');
	wait_until_gone($node);
	return;
}

# One session sends at a time; the worker goes on where the other one was ended.
sub check_other_sender
{
	my $email = 'x-hang-after--other@example.com';
	my $psql = start_psql($node,
		"SET clerk_invite.request_timeout = '1 h'; SET clerk_invite.worker = off;");

	run_in_psql($psql, enqueue_sql($email) . ';');
	send_to_psql($psql, 'CALL clerk_send_invitations();');
	wait_until('the CALL has sent it', sub { requests($clerk, $email) eq '1' });
	enqueue($node, 'postgres', 'waits@example.com');
	wait_for_worker($node, 'postgres');
	is(states($node, 'postgres', $email, 'waits@example.com'),
		'sending 1, queued 0',
		'while another session is sending, a worker leaves all rows alone');
	$node->safe_psql('postgres',
		"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%' AND state = 'active'");
	output_of_psql($psql);
	$psql->{harness}->finish;
	wait_for_states($node, 'postgres', 'sent 1', $email, 'waits@example.com');
	is(created($clerk, $email, 'waits@example.com'),
		'1 1', '... and when that ends, it sends what is left');
	is(requests($clerk, $email), '1', '... and verifies what was under way');

	# The other way round.
	$email = 'x-hang-after--worker@example.com';
	wait_until_gone($node);
	enqueue($node, 'postgres', $email, 'beside-worker@example.com');
	wait_until('the worker has sent it', sub { requests($clerk, $email) eq '1' });
	like(
		attempt($node, 'postgres', 'CALL clerk_send_invitations();')->{stderr},
		qr/NOTICE:  00000: another session is sending invitations/,
		'while a worker is sending, a CALL does nothing, and says so');
	is(requests($clerk, $email), '1', '... and sends nothing twice');
	my $worker = worker_of($node, 'postgres');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($worker)");
	wait_for_states($node, 'postgres', 'sent 1', $email, 'beside-worker@example.com');
	is(created($clerk, $email, 'beside-worker@example.com'),
		'1 1', '... nor does the worker');

	# A CALL that is ended leaves its rows to a worker.
	$email = 'x-hang-after--left@example.com';
	wait_until_gone($node);
	$psql = start_psql($node,
		"SET clerk_invite.request_timeout = '1 h'; SET clerk_invite.worker = off;");
	run_in_psql($psql, enqueue_sql($email) . '; RESET clerk_invite.worker;');
	send_to_psql($psql, 'CALL clerk_send_invitations();');
	wait_until('the CALL has sent it', sub { requests($clerk, $email) eq '1' });
	$node->safe_psql('postgres',
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%' AND state = 'active'");
	wait_for_states($node, 'postgres', 'sent 1', $email);
	is(requests($clerk, $email), '1',
		'what a CALL leaves behind a worker verifies, without another commit');
	$psql->{harness}->finish;
	wait_until_gone($node);
	return;
}

# A worker and four sessions that call at the same time.
sub check_many_senders
{
	my @emails = map { "crowd$_\@example.com" } 1 .. 40;
	my @psql = map { start_psql($node, 'SET client_min_messages = error;') } 1 .. 4;

	foreach my $i (0 .. 3)
	{
		send_to_psql($psql[$i],
			join('', map { enqueue_sql($_) . '; CALL clerk_send_invitations();' }
				@emails[ 10 * $i .. 10 * $i + 9 ]));
	}
	output_of_psql($_) foreach @psql;
	$_->{harness}->finish foreach @psql;
	wait_for_states($node, 'postgres', 'sent 1', @emails);
	is(requests($clerk, @emails), join(' ', (1) x 40),
		'what a worker and four CALLs send at once is sent once');
	wait_until_gone($node);
	return;
}

sub check_locked_row
{
	my $email = 'locked@example.com';
	my $psql = start_psql($node, 'SET clerk_invite.worker = off;');

	run_in_psql($psql,
		enqueue_sql($email)
		  . "; BEGIN; SELECT id FROM clerk_invitation_outbox WHERE email_address = '$email' FOR UPDATE;");
	enqueue($node, 'postgres', 'unlocked@example.com');
	wait_for_states($node, 'postgres', 'sent 1', 'unlocked@example.com');
	wait_for_worker($node, 'postgres');
	is(states($node, 'postgres', $email), 'queued 0',
		'a row that is locked waits, the others do not');
	run_in_psql($psql, 'ROLLBACK;');
	wait_for_states($node, 'postgres', 'sent 1', $email);
	pass('... until it is not locked any more, without another commit');

	# Its answer comes while it is locked, and nothing else is open.
	$email = 'x-slow-500--locked@example.com';
	my $log = -s $node->logfile;
	enqueue($node, 'postgres', $email);
	wait_until('the request is under way',
		sub { states($node, 'postgres', $email) eq 'sending 1' });
	run_in_psql($psql,
		"BEGIN; SELECT id FROM clerk_invitation_outbox WHERE email_address = '$email' FOR UPDATE;");
	wait_until('the answer cannot be recorded',
		sub { slurp_file($node->logfile, $log) =~ /of the outbox is locked, or was changed/ });
	wait_for_worker($node, 'postgres');
	is(states($node, 'postgres', $email), 'sending 1',
		'a row that is locked when its answer comes stays as it is');
	run_in_psql($psql, 'ROLLBACK;');
	wait_for_states($node, 'postgres', 'sent 1', $email);
	is(requests($clerk, $email), '1', '... and the worker stays, and verifies it');
	$psql->{harness}->finish;
	wait_until_gone($node);
	return;
}

# Its rows appear after it has been prepared.
sub check_prepared_transaction
{
	my $before = starts();

	$node->safe_psql('postgres',
		    'BEGIN; '
		  . enqueue_sql('prepared@example.com')
		  . "; PREPARE TRANSACTION 'two'; "
		  . "COMMIT PREPARED 'two'; SELECT 1");
	wait_for_states($node, 'postgres', 'sent 1', 'prepared@example.com');
	is(starts() - $before, 1, 'a prepared transaction starts a worker, which sends its rows');
	wait_until_gone($node);
	$node->safe_psql(
		'postgres', q(
		SET client_min_messages = error;
		SET clerk_invite.worker = off;
		BEGIN; ) . enqueue_sql('prepared-for-call@example.com') . q(;
		PREPARE TRANSACTION 'two';
		COMMIT PREPARED 'two';
		CALL clerk_send_invitations();));
	is(states($node, 'postgres', 'prepared-for-call@example.com'),
		'sent 1', '... or by a CALL');
	return;
}

sub check_setting
{
	my @emails = map { "off$_\@example.com" } 1 .. 3;

	enqueue($node, 'postgres', '1 day', $FUTURE);
	wait_for_worker($node, 'postgres');
	$node->safe_psql('postgres', 'ALTER SYSTEM SET clerk_invite.worker = off');
	$node->reload;
	wait_until_gone($node);
	pass('a worker leaves when clerk_invite.worker is turned off');
	enqueue($node, 'postgres', $emails[0]);
	is(join(' ', workers($node)), '', '... and a commit starts none');
	$node->safe_psql('postgres', 'SET client_min_messages = error; CALL clerk_send_invitations()');
	is(states($node, 'postgres', $emails[0]), 'sent 1', '... but CALL sends');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET clerk_invite.worker');
	$node->reload;
	$node->safe_psql('postgres', 'ALTER DATABASE postgres SET clerk_invite.worker = off');
	enqueue($node, 'postgres', $emails[1]);
	is(join(' ', workers($node)), '', 'it can be off for a database');
	my $before = starts();
	$node->safe_psql('postgres',
		'SET clerk_invite.worker = on; ' . enqueue_sql($emails[2]));
	wait_until('a worker is started', sub { starts() > $before });
	wait_until_gone($node);
	is(states($node, 'postgres', @emails[ 1, 2 ]),
		'queued 0, queued 0',
		"... and a worker obeys the database's setting, not that of who starts it");
	$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET clerk_invite.worker');
	my $library = ClerkTest::library_name($node);
	is( attempt($node, 'postgres',
			"LOAD '$library'; CREATE ROLE app; SET ROLE app; SET clerk_invite.worker = off;")->{sqlstate},
		'42501',
		'an ordinary role cannot change it');
	$node->safe_psql('postgres',
		"DELETE FROM clerk_invitation_outbox WHERE email_address = '$FUTURE'");
	enqueue($node, 'postgres', 'on@example.com');
	wait_for_states($node, 'postgres', 'sent 1', @emails, 'on@example.com');
	wait_until_gone($node);
	return;
}

sub check_privileges
{
	is( attempt($node, 'postgres', 'SET ROLE app; SELECT * FROM clerk_worker_status();')->{sqlstate},
		'42501',
		'an ordinary role cannot see the workers');
	is( attempt($node, 'postgres',
			"CREATE TABLE t (); CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW "
			  . 'EXECUTE FUNCTION clerk_invitation_outbox_wake_worker(); INSERT INTO t DEFAULT VALUES;')->{sqlstate},
		'39P01',
		"the outbox's trigger function refuses to be another trigger");
	return;
}

# Ends the worker, as a new one has the database's new settings.
sub stop_worker
{
	$node->safe_psql('postgres',
		'SELECT pg_terminate_backend(pid) FROM clerk_worker_status()');
	wait_until_gone($node);
	return;
}

# How many workers have been started, ever.
sub starts
{
	return scalar(() = slurp_file($node->logfile) =~
		  /starting background worker process "clerk_invite worker/g);
}
