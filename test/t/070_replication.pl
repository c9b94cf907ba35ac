# Logical replication.  What a subscriber's trigger enqueues in an apply worker,
# or in a session in replica role, is sent like anything else.  Rows of the
# outbox itself that are copied from another database are that one's to send.
use strict;
use warnings;

use ClerkTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use WorkerTest;

my $REPLICA = 'SET session_replication_role = replica;';
my $FUNCTION = 'FUNCTION clerk_invitation_trigger';
my $ARGUMENTS = q('=org_test', '', 'email', '=org:member');

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');

# The publisher, which has nothing of the extension.
my $publisher = PostgreSQL::Test::Cluster->new('publisher');
$publisher->init(allows_streaming => 'logical');
$publisher->append_conf(
	'postgresql.conf', q(
logical_decoding_work_mem = 64kB
max_prepared_transactions = 10
max_wal_senders = 20
max_replication_slots = 20
autovacuum = off
));
$publisher->start;
my ($version) = slurp_file($publisher->data_dir . '/PG_VERSION') =~ /^(\d+)/;

my $hub = worker_cluster(
	'hub', $clerk,
	conf => q(
max_logical_replication_workers = 20
max_sync_workers_per_subscription = 2
max_replication_slots = 20
max_worker_processes = 40
max_prepared_transactions = 10
wal_retrieve_retry_interval = 100ms
));

check_row_trigger();
check_which_triggers_fire();
check_statement_trigger();
check_function();
check_own_statements();
check_failing_trigger();
check_streaming($_)
  foreach $version >= 16 ? qw(on parallel) : $version >= 14 ? qw(on) : ();
check_two_phase() if $version >= 15;
check_prepared_by_another();
check_prepared_over_restart();
check_replica_session();
check_copied_rows();
check_triggers_in_silence();
check_subscribed_outbox();
check_restore();

$hub->stop;
$publisher->stop;
done_testing();

# A trigger for each row, in a worker that applies what is published.
sub check_row_trigger
{
	publish('members', 'initial@example.com');
	$hub->safe_psql('postgres', "CREATE TABLE members (email text PRIMARY KEY);"
		  . row_trigger('members', 'ENABLE ALWAYS'));
	subscribe('members', 'copy_data = false');
	my @emails = map { "person$_\@example.com" } 1 .. 30;

	insert('members', $_) foreach @emails;
	wait_for_states($hub, 'postgres', 'sent 1', @emails);
	is(created($clerk, @emails), join(' ', (1) x 30),
		'members who are inserted at the publisher are invited, each once');
	is(count("email_address LIKE 'initial%'"), 0, '... and nobody who was there before');
	is(count("copied"), 0, '... by rows that are the subscriber\'s own');

	watch_outbox();
	insert('members', 'watched@example.com');
	wait_for_states($hub, 'postgres', 'sent 1', 'watched@example.com');
	is(seen('watched@example.com'), 'queued sending sent',
		'triggers of the outbox fire as for any other row');

	insert('members', " \x{c2}\x{a0}spaced\@example.com\\t ");
	wait_for_states($hub, 'postgres', 'sent 1', 'spaced@example.com');
	is(requests($clerk, 'spaced@example.com'), 1, 'white space around an address is removed');

	# Without a worker, too, which starts with the commit.
	wait_until_gone($hub);
	my @emails_in_turn = map { "quick$_\@example.com" } 1 .. 7;
	is_claimed_at_once('members who are inserted', @emails_in_turn,
		map { "INSERT INTO members VALUES ('$_')" } @emails_in_turn);

	$publisher->safe_psql('postgres', q(
		BEGIN; INSERT INTO members VALUES ('rolled-back@example.com'); ROLLBACK;
		INSERT INTO members VALUES ('after-rollback@example.com');));
	wait_for_states($hub, 'postgres', 'sent 1', 'after-rollback@example.com');
	is(count("email_address LIKE 'rolled-back%'"), 0, 'a rollback invites nobody');
	unsubscribe('members');
	return;
}

