# A database with the extension can be dumped and restored: invitations that
# are kept in tables, the outbox, grants, and what uses the functions.  No dump
# holds the secret key, and restoring invites nobody unless a worker may.
use strict;
use warnings;

use ClerkTest;
use File::Spec;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster('main', $clerk);
my $other = clerk_cluster('other', $clerk);
my $folder = PostgreSQL::Test::Utils::tempdir();

$node->safe_psql('postgres', 'CREATE ROLE app LOGIN');
$other->safe_psql('postgres', 'CREATE ROLE app LOGIN');
$node->safe_psql('postgres', 'CREATE DATABASE product');
$node->safe_psql(
	'product', q(
	CREATE SCHEMA x;
	CREATE EXTENSION clerk_invite SCHEMA x;
	GRANT USAGE ON SCHEMA x TO app;
	GRANT EXECUTE ON FUNCTION x.clerk_create_organization_invitation TO app;

	CREATE TABLE members (
		email text PRIMARY KEY,
		invitation x.clerk_organization_invitation
	);
	GRANT SELECT, INSERT ON members TO app;

	CREATE FUNCTION invite_member() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		NEW.invitation = x.clerk_create_organization_invitation(
			'org_test', NULL, NEW.email, 'org:member',
			metadata => '{"team": "sales"}');
		RETURN NEW;
	END $$;
	CREATE TRIGGER invite_member BEFORE INSERT ON members
		FOR EACH ROW EXECUTE FUNCTION invite_member();

	INSERT INTO members VALUES ('ann@example.com'), ('bob@example.com');
));

# The outbox, with rows in all states.  Two of them were on their way when their
# sender ended: one of these has an invitation, the other one has none.
$node->safe_psql(
	'product', q(
	SET search_path = x;
	GRANT SELECT ON clerk_invitation_progress TO app;
	INSERT INTO clerk_invitation_outbox
		(organization_id, email_address, role, state, attempts, send_after,
		first_claimed_at, claimed_at, settled_at, next_attempt_at,
		public_metadata, send_alone, url, error_message)
	SELECT 'org_test', state || '@example.com', 'org:member', state, 3,
		now() + interval '1 day', now(), now(), now(), now() + interval '1 day',
		'{"team": "sales"}', true, '?ticket=' || state, E'two\nlines'
	FROM unnest(ARRAY['queued', 'verifying', 'sent', 'skipped', 'failed',
		'canceled']) AS state;
	INSERT INTO clerk_invitation_outbox
		(organization_id, email_address, role, state, attempts,
		first_claimed_at, claimed_at)
	SELECT 'org_test', name || '@example.com', 'org:member', 'sending', 1,
		now() - interval '1 hour', now() - interval '1 hour'
	FROM unnest(ARRAY['arrived', 'vanished']) AS name;
	SELECT clerk_create_organization_invitation(
		'org_test', NULL, 'arrived@example.com', 'org:member');
));
my $outbox = q(SELECT id, md5(o::text), state, email_address
	FROM x.clerk_invitation_outbox AS o ORDER BY id);
my $outbox_before = $node->safe_psql('product', $outbox);
my $last_id = $node->safe_psql('product',
	'SELECT last_value FROM x.clerk_invitation_outbox_id_seq');
$node->safe_psql('postgres',
	"ALTER DATABASE product SET clerk_invite.secret_key_file = 'clerk.key'");
# A key that is a setting as well: pg_dumpall writes some of those.
$node->append_conf('postgresql.conf',
	"clerk_invite.secret_key = '$ClerkTest::KEY'");
$node->reload;

my $rows = 'SELECT email, md5(invitation::text), (invitation).id,'
  . " (invitation).url LIKE '%ticket=%' FROM members ORDER BY email";
my $before = $node->safe_psql('product', $rows);
my $requests = () = $clerk->journal;

is( $node->safe_psql(
		'product', 'SELECT count(DISTINCT state) FROM x.clerk_invitation_outbox'),
	'7',
	'the outbox has rows in all states');
like($before, qr/^ann\@example\.com\|[0-9a-f]{32}\|orginv_\w+\|t$/m,
	'the table holds whole invitations');

# The dumps.

$node->command_ok(
	[
		'pg_dump', '-f', "$folder/dump.sql", '-d', $node->connstr('product')
	],
	'the database can be dumped as a script');
