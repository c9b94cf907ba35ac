# What users have added to the outbox may refuse a sender's change of a row: that
# row is set aside and says why, everything else goes on, and nothing of an
# invitation's url gets into the log.
use strict;
use warnings;

use ClerkTest;
use DeliveryTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = delivery_cluster('main', $clerk);

$node->safe_psql('postgres', 'CREATE TABLE audit (id bigint, state varchar(8))');

# What is added, for rows of an organization of its own; the states in which
# the row is refused, and how what was added is removed.
my %ADDED = (
	'a trigger that copies the state into too short a column' => {
		add => trigger(
			'AFTER UPDATE', 'INSERT INTO public.audit VALUES (new.id, new.state)'),
		# Only an answer that is lost makes a row verifying, for a while.
		email => 'x-drop-after--short@example.com',
		state => 'sent 1',
		logged => qr/is set aside: value too long for type character varying\(8\) \(SQLSTATE 22001\)/
	},
	'a trigger that raises when it is claimed' => {
		add => trigger('BEFORE UPDATE',
			q(IF new.state = 'sending' THEN RAISE 'not this one'; END IF)),
		state => 'queued 0',
		reason => qr/not this one \(SQLSTATE P0001\)/
	},
	'a trigger that raises when it is settled' => {
		add => trigger('BEFORE UPDATE',
			q(IF new.state = 'sent' THEN RAISE 'not this one'; END IF)),
		state => 'verifying 1',
		reason => qr/not this one/
	},
	'a trigger that raises always' => {
		add => trigger('BEFORE UPDATE', q(RAISE 'never')),
		state => 'queued 0',
		reason => qr/never/
	},
	'a trigger that names a table without its schema' => {
		add => trigger('AFTER UPDATE', 'INSERT INTO audit VALUES (new.id)'),
		state => 'queued 0',
		reason => qr/relation "audit" does not exist/
	},
	'a deferred constraint trigger that raises' => {
		add => trigger(
			'CONSTRAINT AFTER UPDATE',
			q(IF new.state = 'sent' THEN RAISE 'at the end'; END IF)),
		state => 'verifying 1',
		reason => qr/at the end/
	},
	'a CHECK constraint on what Clerk has given' => {
		add => q(ALTER TABLE clerk_invitation_outbox ADD CONSTRAINT added
			CHECK (organization_id <> 'org_added' OR invitation_id IS NULL)),
		remove => 'ALTER TABLE clerk_invitation_outbox DROP CONSTRAINT added',
		state => 'verifying 1',
		reason => qr/violates check constraint "added" \(SQLSTATE 23514\)/
	},
	'a CHECK constraint on every change' => {
		add => q(ALTER TABLE clerk_invitation_outbox ADD CONSTRAINT added
			CHECK (organization_id <> 'org_added' OR
				(attempts = 0 AND database_error IS NULL))),
		remove => 'ALTER TABLE clerk_invitation_outbox DROP CONSTRAINT added',
		state => 'queued 0',
		reason => undef
	},
	'a unique index on what is queued' => {
		add => q(CREATE UNIQUE INDEX added ON clerk_invitation_outbox
			(organization_id, lower(email_address)) WHERE state = 'queued'),
		remove => 'DROP INDEX added',
		# It goes back to the queue, where another row is by then.
		email => 'x-drop-once--unique@example.com',
		another => 1,
		state => 'verifying 1',
		reason => qr/duplicate key value violates unique constraint "added"/
	});

check_added($_, $ADDED{$_}) foreach sort keys %ADDED;
check_log();
check_left_behind();
check_abandon();
check_worker_status();
check_removal();
check_refresh();
check_advisory_locks();
check_nested_function();
check_lock_elsewhere();
check_namesake();

$node->stop;
done_testing();

