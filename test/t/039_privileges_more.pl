# What each kind of role can do with the extension, as docs/security.md has it,
# and attacks that take more than an object on the outbox: 037_privileges.pl has
# those.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use PrivilegesTest;
use Test::More;

# The columns that a sender needs: what takes the outbox's place must have them.
my $IMPOSTOR = q(CREATE TABLE app.clerk_invitation_outbox (
	id bigserial PRIMARY KEY, organization_id text, inviter_user_id text,
	email_address text, role text, redirect_url text, public_metadata jsonb,
	private_metadata jsonb, expires_in_days integer, notify boolean,
	send_after timestamptz DEFAULT now(), state text DEFAULT 'queued',
	attempts integer DEFAULT 0, send_alone boolean DEFAULT false,
	next_attempt_at timestamptz, enqueued_at timestamptz DEFAULT now(),
	first_claimed_at timestamptz, claimed_at timestamptz, settled_at timestamptz,
	invitation_id text, status text, url text, expires_at timestamptz,
	http_status integer, error_code text, error_message text, trace_id text));

my $clerk =
  ClerkTest::Fake->start('--single-limit', '100000', '--bulk-limit', '100000');
my $test = PrivilegesTest->new($clerk, "restart_after_crash = on\n");
my $node = $test->node;

check_kinds();
check_public();
check_direct_insert();
check_shadows();
check_callers_transaction();
check_owner_without_login();
check_schema_owner();
check_guard_elsewhere();
check_altered_columns();

$node->stop;
done_testing();