# As PostgreSQL has it: only those that are ENABLE ALWAYS or ENABLE REPLICA.
sub check_which_triggers_fire
{
	foreach my $enabled ('', 'ENABLE REPLICA', 'ENABLE ALWAYS')
	{
		my $name = 'fires_' . lc(($enabled =~ /(\w+)$/)[0] // 'usually');
		my @emails = map { "$_-$name\@example.com" } qw(initial replicated local);

		publish($name, $emails[0]);
		$hub->safe_psql('postgres',
			"CREATE TABLE $name (email text PRIMARY KEY);" . row_trigger($name, $enabled));
		subscribe($name);
		insert($name, $emails[1]);
		wait_until("the row is in $name",
			sub { $hub->safe_psql('postgres', "SELECT count(*) FROM $name") eq '2' });
		$hub->safe_psql('postgres', "INSERT INTO $name VALUES ('$emails[2]')");
		my @expected =
		  $enabled eq '' ? $emails[2] : $enabled =~ /ALWAYS/ ? @emails : @emails[ 0, 1 ];
		wait_for_states($hub, 'postgres', 'sent 1', @expected);
		is( $hub->safe_psql('postgres',
				"SELECT string_agg(email_address, ' ' ORDER BY id) FROM clerk_invitation_outbox"
				  . " WHERE email_address LIKE '%$name%'"),
			"@expected",
			"who is invited by a trigger that is $name");
		unsubscribe($name);
	}
	return;
}

# PostgreSQL fires these for the initial copy, and not for what it applies.
sub check_statement_trigger
{
	my @emails = map { "statement-$_\@example.com" } qw(initial later);

	publish('by_statement', $emails[0]);
	$hub->safe_psql('postgres', 'CREATE TABLE by_statement (email text PRIMARY KEY);'
		  . statement_trigger('by_statement', 'ENABLE ALWAYS'));
	subscribe('by_statement');
	wait_for_states($hub, 'postgres', 'sent 1', $emails[0]);
	insert('by_statement', $emails[1]);
	wait_until('the row is there',
		sub { $hub->safe_psql('postgres', 'SELECT count(*) FROM by_statement') eq '2' });
	is(count("email_address = '$emails[1]'"), 0,
		'a statement trigger fires for the initial copy only');
	is(created($clerk, @emails), '1 0', '... for which it invites');
	unsubscribe('by_statement');
	return;
}

# A trigger of a user's own that calls the function, as a hub has one.
sub check_function
{
	publish('by_function');
	$hub->safe_psql(
		'postgres', q(
		CREATE TABLE by_function (email text PRIMARY KEY, id bigint);
		CREATE FUNCTION invite() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			UPDATE public.by_function SET id = public.clerk_enqueue_organization_invitation(
				'org_test', NULL, NEW.email, 'org:member') WHERE email = NEW.email;
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER invite AFTER INSERT ON by_function FOR EACH ROW EXECUTE FUNCTION invite();
		ALTER TABLE by_function ENABLE ALWAYS TRIGGER invite;));
	subscribe('by_function');
	insert('by_function', 'function@example.com');
	wait_for_states($hub, 'postgres', 'sent 1', 'function@example.com');
	is( $hub->safe_psql('postgres',
			'SELECT copied FROM clerk_invitation_outbox JOIN by_function USING (id)'),
		'f',
		'a function that a trigger calls in an apply worker enqueues like any other');

	# Another one cancels.
	$hub->safe_psql(
		'postgres', q(
		CREATE FUNCTION cancel() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM public.clerk_cancel_invitation(OLD.id);
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER cancel AFTER DELETE ON by_function FOR EACH ROW EXECUTE FUNCTION cancel();
		ALTER TABLE by_function ENABLE ALWAYS TRIGGER cancel;
		CREATE OR REPLACE FUNCTION invite() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			UPDATE public.by_function SET id = public.clerk_enqueue_organization_invitation(
				'org_test', NULL, NEW.email, 'org:member', send_after => now() + interval '1 day')
			WHERE email = NEW.email;
			RETURN NULL;
		END
		$$;));
	insert('by_function', 'canceled@example.com');
	wait_for_states($hub, 'postgres', 'queued 0', 'canceled@example.com');
	$publisher->safe_psql('postgres',
		q(DELETE FROM by_function WHERE email = 'canceled@example.com'));
	wait_for_states($hub, 'postgres', 'canceled 0', 'canceled@example.com');
	is(count("email_address = 'canceled\@example.com' AND settled_at IS NOT NULL"),
		1, '... and one that cancels does that as in any session');
	unsubscribe('by_function');
	return;
}

# One that inserts into the outbox and changes it by statements of its own.
sub check_own_statements
{
	my @emails = map { "by-insert$_\@example.com" } 1 .. 2;

	publish('by_insert');
	$hub->safe_psql(
		'postgres', q(
		CREATE TABLE by_insert (email text PRIMARY KEY);
		CREATE FUNCTION insert_or_cancel() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF TG_OP = 'INSERT' THEN
				INSERT INTO public.clerk_invitation_outbox (organization_id, email_address, role, send_after)
				VALUES ('org_test', ' ' || NEW.email, 'org:member',
					CASE WHEN NEW.email LIKE '%later%' THEN now() + interval '1 day' ELSE now() END);
			ELSE
				UPDATE public.clerk_invitation_outbox SET state = 'canceled' WHERE email_address = OLD.email;
			END IF;
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER invite AFTER INSERT OR DELETE ON by_insert
			FOR EACH ROW EXECUTE FUNCTION insert_or_cancel();
		ALTER TABLE by_insert ENABLE ALWAYS TRIGGER invite;));
	subscribe('by_insert');
	wait_until_gone($hub);
	insert('by_insert', $emails[0]);
	wait_for_states($hub, 'postgres', 'sent 1', $emails[0]);
	wait_until_gone($hub);
	$hub->safe_psql('postgres', "$REPLICA INSERT INTO by_insert VALUES ('$emails[1]')");
	wait_for_states($hub, 'postgres', 'sent 1', $emails[1]);
	is(created($clerk, @emails), '1 1', 'what a trigger of one\'s own inserts is sent');

	insert('by_insert', 'later-by-insert@example.com');
	wait_for_states($hub, 'postgres', 'queued 0', 'later-by-insert@example.com');
	$publisher->safe_psql('postgres', q(DELETE FROM by_insert WHERE email LIKE 'later%'));
	wait_for_states($hub, 'postgres', 'canceled 0', 'later-by-insert@example.com');
	is(count("email_address = 'later-by-insert\@example.com' AND settled_at IS NOT NULL"),
		1, '... and what it cancels is canceled as in any session');
	unsubscribe('by_insert');
	return;
}

# What is refused at the door stops the subscription, and is not lost.
sub check_failing_trigger
{
	my $log = -s $hub->logfile;

	publish('fails');
	$hub->safe_psql('postgres',
		'CREATE TABLE fails (email text PRIMARY KEY);' . row_trigger('fails', 'ENABLE ALWAYS'));
	subscribe('fails');
	$publisher->safe_psql('postgres',
		q(INSERT INTO fails VALUES ('good@example.com'), ('no address');));
	wait_until('the subscription fails',
		sub { slurp_file($hub->logfile, $log) =~ /email_address_is_an_address/ });
	is(count("email_address = 'good\@example.com'"), 0,
		'a transaction with an address that is none is not applied');
	$hub->safe_psql('postgres', q(
		DROP TRIGGER invite ON fails;
		CREATE TRIGGER invite AFTER INSERT ON fails FOR EACH ROW WHEN (NEW.email LIKE '%@%')
			EXECUTE ) . "$FUNCTION($ARGUMENTS);" . q(
		ALTER TABLE fails ENABLE ALWAYS TRIGGER invite;));
	wait_for_states($hub, 'postgres', 'sent 1', 'good@example.com');
	is(created($clerk, 'good@example.com'), 1, '... until that is settled, and then once');
	unsubscribe('fails');
	return;
}

# A transaction that is sent while it is in progress.
sub check_streaming
{
	my ($streaming) = @_;
	my $name = "streamed_$streaming";

	$publisher->safe_psql('postgres', "CREATE TABLE $name (email text PRIMARY KEY, filler text)");
	publish($name);
	$hub->safe_psql('postgres', "CREATE TABLE $name (email text PRIMARY KEY, filler text);"
		  . row_trigger($name, 'ENABLE ALWAYS'));
	subscribe($name, "streaming = $streaming");
	my $streamed = $publisher->safe_psql('postgres', streamed_bytes($name));

	$publisher->safe_psql('postgres', qq(
		BEGIN;
		@{[ many($name, 'good', 150) ]}
		SAVEPOINT s;
		@{[ many($name, 'undone', 150) ]}
		ROLLBACK TO s;
		@{[ many($name, 'too', 150) ]}
		COMMIT;
		BEGIN;
		@{[ many($name, 'aborted', 300) ]}
		ROLLBACK;));
	insert($name, "after-$name\@example.com");
	wait_for_states($hub, 'postgres', 'sent 1', "after-$name\@example.com");
	wait_until("what was committed is sent",
		sub { count("email_address LIKE '%\@$name' AND state = 'sent' AND attempts = 1") == 300 });
	is(count("email_address LIKE '%\@$name'"), 300,
		"streaming = $streaming: what is committed is enqueued, and nothing else");
	my %created;
	$created{ $_->{email_address} }++
	  foreach grep { $_->{email_address} =~ /\@$name$/ } $clerk->all_invitations;
	is(join(' ', scalar(keys %created), scalar(grep { $_ > 1 } values %created)),
		'300 0', '... and sent once');
	# The publisher counts when a transaction has ended.
	$publisher->poll_query_until('postgres', "SELECT (" . streamed_bytes($name) . ") > $streamed")
	  or die 'nothing was streamed';
	pass('... although it was on its way before that');
	unsubscribe($name);
	return;
}

sub many
{
	my ($table, $what, $count) = @_;

	return "INSERT INTO $table SELECT '$what-' || n || '\@$table', repeat('x', 1500)"
	  . " FROM generate_series(1, $count) AS n;";
}

sub streamed_bytes
{
	my ($slot) = @_;

	return "SELECT coalesce(sum(stream_bytes), 0) FROM pg_stat_replication_slots WHERE slot_name = '$slot'";
}

# Transactions that are prepared at the publisher are prepared here as well.
sub check_two_phase
{
	my @emails = map { "prepared$_\@example.com" } 1 .. 7;

	publish('two_phase');
	$hub->safe_psql('postgres',
		'CREATE TABLE two_phase (email text PRIMARY KEY);' . row_trigger('two_phase', 'ENABLE ALWAYS'));
	subscribe('two_phase', 'two_phase = true, streaming = on');
	$hub->poll_query_until('postgres',
		"SELECT subtwophasestate = 'e' FROM pg_subscription WHERE subname = 'two_phase'")
	  or die 'two_phase is not enabled';

	prepare($publisher, "INSERT INTO two_phase VALUES ('early\@example.com')");
	wait_for_prepared(1);
	my $worker = wait_for_worker($hub, 'postgres');
	is(requests($clerk, 'early@example.com'), 0, 'what is prepared is not sent');
	$publisher->safe_psql('postgres', "COMMIT PREPARED 'it'");
	wait_for_states($hub, 'postgres', 'sent 1', 'early@example.com');
	is(worker_of($hub, 'postgres'), $worker, '... and the worker stays for it');

	# A worker that was not woken would look a second after the look before,
	# which is when the transaction is prepared.
	is_claimed_at_once('what is prepared and committed at the publisher',
		@emails, map { "COMMIT PREPARED 'it'" } @emails);
	is(created($clerk, @emails), '1 1 1 1 1 1 1', '... and invited once');

	prepare($publisher, q(INSERT INTO two_phase VALUES ('rolled-back-later@example.com')));
	wait_for_prepared(1);
	wait_for_worker($hub, 'postgres');
	$publisher->safe_psql('postgres', "ROLLBACK PREPARED 'it'");
	wait_until_gone($hub);
	is(count("email_address LIKE 'rolled-back-later%'"), 0,
		'ROLLBACK PREPARED invites nobody, and the worker leaves');
	unsubscribe('two_phase');
	return;
}

# Another session commits, of which nobody is told.
sub check_prepared_by_another
{
	wait_until_gone($hub);
	prepare($hub, enqueue_sql('by-another@example.com'));
	my $worker = wait_for_worker($hub, 'postgres');
	is( $hub->safe_psql('postgres', q(
			SELECT next_run_at < now() + interval '2 s' FROM clerk_worker_status()
			WHERE database = 'postgres')),
		't',
		'a worker looks every second while a prepared transaction has rows');
	$hub->safe_psql('postgres', "COMMIT PREPARED 'it'");
	wait_for_states($hub, 'postgres', 'sent 1', 'by-another@example.com');
	is(worker_of($hub, 'postgres'), $worker, '... which it sends when they are committed');
	wait_until_gone($hub);

	# Those that have nothing to do with the outbox don't concern it.
	prepare($hub, 'CREATE TABLE unconcerned ()');
	enqueue($hub, 'postgres', 'concerned@example.com');
	wait_for_states($hub, 'postgres', 'sent 1', 'concerned@example.com');
	wait_until_gone($hub);
	is($hub->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
		1, 'it does not stay for other prepared transactions');
	$hub->safe_psql('postgres', "ROLLBACK PREPARED 'it'");
	return;
}

# A preloaded library finds prepared transactions when the server starts.
sub check_prepared_over_restart
{
	my $library = ClerkTest::library_name($hub);

	prepare($hub, enqueue_sql('over-restart@example.com'));
	$hub->append_conf('postgresql.conf', "shared_preload_libraries = '$library'");
	$hub->stop('immediate');
	$hub->start;
	wait_for_worker($hub, 'postgres');
	$hub->safe_psql('postgres', "COMMIT PREPARED 'it'");
	wait_for_states($hub, 'postgres', 'sent 1', 'over-restart@example.com');
	is(created($clerk, 'over-restart@example.com'), 1,
		'what was prepared before a crash is sent when it is committed');
	return;
}

# A session in replica role, as replication by other programs has.
sub check_replica_session
{
	$hub->safe_psql('postgres',
		    'CREATE TABLE by_row (email text); CREATE TABLE by_statement_too (email text);'
		  . 'CREATE TABLE deferred (email text);'
		  . row_trigger('by_row', 'ENABLE ALWAYS')
		  . statement_trigger('by_statement_too', 'ENABLE ALWAYS')
		  . "CREATE CONSTRAINT TRIGGER invite AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED"
		  . " FOR EACH ROW EXECUTE $FUNCTION($ARGUMENTS);"
		  . 'ALTER TABLE deferred ENABLE ALWAYS TRIGGER invite;');
	foreach my $table (qw(by_row by_statement_too deferred))
	{
		my @emails = map { "$table$_\@example.com" } 1 .. 3;

		wait_until_gone($hub);
		$hub->safe_psql('postgres', "$REPLICA INSERT INTO $table VALUES "
			  . join(', ', map { "(E' $_\\n')" } @emails));
		wait_for_states($hub, 'postgres', 'sent 1', @emails);
		is(created($clerk, @emails), '1 1 1',
			"members that a session in replica role inserts are invited: $table");
	}

	wait_until_gone($hub);
	my $role = $hub->safe_psql('postgres', $REPLICA
		  . q(SELECT clerk_enqueue_organization_invitation(
			'org_test', NULL, 'function-in-replica@example.com', 'org:member') > 0;
			SHOW session_replication_role;));
	is($role, "t\nreplica", 'the function enqueues there, and leaves the role as it is');
	wait_for_states($hub, 'postgres', 'sent 1', 'function-in-replica@example.com');

	# So does a CALL, which fires the triggers of the outbox.
	watch_outbox();
	$hub->safe_psql(
		'postgres', q(
		SET clerk_invite.worker = off;
		SET client_min_messages = error; ) . enqueue_sql('called@example.com') . ";$REPLICA"
		  . 'CALL clerk_send_invitations();');
	is(seen('called@example.com'), 'queued sending sent',
		'a CALL in replica role fires the triggers of the outbox');
	return;
}

# Rows that a session in replica role puts into the outbox itself.
sub check_copied_rows
{
	my $where = "WHERE email_address LIKE '%copied%'";
	my $sum = q(SELECT string_agg(concat_ws(' ', email_address, state, attempts, copied), ', ' ORDER BY id)
		FROM clerk_invitation_outbox ) . $where;
	my $progress = 'SELECT queued, sending, verifying, sent, failed, canceled, due, overdue, time_to_empty'
	  . ' FROM clerk_invitation_progress';

	wait_until_gone($hub);
	my $before = $hub->safe_psql('postgres', $progress);
	my $requests = () = $clerk->journal;
	# Whatever the database that they come from says of them.
	$hub->safe_psql(
		'postgres', $REPLICA . q(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, state, attempts,
			first_claimed_at, claimed_at, settled_at, invitation_id, status, database_error, copied)
		SELECT 'org_test', state || '-copied@example.com', 'org:member', state, 1, now(), now(),
			now() - interval '1 year', 'orginv_' || state, 'pending', 'broken', false
		FROM unnest(ARRAY['queued', 'sending', 'verifying', 'sent', 'failed']) AS state;
		COPY clerk_invitation_outbox (organization_id, email_address, role) FROM STDIN;
org_test	copied-too@example.com	org:member
\.
));
	is(join(' ', workers($hub)), '', 'rows that are copied start no worker');
	my $copied = 'queued-copied@example.com queued 1 t, sending-copied@example.com sending 1 t, '
	  . 'verifying-copied@example.com verifying 1 t, sent-copied@example.com sent 1 t, '
	  . 'failed-copied@example.com failed 1 t, copied-too@example.com queued 0 t';
	is($hub->safe_psql('postgres', $sum), $copied, '... and are marked');
	is($hub->safe_psql('postgres', $progress), $before, '... and not a part of the progress');

	# A worker that has rows of its own, with all that it does.
	reconfigure($hub, "clerk_invite.retention = '1d'");
	enqueue($hub, 'postgres', 'own@example.com');
	wait_for_states($hub, 'postgres', 'sent 1', 'own@example.com');
	wait_until_gone($hub);
	my $said = attempt($hub, 'postgres',
		'CALL clerk_send_invitations(); CALL clerk_refresh_invitations();')->{stderr};
	unlike($said, qr/set aside|WARNING|ERROR/, 'a CALL says nothing of copied rows');
	is($hub->safe_psql('postgres', $sum), $copied,
		'neither a worker nor a CALL sends, verifies, refreshes or removes them');
	is(scalar(grep { text_of($_) =~ /copied/ } $clerk->journal),
		0, '... and Clerk is not asked about them');
	reconfigure($hub, 'clerk_invite.retention = 0');

	# By hand.
	is( $hub->safe_psql(
			'postgres', qq(
			SELECT bool_or(clerk_cancel_invitation(id) OR clerk_retry_invitation(id)
				OR clerk_abandon_invitation(id, 'copied')) FROM clerk_invitation_outbox $where)),
		'f',
		'they cannot be canceled, retried or abandoned');
	foreach my $change (
		[ queued => 'canceled' ], [ failed => 'queued' ], [ sending => 'queued' ])
	{
		my ($from, $to) = @$change;

		is(attempt($hub, 'postgres', "UPDATE clerk_invitation_outbox SET state = '$to' WHERE email_address = '$from-copied\@example.com'")->{sqlstate},
			'55000', "... nor changed from $from to $to");
	}
	is($hub->safe_psql('postgres', $sum), $copied, '... nothing has changed');
	$hub->safe_psql('postgres',
		$REPLICA . qq(UPDATE clerk_invitation_outbox SET attempts = 5, copied = false $where));
	is($hub->safe_psql('postgres', $sum), $copied =~ s/\d t/5 t/gr,
		'UPDATEs in replica role reach them, and they stay copied');
	$hub->safe_psql('postgres',
		$REPLICA . q(UPDATE clerk_invitation_outbox SET role = 'org:admin', copied = true
			WHERE email_address = 'own@example.com'));
	is(count("email_address = 'own\@example.com' AND NOT copied AND role = 'org:admin'"),
		1, '... and those for own rows do not make these copies');

	# Deleted in any state, and taken over.
	$hub->safe_psql('postgres',
		q(DELETE FROM clerk_invitation_outbox WHERE email_address = 'verifying-copied@example.com'));
	is(count("email_address LIKE 'verifying-copied%'"), 0, 'they can be deleted in any state');
	my $user = 'SET ROLE changer;';
	$hub->safe_psql('postgres', q(
		CREATE ROLE changer;
		GRANT SELECT, UPDATE ON clerk_invitation_outbox TO changer;));
	my $take_over = "UPDATE clerk_invitation_outbox SET copied = false $where";
	is(attempt($hub, 'postgres', "SET ROLE changer; $take_over")->{sqlstate},
		'42501', 'only the owner can take them over');
	$hub->safe_psql('postgres', 'DROP OWNED BY changer; DROP ROLE changer;');
	wait_until_gone($hub);
	$hub->safe_psql('postgres', $take_over);
	wait_for_states($hub, 'postgres', 'sent 6', 'queued-copied@example.com', 'copied-too@example.com');
	wait_until('the row that was sending is verified and sent',
		sub { states($hub, 'postgres', 'sending-copied@example.com') =~ /^sent/ });
	is(created($clerk, map { "$_\@example.com" } qw(queued-copied copied-too sending-copied sent-copied)),
		'1 1 1 0', '... after which they are sent, and what may have been sent is verified before');
	return;
}