$node->command_ok(
	[
		'pg_dump', '-Fc', '-f', "$folder/dump.custom",
		'-d', $node->connstr('product')
	],
	'the database can be dumped as an archive');

my $script = slurp_file("$folder/dump.sql");
like(
	$script,
	qr/^CREATE EXTENSION IF NOT EXISTS clerk_invite WITH SCHEMA x;$/m,
	'the dump creates the extension in its schema');
ok($script !~ /^CREATE (FUNCTION|TYPE) x\./m,
	'the dump creates none of its objects');
ok($script !~ /^COMMENT ON (FUNCTION|TYPE|COLUMN) x\./m,
	'the dump comments on none of its objects');
like(
	$script,
	qr/^GRANT ALL ON FUNCTION x\.clerk_create_organization_invitation\(.*\) TO app;$/m,
	'the dump grants what was granted');
ok($script !~ /(REVOKE|GRANT) .* x\.clerk_create.* (FROM|TO) (PUBLIC|postgres);/i,
	'the dump leaves the privileges to the extension that it has by itself');

# Restored.

foreach my $case (
	[ $node, 'script', 'the same cluster' ],
	[ $node, 'archive', 'the same cluster' ],
	[ $other, 'script', 'another cluster' ],
	[ $other, 'archive', 'another cluster' ])
{
	my ($target, $form, $where) = @$case;
	my $database = "from_$form";
	my $what = "the $form restored into $where";

	$target->safe_psql('postgres', "CREATE DATABASE $database");
	if ($form eq 'script')
	{
		$target->command_ok(
			[
				'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-o',
				File::Spec->devnull, '-f', "$folder/dump.sql", '-d',
				$target->connstr($database)
			],
			"$what brings no error");
	}
	else
	{
		$target->command_ok(
			[
				'pg_restore', '--exit-on-error', '-d',
				$target->connstr($database), "$folder/dump.custom"
			],
			"$what brings no error");
	}

	is( $target->safe_psql(
			$database, q(
			SELECT extversion, extnamespace::regnamespace
			FROM pg_extension WHERE extname = 'clerk_invite')),
		'1.0|x',
		"$what has the extension in its schema");
	ok($target->safe_psql($database, $rows) eq $before,
		"$what has the same invitations");
	is( $target->safe_psql(
			$database, q(
			SELECT has_function_privilege('app', oid, 'EXECUTE'),
				has_function_privilege('pg_monitor', oid, 'EXECUTE')
			FROM pg_proc WHERE proname = 'clerk_create_organization_invitation')),
		't|f',
		"$what lets those call the function who could before");

	ok($target->safe_psql($database, $outbox) eq $outbox_before,
		"$what has the same outbox");
	is( $target->safe_psql(
			$database, 'SELECT queued, failed FROM x.clerk_invitation_progress',
			extra_params => [ '-U', 'app' ]),
		'1|1',
		"$what lets those read the view who could before");

	my $now = () = $clerk->journal;
	is($now, $requests, "$what has asked Clerk nothing");
	$requests += check_outbox($target, $database, $what);

	my $email = "new\@$database." . $target->name . '.example.com';
	is( attempt(
			$target, $database,
			"INSERT INTO members VALUES ('$email') RETURNING (invitation).status",
			extra_params => [ '-U', 'app' ])->{stdout},
		'pending',
		"$what invites new members through its trigger");
	$requests++;
	is(scalar(() = $clerk->requests_for($email)),
		1, "$what has sent that invitation once");
}

# A worker does not wait for the end of the restore.
$other->safe_psql('postgres', 'CREATE DATABASE with_worker');
$other->safe_psql('postgres',
	'ALTER DATABASE with_worker SET clerk_invite.worker = on');
$other->command_ok(
	[
		'pg_restore', '--exit-on-error', '-d',
		$other->connstr('with_worker'), "$folder/dump.custom"
	],
	'an archive can be restored where a worker may run');
ok( wait_until(
		'the worker has looked',
		sub { return state_of($other, 'with_worker', 'arrived') eq 'sent 1' }),
	'... which goes on with what was under way');

# Data alone, into a database whose members table has its trigger already, which
# comes before the outbox in the dump, or after it.
foreach my $table (qw(app.members public.members))
{
	check_data_only($table);
}

# The whole cluster.

$node->command_ok(
	[ 'pg_dumpall', '-f', "$folder/all.sql", '-d', $node->connstr('postgres') ],
	'the whole cluster can be dumped');
