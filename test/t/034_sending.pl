# When, where and for whom CALL clerk_send_invitations() sends, what is allowed
# by hand meanwhile, and what a sender holds while it waits.
use strict;
use warnings;

use ClerkTest;
use DeliveryTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = delivery_cluster('main', $clerk);

check_send_after();
check_max_invitations();
check_growth();
check_cancel_and_retry();
check_guard();
check_where_it_cannot_run();
check_privileges();
check_search_path();
check_nothing_is_held();
check_other_schema();

$node->stop;
done_testing();

sub check_send_after
{
	my $id = $node->safe_psql(
		'postgres', q(
		INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, send_after)
		VALUES ('org_test', 'later@example.com', 'org:member',
			clock_timestamp() + interval '1 s')
		RETURNING id));
	my $never = enqueue(
		email_address => 'infinity@example.com',
		send_after => 'infinity');

	send_invitations();
	is(value($id, "state = 'queued' OR clock_timestamp() > send_after"),
		't', 'a row is not sent before its time');
	wait_until('the row is sent',
		sub { send_invitations(); row($id)->{state} eq 'sent' });
	is(value($id, 'claimed_at >= send_after'), 't', '... but at its time');
	is(state_of($never), 'queued 0', 'a row for the end of time is not sent');
	$node->safe_psql('postgres', "SELECT clerk_cancel_invitation($never)");
	return;
}

# A session keeps the plans of its statements.  Those that it made when the
# table was small must not read all of it when it has grown.
sub check_growth
{
	my $rows = 20000;
	my $insert = q(INSERT INTO clerk_invitation_outbox
		(organization_id, email_address, role, send_after));
	my $read = sub {
		return $node->safe_psql('growth', q(
			SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
			WHERE relname = 'clerk_invitation_outbox'));
	};

	$node->safe_psql('postgres', 'CREATE DATABASE growth');
	$node->safe_psql('growth', qq(
		CREATE EXTENSION clerk_invite;
		$insert VALUES ('org_grows', 'first\@example.com', 'org:member', now());
		ANALYZE clerk_invitation_outbox;
		CALL clerk_send_invitations();
		$insert SELECT 'org_grows', 'later' || n || '\@example.com', 'org:member', '2099-01-01'
			FROM generate_series(1, $rows) AS n;
		$insert VALUES ('org_grows', 'last\@example.com', 'org:member', now());
		CALL clerk_send_invitations();));
	is($node->safe_psql('growth',
			"SELECT count(*) FROM clerk_invitation_outbox WHERE state = 'sent'"),
		2, 'a session sends what is due, though its table has grown');
	wait_until('the counts of what it has read are there', sub { ($read->() || 0) > 0 });
	cmp_ok($read->(), '<', $rows / 10, '... and reads hardly anything else');
	$node->safe_psql('postgres', 'DROP DATABASE growth');
	return;
}

sub check_max_invitations
{
	my @ids = map { enqueue(email_address => "most$_\@example.com") } 1 .. 5;
	my $sent = sub {
		return scalar grep { row($_)->{state} eq 'sent' } @ids;
	};

	is(attempt($node, 'postgres', 'CALL clerk_send_invitations(-1)')->{sqlstate},
		'22023', 'a negative number of invitations is refused');
	send_invitations('', 0);
	is($sent->(), 0, 'no invitation at most sends none');
	send_invitations('', 3);
	is($sent->(), 3, 'three at most sends three of five');
	is_deeply(
		[ map { row($_)->{state} } @ids[ 0 .. 2 ] ],
		[ ('sent') x 3 ],
		'... the oldest ones');
	send_invitations('', 'NULL');
	is($sent->(), 5, 'NULL sends them all');
	return;
}