# A trigger that fires when a statement of ours fires no others, and adds a row.
sub check_triggers_in_silence
{
	enqueue($hub, 'postgres', '1 day', 'given-up@example.com');
	$hub->safe_psql(
		'postgres', q(
		CREATE FUNCTION another() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.clerk_invitation_outbox (organization_id, email_address, role)
			VALUES (NEW.organization_id, ' instead-of-' || NEW.email_address, NEW.role);
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER another AFTER UPDATE ON clerk_invitation_outbox
			FOR EACH ROW WHEN (NEW.state = 'canceled') EXECUTE FUNCTION another();
		ALTER TABLE clerk_invitation_outbox ENABLE ALWAYS TRIGGER another;
		SELECT clerk_abandon_invitation(id) FROM clerk_invitation_outbox
		WHERE email_address = 'given-up@example.com';
		DROP TRIGGER another ON clerk_invitation_outbox;));
	wait_for_states($hub, 'postgres', 'sent 1', 'instead-of-given-up@example.com');
	pass('what a trigger adds when a row is abandoned is not taken for a copy');
	return;
}

# A subscription to the outbox, whose rows the publisher sends.
sub check_subscribed_outbox
{
	my $sender = worker_cluster('sender', $clerk, allows_streaming => 'logical',
		conf => "clerk_invite.verify_delay = '1h'\n");
	my $slow = 'x-drop-after--copy@example.com';

	# In all states, as the initial copy finds them.
	enqueue($sender, 'postgres', 'copy-sent@example.com');
	wait_for_states($sender, 'postgres', 'sent 1', 'copy-sent@example.com');
	enqueue($sender, 'postgres', '1 day', 'copy-queued1@example.com', 'copy-taken@example.com');
	$sender->safe_psql('postgres',
		'CREATE PUBLICATION outbox FOR TABLE clerk_invitation_outbox');
	make_database($hub, 'copy');
	my $log = -s $hub->logfile;
	$hub->safe_psql('copy', "CREATE SUBSCRIPTION outbox CONNECTION \$\$"
		  . $sender->connstr('postgres') . '$$ PUBLICATION outbox');
	$hub->wait_for_subscription_sync($sender, 'outbox', 'copy');

	enqueue($sender, 'postgres', 'copy-later@example.com');
	enqueue($sender, 'postgres', '1 day', 'copy-queued2@example.com');
	wait_for_states($sender, 'postgres', 'sent 1', 'copy-later@example.com');
	my $rows = 'SELECT string_agg(concat_ws(\' \', id, email_address, state, attempts, invitation_id), \', \' ORDER BY id)'
	  . " FROM clerk_invitation_outbox WHERE email_address LIKE '%copy-%'";
	my $equal = sub {
		my ($what) = @_;

		wait_until($what, sub {
				$sender->safe_psql('postgres', $rows) eq $hub->safe_psql('copy', $rows);
			});
		return pass($what);
	};
	$equal->('rows arrive at a subscriber of the outbox, and what becomes of them');
	is( $hub->safe_psql('copy', 'SELECT bool_and(copied), count(*) FROM clerk_invitation_outbox'),
		't|5', '... as copies');
	unlike(slurp_file($hub->logfile, $log), qr/stopped sending|ERROR/, '... without an error');

	# The sequence is to be far ahead of the publisher's.
	$hub->safe_psql('copy', "SELECT setval('clerk_invitation_outbox_id_seq', 1000000)");
	enqueue($hub, 'copy', 'subscribers-own@example.com');
	wait_for_states($hub, 'copy', 'sent 1', 'subscribers-own@example.com');
	wait_until_gone($hub, 'copy');
	pass('the subscriber sends its own rows, and its worker leaves');
	is(states($hub, 'copy', 'copy-queued1@example.com', 'copy-queued2@example.com'),
		'queued 0, queued 0', '... but none of the copies');
	$sender->safe_psql('postgres',
		q(UPDATE clerk_invitation_outbox SET send_after = now() WHERE email_address LIKE 'copy-queued%'));
	wait_for_states($sender, 'postgres', 'sent 1', 'copy-queued1@example.com', 'copy-queued2@example.com');
	$equal->('the publisher sends them, and tells');

	# The publisher goes while a row is under way and another one waits.
	enqueue($sender, 'postgres', 'x-slow-100000--copy-slow@example.com');
	wait_for_states($hub, 'copy', 'sending 1', 'x-slow-100000--copy-slow@example.com');
	enqueue($hub, 'copy', 'subscribers-second@example.com');
	wait_for_states($hub, 'copy', 'sent 1', 'subscribers-second@example.com');
	wait_until_gone($hub, 'copy');
	is(states($hub, 'copy', 'x-slow-100000--copy-slow@example.com'), 'sending 1',
		'what is under way there is not taken over');
	$sender->stop('immediate');
	$hub->safe_psql('copy', q(
		ALTER SUBSCRIPTION outbox DISABLE;
		ALTER SUBSCRIPTION outbox SET (slot_name = NONE);
		DROP SUBSCRIPTION outbox;
		ALTER DATABASE copy SET clerk_invite.worker = off;));
	$hub->safe_psql('copy', q(
		ALTER DATABASE copy RESET clerk_invite.worker;
		CREATE ROLE outbox_owner;
		GRANT CREATE ON SCHEMA public TO outbox_owner;
		ALTER TABLE clerk_invitation_outbox OWNER TO outbox_owner;));
	$hub->safe_psql('copy', q(
		SET ROLE outbox_owner;
		UPDATE clerk_invitation_outbox SET copied = false, send_after = now() WHERE copied;));
	wait_for_states($hub, 'copy', 'sent 1', 'copy-taken@example.com');
	wait_until('what was under way is settled', sub {
			states($hub, 'copy', 'x-slow-100000--copy-slow@example.com') =~ /^(sent|verifying|queued|sending) [12]$/
		});
	is(states($hub, 'copy', 'copy-sent@example.com'), 'sent 1',
		'after the owner has taken the rows over, those that wait are sent');
	is(created($clerk, map { "copy-$_\@example.com" } qw(sent later queued1 queued2 taken)),
		'1 1 1 1 1', '... and each is invited once');
	$hub->safe_psql('copy', 'ALTER DATABASE copy SET clerk_invite.worker = off');
	return;
}

