# Whoever listens on clerk_invite.notify_channel is told when an invitation is
# settled, and nothing but its id and its state.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;
use WorkerTest;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = clerk_cluster('main', $clerk, conf => q(
clerk_invite.bulk_requests_per_hour = 0
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '1h'
max_prepared_transactions = 2
));
my $listener = start_psql($node, 'LISTEN invitations;');
my $ends = 0;

# Somebody else's invitation; Clerk tells its time in whole seconds, so it must
# be older than ours by more than that.
$node->safe_psql('postgres', invite('pending@example.com'));
my $invited_before = time;
backend_of($listener);

check_off();
reconfigure($node, "clerk_invite.notify_channel = 'invitations'");
check_call();
check_retry();
check_by_hand();
check_rollback();
check_prepared_transaction();
check_worker();

$listener->{harness}->finish;
$node->stop;
done_testing();

sub check_off
{
	my ($id) = enqueued('off1@example.com', 'off2@example.com');

	$node->safe_psql('postgres', "SELECT clerk_cancel_invitation($id)");
	$node->safe_psql('postgres', 'CALL clerk_send_invitations()');
	is(states($node, 'postgres', 'off1@example.com', 'off2@example.com'),
		'canceled 0, sent 1', 'invitations are settled');
	is_deeply([ notifications() ], [],
		'nobody is notified unless a channel is set');
	return;
}