sub check_cancel_and_retry
{
	my $canceled = enqueue(email_address => 'canceled@example.com');
	my $function = sub {
		my ($name, $id) = @_;
		return $node->safe_psql('postgres', "SELECT clerk_${name}_invitation($id)");
	};

	is($function->('cancel', $canceled), 't', 'a queued row can be canceled');
	is($function->('cancel', $canceled), 'f', '... once');
	is($function->('retry', $canceled), 'f', '... and not be retried');
	is($function->('cancel', '-1'), 'f', 'a row that is not there cannot');
	send_invitations();
	is(state_of($canceled), 'canceled 0', 'a canceled row stays canceled');
	is(value($canceled, 'settled_at IS NOT NULL'), 't', '... and is settled');
	is(scalar $clerk->requests_for('canceled@example.com'),
		0, '... and is not sent');

	my $retried = enqueue(
		email_address => 'retried@example.com',
		role => 'org:missing');
	send_invitations();
	is(state_of($retried), 'failed 1', 'a row has failed');
	is($function->('cancel', $retried), 'f', 'a failed row cannot be canceled');
	$node->safe_psql('postgres',
		"UPDATE clerk_invitation_outbox SET role = 'org:member' WHERE id = $retried"
	);
	is($function->('retry', $retried), 't', '... but retried');
	is(state_of($retried), 'queued 0', '... which queues it anew');
	is(value($retried, 'settled_at IS NULL'), 't', '... unsettled');
	send_invitations();
	is(state_of($retried), 'sent 1', '... and sends it');
	is($function->('retry', $retried), 'f', 'a sent row cannot be retried');
	is($function->('cancel', $retried), 'f', '... nor canceled');
	is(created('retried@example.com'), 1, 'there is one invitation');
	return;
}

sub check_guard
{
	my @states = qw(queued sending verifying sent skipped failed canceled);
	my %allowed = map { $_ => 1 } 'queued canceled', 'failed queued';
	my @wrong;

	$node->safe_psql('postgres', 'CREATE DATABASE guarded');
	$node->safe_psql('guarded', 'CREATE EXTENSION clerk_invite');
	foreach my $from (@states)
	{
		my $in_flight = $from eq 'sending' || $from eq 'verifying';
		my %changes = map { $_ => "UPDATE clerk_invitation_outbox SET state = '$_'" }
		  @states;

		$changes{$from} =
		  'UPDATE clerk_invitation_outbox SET role = role';
		$changes{deleted} = 'DELETE FROM clerk_invitation_outbox';
		foreach my $to (sort keys %changes)
		{
			my $ok =
				$in_flight ? 0
			  : $to eq 'deleted' || $to eq $from ? 1
			  :                                    $allowed{"$from $to"} // 0;
			my $got = attempt(
				$node, 'guarded', qq(
				BEGIN;
				INSERT INTO clerk_invitation_outbox
					(organization_id, email_address, role, state)
				VALUES ('org_test', 'guard\@example.com', 'org:member', '$from');
				$changes{$to};
				ROLLBACK;))->{sqlstate};

			push @wrong, "$from to $to: $got" if $got ne ($ok ? '' : '55000');
		}
	}
	is("@wrong", '',
		'by hand a state changes from queued to canceled and from failed to '
		  . 'queued only, and what is in flight not at all');
	$node->safe_psql('postgres', 'DROP DATABASE guarded');
	return;
}