# A dump has what is the database's own, and what is copied; which stay so.
sub check_restore
{
	my $folder = PostgreSQL::Test::Utils::tempdir();

	make_database($hub, 'dumped');
	$hub->safe_psql('postgres', 'ALTER DATABASE dumped SET clerk_invite.worker = off');
	enqueue($hub, 'dumped', 'dumped-own@example.com');
	$hub->safe_psql('dumped', $REPLICA . enqueue_sql('dumped-copy@example.com'));
	$hub->command_ok(
		[ 'pg_dump', '-Fc', '-f', "$folder/dump", '-d', $hub->connstr('dumped') ],
		'an outbox with copies can be dumped');
	foreach my $options ('', '-c session_replication_role=replica')
	{
		my $database = $options eq '' ? 'restored' : 'restored_in_replica';

		$hub->safe_psql('postgres', "CREATE DATABASE $database");
		local $ENV{PGOPTIONS} = $options;
		$hub->command_ok([ 'pg_restore', '-d', $hub->connstr($database), "$folder/dump" ],
			"... and restored into $database");
	}
	wait_for_states($hub, 'restored', 'sent 1', 'dumped-own@example.com');
	pass('a restored database sends what was queued in its own');
	enqueue($hub, 'restored_in_replica', 'waker-of-restored@example.com');
	wait_for_states($hub, 'restored_in_replica', 'sent 1', 'waker-of-restored@example.com');
	is( join(', ', states($hub, 'restored', 'dumped-copy@example.com'),
			states($hub, 'restored_in_replica', 'dumped-own@example.com', 'dumped-copy@example.com')),
		'queued 0, queued 0, queued 0',
		'... and not what was copied, before or by a restore in replica role');
	is(requests($clerk, 'dumped-own@example.com', 'dumped-copy@example.com'), '1 0', '... once');
	return;
}

