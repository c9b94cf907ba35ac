# Whatever somebody attached to the outbox has no more rights than its owner: not
# in the worker, in a CALL, in a statement on a table of members, in a function
# of the extension, nor when any of these commits.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use PrivilegesTest;
use Test::More;

# A trigger for the rows of attackers only, so that the others must get through.
my $OUTBOX = 'ON clerk_invitation_outbox';
my $CHANGE = "INSERT OR UPDATE $OUTBOX";
my $ROW = "FOR EACH ROW WHEN (NEW.email_address LIKE '%attack-%')";
my $DEFERRED =
  "CREATE CONSTRAINT TRIGGER attack AFTER $CHANGE DEFERRABLE INITIALLY DEFERRED $ROW";
my $FIRE = 'EXECUTE FUNCTION attack.fire()';

# All that write: where code that is attached in a plain way has to run.
my @PROCESSES = qw(functions members send refresh retry worker);
my @INSERTING = qw(functions members);

my $clerk =
  ClerkTest::Fake->start('--single-limit', '100000', '--bulk-limit', '100000');
my $test = PrivilegesTest->new($clerk);
my $node = $test->node;

check_triggers();
check_deferral();
check_what_survives();
check_columns();
check_tables();
check_references();
check_lost_lock();
check_new_owner();

$node->stop;
done_testing();

# Triggers of the owner, and of those whom he has granted that.
sub check_triggers
{
	foreach my $grant (undef, 'TRIGGER', 'ALL')
	{
		my $whose =
		  $grant ? "a role with $grant" : "the outbox's owner";
		my @who = ($grant ? 'mallory' : 'bob');

		$test->check("a row trigger of $whose",
			@who, "CREATE TRIGGER attack AFTER $CHANGE $ROW $FIRE",
			grant => $grant, runs => \@PROCESSES);
		$test->check("a deferred trigger of $whose",
			@who, "$DEFERRED $FIRE", grant => $grant);
		$test->check(
			"a cursor WITH HOLD of $whose",
			@who,
			statement_trigger(
				'DECLARE NAME CURSOR WITH HOLD FOR SELECT attack.payload()'),
			grant => $grant);
	}
	$test->check('a trigger that changes the row',
		'bob', "CREATE TRIGGER attack BEFORE $CHANGE $ROW $FIRE",
		runs => \@PROCESSES);
	$test->check('a trigger before the statement',
		'bob', "CREATE TRIGGER attack BEFORE $CHANGE $FIRE",
		runs => \@PROCESSES);
	$test->check(
		'a trigger that is another function',
		'bob', qq(
		CREATE FUNCTION attack.definer() RETURNS trigger LANGUAGE plpgsql
			SECURITY DEFINER SET search_path = attack SET DateStyle = 'German' AS \$\$
		BEGIN
			PERFORM payload();
			RETURN NEW;
		END \$\$;
		CREATE TRIGGER attack BEFORE $CHANGE $ROW EXECUTE FUNCTION attack.definer();),
		runs => \@PROCESSES);
	return;
}