my $all = slurp_file("$folder/all.sql");
ok( $all =~
	  /^ALTER DATABASE product SET "clerk_invite\.secret_key_file" TO 'clerk\.key';$/m,
	'the dump of the cluster names the key file of a database');
ok(index($all, $ClerkTest::KEY) < 0,
	'the dump of the cluster does not hold the key');

done_testing();

# Restores the data of a members table of this name, and of an outbox in schema
# x, in all ways that a restore can go.
sub check_data_only
{
	my ($table) = @_;
	my $before = $table =~ /^app/;
	my $what = $before ? 'members before the outbox' : 'members after the outbox';
	my ($schema) = split(/\./, $table);
	# Of the two tables' schemas, the one with the first name is restored first.
	my $outbox_schema = $before ? 'x' : 'a';
	my $rows = "SELECT id, md5(o::text) FROM $outbox_schema.clerk_invitation_outbox AS o ORDER BY id";
	my $members = "SELECT string_agg(email, ' ' ORDER BY email) FROM $table";
	my $dump = "$folder/$schema";
	my @excluding = ('--exclude-table-data', '*.clerk_invitation_outbox');

	$node->safe_psql('postgres', "CREATE DATABASE ${schema}_original");
	$node->safe_psql(
		"${schema}_original", qq(
		CREATE SCHEMA IF NOT EXISTS $schema;
		CREATE SCHEMA $outbox_schema;
		CREATE EXTENSION clerk_invite SCHEMA $outbox_schema;
		CREATE TABLE $table (email text PRIMARY KEY);
		CREATE TRIGGER invite AFTER INSERT ON $table FOR EACH ROW
			EXECUTE FUNCTION $outbox_schema.clerk_invitation_trigger('=org_test', '', 'email', '=org:member');
		INSERT INTO $table SELECT 'member' || n || '\@$schema.example.com' FROM generate_series(1, 5) AS n;
		INSERT INTO $outbox_schema.clerk_invitation_outbox (organization_id, email_address, role, state)
		SELECT 'org_test', n || '-sent\@$schema.example.com', 'org:member', 'sent' FROM generate_series(1, 3) AS n;
		DELETE FROM $outbox_schema.clerk_invitation_outbox WHERE id = 2;
		SELECT $outbox_schema.clerk_cancel_invitation(3);));
	my $original_rows = $node->safe_psql("${schema}_original", $rows);
	my $original_members = $node->safe_psql("${schema}_original", $members);
	my @from = ('-d', $node->connstr("${schema}_original"));

	run_dump('pg_dump', '-s', '-f', "$dump.schema", @from);
	run_dump('pg_dump', '-Fd', '-f', "$dump.folder", @from);
	run_dump('pg_dump', '-Fd', '-f', "$dump.without", @excluding, @from);
	run_dump('pg_dump', '-a', '--inserts', '-f', "$dump.inserts", @from);

	my @restore = ('pg_restore', '--exit-on-error');
	my @psql = ('psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-o', File::Spec->devnull);
	foreach my $case (
		[ 'data only', 'off', @restore, '-a', "$dump.folder" ],
		[ 'data only, in two jobs', 'off', @restore, '-a', '-j', '2', "$dump.folder" ],
		[ 'data only, as INSERTs', 'off', @psql, '-f', "$dump.inserts" ],
		[ 'data only, with triggers disabled', 'on', @restore, '-a', '--disable-triggers', "$dump.folder" ],
		[ 'data only, without the rows of the outbox', 'off', @restore, '-a', "$dump.without" ],
		[ 'everything', 'on', @restore, "$dump.folder" ],
		[ 'everything, without the rows of the outbox', 'on', @restore, "$dump.without" ],
		$before ? () : [ 'data only, enqueueing', 'on', @restore, '-a', "$dump.folder" ])
	{
		my ($how, $enqueue, @command) = @$case;
		my $database = "${schema}_copy";
		my $on = "$what, $how";

		$other->safe_psql('postgres', "CREATE DATABASE $database");
		$other->command_ok(
			[ @psql, '-f', "$dump.schema", '-d', $other->connstr($database) ],
			"$on: there is a schema")
		  unless $how =~ /^everything/;
		{
			# Nothing in the session has loaded the library when it is set.
			local $ENV{PGOPTIONS} = "-c clerk_invite.enqueue=$enqueue";
			$other->command_ok([ @command, '-d', $other->connstr($database) ],
				"$on: it is restored without an error");
		}
		is($other->safe_psql($database, $members),
			$original_members, "$on: all members are there");
		if ($how =~ /enqueueing/)
		{
			is( $other->safe_psql(
					$database, qq(
					SELECT state, count(*), count(DISTINCT email_address)
					FROM $outbox_schema.clerk_invitation_outbox GROUP BY state ORDER BY state)),
				"canceled|1|1\nqueued|8|5\nsent|3|3",
				"$on: each of them is enqueued again");
		}
		else
		{
			is($other->safe_psql($database, $rows),
				$how =~ /without the rows/ ? '' : $original_rows,
				"$on: nobody is enqueued");
		}

		# Whatever the dump made of the sequence.
		is( attempt(
				$other, $database,
				"INSERT INTO $table VALUES ('one\@$schema.example.com'), ('two\@$schema.example.com')"
			)->{stderr},
			'', "$on: members can be added");
		is( $other->safe_psql(
				$database,
				"SELECT min(id) > 8 FROM $outbox_schema.clerk_invitation_outbox "
				  . "WHERE email_address ~ '^(one|two)\@'"),
			't',
			"$on: no number is used twice");
		$other->safe_psql('postgres', "DROP DATABASE $database");
	}
	$node->safe_psql('postgres', "DROP DATABASE ${schema}_original");
	return;
}