sub check_where_it_cannot_run
{
	my $id = enqueue(email_address => 'block@example.com');

	$node->safe_psql(
		'postgres', q(
		CREATE FUNCTION sending_function() RETURNS void LANGUAGE plpgsql
		AS 'BEGIN CALL clerk_send_invitations(); END'));
	foreach my $case (
		[ '2D000', 'in a transaction block', 'BEGIN; CALL clerk_send_invitations(); COMMIT;' ],
		[ '2D000', 'in a function', 'SELECT sending_function();' ],
		[
			'2D000',
			'under an exception handler',
			'DO $$BEGIN CALL clerk_send_invitations(); '
			  . 'EXCEPTION WHEN division_by_zero THEN NULL; END$$;'
		],
		[
			'25006', 'in a read-only transaction',
			'SET default_transaction_read_only = on; CALL clerk_send_invitations();'
		])
	{
		my ($sqlstate, $title, $sql) = @$case;

		is(attempt($node, 'postgres', $sql)->{sqlstate},
			$sqlstate, "$title sending is refused");
		is(state_of($id), 'queued 0', '... and the row stays as it is');
	}
	my $call = attempt($node, 'postgres', '', extra_params =>
		  [ '-v', 'VERBOSITY=verbose', '-c', 'SELECT 1; CALL clerk_send_invitations()' ]);
	is($call->{sqlstate}, '2D000',
		'with another statement in one message sending is refused');
	is(scalar $clerk->requests_for('block@example.com'),
		0, '... and nothing was sent');

	foreach my $level ('serializable', 'repeatable read')
	{
		my $id = enqueue(email_address => ($level =~ s/ /_/r) . '@example.com');

		is( send_invitations(
				"SET default_transaction_isolation = '$level';")->{sqlstate},
			'',
			"with $level as the default sending succeeds");
		is(state_of($id), 'sent 1', '... and sends');
	}
	is(state_of($id), 'sent 1', 'what was refused to be sent is sent then');
	return;
}

sub check_privileges
{
	my $id = enqueue(email_address => 'role@example.com');

	$node->safe_psql(
		'postgres', q(
		CREATE ROLE sender LOGIN;
		CREATE ROLE stranger LOGIN;
		GRANT EXECUTE ON PROCEDURE clerk_send_invitations TO sender;));
	my @as_sender = (extra_params => [ '-U', 'sender' ]);
	foreach my $sql (
		'SELECT state FROM clerk_invitation_outbox',
		'UPDATE clerk_invitation_outbox SET state = state',
		'DELETE FROM clerk_invitation_outbox',
		"SELECT nextval('clerk_invitation_outbox_id_seq')",
		"SELECT clerk_cancel_invitation($id)",
		"SELECT clerk_retry_invitation($id)",
		"SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'a\@b', 'org:member')"
	  )
	{
		is(attempt($node, 'postgres', $sql, @as_sender)->{sqlstate},
			'42501', "who may only send is refused: $sql");
	}
	is( attempt(
			$node, 'postgres',
			'CALL clerk_send_invitations()',
			extra_params => [ '-U', 'stranger' ])->{sqlstate},
		'42501',
		'who may not send cannot send');
	is(state_of($id), 'queued 0', '... and nothing is sent');
	is( attempt($node, 'postgres', 'CALL clerk_send_invitations()', @as_sender)
		  ->{sqlstate},
		'',
		'a role with nothing but EXECUTE can send');
	is(state_of($id), 'sent 1', '... and the row is sent');
	is( attempt(
			$node, 'postgres',
			'CALL clerk_send_invitations(); SELECT current_user', @as_sender)
		  ->{stdout},
		'sender',
		'after that the session is the role it was');
	return;
}

sub check_search_path
{
	my $id = enqueue(email_address => 'path@example.com');

	$node->safe_psql(
		'postgres', q(
		CREATE SCHEMA hostile AUTHORIZATION sender;
		GRANT TEMPORARY ON DATABASE postgres TO sender;));
	my $call = attempt(
		$node, 'postgres', q(
		CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE plpgsql
		AS $$BEGIN RAISE 'hostile as %', current_user; END$$;
		CREATE FUNCTION hostile.clock_timestamp() RETURNS timestamptz
		LANGUAGE plpgsql AS $$BEGIN RAISE 'hostile as %', current_user; END$$;
		CREATE FUNCTION hostile.equal(text, text) RETURNS boolean
		LANGUAGE plpgsql AS $$BEGIN RAISE 'hostile as %', current_user; END$$;
		CREATE OPERATOR hostile.= (FUNCTION = hostile.equal, LEFTARG = text, RIGHTARG = text);
		CREATE TABLE hostile.clerk_invitation_outbox (state text);
		CREATE TEMPORARY TABLE clerk_invitation_outbox (state text);
		CREATE DOMAIN pg_temp.text AS int;
		SET search_path = pg_temp, hostile, pg_catalog, public;
		CALL public.clerk_send_invitations();
		SHOW search_path;
	), extra_params => [ '-U', 'sender' ]);

	is($call->{sqlstate}, '', 'a hostile search_path does not disturb sending');
	is(state_of($id), 'sent 1', '... and the row is sent');
	is( $call->{stdout},
		'pg_temp, hostile, pg_catalog, public',
		'... and the search_path is as before');
	return;
}