# What waits for the commit, in the ways to get there.
sub check_deferral
{
	$test->check(
		'a trigger that another one defers',
		'bob', qq(
		CREATE CONSTRAINT TRIGGER late AFTER $CHANGE DEFERRABLE INITIALLY IMMEDIATE
			$ROW $FIRE;
		CREATE TRIGGER attack BEFORE $CHANGE
			EXECUTE FUNCTION attack.run('SET CONSTRAINTS ALL DEFERRED');),
		refused => 1);
	$test->check(
		'a deferred trigger whose function defers another one',
		'bob', qq(
		CREATE TABLE attack.relay (count integer);
		INSERT INTO attack.relay VALUES (0);
		CREATE CONSTRAINT TRIGGER goal AFTER UPDATE ON attack.relay
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW $FIRE;
		$DEFERRED EXECUTE FUNCTION attack.run('SET CONSTRAINTS ALL DEFERRED',
			'UPDATE attack.relay SET count = count + 1',
			'DECLARE NAME CURSOR WITH HOLD FOR SELECT attack.payload()');));
	$test->check(
		'a deferred trigger of another table',
		'bob', q(
		CREATE TABLE attack.relay (count integer);
		INSERT INTO attack.relay VALUES (0);
		CREATE CONSTRAINT TRIGGER goal AFTER UPDATE ON attack.relay
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attack.fire();
		) . statement_trigger('UPDATE attack.relay SET count = count + 1'));
	$test->check(
		'a deferred foreign key with an action',
		'bob', q(
		CREATE TABLE attack.target (id bigint PRIMARY KEY);
		CREATE TABLE attack.source (
			id bigint DEFAULT attack.pure(1::bigint) CHECK (attack.payload())
				REFERENCES attack.target ON DELETE SET DEFAULT
				DEFERRABLE INITIALLY DEFERRED);
		CREATE CONSTRAINT TRIGGER goal AFTER UPDATE ON attack.source
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attack.fire();
		INSERT INTO attack.target VALUES (1);
		) . statement_trigger('INSERT INTO attack.target VALUES (2)',
			'INSERT INTO attack.source VALUES (2)',
			'DELETE FROM attack.target WHERE id = 2'));
	$test->check(
		'a deferred exclusion constraint with an expression',
		'bob', q(
		CREATE TABLE attack.rivals (x bigint, y text,
			EXCLUDE ((attack.pure(x)) WITH =) DEFERRABLE INITIALLY DEFERRED);
		) . statement_trigger(
			'DELETE FROM attack.rivals',
			q(INSERT INTO attack.rivals VALUES (1, 'first')),
			q(INSERT INTO attack.rivals VALUES (1, 'second')),
			# There is a conflict to be looked for at the commit, but none found.
			q(DELETE FROM attack.rivals WHERE y = 'first')));
	$test->check(
		'temporary tables that are emptied at the commit',
		'bob',
		statement_trigger(
			'CREATE TEMPORARY TABLE NAME (x bigint) ON COMMIT DELETE ROWS',
			'CREATE TEMPORARY TABLE loot ON COMMIT DELETE ROWS AS SELECT 1::bigint AS x',
			'CREATE INDEX ON loot (attack.pure(x)) WHERE attack.pure(1::bigint) = 1',
			'INSERT INTO loot VALUES (2)',
			'CREATE CONSTRAINT TRIGGER goal AFTER INSERT ON loot DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attack.fire()',
			'INSERT INTO loot VALUES (3)'));
	return;
}

# What the caller would have in his session, or transaction, afterwards.
sub check_what_survives
{
	my %settings = (
		search_path => 'attack',
		'app.tenant' => 'mallory',
		statement_timeout => 54321,
		lock_timeout => 54321,
		default_transaction_read_only => 'on',
		default_transaction_isolation => 'serializable',
		transaction_read_only => 'on',
		client_min_messages => 'error',
		row_security => 'off',
		enable_seqscan => 'off',
		plan_cache_mode => 'force_custom_plan',
		synchronous_commit => 'off',
		DateStyle => 'German',
		session_replication_role => 'replica',
		role => 'mallory');

	foreach my $case ([ 'the session', 'false' ], [ 'the transaction', 'true' ])
	{
		my ($what, $local) = @$case;

		foreach my $when ('statement_trigger', 'deferred_trigger')
		{
			no strict 'refs';
			$test->check(
				"settings for $what of whoever calls, by a "
				  . ($when =~ s/_/ /r),
				'bob',
				&$when(
					map { "SELECT set_config('$_', '$settings{$_}', $local)" }
					  sort keys %settings));
		}
	}
	$test->check(
		'temporary objects that hide others',
		'bob',
		statement_trigger(
			'CREATE TEMPORARY TABLE members (email text CHECK (attack.payload()))',
			'CREATE TEMPORARY VIEW clerk_invitation_progress AS SELECT attack.payload()',
			'CREATE FUNCTION pg_temp.NAME() RETURNS boolean LANGUAGE sql AS \'SELECT attack.payload()\''
		),
		refused => 1);
	$test->check(
		'prepared statements and channels',
		'bob',
		statement_trigger(
			'PREPARE NAME AS SELECT attack.payload()', 'LISTEN gossip',
			'NOTIFY gossip'));
	return;
}