# Records each state that a row of the hub's outbox has.
sub watch_outbox
{
	return if $hub->safe_psql('postgres', q(SELECT to_regproc('see') IS NOT NULL)) eq 't';
	$hub->safe_psql(
		'postgres', q(
		CREATE TABLE seen (email text, state text);
		CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO public.seen VALUES (NEW.email_address, NEW.state); RETURN NULL; END $$;
		CREATE TRIGGER see AFTER INSERT OR UPDATE ON clerk_invitation_outbox
			FOR EACH ROW EXECUTE FUNCTION see();));
	return;
}

sub seen
{
	my ($email) = @_;

	return $hub->safe_psql('postgres',
		"SELECT string_agg(state, ' ') FROM seen WHERE email = '$email'");
}

# A table of members at the publisher, with a publication of its name.
sub publish
{
	my ($table, @emails) = @_;

	$publisher->safe_psql('postgres', qq(
		SET client_min_messages = error;
		CREATE TABLE IF NOT EXISTS $table (email text PRIMARY KEY);
		CREATE PUBLICATION $table FOR TABLE $table;));
	insert($table, @emails) if @emails;
	return;
}

sub insert
{
	my ($table, @emails) = @_;

	return $publisher->safe_psql('postgres',
		"INSERT INTO $table VALUES " . join(', ', map { "(E'$_')" } @emails));
}