sub check_added
{
	my ($title, $case) = @_;
	my $email = $case->{email} // 'added@example.com';
	my $before = enqueue(email_address => 'before@example.com');
	my $id = enqueue(organization_id => 'org_added', email_address => $email);
	my $after = enqueue(email_address => 'after@example.com');

	my $log = -s $node->logfile;
	$node->safe_psql('postgres', $case->{add});
	if ($case->{another})
	{
		send_invitations("SET clerk_invite.verify_delay = '1h';");
		enqueue(
			organization_id => 'org_added',
			email_address => $email,
			send_after => 'infinity');
	}
	send_invitations();
	is(state_of($before), 'sent 1', "$title: what came before is sent");
	is(state_of($after), 'sent 1', '... and what came after it');
	for (1 .. 3)
	{
		make_due();
		my $call = send_invitations();
		is($call->{sqlstate}, '', '... and no call fails');
	}
	is(state_of($id), $case->{state}, '... while the row itself is refused');
	like(slurp_file($node->logfile, $log),
		$case->{logged}, '... for a while, as the log says')
	  if $case->{logged};
	if ($case->{reason})
	{
		like(row($id)->{database_error}, $case->{reason}, '... and says why');
		cmp_ok(row($id)->{consecutive_failures},
			'>', 0, '... and how often');
	}
	my $later = enqueue(email_address => 'later@example.com');
	send_invitations();
	is(state_of($later), 'sent 1', '... and others go on');

	$node->safe_psql(
		'postgres',
		$case->{remove} // (
			'DROP TRIGGER added ON clerk_invitation_outbox;'
			  . 'DROP FUNCTION added();'));
	wait_until(
		'the row goes on',
		sub {
			make_due();
			send_invitations();
			return state_of($id) =~ /^(?:sent|skipped) /;
		});
	is(created($email), 1, '... it goes on when the reason is gone, once');
	is(row($id)->{database_error}, undef, '... and says so');
	empty();
	return;
}

# The whole row is in PostgreSQL's DETAIL, and what is in it may be in the
# message of a trigger.
sub check_log
{
	my $log = -s $node->logfile;
	my $said = '';

	$node->safe_psql('postgres',
		trigger('BEFORE UPDATE',
			q(IF new.url IS NOT NULL THEN RAISE 'this: %', new.url; END IF)));
	my $id = enqueue(
		organization_id => 'org_added',
		email_address => 'secret@example.com');
	$said .= send_invitations()->{stderr};
	like(row($id)->{database_error}, qr/this: \*+/, 'a trigger tells the url');
	$node->safe_psql('postgres',
		'DROP TRIGGER added ON clerk_invitation_outbox; DROP FUNCTION added();'
		  . q(ALTER TABLE clerk_invitation_outbox ADD CONSTRAINT added
			CHECK (organization_id <> 'org_added' OR url IS NULL)));
	make_due();
	$said .= send_invitations()->{stderr};
	like(row($id)->{database_error},
		qr/constraint "added"/, '... or a constraint refuses it');
	$node->safe_psql('postgres',
		'ALTER TABLE clerk_invitation_outbox DROP CONSTRAINT added');
	my $logged = slurp_file($node->logfile, $log);
	like($logged, qr/invitation $id of the outbox is set aside/,
		'... which the log has');
	foreach my $text ($logged, $said, row($id)->{database_error})
	{
		unlike($text, qr/ticket|accept-invitation|__clerk/i,
			'... and nothing has the url');
	}
	make_due();
	send_until_settled($node);
	my ($url) = $node->safe_psql('postgres',
		"SELECT url FROM clerk_invitation_outbox WHERE id = $id");
	ok(length $url > 10, 'there is a url');
	foreach my $text ($logged, $said)
	{
		ok(index($text, $url) < 0, '... that was told nobody');
	}
	empty();
	return;
}

# What a sender that died has left, beside a row that cannot be changed.
sub check_left_behind
{
	$node->safe_psql('postgres',
		q(INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, state, attempts, claimed_at,
			 first_claimed_at)
		SELECT organization, 'left@example.com', 'org:member', 'sending', 1,
			now() - interval '1 hour', now() - interval '1 hour'
		FROM unnest(ARRAY['org_added', 'org_other']) AS organization));
	$node->safe_psql('postgres', trigger('BEFORE UPDATE', q(RAISE 'never')));
	send_invitations();
	is( $node->safe_psql('postgres',
			"SELECT string_agg(concat_ws(' ', organization_id, state, database_error), ', ' ORDER BY id) FROM clerk_invitation_outbox"
		),
		'org_added verifying never (SQLSTATE P0001), org_other verifying',
		'what was left behind is taken over, but for what cannot be');
	$node->safe_psql('postgres',
		'DROP TRIGGER added ON clerk_invitation_outbox; DROP FUNCTION added();');
	make_due();
	send_until_settled($node);
	is( $node->safe_psql('postgres',
			"SELECT string_agg(state, ', ' ORDER BY id) FROM clerk_invitation_outbox"
		),
		'sent, sent',
		'... and that follows');
	empty();
	return;
}