# Columns, and what is computed for them.
sub check_columns
{
	my $alter = 'ALTER TABLE clerk_invitation_outbox';

	$test->check(
		'the default of a column',
		'bob',
		"$alter ADD COLUMN loot boolean DEFAULT attack.payload()",
		runs => \@INSERTING);
	$test->check('a CHECK constraint',
		'bob', "$alter ADD CONSTRAINT attack CHECK (attack.payload())",
		runs => \@PROCESSES);
	$test->check(
		'a generated column',
		'bob',
		"$alter ADD COLUMN loot text GENERATED ALWAYS AS (attack.pure(state)) STORED",
		runs => \@PROCESSES);
	$test->check(
		'the domain of a column',
		'bob', qq(
		CREATE DOMAIN attack.code AS text CHECK (attack.pure(VALUE) IS NOT DISTINCT FROM VALUE);
		$alter ALTER COLUMN status TYPE attack.code;),
		undo => "$alter ALTER COLUMN status TYPE text");
	$test->check('an index on an expression',
		'bob', "CREATE INDEX $OUTBOX (attack.pure(state))",
		runs => \@PROCESSES);
	$test->check(
		'the predicate of an index',
		'bob',
		"CREATE INDEX $OUTBOX (id) WHERE attack.pure(state) <> '' AND attack.pure(1::bigint) = 1",
		runs => \@PROCESSES);
	return;
}

# Rules, policies, and tables that stand behind the outbox.
sub check_tables
{
	$test->check(
		'rules',
		'bob', qq(
		CREATE TABLE attack.copy (x boolean);
		CREATE RULE attack_insert AS ON INSERT TO clerk_invitation_outbox
			DO ALSO INSERT INTO attack.copy VALUES (attack.payload());
		CREATE RULE attack_update AS ON UPDATE TO clerk_invitation_outbox
			DO ALSO INSERT INTO attack.copy VALUES (attack.payload());));
	$test->check(
		'a policy that the owner obeys',
		'bob', q(
		ALTER TABLE clerk_invitation_outbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		CREATE POLICY attack ON clerk_invitation_outbox
			USING (attack.payload()) WITH CHECK (attack.payload());));
	$test->check(
		'a child of the outbox',
		'bob', qq(
		CREATE TABLE attack.child () INHERITS (clerk_invitation_outbox);
		CREATE TRIGGER attack BEFORE INSERT OR UPDATE ON attack.child
			FOR EACH ROW $FIRE;
		CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON attack.child
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW $FIRE;
		ALTER TABLE attack.child ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		CREATE POLICY attack ON attack.child USING (attack.payload());
		INSERT INTO attack.child (organization_id, email_address, role) VALUES
			('org_test', 'attack-child-' || md5(random()::text) || '\@example.com', 'org:member');));
	return;
}

# Who may refer to the outbox has code of his own run when old rows are removed.
sub check_references
{
	foreach my $database ('postgres', 'worked')
	{
		my $count = sub {
			my ($state, $name) = @_;
			return $test->psql_as('bob', $database,
				"SELECT count(*) FROM clerk_invitation_outbox WHERE state = '$state' AND email_address LIKE '$name%'"
			);
		};

		$node->safe_psql('postgres',
			"ALTER DATABASE $database SET clerk_invite.retention = '1min'");
		$node->safe_psql($database,
			'GRANT REFERENCES (id) ON clerk_invitation_outbox TO mallory');
		$test->psql_as('bob', $database,
			insert_sql("kept-$database", "removed-$database"));
		$node->safe_psql($database, 'CALL clerk_send_invitations()')
		  if $database eq 'postgres';
		wait_until('they are sent', sub { $count->('sent', '') eq '2' });
		$test->psql_as(
			'mallory',
			$database,
			$test->tools . q(
			CREATE TABLE attack.referring (id bigint
				REFERENCES public.clerk_invitation_outbox (id) ON DELETE CASCADE);
			CREATE TRIGGER at_once AFTER DELETE ON attack.referring
				FOR EACH ROW EXECUTE FUNCTION attack.fire();
			CREATE TRIGGER held AFTER DELETE ON attack.referring
				EXECUTE FUNCTION attack.run('DECLARE NAME CURSOR WITH HOLD FOR SELECT attack.payload()');
			CREATE CONSTRAINT TRIGGER late AFTER DELETE ON attack.referring
				DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attack.fire();
			GRANT INSERT ON attack.referring TO bob;));
		$test->psql_as(
			'bob', $database, q(
			INSERT INTO attack.referring SELECT id FROM clerk_invitation_outbox;
			BEGIN;
			ALTER TABLE clerk_invitation_outbox DISABLE TRIGGER USER;
			UPDATE clerk_invitation_outbox SET settled_at = now() - interval '1 hour'
				WHERE email_address LIKE 'removed%';
			ALTER TABLE clerk_invitation_outbox ENABLE TRIGGER USER;
			COMMIT;));

		my $log = -s $node->logfile;
		if ($database eq 'postgres')
		{
			$test->seen_in(
		remove => 'postgres',
				'CALL clerk_send_invitations()');
		}
		else
		{
			$test->psql_as('bob', $database, insert_sql('honest-removal'));
			wait_until('the old row is gone',
				sub { $count->('sent', 'removed') eq '0' });
		}
		my %seen = payloads(slurp_file($node->logfile, $log));
		is( join(', ', grep { !/as (bob|mallory)$/ } sort keys %seen),
			'',
			"a table in $database that refers to the outbox: its triggers have no more rights than the outbox's owner"
		);
		is($test->superusers, 'postgres', '... and nobody becomes a superuser');
		is($count->('sent', 'removed'), '0', '... and old rows are removed');
		$node->safe_psql('postgres',
			"ALTER DATABASE $database RESET clerk_invite.retention");
		$test->psql_as('bob', $database,
			'REVOKE ALL (id) ON clerk_invitation_outbox FROM mallory');
	}
	$test->clean_up();
	return;
}