# Who can do what: a row for each kind of role, with what it may do.  The outbox
# belongs to its owner, the rest of the extension to a superuser.
sub check_kinds
{
	my @executing = qw(enqueue cancel retry send refresh create bulk get revoke
	  list list_instance read members guard wake worker_status rate_limit_status);
	my @owning = qw(trigger references index column policy rule);
	my %kinds = (
		'no grants' => [],
		'EXECUTE only' => \@executing,
		'INSERT on the outbox' => ['insert'],
		'TRIGGER' => ['trigger'],
		'ALL' => [qw(select insert update delete truncate trigger references)],
		'owner of the outbox' =>
		  [ qw(select insert update delete truncate drop_table), @owning ],
		'owner of a members table' => ['members'],
		'owner of the database' => [qw(schema index drop drop_table)]);
	my %statements = (
		select => 'SELECT FROM app.clerk_invitation_outbox',
		insert => q(INSERT INTO app.clerk_invitation_outbox
			(organization_id, email_address, role) VALUES ('org_test', 'a@example.com', 'r')),
		update => 'UPDATE app.clerk_invitation_outbox SET send_after = now()',
		delete => 'DELETE FROM app.clerk_invitation_outbox',
		truncate => 'TRUNCATE app.clerk_invitation_outbox',
		trigger => 'CREATE TRIGGER t AFTER INSERT ON app.clerk_invitation_outbox EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()',
		references => 'CREATE TABLE own.refs (id bigint REFERENCES app.clerk_invitation_outbox)',
		index => 'DROP INDEX app.clerk_invitation_outbox_due',
		column => 'ALTER TABLE app.clerk_invitation_outbox ADD COLUMN note text',
		policy => 'CREATE POLICY p ON app.clerk_invitation_outbox',
		rule => 'CREATE RULE r AS ON INSERT TO app.clerk_invitation_outbox DO ALSO NOTHING',
		drop => 'DROP FUNCTION app.clerk_cancel_invitation(bigint)',
		drop_table => 'DROP TABLE app.clerk_invitation_outbox CASCADE',
		replace => q(CREATE OR REPLACE FUNCTION app.clerk_cancel_invitation(id bigint)
			RETURNS boolean LANGUAGE sql AS 'SELECT true'),
		replace_trigger => q(CREATE OR REPLACE FUNCTION app.clerk_invitation_trigger()
			RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'),
		function => 'ALTER FUNCTION app.clerk_cancel_invitation(bigint) SECURITY INVOKER',
		extension => 'DROP EXTENSION clerk_invite',
		member => 'ALTER EXTENSION clerk_invite DROP TABLE app.clerk_invitation_outbox',
		schema => 'CREATE TABLE app.loot ()',
		guard => 'CREATE TRIGGER t BEFORE UPDATE ON own.members FOR EACH ROW EXECUTE FUNCTION app.clerk_invitation_outbox_guard()',
		wake => 'CREATE TRIGGER t AFTER UPDATE ON own.members EXECUTE FUNCTION app.clerk_invitation_outbox_wake_worker()',
		members => 'CREATE TRIGGER t AFTER INSERT ON own.members FOR EACH ROW EXECUTE FUNCTION app.clerk_invitation_trigger()',
		enqueue => q(SELECT app.clerk_enqueue_organization_invitation('org_test', NULL, 'a@example.com', 'r')),
		cancel => 'SELECT app.clerk_cancel_invitation(0)',
		retry => 'SELECT app.clerk_retry_invitation(0)',
		send => 'CALL app.clerk_send_invitations()',
		refresh => 'CALL app.clerk_refresh_invitations()',
		create => 'SELECT app.clerk_create_organization_invitation(NULL, NULL, NULL, NULL)',
		bulk => 'SELECT app.clerk_create_organization_invitation_bulk(NULL, NULL)',
		get => 'SELECT app.clerk_get_organization_invitation(NULL, NULL)',
		revoke => 'SELECT app.clerk_revoke_organization_invitation(NULL, NULL)',
		list => 'SELECT app.clerk_list_organization_invitations(NULL)',
		read => 'SELECT app.clerk_read_organization_invitations(NULL, NULL, NULL)',
		list_instance => q(SELECT app.clerk_list_instance_organization_invitations('{}', 'x')),
		progress => 'SELECT FROM app.clerk_invitation_progress',
		limits => 'SELECT app.clerk_invitation_progress_limits()',
		worker_status => 'SELECT app.clerk_worker_status()',
		rate_limit_status => 'SELECT app.clerk_rate_limit_status()',
		set_url => q(SET clerk_invite.api_url = 'http://127.0.0.1:1'),
		set_worker => 'SET clerk_invite.worker = on',
		database_url => q(ALTER DATABASE kinds SET clerk_invite.api_url = 'http://127.0.0.1:1'),
		role_url => q(ALTER ROLE CURRENT_USER SET clerk_invite.api_url = 'http://127.0.0.1:1'));
	# What the statements run into when they may run: nobody is to be invited, a
	# CALL commits, and an extension's objects go with it only.
	my %allowed = (
		send => '2D000',
		refresh => '2D000',
		drop => '2BP01',
		drop_table => '2BP01',
		list_instance => '22023',
		map { $_ => '22004' } qw(create bulk get revoke list read));

	$node->safe_psql('postgres', 'CREATE DATABASE kinds OWNER dave');
	foreach my $kind (sort keys %kinds)
	{
		my $role = $kind =~ /database/ ? 'dave'
		  : $kind =~ /outbox$/ && $kind =~ /owner/ ? 'bob' : 'mallory';
		my %may = map { $_ => 1 } @{ $kinds{$kind} };
		my $grants = {
			'EXECUTE only' => 'GRANT EXECUTE ON ALL ROUTINES IN SCHEMA app TO mallory',
			'INSERT on the outbox' =>
			  'GRANT INSERT ON app.clerk_invitation_outbox TO mallory; GRANT USAGE ON SEQUENCE app.clerk_invitation_outbox_id_seq TO mallory',
			'TRIGGER' => 'GRANT TRIGGER ON app.clerk_invitation_outbox TO mallory',
			'ALL' =>
			  'GRANT ALL ON app.clerk_invitation_outbox TO mallory; GRANT ALL ON SEQUENCE app.clerk_invitation_outbox_id_seq TO mallory',
			'owner of a members table' =>
			  'GRANT EXECUTE ON FUNCTION app.clerk_invitation_trigger TO mallory',
		}->{$kind} // '';

		# Nobody has anything from the last one.
		$node->safe_psql(
			'kinds', qq(
			SET client_min_messages = warning;
			DROP EXTENSION IF EXISTS clerk_invite;
			DROP SCHEMA IF EXISTS app, own CASCADE;
			CREATE SCHEMA app AUTHORIZATION dave;
			CREATE EXTENSION clerk_invite SCHEMA app;
			ALTER TABLE app.clerk_invitation_outbox OWNER TO bob;
			GRANT USAGE ON SCHEMA app TO PUBLIC;
			CREATE SCHEMA own AUTHORIZATION $role;
			CREATE TABLE own.members ();
			ALTER TABLE own.members OWNER TO $role;
			$grants));
		my @names = sort keys %statements;
		my $script = "\\connect kinds $role\n";
		$script .= "BEGIN;\n$statements{$_};\n\\echo $_ :SQLSTATE\nROLLBACK;\n"
		  foreach @names;
		my %got = map { split / / }
		  grep { /^\w+ [0-9A-Z]{5}$/ }
		  split(/\n/, $test->attempt_all($script));
		my %expected =
		  map { $_ => $may{$_} ? $allowed{$_} // '00000' : '42501' } @names;
		is( join(
				', ',
				map { "$_: " . ($got{$_} // 'nothing') . ", not $expected{$_}" }
				  grep { ($got{$_} // '') ne $expected{$_} } @names),
			'',
			"what can be done with: $kind");
	}
	return;
}

# What everybody may execute.
sub check_public
{
	is( $node->safe_psql(
			'postgres', q(
			SELECT string_agg(p.proname, ' ' ORDER BY p.proname) FROM pg_proc AS p
			JOIN pg_depend AS d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
			JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'clerk_invite'
			WHERE d.deptype = 'e' AND has_function_privilege('mallory', p.oid, 'EXECUTE'))
		),
		'clerk_invitation_progress_limits clerk_read_instance_organization_invitations clerk_read_organization_invitations',
		'everybody may execute only the functions that ask for privileges themselves');
	return;
}

# Who writes into the outbox himself runs its triggers himself: that is
# PostgreSQL's rule.
sub check_direct_insert
{
	$test->psql_as('bob', 'postgres',
		$test->tools
		  . 'CREATE TRIGGER attack AFTER INSERT ON clerk_invitation_outbox EXECUTE FUNCTION attack.fire();
		GRANT INSERT ON clerk_invitation_outbox TO mallory;
		GRANT USAGE ON SEQUENCE clerk_invitation_outbox_id_seq TO mallory');
	my %seen = $test->seen_in(
		insert => 'mallory',
		q(INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
			VALUES ('org_test', 'direct@example.com', 'org:member')));
	is_deeply(\%seen, { 'insert as mallory' => 1 },
		'a trigger runs as the role that inserts into the outbox by itself');
	$test->clean_up('REVOKE ALL ON SEQUENCE clerk_invitation_outbox_id_seq FROM mallory');
	return;
}

# What a caller has in his session is not used with the owner's rights.
sub check_shadows
{
	my $shadow = sub {
		my ($signature, $type, $value) = @_;
		return "CREATE FUNCTION attack.$signature RETURNS $type LANGUAGE plpgsql AS \$\$
			BEGIN PERFORM attack.payload(); RETURN $value; END \$\$;";
	};

	$test->psql_as(
		'mallory',
		'postgres',
		$test->tools
		  . $shadow->('now()', 'timestamptz', 'pg_catalog.now()')
		  . $shadow->('clock_timestamp()', 'timestamptz', 'pg_catalog.now()')
		  . $shadow->('equal(text, text)', 'boolean', 'true')
		  . $shadow->('equal(bigint, bigint)', 'boolean', 'true')
		  . $shadow->('later(timestamptz, timestamptz)', 'boolean', 'true')
		  . $shadow->('matches(text, text)', 'boolean', 'true')
		  . $shadow->('octet_length(text)', 'integer', '1')
		  . $shadow->('jsonb_typeof(jsonb)', 'text', q('object')) . q(
		CREATE OPERATOR attack.= (FUNCTION = attack.equal, LEFTARG = text, RIGHTARG = text);
		CREATE OPERATOR attack.= (FUNCTION = attack.equal, LEFTARG = bigint, RIGHTARG = bigint);
		CREATE OPERATOR attack.<= (FUNCTION = attack.later, LEFTARG = timestamptz, RIGHTARG = timestamptz);
		CREATE OPERATOR attack.~ (FUNCTION = attack.matches, LEFTARG = text, RIGHTARG = text);
		CREATE TABLE attack.clerk_invitation_outbox (id bigint);
		CREATE TABLE attack.clerk_new_rows (id bigint CHECK (attack.payload()));));
	let_everything('GRANT %s TO mallory');
	my %seen = $test->seen_in(
		shadows => 'mallory', q(
		CREATE TEMPORARY TABLE clerk_new_rows (id bigint);
		CREATE TEMPORARY TABLE clerk_invitation_outbox (id bigint);
		CREATE TEMPORARY TABLE now (id bigint);
		CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (attack.payload());
		CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT attack.now()';
		SET search_path = attack, pg_temp, pg_catalog, public;
		SELECT public.clerk_cancel_invitation(public.clerk_enqueue_organization_invitation('org_test', NULL, 'shadow-f@example.com', 'org:member', send_after => 'infinity'));
		SELECT public.clerk_retry_invitation(1);
		INSERT INTO public.members VALUES ('shadow-m@example.com');
		CALL public.clerk_send_invitations();
		CALL public.clerk_refresh_invitations();));
	is(join(', ', grep { !/as mallory$/ } sort keys %seen),
		'', "a caller's own functions and operators do not get the owner's rights");
	is( $node->safe_psql('postgres',
			q(SELECT string_agg(state, ' ' ORDER BY email_address) FROM clerk_invitation_outbox)
		),
		'canceled sent',
		'... and what he asks for is done');
	let_everything('REVOKE %s FROM mallory');
	$test->clean_up();
	return;
}

# What a caller has begun, his own deferred triggers and cursors, stays his own.
sub check_callers_transaction
{
	$test->psql_as(
		'mallory',
		'postgres',
		$test->tools . q(
		CREATE TABLE attack.parent (id integer PRIMARY KEY);
		CREATE TABLE attack.child (id integer
			REFERENCES attack.parent DEFERRABLE INITIALLY DEFERRED);
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON attack.child
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attack.fire();
		CREATE TABLE attack.plain (id integer);
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON attack.plain
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attack.fire();
		CREATE TABLE attack.rivals (x bigint, y text,
			EXCLUDE ((attack.pure(x)) WITH =) DEFERRABLE INITIALLY DEFERRED);));
	let_everything('GRANT %s TO mallory');
	my $do = sub {
		my ($number, $statement) = @_;

		return "BEGIN;
			DECLARE loot_$number CURSOR WITH HOLD FOR SELECT attack.payload();
			INSERT INTO attack.child VALUES ($number);
			INSERT INTO attack.rivals VALUES ($number, 'first'), ($number, 'second');
			$statement;
			DELETE FROM attack.rivals WHERE y = 'first';
			INSERT INTO attack.parent VALUES ($number);
			COMMIT;";
	};
	my %seen = $test->seen_in(
		caller => 'mallory',
		q(CREATE TEMPORARY TABLE emptied (x bigint) ON COMMIT DELETE ROWS;
		CREATE INDEX ON emptied (attack.pure(x)) WHERE attack.pure(1::bigint) = 1;),
		$do->(
			1,
			q(SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'caller-1@example.com', 'org:member', send_after => 'infinity'))
		),
		$do->(
			2,
			'SELECT clerk_cancel_invitation(id) FROM generate_series(1, 1000) AS id'
		),
		$do->(
			3,
			'SELECT clerk_retry_invitation(id) FROM generate_series(1, 1000) AS id'
		),
		$do->(4, q(INSERT INTO members VALUES ('caller-4@example.com'))),
		# Nothing here has to wait for the commit, but it does.
		q(BEGIN;
		INSERT INTO attack.plain VALUES (5);
		INSERT INTO members VALUES ('caller-5@example.com');
		SELECT clerk_cancel_invitation(clerk_enqueue_organization_invitation('org_test', NULL, 'caller-6@example.com', 'org:member', send_after => 'infinity'));
		COMMIT;),
		'CALL clerk_send_invitations()',
		'CALL clerk_refresh_invitations()');
	is( join(', ', sort keys %seen),
		'caller as mallory',
		"what a caller has deferred himself does not get the owner's rights");
	is( $node->safe_psql('postgres', 'SELECT count(*) FROM attack.child'),
		'4',
		'... nor happens any earlier');
	is( $node->safe_psql(
			'postgres',
			q(SELECT string_agg(email_address || ' ' || state, ', ' ORDER BY id) FROM clerk_invitation_outbox)
		),
		'caller-1@example.com canceled, caller-4@example.com sent, caller-5@example.com sent, caller-6@example.com canceled',
		'... and what he asks for is done');
	let_everything('REVOKE %s FROM mallory');
	$test->clean_up();
	return;
}

# An owner need not be able to connect.
sub check_owner_without_login
{
	$test->run(
		"\\connect worked postgres
		CREATE ROLE keeper NOLOGIN CONNECTION LIMIT 0 VALID UNTIL '2001-01-01';
		ALTER TABLE clerk_invitation_outbox OWNER TO keeper;
		REVOKE ALL ON DATABASE worked FROM PUBLIC;
		REVOKE ALL ON SCHEMA public FROM PUBLIC;
		GRANT USAGE ON SCHEMA public TO keeper;
		ALTER ROLE keeper SET search_path = nowhere;
		ALTER ROLE keeper SET role = bob;",
		insert_sql('keeper'));
	my $deadline = time + 20;
	my $state;
	do
	{
		$state = $test->run("\\connect worked postgres",
			'SELECT state FROM clerk_invitation_outbox');
		select(undef, undef, undef, 0.05);
	} while ($state ne 'sent' && time < $deadline);
	is($state, 'sent', 'the worker sends for an owner who must not connect');
	$test->run(
		"\\connect worked postgres
		ALTER TABLE clerk_invitation_outbox OWNER TO bob;
		GRANT ALL ON DATABASE worked TO PUBLIC;
		GRANT USAGE ON SCHEMA public TO PUBLIC;
		DROP OWNED BY keeper;
		DROP ROLE keeper;");
	$test->clean_up();
	return;
}

# Who owns the extension's schema can put a table of his own in the outbox's
# place, also in the middle of a pass or a statement.
sub check_schema_owner
{
	my $lock = "\\connect daves dave
		BEGIN;
		LOCK TABLE app.clerk_invitation_outbox IN SHARE MODE;";
	my $replace = "ALTER SCHEMA app RENAME TO former;
		CREATE SCHEMA app;
		$IMPOSTOR;
		CREATE TRIGGER attack AFTER INSERT OR UPDATE ON app.clerk_invitation_outbox
			EXECUTE FUNCTION attack.fire();
		GRANT USAGE ON SCHEMA former TO PUBLIC;
		COMMIT;";
	my $enqueue =
	  "SELECT %s.clerk_enqueue_organization_invitation('org_test', NULL, '%s', 'org:member', send_after => 'infinity');";

	foreach my $process (qw(functions members send worker))
	{
		my $email = "x-slow-1000--schema-$process\@example.com";
		my $psql = start_psql($node, '');
		my $dave = start_psql($node, '');

		$test->run('CREATE DATABASE daves OWNER dave');
		$test->run(
			"\\connect daves postgres
			CREATE SCHEMA app AUTHORIZATION dave;
			CREATE EXTENSION clerk_invite SCHEMA app;
			CREATE TABLE members (email text);
			CREATE TRIGGER invite AFTER INSERT ON members FOR EACH ROW
				EXECUTE FUNCTION app.clerk_invitation_trigger('=org_test', '', 'email', '=org:member');
			GRANT USAGE ON SCHEMA app TO erin;
			GRANT INSERT ON members TO erin;
			GRANT EXECUTE ON ALL ROUTINES IN SCHEMA app TO erin;
			GRANT UPDATE ON app.clerk_invitation_outbox TO dave;",
			"\\connect daves dave\n" . $test->tools);

		my $log = -s $node->logfile;
		run_in_psql($psql, "\\connect daves erin\nSELECT 'process $process';");
		if ($process eq 'functions' || $process eq 'members')
		{
			my $statement = $process eq 'functions'
			  ? sprintf($enqueue, 'app', 'schema@example.com')
			  : q(INSERT INTO members VALUES ('schema@example.com'););

			# It has a plan, so that the second one waits for the table itself.
			run_in_psql($psql, $statement);
			run_in_psql($dave, $lock);
			send_to_psql($psql, $statement);
			wait_until(
				'it waits',
				sub {
					$test->run('SELECT count(*) FROM pg_locks WHERE NOT granted') ne '0';
				});
			run_in_psql($dave, $replace);
			output_of_psql($psql);
		}
		else
		{
			$test->run('ALTER DATABASE daves SET clerk_invite.worker = on')
			  if $process eq 'worker';
			$test->run("\\connect daves postgres",
				sprintf($enqueue, 'app', $email) =~ s/'infinity'/now()/r);
			send_to_psql($psql, 'CALL app.clerk_send_invitations();')
			  if $process eq 'send';
			wait_until('the request is there', sub { $clerk->requests_for($email) });
			run_in_psql($dave, $lock);
			run_in_psql($dave, $replace);
			output_of_psql($psql) if $process eq 'send';
		}
		run_in_psql(
			$psql,
			sprintf($enqueue, 'former', 'schema@example.com')
			  . 'SELECT former.clerk_cancel_invitation(1);
			SELECT former.clerk_retry_invitation(1);
			CALL former.clerk_send_invitations();
			CALL former.clerk_refresh_invitations();');
		my $state = 'none';
		if ($process eq 'send' || $process eq 'worker')
		{
			my $deadline = time + 20;

			do
			{
				$state = $test->run("\\connect daves postgres",
					"SELECT state FROM former.clerk_invitation_outbox WHERE email_address = '$email'"
				);
				select(undef, undef, undef, 0.05);
			} while ($state =~ /ing$/ && time < $deadline);
		}
		my %seen = payloads(slurp_file($node->logfile, $log));
		is( join(', ', grep { !/as dave$/ } sort keys %seen),
			'',
			"a table in the outbox's place has its owner's rights only: $process"
		);
		is($test->superusers, 'postgres', '... and nobody becomes a superuser');
		like($state, qr/^(none|sent)$/, '... and what is honest is sent');
		$_->{harness}->finish foreach $psql, $dave;
		$test->run('ALTER ROLE prize NOSUPERUSER');
		$test->run('DROP DATABASE daves WITH (FORCE)');
	}
	return;
}

# A role that may execute the outbox's trigger functions puts them on a table of
# its own.
sub check_guard_elsewhere
{
	my $log = -s $node->logfile;

	$test->run(
		q(GRANT EXECUTE ON FUNCTION clerk_invitation_outbox_guard,
			clerk_invitation_outbox_wake_worker TO mallory));
	foreach my $columns ('id integer', 'state integer', 'state text, settled_at integer, id text')
	{
		$test->psql_as(
			'mallory', 'postgres',
			$test->tools . qq(
			CREATE TABLE attack.own ($columns, filler text);
			INSERT INTO attack.own DEFAULT VALUES;
			CREATE TRIGGER guard BEFORE UPDATE OR DELETE ON attack.own
				FOR EACH ROW EXECUTE FUNCTION clerk_invitation_outbox_guard();
			CREATE TRIGGER wake AFTER UPDATE OR DELETE ON attack.own
				EXECUTE FUNCTION clerk_invitation_outbox_wake_worker();));
		foreach my $sql (
			'UPDATE attack.own SET filler = 1',
			"UPDATE attack.own SET state = 'queued'",
			"UPDATE attack.own SET state = 'canceled'",
			'DELETE FROM attack.own')
		{
			attempt($node, 'postgres', $sql, extra_params => [ '-U', 'mallory' ]);
			wait_until('the server is up', \&is_up);
		}
		$test->run('DROP SCHEMA attack CASCADE');
	}
	is(join("\n", crashes_since($log)), '', "the server survives its trigger functions on other tables");
	$test->run(
		q(REVOKE EXECUTE ON FUNCTION clerk_invitation_outbox_guard,
			clerk_invitation_outbox_wake_worker FROM mallory));
	return;
}

# The owner can give columns other types, or names.  That may keep invitations
# from being sent, but must not end in the server's memory.
sub check_altered_columns
{
	my %alterations = (
		'a number for the inviter' => q(
			DROP CONSTRAINT inviter_user_id_is_clean,
			ALTER inviter_user_id TYPE bigint USING 12345678),
		'a number for the role' => q(
			DROP CONSTRAINT role_is_clean, ALTER role TYPE bigint USING 12345678),
		'bytes for the metadata' => q(
			DROP CONSTRAINT public_metadata_is_a_small_object,
			ALTER public_metadata TYPE bytea USING '\xffffffffffffffff'),
		'a number for the metadata' => q(
			DROP CONSTRAINT public_metadata_is_a_small_object,
			ALTER public_metadata TYPE bigint USING 12345678),
		'text for a boolean' => 'ALTER notify TYPE text USING \'yes\'',
		'a number for the trace' => 'ALTER trace_id TYPE bigint USING 12345678',
		'a number for the row' => 'ALTER id TYPE numeric',
		'a date for the claim' => 'ALTER claimed_at TYPE date, ALTER first_claimed_at TYPE date',
		'text for the settling' => 'ALTER settled_at TYPE text',
		'a state that is NULL' =>
		  'ALTER state DROP NOT NULL, ALTER state DROP DEFAULT, ALTER send_alone DROP NOT NULL',
		'another name for the state' => 'RENAME state TO condition',
		'another name for the settling' => 'RENAME settled_at TO settled');
	my $number = 0;

	foreach my $title (sort keys %alterations)
	{
		my $log = -s $node->logfile;
		my $other = "WHERE email_address LIKE 'other%'";

		$number++;
		$test->psql_as('bob', 'postgres',
			insert_sql("altered-$number", "other-$number"));
		$test->psql_as('bob', 'postgres',
			'ALTER TABLE clerk_invitation_outbox DISABLE TRIGGER USER',
			"ALTER TABLE clerk_invitation_outbox $alterations{$title}",
			'ALTER TABLE clerk_invitation_outbox ENABLE TRIGGER USER');
		# Each on its own: the first one to crash would hide the others.
		foreach my $sql (
			"UPDATE clerk_invitation_outbox SET send_alone = NULL $other",
			"UPDATE clerk_invitation_outbox SET state = NULL $other",
			"UPDATE clerk_invitation_outbox SET send_after = now() $other",
			"SELECT clerk_cancel_invitation(id::bigint) FROM clerk_invitation_outbox $other",
			'CALL clerk_send_invitations()',
			'CALL clerk_refresh_invitations()',
			"DELETE FROM clerk_invitation_outbox $other")
		{
			attempt($node, 'postgres', $sql);
			wait_until('the server is up', \&is_up);
		}
		is(join("\n", crashes_since($log)), '', "the server survives $title");
		$node->safe_psql(
			'postgres', 'SET client_min_messages = warning;
			DROP EXTENSION clerk_invite CASCADE; CREATE EXTENSION clerk_invite;
			ALTER TABLE clerk_invitation_outbox OWNER TO bob');
	}
	return;
}

# The statements that the server has crashed in.
sub crashes_since
{
	my ($log) = @_;

	return slurp_file($node->logfile, $log) =~
	  /terminated by signal.*\n.*process was running: (.*)/g;
}

sub is_up
{
	my ($stdout, $stderr);

	return !status_of_psql($node, 'postgres', 'SELECT 1', stdout => \$stdout, stderr => \$stderr);
}

# Privileges for all that can be called, and for members.
sub let_everything
{
	my ($format) = @_;

	$node->safe_psql(
		'postgres', sprintf($format, 'INSERT ON members') . qq(;
		DO \$\$
		DECLARE
			routine regprocedure;
		BEGIN
			FOR routine IN SELECT objid FROM pg_depend
				WHERE deptype = 'e' AND classid = 'pg_proc'::regclass
			LOOP
				EXECUTE format('$format', 'EXECUTE ON ROUTINE ' || routine);
			END LOOP;
		END \$\$;));
	return;
}