# Runs these statements at the publisher, the first one for the first address,
# and tests that it takes no more than a moment until a sender has the row.
sub is_claimed_at_once
{
	my ($what, @list) = @_;
	my @emails = splice(@list, 0, @list / 2);
	my @delays;

	foreach my $email (@emails)
	{
		my $sql = shift @list;

		if ($sql =~ /PREPARED/)
		{
			prepare($publisher, "INSERT INTO two_phase VALUES ('$email')");
			wait_for_prepared(1);
			wait_for_worker($hub, 'postgres');
		}
		# Both servers have the same clock.
		my $begin = $publisher->safe_psql('postgres', "SELECT clock_timestamp(); $sql");
		wait_for_states($hub, 'postgres', 'sent 1', $email);
		push @delays,
		  $hub->safe_psql('postgres',
			"SELECT round(1000 * extract(epoch FROM claimed_at - '$begin')) FROM clerk_invitation_outbox"
			  . " WHERE email_address = '$email'");
	}
	my @sorted = sort { $a <=> $b } @delays;
	cmp_ok($sorted[ @sorted / 2 ], '<', 500, "$what: at once");
	note("milliseconds: @delays");
	return;
}

# A subscription of that name, which has copied what was there.
sub subscribe
{
	my ($table, $options) = @_;

	$hub->safe_psql('postgres', "CREATE SUBSCRIPTION $table CONNECTION \$\$"
		  . $publisher->connstr('postgres') . "\$\$ PUBLICATION $table"
		  . ($options ? " WITH ($options)" : ''));
	$hub->wait_for_subscription_sync($publisher, $table);
	return;
}