# A trigger gives up the session's advisory locks in the middle of a pass.
sub check_lost_lock
{
	my $email = 'x-slow-2000--lock@example.com';
	my $sender = start_psql($node, '');

	$test->psql_as('bob', 'postgres',
		$test->tools
		  . q(CREATE TRIGGER attack AFTER UPDATE ON clerk_invitation_outbox
			EXECUTE FUNCTION attack.run('SELECT pg_advisory_unlock_all()');)
		  . insert_sql('x-slow-2000--lock'));
	send_to_psql($sender, 'CALL clerk_send_invitations();');
	wait_until('the request is there', sub { $clerk->requests_for($email) });
	is(attempt($node, 'postgres', 'CALL clerk_send_invitations();')->{sqlstate},
		'', 'a second sender comes in');
	unlike(
		( output_of_psql($sender) )[1],
		qr/WARNING|ERROR/,
		'... and the first one knows of no lock that it has lost');
	run_in_psql($sender, 'CALL clerk_send_invitations();');
	is( $test->psql_as('bob', 'postgres',
			'SELECT state, attempts FROM clerk_invitation_outbox'),
		'sent|1',
		'... and the row is sent');
	is(scalar(() = $clerk->requests_for($email)), 1, '... once');
	$sender->{harness}->finish;
	$test->clean_up();
	return;
}

# The outbox gets another owner while a pass is under way, who attaches something
# at once.
sub check_new_owner
{
	my $email = 'x-slow-1000--owner@example.com';
	my $sender = start_psql($node, '');

	$test->run(
		'ALTER TABLE clerk_invitation_outbox OWNER TO postgres',
		insert_sql('x-slow-1000--owner'));
	my $log = -s $node->logfile;
	run_in_psql($sender, "SELECT 'process send';");
	send_to_psql($sender, 'CALL clerk_send_invitations();');
	wait_until('the request is there', sub { $clerk->requests_for($email) });
	$test->run('ALTER TABLE clerk_invitation_outbox OWNER TO bob');
	$test->psql_as('bob', 'postgres',
		$test->tools
		  . 'CREATE TRIGGER attack AFTER UPDATE ON clerk_invitation_outbox EXECUTE FUNCTION attack.fire()'
	);
	output_of_psql($sender);
	run_in_psql($sender, 'CALL clerk_send_invitations();');
	my %seen = payloads(slurp_file($node->logfile, $log));
	is(join(', ', grep { !/as bob$/ } sort keys %seen),
		'', 'an owner that is new has no rights of the former one');
	is($test->superusers, 'postgres', '... and nobody becomes a superuser');
	is( $test->psql_as('bob', 'postgres',
			'SELECT state FROM clerk_invitation_outbox'),
		'sent',
		'... and the row is sent');
	$sender->{harness}->finish;
	$test->clean_up();
	return;
}

# Triggers whose functions run these statements.
sub statement_trigger
{
	return "CREATE TRIGGER attack AFTER $CHANGE EXECUTE FUNCTION attack.run("
	  . arguments(@_) . ')';
}

sub deferred_trigger
{
	return "$DEFERRED EXECUTE FUNCTION attack.run(" . arguments(@_) . ')';
}

sub arguments
{
	return join(', ', map { "'" . s/'/''/gr . "'" } @_);
}
