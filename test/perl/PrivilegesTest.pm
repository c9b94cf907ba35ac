# PrivilegesTest - code that somebody attached to the outbox, in every process
#
#	my $test = PrivilegesTest->new($clerk);
#	$test->check('a row trigger', 'bob', 'CREATE TRIGGER ...');
#
# The outbox belongs to bob, who is no superuser.  An attacker attaches code to
# it, and then a superuser and a role with little rights do what people do with
# an outbox: they call its functions, insert members, CALL the procedures.  In a
# second database the worker sends.  None of that code may have more rights than
# bob, nor leave anything in the session of those who call.
#
# The code tells the server's log which role it runs as: the log is still there
# when its transaction is rolled back.

package PrivilegesTest;

use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Nobody sends in one of them but who is told to; the other one has a worker.
my $CALLED = 'postgres';
my $WORKED = 'worked';

# Seconds in which a worker must have sent what is due.
my $PATIENCE = 20;

my $SETTINGS = q(
clerk_invite.single_requests_per_hour = 1000000
clerk_invite.bulk_requests_per_hour = 0
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
autovacuum = off
);

# An address that Clerk refuses once.
my $REFUSED = 'x-error-422-form_param_format_invalid-once--';

# What attackers use: functions of their own in a schema of their own.  The
# payload says who runs it, and tries to get further.  It never fails, so that
# nothing is undone that it has achieved.
my $TOOLS = q(
CREATE SCHEMA attack;
GRANT USAGE ON SCHEMA attack TO PUBLIC;

CREATE FUNCTION attack.payload() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	way text;
	aim text;
BEGIN
	RAISE LOG 'payload ran as % in %', current_user, current_database();
	FOREACH way IN ARRAY ARRAY[
		'SELECT 1',
		'SET ROLE NONE',
		'SET ROLE postgres',
		'SET SESSION AUTHORIZATION DEFAULT',
		'SET SESSION AUTHORIZATION postgres',
		'RESET ROLE',
		'RESET SESSION AUTHORIZATION']
	LOOP
		FOREACH aim IN ARRAY ARRAY[
			'ALTER ROLE prize SUPERUSER',
			'COPY (SELECT 1) TO PROGRAM ''true''',
			'SELECT pg_read_file(''PG_VERSION'')']
		LOOP
			BEGIN
				EXECUTE way;
				EXECUTE aim;
				RAISE LOG 'payload could % in %', aim, current_database();
				RETURN true;
			EXCEPTION WHEN OTHERS THEN
				NULL;
			END;
		END LOOP;
	END LOOP;
	RETURN true;
END $$;

CREATE FUNCTION attack.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM attack.payload();
	IF TG_OP = 'DELETE' THEN
		RETURN OLD;
	END IF;
	RETURN NEW;
END $$;

-- Runs what the trigger's arguments say, with a new name for NAME, whatever comes
-- of it.
CREATE FUNCTION attack.run() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	i integer;
BEGIN
	FOR i IN 0 .. TG_NARGS - 1 LOOP
		BEGIN
			EXECUTE replace(TG_ARGV[i], 'NAME', 'loot_' || md5(random()::text));
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
	IF TG_OP = 'DELETE' THEN
		RETURN OLD;
	END IF;
	RETURN NEW;
END $$;

-- What calls itself immutable may stand anywhere.
CREATE FUNCTION attack.pure(value bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM attack.payload();
	RETURN value;
END $$;

CREATE FUNCTION attack.pure(value text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM attack.payload();
	RETURN value;
END $$;
);

# Everything in a session that its user would notice, or trip over.
my $STATE = q(
SELECT line FROM (
	SELECT name || ' = ' || setting FROM pg_catalog.pg_settings
	UNION ALL SELECT 'app.tenant = ' || pg_catalog.current_setting('app.tenant', true)
	UNION ALL SELECT 'user ' || current_user || ', session ' || session_user
	UNION ALL SELECT 'listens to ' || c FROM pg_catalog.pg_listening_channels() AS c
	UNION ALL SELECT 'prepared statement ' || name FROM pg_catalog.pg_prepared_statements
	UNION ALL SELECT 'cursor ' || name FROM pg_catalog.pg_cursors WHERE name <> ''
	UNION ALL SELECT 'temporary ' || relname FROM pg_catalog.pg_class
		WHERE relnamespace = pg_catalog.pg_my_temp_schema()
	UNION ALL SELECT 'temporary ' || proname FROM pg_catalog.pg_proc
		WHERE pronamespace = pg_catalog.pg_my_temp_schema()
	UNION ALL SELECT 'advisory lock' FROM pg_catalog.pg_locks
		WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'advisory'
) AS state (line) ORDER BY line;
);

# A cluster with both databases and all roles.
sub new
{
	my ($class, $clerk) = @_;
	my $node = clerk_cluster('privileges', $clerk, conf => $SETTINGS);
	my $self = bless { node => $node, clerk => $clerk, attacks => 0 }, $class;

	$node->safe_psql(
		'postgres', qq(
		CREATE ROLE bob LOGIN;
		CREATE ROLE mallory LOGIN;
		CREATE ROLE erin LOGIN;
		CREATE ROLE prize;
		CREATE DATABASE $WORKED;
		ALTER DATABASE $WORKED SET clerk_invite.worker = on;));
	$node->safe_psql($WORKED, 'CREATE EXTENSION clerk_invite');
	foreach my $database ($CALLED, $WORKED)
	{
		$node->safe_psql(
			$database, qq(
			GRANT CREATE ON DATABASE $database TO bob, mallory;
			ALTER TABLE clerk_invitation_outbox OWNER TO bob;
			CREATE TABLE members (email text);
			GRANT INSERT ON members TO erin;
			CREATE TRIGGER invite AFTER INSERT ON members FOR EACH ROW
				EXECUTE FUNCTION clerk_invitation_trigger('=org_test', '', 'email', '=org:member');
			DO \$\$
			DECLARE
				routine regprocedure;
			BEGIN
				FOR routine IN SELECT objid FROM pg_depend
					WHERE deptype = 'e' AND classid = 'pg_proc'::regclass
				LOOP
					EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO erin', routine);
				END LOOP;
			END \$\$;));
	}
	return $self;
}

sub node
{
	my ($self) = @_;

	return $self->{node};
}

# Attaches code to the outbox, lets everybody work, and looks at what became of
# it.  %params: "grant" is what the attacker has on the outbox; "runs" lists the
# processes in which the code must have run, as bob, for the check to mean
# something; "undo" is SQL of bob's that cascading DROPs do not do.
sub check
{
	my ($self, $title, $attacker, $sql, %params) = @_;
	my $node = $self->{node};
	my $number = ++$self->{attacks};
	my %seen;
	my $left_behind = '';

	foreach my $database ($CALLED, $WORKED)
	{
		$self->psql_as('bob', $database,
			"GRANT $params{grant} ON clerk_invitation_outbox TO $attacker")
		  if $params{grant};
		$self->psql_as($attacker, $database, "$TOOLS\n$sql");
	}

	my $log = -s $node->logfile;
	$self->psql_as('bob', $WORKED,
		_insert("attack-w$number", "honest-w$number"));
	foreach my $who ('postgres', 'erin')
	{
		my $from = -s $node->logfile;

		$left_behind .= $self->_work($who, "$who-$number");
		_note_payloads(\%seen, slurp_file($node->logfile, $from), $CALLED,
			$who);
	}
	my $unsent = $self->_unsent($CALLED, 'honest-%');
	$unsent .= $self->_unsent_by_worker("honest-w$number");
	$self->_wait_for_worker;
	_note_payloads(\%seen, slurp_file($node->logfile, $log), $WORKED, '');

	is( join(', ', sort grep { !/ as bob$/ } keys %seen),
		'', "$title: nothing of it has more rights than the outbox's owner");
	is( $node->safe_psql('postgres',
			q(SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper AND rolname <> 'postgres')
		),
		'',
		'... and nobody becomes a superuser');
	is($left_behind, '', '... and nothing of it stays in a session');
	is($unsent, '', '... and what is honest is sent');
	if ($params{runs})
	{
		my @missing = grep { !$seen{"$_ as bob"} } @{ $params{runs} };
		is("@missing", '', '... and it runs as the owner');
	}

	$self->_clean_up($attacker, $params{undo});
	return;
}

# Runs SQL as a role, to its end, and dies if it fails.
sub psql_as
{
	my ($self, $role, $database, $sql) = @_;

	return $self->{node}
	  ->safe_psql($database, $sql, extra_params => [ '-U', $role ]);
}

# What one role does with the outbox.  Returns what it finds changed in its
# session.
sub _work
{
	my ($self, $who, $name) = @_;
	my $enqueue = "SELECT clerk_enqueue_organization_invitation"
	  . "('org_test', NULL, '%s\@example.com', 'org:member', send_after => %s);";
	my $changes = '';

	$changes .= $self->_session(
		$who,
		functions => [
			'BEGIN;',
			sprintf($enqueue, "attack-f-$name", 'now()'),
			'STATE',
			'COMMIT;',
			sprintf($enqueue, "honest-f-$name", 'now()'),
			sprintf($enqueue, "${REFUSED}attack-r-$name", 'now()'),
			'SELECT clerk_cancel_invitation(('
			  . sprintf($enqueue, "attack-c-$name", "'infinity'") =~ s/;//r
			  . '));',
		],
		members => [
			'BEGIN;',
			"INSERT INTO members VALUES ('attack-m-$name\@example.com');",
			'STATE',
			'COMMIT;',
			"INSERT INTO members VALUES ('honest-m-$name\@example.com');",
		],
		send => [
			'CALL clerk_send_invitations();', 'STATE',
			'CALL clerk_send_invitations();'
		]);
	$self->{clerk}->control('accept', { id => $_ })
	  foreach split(
		/\n/,
		$self->psql_as(
			'bob', $CALLED,
			"SELECT invitation_id FROM clerk_invitation_outbox
			WHERE state = 'sent' AND email_address ~ '-[fm]-$name\@'"));
	my $failed = $self->psql_as('bob', $CALLED,
		"SELECT max(id) FROM clerk_invitation_outbox WHERE state = 'failed'")
	  || 0;
	$changes .= $self->_session(
		$who,
		refresh => ['CALL clerk_refresh_invitations();'],
		retry => ["SELECT clerk_retry_invitation($failed);"]);
	return $changes;
}

# Statements in one session, in groups with a name that the log has, too.  The
# state is looked at after each group, and where "STATE" stands.
sub _session
{
	my ($self, $who, @groups) = @_;
	# Loads the libraries, which have settings of their own.
	my $sql = "SET app.tenant = 'honest'; DO 'BEGIN END'; SELECT clerk_worker_status();\n";
	my $changes = '';
	my %before;

	$sql .= "\\echo -- state of start\n$STATE\n\\echo -- end\n";
	while (my ($name, $statements) = splice(@groups, 0, 2))
	{
		$sql .= "DO \$\$ BEGIN RAISE LOG 'process $name'; END \$\$;\n";
		foreach my $statement (@$statements, 'STATE')
		{
			$sql .=
			  $statement eq 'STATE'
			  ? "\\echo -- state of $name\n$STATE\n\\echo -- end\n"
			  : "$statement\n";
		}
	}
	my $output = attempt($self->{node}, $CALLED, $sql,
		extra_params => [ '-U', $who ])->{stdout};
	while ($output =~ /^-- state of (\w+)\n(.*?)^-- end$/msg)
	{
		my ($name, %now) = ($1, map { $_ => 1 } split(/\n/, $2));

		%before = %now if $name eq 'start';
		my @new = grep { !$before{$_} } sort keys %now;
		$before{$_} = 1 foreach @new;
		s/loot_[0-9a-f]+/loot/ foreach @new;
		$changes .= "$name of $who: " . join(', ', @new) . "\n" if @new;
		$changes .= "$name of $who: nothing can be seen\n" if !%now;
	}
	return $changes;
}

# Notes who ran the payload in which process, and what it could do.
sub _note_payloads
{
	my ($seen, $log, $database, $who) = @_;
	my $process = $who eq '' ? 'worker' : '';

	while ($log =~ /LOG:  (?:process (\w+)|payload ran as (\S+) in (\S+)|payload could (.+) in (\S+))$/mg)
	{
		my ($name, $role, $in, $step, $there) = ($1, $2, $3, $4, $5);

		$process = $name if defined $name && $who ne '';
		$seen->{"$process as $role"} = 1
		  if defined $role && $in eq $database;
		$seen->{"$process could $step"} = 1
		  if defined $step && $there eq $database;
	}
	return;
}

# Which rows with such addresses are not sent; asked by their owner, as others
# would run his code with their rights.
sub _unsent
{
	my ($self, $database, $pattern) = @_;

	return $self->psql_as(
		'bob', $database, qq(
		SELECT string_agg(email_address || ' is ' || state || ' ', '')
		FROM clerk_invitation_outbox
		WHERE email_address LIKE '$pattern\@example.com' AND state <> 'sent'));
}

sub _unsent_by_worker
{
	my ($self, $name) = @_;
	my $deadline = time + $PATIENCE;
	my $unsent;

	do
	{
		$unsent = $self->_unsent($WORKED, $name);
		select(undef, undef, undef, 0.01);
	} while ($unsent ne '' && time < $deadline);
	return $unsent;
}

# Until the worker has done what it can.
sub _wait_for_worker
{
	my ($self) = @_;

	wait_until(
		'the worker rests',
		sub {
			return $self->{node}->safe_psql('postgres',
				"SELECT count(*) FROM clerk_worker_status() WHERE state <> 'waiting'"
			) eq '0';
		});
	return;
}

# As it was before; the next attack finds other sessions, another worker.
sub _clean_up
{
	my ($self, $attacker, $undo) = @_;
	my $node = $self->{node};

	foreach my $database ($CALLED, $WORKED)
	{
		$self->psql_as('bob', $database, $undo) if $undo;
		$node->safe_psql(
			$database, qq(
			DROP SCHEMA attack CASCADE;
			ALTER TABLE clerk_invitation_outbox
				DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
			REVOKE ALL ON clerk_invitation_outbox FROM mallory;
			TRUNCATE clerk_invitation_outbox, members;
			ALTER ROLE prize NOSUPERUSER;));
	}
	$node->safe_psql('postgres',
		"SELECT pg_terminate_backend(pid) FROM clerk_worker_status()");
	wait_until('the worker is gone',
		sub { $node->safe_psql('postgres', 'SELECT count(*) FROM clerk_worker_status()') eq '0' }
	);
	return;
}

sub _insert
{
	return 'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES '
	  . join(', ', map { "('org_test', '$_\@example.com', 'org:member')" } @_);
}

1;