sub check_abandon
{
	$node->safe_psql('postgres', trigger('BEFORE UPDATE', q(RAISE 'never')));
	my $id = enqueue(
		organization_id => 'org_added',
		email_address => 'stuck@example.com');

	send_invitations();
	my $cancel = attempt($node, 'postgres', "SELECT clerk_cancel_invitation($id)");
	is($cancel->{sqlstate}, 'P0001', 'a trigger keeps a row from being canceled');
	is($node->safe_psql('postgres', "SELECT clerk_abandon_invitation($id)"),
		't', '... but an administrator gets it out');
	is(state_of($id), 'canceled 0', '... canceled');
	like(row($id)->{error_message}, qr/never/, '... with the reason');
	$node->safe_psql('postgres', 'DELETE FROM clerk_invitation_outbox');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM clerk_invitation_outbox'),
		'0', '... and it can be deleted');
	$node->safe_psql('postgres',
		'DROP TRIGGER added ON clerk_invitation_outbox; DROP FUNCTION added();');
	return;
}

sub check_worker_status
{
	my $last_error = sub {
		return $node->safe_psql('postgres',
			'SELECT last_error FROM clerk_worker_status()');
	};

	$node->safe_psql('postgres', trigger('BEFORE UPDATE', q(RAISE 'never')));
	reconfigure($node, 'clerk_invite.worker = on');
	my $id = enqueue(
		organization_id => 'org_added',
		email_address => 'told@example.com');
	wait_until('the worker tells of what is set aside',
		sub { $last_error->() =~ /^1 set aside/ });
	like($last_error->(), qr/^1 set aside: never/, '... and why');
	my $other = enqueue(email_address => 'beside@example.com');
	wait_until('another one is sent', sub { state_of($other) eq 'sent 1' });
	$node->safe_psql('postgres',
		'DROP TRIGGER added ON clerk_invitation_outbox; DROP FUNCTION added();');
	make_due();

	# The worker may have the row already, so another one's change wakes it.
	$node->safe_psql('postgres',
		"UPDATE clerk_invitation_outbox SET send_after = send_after WHERE id = $other");
	wait_until('the worker sends the row', sub { state_of($id) eq 'sent 1' });
	wait_until('the worker has nothing to tell', sub { $last_error->() eq '' });
	pass('the worker sends it when the reason is gone');
	reconfigure($node, 'clerk_invite.worker = off');
	empty();
	return;
}

# Rows that another table refers to stay, whatever is removed around them, and
# new ones do not wait for that.
sub check_removal
{
	my $call = "SET clerk_invite.retention = '1h'; CALL clerk_send_invitations();";

	$node->safe_psql(
		'postgres', q(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address,
			role, state, settled_at)
		SELECT 'org_old', 'old' || i || '@example.com', 'org:member', 'sent',
			now() - interval '2 hours' - i * interval '1 second'
		FROM generate_series(1, 300) AS i;
		CREATE TABLE referrer (id bigint REFERENCES clerk_invitation_outbox);
		INSERT INTO referrer SELECT id FROM clerk_invitation_outbox
			WHERE organization_id = 'org_old' ORDER BY id LIMIT 5 OFFSET 100;
		CREATE INDEX ON referrer (id)));
	my $id = enqueue(email_address => 'new@example.com');
	my $sent = attempt($node, 'postgres', $call);
	is($sent->{sqlstate}, '', 'a foreign key makes no call fail');
	is(state_of($id), 'sent 1', '... nor holds up what is new');
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM clerk_invitation_outbox WHERE organization_id = 'org_old'"
		),
		'5',
		'... and what can be removed is');
	$node->safe_psql('postgres', 'DROP TABLE referrer');
	attempt($node, 'postgres', $call);
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM clerk_invitation_outbox WHERE organization_id = 'org_old'"
		),
		'0',
		'... and the rest when nothing refers to it');

	# More than one call passes over.
	$node->safe_psql(
		'postgres', q(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address,
			role, state, settled_at)
		SELECT 'org_old', 'old' || i || '@example.com', 'org:member', 'sent',
			now() - interval '2 hours' - i * interval '1 second'
		FROM generate_series(1, 2000) AS i;
		CREATE TABLE referrer AS SELECT id FROM clerk_invitation_outbox
			WHERE organization_id = 'org_old' AND id % 10 <> 0;
		CREATE INDEX ON referrer (id);
		ALTER TABLE referrer ADD FOREIGN KEY (id) REFERENCES clerk_invitation_outbox));
	$node->safe_psql('postgres',
		"SET client_min_messages = error; $call\n" . "$call\n" x 40);
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM clerk_invitation_outbox WHERE organization_id = 'org_old'"
		),
		'1800',
		'a session comes to all that can be removed');
	$node->safe_psql('postgres', 'DROP TABLE referrer');
	empty();
	return;
}

