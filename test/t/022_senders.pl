# Senders, and whoever writes to the outbox at the same time, stay out of each
# other's way: one session sends at a time, what is not committed is not sent,
# nobody waits for anybody, and a row that is changed in flight is left alone.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = clerk_cluster(
	'main', $clerk,
	conf => q(
clerk_invite.bulk_requests_per_hour = 0
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
));

check_one_sender();
check_senders_of_two_databases();
check_rollback();
check_canceled();
check_locked();
check_concurrent_inserts();
check_isolation_levels();
check_changed_in_flight();
check_triggers_of_users();

$node->stop;
done_testing();

sub check_one_sender
{
	my @emails = ('x-hang-after--one@example.com', 'two@example.com');
	my $first = start_psql($node, '');
	my $second = start_psql($node, '', '-v', 'VERBOSITY=verbose');

	enqueue($emails[0]);
	run_in_psql($first, "SET clerk_invite.request_timeout = '1 h';");
	send_to_psql($first, 'CALL clerk_send_invitations();');
	wait_until_sent($emails[0]);
	enqueue($emails[1]);
	foreach my $time ('once', 'again')
	{
		my (undef, $stderr) =
		  run_in_psql($second, "SET statement_timeout = '10 s'; CALL clerk_send_invitations();");
		like(
			$stderr,
			qr/NOTICE:  00000: another session is sending invitations/,
			"a second sender says that there is one ($time)");
		unlike($stderr, qr/ERROR|WARNING|\d sent/,
			"... and does not wait for it ($time)");
	}
	is(states($emails[0]), 'sending 1', '... and leaves its row alone');
	is(states($emails[1]), 'queued 0', '... and sends nothing itself');
	is(requests(@emails), '1 0', '... by what Clerk was asked');

	# The lock goes with the first sender, whatever its end.
	my $pid = $node->safe_psql('postgres',
		"SELECT pid FROM pg_locks WHERE locktype = 'advisory'");
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	output_of_psql($first);
	my ($stdout) = run_in_psql($first,
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory';");
	is($stdout, "0\n", 'a sender that was canceled does not keep the lock');
	run_in_psql($second, 'CALL clerk_send_invitations();');
	send_until_settled($node);
	is(states(@emails), 'sent 1, sent 1', '... so that the other one can send');
	is(created(@emails), '1 1', '... each row once');
	$first->{harness}->finish;
	$second->{harness}->finish;

	# Many senders at once.
	my @crowd = map { "crowd$_\@example.com" } 1 .. 40;
	enqueue(@crowd);
	my @senders = map { start_psql($node, '') } 1 .. 4;
	send_to_psql($_, 'CALL clerk_send_invitations();' x 5) foreach @senders;
	output_of_psql($_) foreach @senders;
	$_->{harness}->finish foreach @senders;
	send_until_settled($node);
	is(states(@crowd), join(', ', ('sent 1') x 40),
		'what four sessions call for at once is sent');
	is(requests(@crowd), join(' ', (1) x 40), '... each row once');
	return;
}

# Each database has a sender of its own.
sub check_senders_of_two_databases
{
	my $email = 'x-hang-after--here@example.com';
	my $first = start_psql($node, '');

	$node->safe_psql('postgres', 'CREATE DATABASE other');
	$node->safe_psql(
		'other', q(
		CREATE EXTENSION clerk_invite;
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
			VALUES ('org_test', 'there@example.com', 'org:member')));
	enqueue($email);
	run_in_psql($first, "SET clerk_invite.request_timeout = '1 h';");
	send_to_psql($first, 'CALL clerk_send_invitations();');
	wait_until_sent($email);
	$node->safe_psql(
		'other', q(
		SET client_min_messages = error;
		CALL clerk_send_invitations()));
	is(requests('there@example.com'),
		'1', "a sender does not hold up another database's");
	stop_senders();
	output_of_psql($first);
	$first->{harness}->finish;
	send_until_settled($node);
	is(created($email), '1', '... and each sends what is its own');
	return;
}

sub check_rollback
{
	my @emails = map { "$_\@example.com" }
	  qw(rolled-back savepoint kept exception caught);

	$node->safe_psql(
		'postgres', qq(
		BEGIN;
		@{[ enqueue_sql($emails[0]) ]};
		ROLLBACK;
		BEGIN;
		SAVEPOINT a;
		@{[ enqueue_sql($emails[1]) ]};
		ROLLBACK TO a;
		@{[ enqueue_sql($emails[2]) ]};
		COMMIT;
		DO \$\$
		BEGIN
			BEGIN
				PERFORM clerk_enqueue_organization_invitation(
					'org_test', NULL, '$emails[3]', 'org:member');
				RAISE division_by_zero;
			EXCEPTION WHEN division_by_zero THEN
				PERFORM clerk_enqueue_organization_invitation(
					'org_test', NULL, '$emails[4]', 'org:member');
			END;
		END \$\$;));
	send_until_settled($node);
	is(requests(@emails), '0 0 1 0 1',
		'what is rolled back is not sent, to a savepoint neither');
	return;
}

sub check_canceled
{
	my $email = 'canceled@example.com';
	my $psql = start_psql($node, '');

	enqueue($email);
	run_in_psql(
		$psql, qq(
		BEGIN;
		SELECT clerk_cancel_invitation(id) FROM clerk_invitation_outbox
			WHERE email_address = '$email';));
	send_invitations();
	is(requests($email), '0', 'a row that is being canceled is not sent');
	run_in_psql($psql, 'COMMIT;');
	send_invitations();
	is(requests($email), '0', '... nor after that');
	is(states($email), 'canceled 0', '... but is canceled');

	$email = 'changed-my-mind@example.com';
	enqueue($email);
	run_in_psql(
		$psql, qq(
		BEGIN;
		SELECT clerk_cancel_invitation(id) FROM clerk_invitation_outbox
			WHERE email_address = '$email';
		ROLLBACK;));
	send_invitations();
	is(states($email), 'sent 1', 'a cancellation that is rolled back is none');
	$psql->{harness}->finish;
	return;
}

sub check_locked
{
	my @emails = map { "$_\@example.com" } qw(before-locked locked after-locked);
	my $psql = start_psql($node, '');

	enqueue(@emails);
	run_in_psql(
		$psql, qq(
		BEGIN;
		SELECT id FROM clerk_invitation_outbox
			WHERE email_address = '$emails[1]' FOR UPDATE;));
	send_invitations();
	is(states(@emails), 'sent 1, queued 0, sent 1',
		'a row that somebody has locked is passed over');
	run_in_psql($psql, 'COMMIT;');
	send_invitations();
	is(states(@emails), 'sent 1, sent 1, sent 1', '... and sent later');
	is(created(@emails), '1 1 1', '... and the others not again');
	$psql->{harness}->finish;
	return;
}

sub check_concurrent_inserts
{
	my @emails = map { "$_\@example.com" } qw(open committed late same same);
	my @psql = map { start_psql($node, "SET lock_timeout = '1 s';") } 1 .. 2;

	run_in_psql($psql[0], 'BEGIN; ' . enqueue_sql($emails[0]) . ';');
	my (undef, $stderr) = run_in_psql($psql[1],
		enqueue_sql($emails[1]) . '; BEGIN; ' . enqueue_sql($emails[2]) . ';');
	is($stderr, '', 'two transactions that insert do not wait for each other');
	send_invitations();
	is(requests(@emails[ 0 .. 2 ]),
		'0 1 0', 'sending waits for neither, and sends what is committed');
	run_in_psql($psql[0], 'COMMIT;');
	send_invitations();
	is(requests(@emails[ 0 .. 2 ]),
		'1 1 0', '... and what is committed since then');

	# Nor while a sender waits for Clerk.
	enqueue('x-hang-after--insert@example.com');
	my $sender = start_psql($node, "SET clerk_invite.request_timeout = '1 h';");
	send_to_psql($sender, 'CALL clerk_send_invitations();');
	wait_until_sent('x-hang-after--insert@example.com');
	(undef, $stderr) = run_in_psql($psql[0],
		'BEGIN; ' . enqueue_sql($emails[3]) . ';');
	is($stderr, '', 'an insert does not wait for a sender');
	(undef, $stderr) = run_in_psql($psql[1],
		enqueue_sql($emails[4]) . '; COMMIT;');
	is($stderr, '', '... nor for another one with the same address');
	run_in_psql($psql[0], 'COMMIT;');
	stop_senders();
	output_of_psql($sender);
	$_->{harness}->finish foreach @psql, $sender;
	send_until_settled($node);
	is(created(@emails[ 0 .. 3 ], 'x-hang-after--insert@example.com'),
		'1 1 1 1 1', 'in the end each address is invited once');
	return;
}

# A row that is changed between a statement's snapshot and its lock: whatever
# the session's default, that is no serialization failure.
sub check_isolation_levels
{
	$node->safe_psql(
		'postgres', q(
		CREATE FUNCTION stop_claim() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM pg_catalog.pg_advisory_xact_lock_shared(4711);
			RETURN NEW;
		END $$;
		CREATE TRIGGER stop_claim BEFORE UPDATE ON clerk_invitation_outbox
			FOR EACH ROW WHEN (NEW.state = 'sending' AND NEW.email_address LIKE 'stop-%')
			EXECUTE FUNCTION stop_claim();));
	foreach my $level ('read committed', 'repeatable read', 'serializable')
	{
		my $tag = ($level =~ s/ /-/r) . '@example.com';
		my @emails = map { "$_-$tag" } qw(stop beside changed);
		my $holder = start_psql($node, 'SELECT pg_advisory_lock(4711);');
		my $sender = start_psql($node,
			"SET default_transaction_isolation = '$level';",
			'-v', 'VERBOSITY=verbose');

		enqueue(@emails);
		backend_of($_) foreach $holder, $sender;
		send_to_psql($sender, 'CALL clerk_send_invitations();');
		wait_until(
			'the claim has its snapshot',
			sub {
				return $node->safe_psql('postgres',
					"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
				) eq '1';
			});
		$node->safe_psql(
			'postgres', qq(
			SET lock_timeout = '5 s';
			UPDATE clerk_invitation_outbox SET role = 'org:admin'
				WHERE email_address = '$emails[2]';));
		run_in_psql($holder, 'SELECT pg_advisory_unlock(4711);');
		my (undef, $stderr) = output_of_psql($sender);
		unlike($stderr, qr/ERROR/,
			"with $level as the default a row that is changed during the claim is no error");
		is(states(@emails), 'sent 1, sent 1, sent 1', '... and is sent');
		is( ($clerk->requests_for($emails[2]))[0]{body}{role},
			'org:admin', '... as what it has become');
		(undef, $stderr) = run_in_psql(
			$sender, q(
			DO $$
			BEGIN
				CALL clerk_send_invitations();
				RAISE NOTICE 'now at %', current_setting('transaction_isolation');
			END $$;));
		like($stderr, qr/now at $level/, '... and what comes after a CALL has that level');
		$_->{harness}->finish foreach $holder, $sender;
	}
	$node->safe_psql('postgres', 'DROP FUNCTION stop_claim() CASCADE');
	return;
}

# The owner can do without the guard; a sender leaves such a row alone.
sub check_changed_in_flight
{
	my $table = 'clerk_invitation_outbox';
	my $number = 0;

	foreach my $case (
		[ 'deleted', "DELETE FROM $table", '' ],
		[ 'canceled', "UPDATE $table SET state = 'canceled'", 'canceled 1' ],
		[ 'queued again', "UPDATE $table SET state = 'queued', send_after = 'infinity'", 'queued 1' ],
		[ 'counted up', "UPDATE $table SET attempts = 7, state = 'failed'", 'failed 7' ])
	{
		my ($title, $sql, $states) = @$case;
		my @emails = map { "x-slow-4000--flight$number-$_\@example.com" } 1 .. 2;
		my $sender = start_psql($node, '');
		my $log = -s $node->logfile;

		$number++;
		enqueue(@emails);
		send_to_psql($sender, 'CALL clerk_send_invitations();');
		wait_until_sent($_) foreach @emails;
		foreach my $guarded ("$sql WHERE email_address = '$emails[0]'",
			"UPDATE $table SET role = role WHERE email_address = '$emails[0]'")
		{
			is(attempt($node, 'postgres', $guarded)->{sqlstate},
				'55000', "in flight the guard refuses: $guarded");
		}
		$node->safe_psql(
			'postgres', qq(
			BEGIN;
			ALTER TABLE $table DISABLE TRIGGER guard;
			$sql WHERE email_address = '$emails[0]';
			ALTER TABLE $table ENABLE TRIGGER guard;
			COMMIT;));
		is(states($emails[1]), 'sending 1', 'the row was changed in flight');
		output_of_psql($sender);
		is(states($emails[0]), $states,
			"a row that is $title in flight is left as it is");
		is(states($emails[1]), 'sent 1', '... and the one beside it is sent');
		like(
			slurp_file($node->logfile, $log),
			qr/LOG:  invitation \d+ of the outbox is locked, or was changed while it was being sent/,
			'... and the log says so');
		$node->safe_psql('postgres',
			"DELETE FROM $table WHERE email_address = '$emails[0]'");
		my ($stdout) = run_in_psql($sender, 'CALL clerk_send_invitations(); SELECT 1;');
		is($stdout, "1\n", '... and the session goes on');
		$sender->{harness}->finish;
	}
	return;
}

# A user's trigger that acts on what a sender changes may do what may be done by
# hand, and nothing else, even while the sender is at work.
sub check_triggers_of_users
{
	my $table = 'public.clerk_invitation_outbox';
	my $lost = 'x-drop-after--lost@example.com';

	# It may not undo what the sender does, nor touch what is under way.
	enqueue($lost);
	$clerk->control(
		'misbehave',
		{
			operation => 'ListOrganizationInvitations',
			behaviour => '503',
			times => 40
		});
	send_invitations();
	is(states($lost), 'verifying 1', 'the outcome of a row is unknown');
	foreach my $case (
		[ 'sending', 'cancels a row that is claimed', "UPDATE $table SET state = 'canceled' WHERE id = NEW.id", 'queued 0', '0' ],
		[ 'sending', 'deletes it', "DELETE FROM $table WHERE id = NEW.id", 'queued 0', '0' ],
		[ 'sending', 'says that it is sent', "UPDATE $table SET state = 'sent' WHERE id = NEW.id", 'queued 0', '0' ],
		[ 'sent', 'queues it when it is sent', "UPDATE $table SET state = 'queued' WHERE id = NEW.id", 'verifying 1', '1' ],
		[ 'sent', 'deletes another one that is verifying', "DELETE FROM $table WHERE email_address = '$lost'", 'verifying 1', '1' ])
	{
		my ($state, $title, $sql, $left, $requests) = @$case;
		my $email = ($title =~ s/\W+/-/gr) . '@example.com';
		my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');

		my $log = -s $node->logfile;

		create_trigger($state, $sql);
		enqueue($email);
		my (undef, $stderr) =
		  run_in_psql($psql, 'CALL clerk_send_invitations();');
		unlike($stderr, qr/ERROR/, "a trigger that $title stops no sender");

		# In the log, since a lookup may have settled the row again meanwhile.
		like(
			slurp_file($node->logfile, $log),
			qr/is set aside: cannot (?:change|delete) an invitation.*SQLSTATE 55000/,
			'... but is refused');
		is(states($email), $left, '... and the row is no further');
		is(requests($email), $requests, '... by what Clerk was asked, too');
		drop_trigger();
		(undef, $stderr) = run_in_psql($psql,
			"UPDATE $table SET state = 'sent' WHERE email_address = '$email';");
		like($stderr, qr/ERROR:  55000:/,
			"... and after that the guard is on its guard");
		$psql->{harness}->finish;
	}
	send_until_settled($node);
	is($node->safe_psql('postgres', "SELECT count(*) FROM $table WHERE state <> 'sent'"
			  . " AND email_address ~ '^(cancels|deletes|says|queues|x-drop-after--lost)'"),
		'0', 'without the triggers everything is sent');
	is(created($lost), '1', '... once');

	# It may keep records of its own, and try again what has failed.
	$node->safe_psql('postgres', 'CREATE TABLE archive (email_address text, invitation_id text)');
	create_trigger('sent',
		"WITH gone AS (DELETE FROM $table WHERE id = NEW.id RETURNING email_address, invitation_id) "
		  . 'INSERT INTO public.archive SELECT * FROM gone');
	enqueue('archived@example.com');
	send_invitations();
	is( $node->safe_psql('postgres', 'SELECT * FROM archive'),
		'archived@example.com|' . ($clerk->invitations_for('archived@example.com'))[0]{id},
		'a trigger may move what is sent elsewhere');
	is(states('archived@example.com'), '', '... out of the outbox');
	drop_trigger();
	create_trigger('failed',
		"UPDATE $table SET state = 'queued', role = 'org:member' WHERE id = NEW.id");
	$node->safe_psql('postgres', enqueue_sql('again@example.com') =~ s/org:member/org:missing/r);
	send_until_settled($node);
	is(states('again@example.com'), 'sent 1', '... and queue again what has failed');
	drop_trigger();
	return;
}

# Runs SQL after each UPDATE that brings a row into this state.
sub create_trigger
{
	my ($state, $sql) = @_;

	$node->safe_psql(
		'postgres', qq(
		CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS
			\$\$ BEGIN $sql; RETURN NULL; END \$\$;
		CREATE TRIGGER act AFTER UPDATE ON clerk_invitation_outbox FOR EACH ROW
			WHEN (OLD.state <> NEW.state AND NEW.state = '$state')
			EXECUTE FUNCTION act();));
	return;
}

sub drop_trigger
{
	$node->safe_psql('postgres', 'DROP FUNCTION act() CASCADE');
	return;
}

# SQL that enqueues an address.
sub enqueue_sql
{
	my ($email) = @_;

	return 'INSERT INTO clerk_invitation_outbox '
	  . '(organization_id, email_address, role) '
	  . "VALUES ('org_test', '$email', 'org:member')";
}

sub enqueue
{
	$node->safe_psql('postgres', join(';', map { enqueue_sql($_) } @_));
	return;
}

sub send_invitations
{
	$node->safe_psql('postgres',
		"SET client_min_messages = error; SET statement_timeout = '20 s';"
		  . ' CALL clerk_send_invitations()');
	return;
}

# Ends the CALLs that wait for Clerk.
sub stop_senders
{
	$node->safe_psql('postgres',
		'SELECT pg_cancel_backend(pid) FROM pg_stat_activity '
		  . "WHERE query LIKE 'CALL clerk_send_invitations%' AND state = 'active'"
	);
	return;
}

sub wait_until_sent
{
	my ($email) = @_;

	return wait_until("$email is sent", sub { requests($email) eq '1' });
}

# State and attempts of the rows for these addresses, in the order of ids.
sub states
{
	my $emails = join(', ', map { "'$_'" } @_);

	return $node->safe_psql('postgres',
		"SELECT string_agg(state || ' ' || attempts, ', ' ORDER BY id) "
		  . "FROM clerk_invitation_outbox WHERE email_address IN ($emails)");
}

# How often Clerk was asked to invite each of these addresses.
sub requests
{
	return join(' ', map { scalar(() = $clerk->requests_for($_)) } @_);
}

# How many invitations each of these addresses has ever had.
sub created
{
	return join(' ', map { scalar(() = $clerk->invitations_for($_)) } @_);
}