# Each final state, and none of the others.
sub check_call
{
	my %state_of = (
		'sent@example.com' => 'sent',
		'pending@example.com' => 'skipped',
		'x-error-422-form_param_value_invalid--1@example.com' => 'failed',
		'x-drop-after--1@example.com' => 'sent',
		'x-error-409-role_migration_in_progress--1@example.com' => 'queued');
	my @emails = sort keys %state_of;

	wait_until('the pending invitation is old enough',
		sub { time > $invited_before + 3 });
	my @ids = enqueued(@emails);

	wait_until(
		'all but one are settled',
		sub {
			$node->safe_psql('postgres', 'CALL clerk_send_invitations()');
			return $node->safe_psql('postgres',
				'SELECT count(*) FROM clerk_invitation_outbox '
				  . "WHERE state IN ('queued', 'sending', 'verifying')") eq '1';
		});
	my @wanted;
	foreach my $i (0 .. $#ids)
	{
		my $state = $state_of{ $emails[$i] };

		push @wanted, "$ids[$i] $state" unless $state eq 'queued';
	}
	is_deeply([ sort(notifications()) ],
		[ sort @wanted ],
		'a CALL notifies of what it has settled, once, and of nothing else');
	return;
}

sub check_retry
{
	my $id = id_of('x-error-422-form_param_value_invalid--1@example.com');

	$node->safe_psql('postgres', "SELECT clerk_retry_invitation($id)");
	is_deeply([ notifications() ], [], 'to queue an invitation again is no end');
	$node->safe_psql('postgres', 'CALL clerk_send_invitations()');
	is_deeply([ notifications() ],
		["$id failed"], '... but its next one is told as well');
	return;
}

sub check_by_hand
{
	my $postponed = id_of('x-error-409-role_migration_in_progress--1@example.com');
	my ($queued) = enqueued('hand@example.com');

	$node->safe_psql('postgres', "SELECT clerk_cancel_invitation($postponed)");
	is_deeply([ notifications() ],
		["$postponed canceled"],
		'clerk_cancel_invitation() notifies');
	$node->safe_psql('postgres',
		"UPDATE clerk_invitation_outbox SET state = 'canceled' WHERE id = $queued");
	is_deeply([ notifications() ],
		["$queued canceled"],
		'an invitation that is canceled by hand is told');
	$node->safe_psql('postgres',
		"UPDATE clerk_invitation_outbox SET error_message = 'x' WHERE id = $queued");
	is_deeply([ notifications() ], [],
		'another change of a settled invitation is not');
	return;
}

sub check_rollback
{
	my ($id) = enqueued('rollback@example.com');

	$node->safe_psql('postgres',
		"BEGIN; SELECT clerk_cancel_invitation($id); ROLLBACK;");
	is_deeply([ notifications() ], [],
		'a cancellation that is rolled back is not told');
	$node->safe_psql('postgres', "SELECT clerk_cancel_invitation($id)");
	is_deeply([ notifications() ], ["$id canceled"], 'one that is not is');
	return;
}

# PostgreSQL prepares no transaction with a NOTIFY.
sub check_prepared_transaction
{
	my ($id) = enqueued('prepared@example.com');
	my $cancel = q(
		BEGIN;
		SELECT clerk_cancel_invitation(%d);
		PREPARE TRANSACTION 'cancel';
		COMMIT PREPARED 'cancel';);
	my $result = attempt($node, 'postgres', sprintf($cancel, $id));

	like($result->{stderr}, qr/ERROR:  0A000: cannot PREPARE/,
		'a cancellation that is announced cannot be prepared');
	is(states($node, 'postgres', 'prepared@example.com'),
		'queued 0', '... and does not happen');
	$node->safe_psql('postgres', q(
		CREATE ROLE preparing LOGIN;
		GRANT EXECUTE ON FUNCTION clerk_cancel_invitation TO preparing;
		ALTER ROLE preparing SET clerk_invite.notify_channel = '';));
	is( attempt(
			$node, 'postgres',
			sprintf($cancel, $id),
			extra_params => [ '-U', 'preparing' ])->{stderr},
		'',
		'that of a role without a channel can');
	is(states($node, 'postgres', 'prepared@example.com'),
		'canceled 0', '... and happens');
	is_deeply([ notifications() ], [], '... without an announcement');
	$node->safe_psql('postgres',
		'BEGIN; '
		  . enqueue_sql('prepared-too@example.com')
		  . "; PREPARE TRANSACTION 'insert'; COMMIT PREPARED 'insert'");
	is(states($node, 'postgres', 'prepared-too@example.com'),
		'queued 0', 'to invite announces nothing, and can be prepared');
	return;
}

sub check_worker
{
	reconfigure($node, 'clerk_invite.worker = on');
	my ($id) = enqueued('worker@example.com');
	my $said = '';

	wait_until(
		'the worker notifies',
		sub {
			$said .= said();
			return $said =~ /with payload "/;
		});
	like($said, qr/"$id sent"/, 'the worker notifies of what it has settled');
	my ($pid) = $said =~ /from server process with PID (\d+)/;
	like(
		$node->safe_psql('postgres',
			"SELECT coalesce(max(backend_type), 'gone') FROM pg_stat_activity WHERE pid = $pid"),
		qr/^(clerk_invite worker|gone)$/,
		'... by itself');
	return;
}

# Puts these addresses into the outbox; returns their ids.
sub enqueued
{
	return split(/\n/,
		$node->safe_psql('postgres', enqueue_sql(@_) . ' RETURNING id'));
}

sub id_of
{
	my ($email) = @_;

	return $node->safe_psql('postgres',
		"SELECT id FROM clerk_invitation_outbox WHERE email_address = '$email'");
}

# What psql says of notifications since the last time.
sub said
{
	my ($stdout) = run_in_psql($listener, 'SELECT;');

	return $stdout;
}

# The payloads of everything that was notified before this was called: they
# arrive in the order of their commits, and the last one is our own.
sub notifications
{
	my $end = 'end ' . ++$ends;
	my $said = '';

	$node->safe_psql('postgres', "NOTIFY invitations, '$end'");
	wait_until("\"$end\" has arrived",
		sub { $said .= said(); return index($said, "\"$end\"") >= 0; });
	my @payloads = $said =~ /with payload "([^"]*)"/g;
	return grep { $_ ne $end } @payloads;
}