sub check_refresh
{
	my @ids = (
		enqueue(organization_id => 'org_added', email_address => 'a@example.com'),
		enqueue(email_address => 'b@example.com'));

	send_until_settled($node);
	$node->safe_psql('postgres',
		trigger('BEFORE UPDATE', q(RAISE 'no status: %', old.url)));
	$clerk->control('accept', { id => $_->{id} })
	  foreach map { $clerk->invitations_for("$_\@example.com") } qw(a b);
	my $log = -s $node->logfile;
	my $refresh = attempt($node, 'postgres', 'CALL clerk_refresh_invitations()');
	is($refresh->{sqlstate}, '', 'a refresh goes on');
	is( $node->safe_psql('postgres',
			"SELECT string_agg(status, ', ' ORDER BY id) FROM clerk_invitation_outbox"
		),
		'pending, accepted',
		'... beside a row that cannot be changed');
	like($refresh->{stderr}, qr/could not record the status of invitation/,
		'... which it tells');
	unlike($refresh->{stderr} . slurp_file($node->logfile, $log),
		qr/ticket|accept-invitation|__clerk/i, '... without its url');
	$node->safe_psql('postgres',
		'DROP TRIGGER added ON clerk_invitation_outbox; DROP FUNCTION added();');
	empty();
	return;
}

# A trigger may release the sender's lock.
sub check_advisory_locks
{
	$node->safe_psql('postgres',
		trigger('AFTER UPDATE', 'PERFORM pg_catalog.pg_advisory_unlock_all()'));
	my @emails = map { "unlocked$_\@example.com" } 1 .. 30;
	my @ids = map {
		enqueue(organization_id => 'org_added', email_address => $_)
	} @emails;
	my @senders = map { start_psql($node, '') } 1 .. 3;

	send_to_psql($_,
		"SET client_min_messages = error;\n" . "CALL clerk_send_invitations();\n" x 20)
	  foreach @senders;
	foreach my $sender (@senders)
	{
		my (undef, $stderr) = output_of_psql($sender);
		is($stderr, '', 'senders whose lock is released by a trigger go on');
		$sender->{harness}->finish;
	}
	send_until_settled($node);
	is( $node->safe_psql('postgres',
			"SELECT string_agg(DISTINCT state, ',') FROM clerk_invitation_outbox"),
		'sent',
		'... everything is sent');
	is(scalar(grep { created($_) != 1 } @emails), 0, '... once');
	$node->safe_psql('postgres',
		'DROP TRIGGER added ON clerk_invitation_outbox; DROP FUNCTION added();');
	empty();
	return;
}

# A trigger may call the extension's own functions in the middle of a sender's
# statement, also before the guard is asked.
sub check_nested_function
{
	$node->safe_psql(
		'postgres', q(
		CREATE FUNCTION added() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF new.state = 'sent' THEN
				PERFORM public.clerk_enqueue_organization_invitation('org_next',
					NULL, new.email_address, 'org:member', send_after => 'infinity');
			END IF;
			RETURN new;
		END $$;
		CREATE TRIGGER added BEFORE UPDATE ON clerk_invitation_outbox FOR EACH ROW
			WHEN (new.organization_id = 'org_added') EXECUTE FUNCTION added();));
	my @ids = map {
		enqueue(
			organization_id => 'org_added',
			email_address => "nested$_\@example.com")
	} 1 .. 3;
	send_invitations();
	is( join(', ', map { state_of($_) } @ids),
		'sent 1, sent 1, sent 1',
		'a trigger may enqueue while its row is settled');
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM clerk_invitation_outbox WHERE organization_id = 'org_next'"
		),
		'3',
		'... once for each row');
	$node->safe_psql('postgres',
		'DROP TRIGGER added ON clerk_invitation_outbox; DROP FUNCTION added();');
	empty();
	return;
}