sub unsubscribe
{
	my ($table) = @_;

	$hub->safe_psql('postgres', "DROP SUBSCRIPTION $table");
	return;
}

sub row_trigger
{
	my ($table, $enabled) = @_;

	return "CREATE TRIGGER invite AFTER INSERT ON $table FOR EACH ROW EXECUTE $FUNCTION($ARGUMENTS);"
	  . ($enabled ? "ALTER TABLE $table $enabled TRIGGER invite;" : '');
}

sub statement_trigger
{
	my ($table, $enabled) = @_;

	return "CREATE TRIGGER invite AFTER INSERT ON $table REFERENCING NEW TABLE AS new_members"
	  . " FOR EACH STATEMENT EXECUTE $FUNCTION($ARGUMENTS);"
	  . "ALTER TABLE $table $enabled TRIGGER invite;";
}

sub prepare
{
	my ($node, $sql) = @_;

	$node->safe_psql('postgres', "BEGIN; $sql; PREPARE TRANSACTION 'it'");
	return;
}

# Until the hub has so many prepared transactions.
sub wait_for_prepared
{
	my ($count) = @_;

	$hub->poll_query_until('postgres', "SELECT count(*) = $count FROM pg_prepared_xacts")
	  or die "there are no $count prepared transactions";
	return;
}

# Rows of the hub's outbox.
sub count
{
	my ($condition) = @_;

	return $hub->safe_psql('postgres',
		"SELECT count(*) FROM clerk_invitation_outbox WHERE $condition");
}

# Whatever of a request may name an address.
sub text_of
{
	my ($request) = @_;

	return join(' ', map { ref $_ ? encode_json($_) : $_ // '' } values %$request);
}
