# Whatever somebody attached to the outbox has no more rights than its owner: not
# in the worker, in a CALL, in a statement on a table of members, in a function
# of the extension, nor when any of these commits.
use strict;
use warnings;

use ClerkTest;
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

check_triggers();
check_deferral();
check_what_survives();
check_columns();
check_tables();

$test->node->stop;
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
			EXECUTE FUNCTION attack.run('SET CONSTRAINTS ALL DEFERRED');));
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
		));
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
			('org_test', 'attack-child-' || md5(random()::text) || '\@example.com', 'org:member');),
		runs => [qw(send worker)]);
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