# A trigger waits for a row of another table that somebody has locked.
sub check_lock_elsewhere
{
	$node->safe_psql('postgres',
		'CREATE TABLE tally (count integer); INSERT INTO tally VALUES (0);'
		  . trigger('AFTER UPDATE', 'UPDATE public.tally SET count = count + 1'));
	my $holder = start_psql($node, '');
	run_in_psql($holder, 'BEGIN; UPDATE tally SET count = 0;');
	my $id = enqueue(
		organization_id => 'org_added',
		email_address => 'waits@example.com');
	my $other = enqueue(email_address => 'passes@example.com');
	my $call = send_invitations("SET statement_timeout = '60s';");
	is($call->{sqlstate}, '', 'a lock on another table ends no call');
	is(state_of($other), 'sent 1', '... nor keeps other rows');
	is(state_of($id), 'queued 0', '... but for the one that needs it');
	like(row($id)->{database_error}, qr/lock timeout/, '... which says so');
	run_in_psql($holder, 'ROLLBACK;');
	$holder->{harness}->finish;
	make_due();
	send_until_settled($node);
	is(state_of($id), 'sent 1', '... until the lock is gone');
	$node->safe_psql('postgres',
		'DROP TRIGGER added ON clerk_invitation_outbox; DROP FUNCTION added(); DROP TABLE tally;');
	empty();
	return;
}

# A constraint trigger of somebody else's may have the name of one on the outbox:
# it fires neither early nor with other rights.
sub check_namesake
{
	$node->safe_psql(
		'postgres', q(
		CREATE ROLE namesake;
		GRANT CREATE ON SCHEMA public TO namesake;
		GRANT EXECUTE ON FUNCTION clerk_enqueue_organization_invitation TO namesake;
		CREATE TABLE organizations (id text PRIMARY KEY);
		INSERT INTO organizations VALUES ('org_test'), ('org_added');
		ALTER TABLE clerk_invitation_outbox ADD CONSTRAINT outbox_fk
			FOREIGN KEY (organization_id) REFERENCES organizations DEFERRABLE;
		SET ROLE namesake;
		CREATE TABLE bait (fired_as text);
		CREATE FUNCTION bite() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			RAISE LOG 'namesake fired as %', current_user;
			RETURN NULL;
		END $$;
		CREATE CONSTRAINT TRIGGER outbox_fk AFTER INSERT ON bait
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION bite();));
	my $log = -s $node->logfile;
	$node->safe_psql(
		'postgres', q(
		SET ROLE namesake;
		BEGIN;
		INSERT INTO bait VALUES ('x');
		SELECT clerk_enqueue_organization_invitation('org_test', NULL,
			'bait@example.com', 'org:member');
		COMMIT;));
	is( join(' ', slurp_file($node->logfile, $log) =~ /LOG:  namesake fired as (\w+)/g),
		'namesake',
		'a trigger whose name a constraint of the outbox shares fires as its own role');
	$node->safe_psql(
		'postgres', q(
		ALTER TABLE clerk_invitation_outbox DROP CONSTRAINT outbox_fk;
		DROP TABLE organizations;
		DROP OWNED BY namesake;
		DROP ROLE namesake;));
	empty();
	return;
}

# A trigger on rows of org_added.
sub trigger
{
	my ($when, $does) = @_;
	my $constraint = $when =~ s/^CONSTRAINT // ? 'CONSTRAINT' : '';
	my $deferred = $constraint ? 'DEFERRABLE INITIALLY DEFERRED' : '';

	return qq(
		CREATE FUNCTION added() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			$does;
			RETURN new;
		END \$\$;
		CREATE $constraint TRIGGER added $when ON clerk_invitation_outbox
			$deferred FOR EACH ROW WHEN (new.organization_id = 'org_added')
			EXECUTE FUNCTION added(););
}

sub empty
{
	$node->safe_psql('postgres',
		'SET session_replication_role = replica; DELETE FROM clerk_invitation_outbox');
	$clerk->control('reset');
	return;
}