sub check_nothing_is_held
{
	foreach my $case (
		[ 'invitation', 'x-slow-3000--held@example.com' ],
		[ 'look', 'x-drop-after--held@example.com' ])
	{
		my ($request, $email) = @$case;
		my $id = enqueue(email_address => $email);
		my $psql = start_psql($node, '');

		misbehave_in_lookups('slow-3000') if $request eq 'look';
		my ($pid) = run_in_psql($psql, 'SELECT pg_backend_pid();');
		chomp $pid;
		send_to_psql($psql, 'CALL clerk_send_invitations();');
		wait_until(
			"the $request is on its way",
			sub {
				return $request eq 'look'
				  ? lookups_for($email)
				  : $clerk->requests_for($email);
			});
		is( $node->safe_psql(
				'postgres', qq(
				SELECT wait_event_type, backend_xmin, backend_xid,
					(SELECT count(*) FROM pg_locks AS l WHERE l.pid = a.pid
					 AND locktype NOT IN ('virtualxid', 'advisory'))
				FROM pg_stat_activity AS a WHERE pid = $pid)),
			'Extension|||0',
			"while the $request is on its way neither snapshot nor transaction id nor lock on a table is held"
		);
		is( attempt(
				$node, 'postgres', q(
				SET lock_timeout = '1s';
				BEGIN;
				LOCK TABLE clerk_invitation_outbox IN ACCESS EXCLUSIVE MODE;
				COMMIT;))->{sqlstate},
			'',
			'... and the outbox can be locked');
		unlike(row($id)->{state}, qr/sent/, '... since it is still on its way');
		output_of_psql($psql);
		$psql->{harness}->finish;
		is(row($id)->{state}, 'sent', '... and arrives');
	}
	return;
}

sub check_other_schema
{
	$node->safe_psql('postgres', 'CREATE DATABASE other');
	$node->safe_psql(
		'other', q(
		CREATE SCHEMA "Odd %s schema";
		CREATE EXTENSION clerk_invite SCHEMA "Odd %s schema";));
	my $psql = start_psql($node, '\\connect other');
	my $send = sub {
		my ($schema, $name) = @_;
		my ($stdout, $stderr) = run_in_psql(
			$psql, qq(
			INSERT INTO "$schema".clerk_invitation_outbox
				(organization_id, email_address, role)
				VALUES ('org_test', '$name\@example.com', 'org:member');
			CALL "$schema".clerk_send_invitations();
			SELECT state FROM "$schema".clerk_invitation_outbox
				WHERE email_address = '$name\@example.com';));
		return $stdout;
	};

	is($send->('Odd %s schema', 'schema1'),
		"sent\n", 'the extension works in another schema');
	run_in_psql($psql, 'ALTER SCHEMA "Odd %s schema" RENAME TO renamed;');
	is($send->('renamed', 'schema2'),
		"sent\n", '... and after that was renamed, in the same session');
	run_in_psql($psql,
		'DROP EXTENSION clerk_invite; CREATE EXTENSION clerk_invite SCHEMA renamed;');
	is($send->('renamed', 'schema3'),
		"sent\n", '... and after it was dropped and created again');
	$psql->{harness}->finish;
	return;
}