# Makes a dump.
sub run_dump
{
	my @command = @_;

	$node->command_ok(\@command, "'@command[0 .. 2]' succeeds");
	return;
}

# What a restored outbox does; returns how many requests that took.
sub check_outbox
{
	my ($target, $database, $what) = @_;
	my $mark = () = $clerk->journal;

	is( $target->safe_psql(
			$database, q(
			INSERT INTO x.clerk_invitation_outbox
				(organization_id, email_address, role, send_after)
			VALUES ('org_test', 'new@example.com', 'org:member', 'infinity')
			RETURNING id)),
		$last_id + 1,
		"$what goes on with the ids of the outbox");
	is( attempt(
			$target,
			$database,
			"DELETE FROM x.clerk_invitation_outbox WHERE state = 'sending'")
		->{sqlstate},
		'55000',
		"$what guards the outbox");

	wait_until(
		"$what is through with what was under way",
		sub {
			$target->safe_psql(
				$database, q(
				SET clerk_invite.retry_delay = '1ms';
				CALL x.clerk_send_invitations();));
			return state_of($target, $database, 'vanished') =~ /^sent/;
		});
	is(state_of($target, $database, 'arrived'),
		'sent 1', "$what finds the invitation of a row that was under way");
	is(scalar(() = $clerk->requests_for('arrived@example.com')),
		1, '... and does not send it again');
	is( first_request_for('vanished@example.com', $mark),
		'GET',
		"$what looks for an invitation of the other one before it is sent");
	# The first restored copy sends it, the others find what that has sent.
	is(scalar(() = $clerk->requests_for('vanished@example.com')),
		1, '... after which it is sent once');

	my $email = "woken\@$database." . $target->name . '.example.com';
	$target->safe_psql('postgres',
		"ALTER DATABASE $database SET clerk_invite.worker = on");
	$target->safe_psql(
		$database, qq(
		INSERT INTO x.clerk_invitation_outbox (organization_id, email_address, role)
		VALUES ('org_test', '$email', 'org:member')));
	wait_until("$email is sent",
		sub { scalar(() = $clerk->invitations_for($email)) });
	is(scalar(() = $clerk->requests_for($email)),
		1, "$what wakes a worker for a new row");
	return (() = $clerk->journal) - $mark;
}

# State and attempts of the row for this name.
sub state_of
{
	my ($target, $database, $name) = @_;

	return $target->safe_psql($database,
		    "SELECT state || ' ' || attempts FROM x.clerk_invitation_outbox "
		  . "WHERE email_address = '$name\@example.com'");
}

# The method of the first request that names the address, after so many
# requests of any kind.
sub first_request_for
{
	my ($email, $mark) = @_;
	my @requests = $clerk->journal;
	my ($first) = grep {
		ref $_->{body} eq 'HASH' && ($_->{body}{email_address} // '') eq $email
		  || ($_->{query}{email_address}[0] // '') eq $email
	} splice(@requests, $mark);

	return $first->{method};
}
