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

use Exporter 'import';
use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  insert_sql
  payloads
);

# Nobody sends in one of them but who is told to; the other one has a worker.
my $CALLED = 'postgres';
my $WORKED = 'worked';

# Who calls.
my @CALLERS = ('postgres', 'erin');

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

CREATE FUNCTION attack.payload() RETURNS boolean LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	way text;
	aim text;
BEGIN
	RAISE LOG 'payload ran as %', current_user;
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
				RAISE LOG 'payload could %', aim;
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

# A cluster with both databases and all roles, and more settings if wanted.
sub new
{
	my ($class, $clerk, $settings) = @_;
	my $node = clerk_cluster('privileges', $clerk,
		conf => $SETTINGS . ($settings // ''));
	my $self = bless { node => $node, clerk => $clerk, attacks => 0 }, $class;

	$node->safe_psql(
		'postgres', qq(
		CREATE ROLE bob LOGIN;
		CREATE ROLE mallory LOGIN;
		CREATE ROLE erin LOGIN;
		CREATE ROLE dave LOGIN;
		CREATE ROLE prize;
		CREATE DATABASE $WORKED;
		ALTER DATABASE $WORKED SET clerk_invite.worker = on;));
	$node->safe_psql($WORKED, 'CREATE EXTENSION clerk_invite');
	foreach my $database ($CALLED, $WORKED)
	{
		$node->safe_psql(
			$database, qq(
			GRANT CREATE ON DATABASE $database TO bob, mallory;
			GRANT CREATE ON SCHEMA public TO bob;
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

# The SQL that makes an attacker's schema "attack", with what is in it.
sub tools
{
	return $TOOLS;
}

sub node
{
	my ($self) = @_;

	return $self->{node};
}

# Attaches code to the outbox, lets everybody work, and looks at what became of
# it.  %params: "grant" is what the attacker has on the outbox; "runs" lists the
# processes in which the code must have run, as bob, for the check to mean
# something; "undo" is SQL of bob's that cascading DROPs do not do; "refused" is
# true if the code makes every statement on the outbox fail, as an owner may.
sub check
{
	my ($self, $title, $attacker, $sql, %params) = @_;
	my $node = $self->{node};
	my $number = ++$self->{attacks};
	my $grant =
	  $params{grant}
	  ? "GRANT $params{grant} ON clerk_invitation_outbox TO $attacker;"
	  : '';

	$self->run(map { ("\\connect $_ bob\n$grant",
		"\\connect $_ $attacker\n$TOOLS\n$sql") } $CALLED, $WORKED);
	my $log = -s $node->logfile;
	my $left_behind = $self->_work($number);
	my $unsent = $self->_unsent($number);
	my %seen = payloads(slurp_file($node->logfile, $log));

	# A session whose statement fails ends.
	$left_behind =~ s/^.*: nothing can be seen\n//gm if $params{refused};
	is( join(', ', sort grep { !/ as bob$/ } keys %seen),
		'', "$title: nothing of it has more rights than the outbox's owner");
	is($self->superusers, 'postgres', '... and nobody becomes a superuser');
	is($left_behind, '', '... and nothing of it stays in a session');
	is($unsent, '', '... and what is honest is sent') unless $params{refused};
	if ($params{runs})
	{
		my @missing = grep { !$seen{"$_ as bob"} } @{ $params{runs} };
		is("@missing", '', '... and it runs as the owner');
	}
	$self->clean_up($params{undo});
	return;
}

# Runs scripts for psql, one after the other in one process; dies if one fails.
sub run
{
	my ($self, @scripts) = @_;

	return $self->{node}->safe_psql($CALLED, join("\n;\n", @scripts));
}

# The same for a role and a database.
sub psql_as
{
	my ($self, $role, $database, @scripts) = @_;

	return $self->run("\\connect $database $role", @scripts);
}

# Runs scripts as a role in a process of this name; returns who ran the payload
# in it.
sub seen_in
{
	my ($self, $process, $role, @scripts) = @_;
	my $log = -s $self->{node}->logfile;

	$self->attempt_all("\\connect $CALLED $role\n" . mark($process),
		@scripts, mark('none'));
	return payloads(slurp_file($self->{node}->logfile, $log));
}

# What people do with the outbox, among them the worker.  Returns what they find
# changed in their sessions.
sub _work
{
	my ($self, $number) = @_;
	my $changes = '';
	my $output;

	$self->run("\\connect $WORKED bob",
		insert_sql("attack-$number", "honest-$number"));
	$output = $self->attempt_all(
		(map { _first_part($_, "$_-$number") } @CALLERS),
		map { _invitations_of("$_-$number") } @CALLERS);
	$changes .= _changes($output);
	foreach my $who (@CALLERS)
	{
		my ($invitations, $failed) =
		  $output =~ /^-- invitations of $who-$number\n(.*?)^-- failed\n(.*?)^-- end$/ms;

		$self->{clerk}->control('accept', { id => $_ })
		  foreach split(/\n/, $invitations // '');
		$changes .= _changes(
			$self->attempt_all(_second_part($who, ($failed // '') =~ s/\n//r || 0)));
	}
	return $changes;
}

# Runs scripts that may fail; returns what they write.
sub attempt_all
{
	my ($self, @scripts) = @_;

	return attempt($self->{node}, $CALLED, join("\n;\n", @scripts))->{stdout} . "\n";
}

# What a role does before anybody accepts.
sub _first_part
{
	my ($who, $name) = @_;
	my $enqueue = sub {
		my ($email, $send_after) = @_;

		return 'SELECT clerk_enqueue_organization_invitation'
		  . "('org_test', NULL, '$email-$name\@example.com', 'org:member', send_after => $send_after)";
	};

	return _session(
		$who,
		functions => [
			'BEGIN;',
			$enqueue->('attack-f', 'now()') . ';',
			'STATE',
			'COMMIT;',
			$enqueue->('honest-f', 'now()') . ';',
			$enqueue->("${REFUSED}attack-r", 'now()') . ';',
			'SELECT clerk_cancel_invitation(('
			  . $enqueue->('attack-c', q('infinity')) . '));'
		],
		members => [
			'BEGIN;',
			"INSERT INTO members VALUES ('attack-m-$name\@example.com');",
			'STATE',
			'COMMIT;',
			"INSERT INTO members VALUES ('honest-m-$name\@example.com');"
		],
		send => [
			'CALL clerk_send_invitations();', 'STATE',
			'CALL clerk_send_invitations();'
		]);
}

# The same after that.
sub _second_part
{
	my ($who, $failed) = @_;

	return _session(
		$who,
		refresh => ['CALL clerk_refresh_invitations();'],
		retry => ["SELECT clerk_retry_invitation($failed);"]);
}

# What is sent, and what has failed.  Asked by the owner: what he has attached
# would run with the rights of anybody else.
sub _invitations_of
{
	my ($name) = @_;

	return qq(\\connect $CALLED bob
		\\echo -- invitations of $name
		SELECT invitation_id FROM clerk_invitation_outbox
			WHERE state = 'sent' AND email_address ~ '-[fm]-$name\@';
		\\echo -- failed
		SELECT id FROM clerk_invitation_outbox
			WHERE state = 'failed' AND email_address ~ '-r-$name\@';
		\\echo -- end);
}

# Statements in one session, in groups with a name that the log has, too.  The
# state is looked at after each group, and where "STATE" stands.
sub _session
{
	my ($who, @groups) = @_;
	my $show = sub {
		my ($when) = @_;
		return "\\echo -- state of $who, $when\n$STATE\n\\echo -- end\n";
	};
	# Loads the libraries, which have settings of their own.
	my $sql = "\\connect $CALLED $who\nSET app.tenant = 'honest'; "
	  . "DO 'BEGIN END'; SELECT clerk_worker_status();\n"
	  . $show->('start');

	while (my ($name, $statements) = splice(@groups, 0, 2))
	{
		$sql .= mark($name);
		$sql .= $_ eq 'STATE' ? $show->($name) : "$_\n"
		  foreach @$statements, 'STATE';
	}
	return $sql . mark('none');
}

# Begins a process in the server's log.
sub mark
{
	my ($name) = @_;

	return "\\o /dev/null\nSELECT 'process $name';\n\\o\n";
}

# What has changed from state to state of each session.
sub _changes
{
	my ($output) = @_;
	my $changes = '';
	my %before;

	while ($output =~ /^-- state of (\w+), (\w+)\n(.*?)^-- end$/msg)
	{
		my ($who, $when, %now) = ($1, $2, map { $_ => 1 } split(/\n/, $3));

		$changes .= "$when of $who: nothing can be seen\n" unless %now;
		%before = %now if $when eq 'start';
		my @new = grep { !$before{$_} } sort keys %now;
		$before{$_} = 1 foreach @new;
		s/loot_[0-9a-f]+/loot/ foreach @new;
		$changes .= "$when of $who: " . join(', ', @new) . "\n" if @new;
	}
	return $changes;
}

# Who ran the payload in which process, and what it could do.  The worker is no
# session, so its lines have no application's name.
sub payloads
{
	my ($log) = @_;
	my $session = 'none';
	my %seen;

	foreach my $line (split(/\n/, $log))
	{
		$session = $1 if $line =~ /LOG:  statement: SELECT 'process (\w+)';$/;
		next unless $line =~ /LOG:  payload (?:ran (as \w+)|(could .*))$/;
		my $what = $1 // $2;
		my $process = $line =~ /\[\d+\] LOG:/ ? 'worker' : $session;
		$seen{"$process $what"} = 1 if $process ne 'none';
	}
	return %seen;
}

# The honest rows that are not sent, once the worker has done what it can.
sub _unsent
{
	my ($self, $number) = @_;
	my $deadline = time + $PATIENCE;
	my $unsent;
	my $look = q(
		SELECT string_agg(email_address || ' is ' || state, E'\n')
		FROM clerk_invitation_outbox
		WHERE email_address LIKE 'honest-%' AND state <> 'sent';);

	do
	{
		$unsent = $self->run("\\connect $WORKED bob", $look,
			"\\connect $WORKED postgres",
			q(SELECT 'the worker is ' || state FROM clerk_worker_status() WHERE state <> 'waiting')
		) =~ s/^\n+//r;
	} while ($unsent ne '' && time < $deadline);
	$unsent .= $self->run(
		"\\connect $CALLED bob", $look,
		sprintf(
			q(SELECT 'honest rows: ' || count(*) FROM clerk_invitation_outbox
			WHERE email_address LIKE 'honest-%%' HAVING count(*) <> %d;),
			2 * @CALLERS)) =~ s/^\n+//r;
	return $unsent;
}

sub superusers
{
	my ($self) = @_;

	return $self->run(
		q(SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper));
}

# As it was before; the next attack finds other sessions, another worker.
sub clean_up
{
	my ($self, $undo) = @_;

	$undo //= q();

	$self->run(
		(   map {
				qq(\\connect $_ bob
				$undo;
				\\connect $_ postgres
				DROP SCHEMA IF EXISTS attack CASCADE;
				ALTER TABLE clerk_invitation_outbox
					DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
				ALTER TABLE clerk_invitation_outbox DROP COLUMN IF EXISTS loot;
				REVOKE ALL ON clerk_invitation_outbox FROM mallory;
				TRUNCATE clerk_invitation_outbox, members;)
			} $CALLED,
			$WORKED),
		'ALTER ROLE prize NOSUPERUSER;');
	$self->run('SELECT pg_terminate_backend(pid) FROM clerk_worker_status()');
	wait_until('the worker is gone',
		sub { $self->run('SELECT count(*) FROM clerk_worker_status()') eq '0' });
	return;
}

# SQL that puts such rows into the outbox, to be sent now.
sub insert_sql
{
	return 'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES '
	  . join(', ', map { "('org_test', '$_\@example.com', 'org:member')" } @_);
}

1;
