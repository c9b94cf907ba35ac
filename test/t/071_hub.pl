# A publisher of a hub: an application's SQL does there what it does with the
# extension, and what becomes of its invitations comes back.
#
# Each statement of what an application may do is run with the extension and at
# the publisher, and must have the same result, or the same SQLSTATE.
use strict;
use warnings;

use ClerkTest;
use Hub;
use PostgreSQL::Test::Utils;
use Test::More;
use WebhookTest;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000', '--bulk-limit', '100000');
my $publisher = Hub::Publisher->start('shop');
my $hub = Hub->start('hub', $clerk);

check_surface();
check_refusals();
check_members_before();
$hub->add($publisher);
check_warning();
$hub->start_reports($publisher, CLERK_HUB_REFRESH => 1);
check_states();
check_changes();
check_progress();
check_member_columns();
check_webhook();
check_drift();
check_set_back();
check_secrets();
done_testing();

# The same SQL, psql's output and SQLSTATEs, on both sides.  A database for the
# extension, where nobody sends, and one for the publisher's SQL.
sub check_surface
{
	my $extension = Hub::Publisher->start('extension', without_script => 1, own_installation => 1,
		conf => ClerkTest::library_settings($hub->node) . "clerk_invite.worker = off\n");
	my $plain = $publisher->node;

	# Both outboxes belong to a role that is no superuser.
	$extension->node->safe_psql(
		'app', q(
		CREATE EXTENSION clerk_invite;
		ALTER TABLE clerk_invitation_outbox OWNER TO app_owner;
		ALTER VIEW clerk_invitation_progress OWNER TO app_owner;
		GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public TO app_owner WITH GRANT OPTION;));
	foreach my $node ($extension->node, $plain)
	{
		$node->safe_psql('app', prepared_sql(), extra_params => [ '-U', 'app_owner' ]);
		$node->safe_psql(
			'app', q(
			CREATE ROLE nothing;
			CREATE ROLE caller;
			CREATE ROLE inserter;
			CREATE ROLE changer;
			GRANT nothing, caller, inserter, changer TO app_owner;));
		$node->safe_psql('app', granted_sql(), extra_params => [ '-U', 'app_owner' ]);
	}
	foreach my $case (cases())
	{
		my ($title, $sql) = @$case;
		my @results = map { result_of($_, $sql) } $extension->node, $plain;

		is($results[1], $results[0], $title);
	}
	# What is left must not be sent when there is a hub.
	$publisher->sql('TRUNCATE clerk_invitation_outbox');
	return;
}

# Output and errors of SQL in a transaction that is rolled back.  What differs
# with a reason is left out: contexts, lines, and the row in a DETAIL.
sub result_of
{
	my ($node, $sql) = @_;
	my $run = attempt($node, 'app',
		"BEGIN;\nTRUNCATE clerk_invitation_outbox RESTART IDENTITY;\n$sql\n"
		  . "\\echo :LAST_ERROR_SQLSTATE :ROW_COUNT\nROLLBACK;\n",
		extra_params => [ '-U', 'app_owner' ]);
	my $errors = join("\n",
		grep { /^(psql|ERROR|HINT|WARNING|NOTICE|DETAIL)/ && !/Failing row/ }
		  split(/\n/, $run->{stderr}));

	$errors =~ s/psql:<stdin>:\d+: //g;
	return "$run->{stdout}\n$errors";
}

sub prepared_sql
{
	return q(
		CREATE DOMAIN address AS text;
		CREATE TYPE level AS ENUM ('org:member', 'org:admin');
		CREATE TABLE members (id serial, org_id text, email text, invited_by text,
			"Team Page" text, facts jsonb, gone text);
		ALTER TABLE members DROP COLUMN gone;
		CREATE TABLE typed (org char(20), email address, role level, facts json,
			doubled text GENERATED ALWAYS AS ('user_' || 1) STORED);
		CREATE TABLE parted (org_id text, email text, year integer) PARTITION BY LIST (year);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
		CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
		CREATE VIEW shown AS SELECT id, organization_id, inviter_user_id, email_address, role,
			redirect_url, public_metadata, private_metadata, expires_in_days, notify, state,
			attempts, send_after <= clock_timestamp() AS due, settled_at IS NOT NULL AS settled
			FROM clerk_invitation_outbox;);
}

sub granted_sql
{
	return q(
		GRANT USAGE ON SCHEMA public TO PUBLIC;
		GRANT EXECUTE ON FUNCTION clerk_enqueue_organization_invitation,
			clerk_cancel_invitation, clerk_retry_invitation, clerk_invitation_trigger TO caller;
		GRANT INSERT ON clerk_invitation_outbox TO inserter, changer;
		GRANT USAGE ON SEQUENCE clerk_invitation_outbox_id_seq TO inserter, changer;
		GRANT UPDATE, SELECT, DELETE ON clerk_invitation_outbox TO changer;
		GRANT INSERT ON members, typed TO nothing, inserter;
		GRANT USAGE ON SEQUENCE members_id_seq TO nothing, inserter;);
}

# The extension has another internal column, which only its senders look at.
sub cases
{
	my $insert = "INSERT INTO clerk_invitation_outbox (organization_id, email_address, role";
	my $one = "$insert) VALUES ('org_1', 'ann\@example.com', 'org:member')";
	my $show = 'SELECT * FROM shown ORDER BY id;';
	my $row = q(CREATE TRIGGER invite AFTER INSERT ON members FOR EACH ROW
		EXECUTE FUNCTION clerk_invitation_trigger);
	my $statement = q(CREATE TRIGGER invite AFTER INSERT ON members REFERENCING NEW TABLE AS "New Ones"
		FOR EACH STATEMENT EXECUTE FUNCTION clerk_invitation_trigger);
	my $columns = q(('org_id', 'invited_by', 'email', '=org:member', 'Team Page', 'facts'));
	my $members = q(INSERT INTO members (org_id, email, invited_by, "Team Page", facts) VALUES
		('org_1', ' ann@example.com', 'user_ines', 'https://example.com/1', '{"a": [1.50, null]}'),
		('org_2', NULL, NULL, NULL, NULL), ('org_2', 'bob@example.com', NULL, NULL, NULL););
	my $failed = "SET ROLE NONE; $insert, state, error_code, attempts) VALUES "
	  . "('org_1', 'ann\@example.com', 'org:member', 'failed', 'x', 3);";
	my @bad = map { [ "bad value: $_->[0]", "$insert, $_->[1]) VALUES ('org_1', 'ann\@example.com', 'r', $_->[2]);" ] } (
		[ 'days', 'expires_in_days', '0' ],
		[ 'more days', 'expires_in_days', '366' ],
		[ 'metadata', 'public_metadata', q('[]') ],
		[ 'large metadata', 'private_metadata', q(jsonb_build_object('a', repeat('x', 9000))) ],
		[ 'redirect', 'redirect_url', q('') ],
		[ 'inviter', 'inviter_user_id', q(E'a\tb') ],
		[ 'time', 'send_after', q('-infinity') ],
		[ 'no time', 'send_after', 'NULL' ],
		[ 'state', 'state', q('nonsense') ],
		[ 'attempts', 'attempts', '20001' ],
		[ 'number', 'id', '-1' ]);

	return (
		[ 'an INSERT', "$one RETURNING id; $show" ],
		[ 'an INSERT of everything', "$insert, inviter_user_id, redirect_url, public_metadata, private_metadata,"
			  . " expires_in_days, notify, send_after) VALUES ('org_1', E' \\n\\u00a0\\u200bann\@example.com\\u3000', 'r', 'user_1',"
			  . " 'https://x', '{\"a\":1}', '{}', 7, false, 'infinity'); $show" ],
		[ 'a COPY', "COPY clerk_invitation_outbox (organization_id, email_address, role) FROM stdin;\n"
			  . "org_1\tann\@example.com \torg:member\norg_2\tbob\@example.com\torg:admin\n\\.\n$show" ],
		[ 'INSERT ... SELECT', "$insert) SELECT 'org_' || n, n || '\@example.com', 'r' FROM generate_series(1, 3) AS n; $show" ],
		[ 'a savepoint', "SAVEPOINT s; $one; ROLLBACK TO s; $one; SELECT email_address FROM shown;" ],
		[ 'the function', "SELECT clerk_enqueue_organization_invitation('org_1', 'user_1', 'ann\@example.com ', 'r',"
			  . " metadata => '{\"team\": \"red\"}', private_metadata => '{}', redirect => 'https://x',"
			  . " expires_in_days => 3, notify => true, send_after => now() + interval '1 hour'); $show" ],
		[ 'the function with NULLs', "SELECT clerk_enqueue_organization_invitation('org_1', NULL, 'ann\@example.com', 'r'); $show" ],
		[ 'the function without an address', q(SELECT clerk_enqueue_organization_invitation('org_1', NULL, NULL, 'r');) ],
		[ 'the function without a time', q(SELECT clerk_enqueue_organization_invitation('org_1', NULL, 'a@b', 'r', send_after => NULL);) ],
		[ 'the function with a bad role', q(SELECT clerk_enqueue_organization_invitation('org_1', NULL, 'a@b', '');) ],
		(map { [ "bad organization $_", "$insert) VALUES ($_, 'ann\@example.com', 'r');" ] } "''", "'org/1'", 'NULL', "repeat('o', 256)"),
		(map { [ "bad address $_", "$insert) VALUES ('org_1', $_, 'r');" ] } "''", "'nobody'", 'NULL', "E'a\@b\\x01c'", "repeat('a', 320) || '\@b'"),
		(map { [ "bad role $_", "$insert) VALUES ('org_1', 'a\@b', $_);" ] } "''", 'NULL', "repeat('r', 256)"),
		@bad,
		[ 'the columns', q(SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
			WHERE attrelid = 'clerk_invitation_outbox'::regclass AND attnum > 0
			AND attname <> 'copied' ORDER BY attnum;) ],
		[ 'the signatures', q(SELECT p.oid::regprocedure, pg_get_function_arguments(p.oid), p.prorettype::regtype, p.proisstrict
			FROM pg_proc AS p WHERE p.proname IN ('clerk_enqueue_organization_invitation', 'clerk_cancel_invitation',
			'clerk_retry_invitation', 'clerk_abandon_invitation', 'clerk_invitation_trigger') ORDER BY p.proname;) ],

		[ 'a row trigger', "$row$columns; $members $show" ],
		[ 'a statement trigger', "$statement$columns; $members $show" ],
		[ 'a COPY into members', "$statement$columns; COPY members (org_id, email) FROM stdin;\norg_1\tann\@example.com\norg_2\t\\N\n\\.\n$show" ],
		[ 'a trigger on UPDATE OF', q(CREATE TRIGGER invite AFTER INSERT OR UPDATE OF email ON members FOR EACH ROW
			WHEN (NEW.email LIKE 'e%') EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
			INSERT INTO members (org_id, email) VALUES ('org_1', 'f@example.com'), ('org_1', 'e@example.com');
			UPDATE members SET email = 'e-' || email; UPDATE members SET org_id = 'org_2';) . $show ],
		[ 'a trigger for UPDATE statements', q(CREATE TRIGGER invite AFTER UPDATE ON members
			REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
			INSERT INTO members (org_id, email) VALUES ('org_1', 'f@example.com'); UPDATE members SET org_id = 'org_2';) . $show ],
		[ 'a deferred trigger', q(CREATE CONSTRAINT TRIGGER invite AFTER INSERT ON members DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');) . $members . $show . 'SET CONSTRAINTS ALL IMMEDIATE;' . $show ],
		[ 'literals', $row . q(('=org_9', '=user_9', '=nine@example.com', '=a=b', '=https://example.com/9', '={"n": [1, "=2"]}');
			INSERT INTO members DEFAULT VALUES;) . $show ],
		[ 'literals with quotes', $row . q(('=org_9', '', '=o''neill\\@example.com', '=r'); INSERT INTO members DEFAULT VALUES;) . $show ],
		[ 'other types', q(CREATE TRIGGER invite AFTER INSERT ON typed FOR EACH ROW
			EXECUTE FUNCTION clerk_invitation_trigger('org', 'doubled', 'email', 'role', '', 'facts');
			INSERT INTO typed VALUES ('org_1  ', 'ann@example.com', 'org:admin', '{"b": 1, "b": 2}'), ('org_2', NULL, NULL, NULL);) . $show ],
		[ 'other types, by statement', q(CREATE TRIGGER invite AFTER INSERT ON typed REFERENCING NEW TABLE AS n FOR EACH STATEMENT
			EXECUTE FUNCTION clerk_invitation_trigger('org', 'doubled', 'email', 'role', '', 'facts');
			INSERT INTO typed VALUES ('org_1  ', 'ann@example.com', 'org:admin', '{"b": 1, "b": 2}'), ('org_2', NULL, NULL, NULL);) . $show ],
		[ 'partitions', q(CREATE TRIGGER invite AFTER INSERT ON parted FOR EACH ROW
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');
			INSERT INTO parted VALUES ('org_1', 'a@example.com', 1); INSERT INTO parted_2 VALUES ('org_1', 'b@example.com', 2);) . $show ],
		[ 'enqueue = off', "$row$columns; SET LOCAL clerk_invite.enqueue = off; $members SET LOCAL clerk_invite.enqueue = yes; $members $show" ],
		[ 'a bad address of a member', $row . $columns . q(; INSERT INTO members (org_id, email) VALUES ('org_1', 'nobody');) ],
		[ 'metadata that is no JSON', $row . q(('=o', '', 'email', '=r', '', 'Team Page'); INSERT INTO members (email, "Team Page") VALUES ('a@b', '{');) ],
		[ 'a column that is not there', $row . q(('org', '', 'email', '=r');) . $members ],
		[ 'a dropped column', $row . q(('gone', '', 'email', '=r');) . $members ],
		[ 'a system column', $row . q(('ctid', '', 'email', '=r');) . $members ],
		[ 'too few arguments', $row . q(('org_id', '', 'email');) . $members ],
		[ 'too many arguments', $row . q(('org_id', '', 'email', '=r', '', '', '');) . $members ],
		[ 'an empty argument', $row . q(('org_id', '', '', '=r');) . $members ],
		[ 'a BEFORE trigger', q(CREATE TRIGGER invite BEFORE INSERT ON members FOR EACH ROW
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');) . $members ],
		[ 'a DELETE trigger', q(CREATE TRIGGER invite AFTER DELETE ON members FOR EACH ROW
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');) . "$members DELETE FROM members;" ],
		[ 'a TRUNCATE trigger', q(CREATE TRIGGER invite AFTER TRUNCATE ON members FOR EACH STATEMENT
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r'); TRUNCATE members;) ],
		[ 'no transition table', q(CREATE TRIGGER invite AFTER INSERT ON members FOR EACH STATEMENT
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=r');) . $members ],

		[ 'cancel', "$one; SELECT clerk_cancel_invitation(1), clerk_cancel_invitation(1), clerk_cancel_invitation(2), clerk_cancel_invitation(NULL); $show" ],
		[ 'cancel by UPDATE', "$one; UPDATE clerk_invitation_outbox SET state = 'canceled'; $show" ],
		[ 'retry', "$failed SELECT clerk_retry_invitation(1), clerk_retry_invitation(1), clerk_retry_invitation(NULL); $show" ],
		[ 'retry by UPDATE', "$failed UPDATE clerk_invitation_outbox SET state = 'queued'; $show" ],
		[ 'abandon', "$one; SELECT clerk_abandon_invitation(1, 'why'), clerk_abandon_invitation(2), clerk_abandon_invitation(NULL); $show" ],
		[ 'a change', "$one; UPDATE clerk_invitation_outbox SET email_address = ' bob\@example.com '; $show" ],
		(map {
				[ "to $_", "$one; UPDATE clerk_invitation_outbox SET state = '$_';" ],
				[ "from $_", "$insert, state) VALUES ('org_1', 'a\@b', 'r', '$_'); UPDATE clerk_invitation_outbox SET state = 'queued';" ],
				[ "$_ changed", "$insert, state) VALUES ('org_1', 'a\@b', 'r', '$_'); UPDATE clerk_invitation_outbox SET role = 'x'; $show" ],
				[ "$_ deleted", "$insert, state) VALUES ('org_1', 'a\@b', 'r', '$_'); DELETE FROM clerk_invitation_outbox; SELECT count(*) FROM shown;" ]
			} qw(sending verifying sent skipped failed canceled)),
		[ 'a restored number', "$insert, id) VALUES ('org_1', 'a\@b', 'r', 7); $one; SELECT id FROM shown ORDER BY id;" ],

		[ 'nothing: table', "SET ROLE nothing; $one;" ],
		[ 'nothing: reading', "SET ROLE nothing; SELECT url FROM clerk_invitation_outbox;" ],
		[ 'nothing: progress', "SET ROLE nothing; SELECT queued FROM clerk_invitation_progress;" ],
		(map { [ "nothing: $_", "SET ROLE nothing; SELECT $_;" ] }
			  "clerk_enqueue_organization_invitation('o', NULL, 'a\@b', 'r')", 'clerk_cancel_invitation(1)',
			'clerk_retry_invitation(1)', 'clerk_abandon_invitation(1)'),
		[ 'nothing: a trigger of its own', "SET ROLE nothing; CREATE TEMP TABLE m (e text); CREATE TRIGGER t AFTER INSERT ON m "
			  . "FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('=o', '', 'e', '=r');" ],
		[ 'nothing: members', "$row$columns; SET ROLE nothing; $members RESET ROLE; $show" ],
		[ 'EXECUTE: enqueue', "SET ROLE caller; SELECT clerk_enqueue_organization_invitation('o', NULL, 'a\@b', 'r'), clerk_cancel_invitation(1), clerk_retry_invitation(1); RESET ROLE; $show" ],
		[ 'EXECUTE: table', "SET ROLE caller; $one;" ],
		[ 'EXECUTE: a trigger of its own', "SET ROLE caller; CREATE TEMP TABLE m (e text); CREATE TRIGGER t AFTER INSERT ON m "
			  . "FOR EACH ROW EXECUTE FUNCTION clerk_invitation_trigger('=o', '', 'e', '=r'); INSERT INTO m VALUES ('a\@b'); RESET ROLE; $show" ],
		[ 'INSERT: table', "SET ROLE inserter; $one; RESET ROLE; $show" ],
		[ 'INSERT: function', "SET ROLE inserter; SELECT clerk_enqueue_organization_invitation('o', NULL, 'a\@b', 'r');" ],
		[ 'INSERT: reading', "SET ROLE inserter; $one RETURNING id;" ],
		(map { [ "INSERT: choosing $_->[0]", "SET ROLE inserter; $insert, $_->[0]) VALUES ('o', 'a\@b', 'r', $_->[1]);" ] }
			  [ state => "'sent'" ], [ state => "'queued'" ], [ attempts => '1' ], [ send_alone => 'true' ],
			[ enqueued_at => "'2020-01-01'" ], [ url => "'x'" ], [ invitation_id => "'x'" ], [ first_claimed_at => 'now()' ],
			[ next_attempt_at => 'now()' ], [ error_code => "'x'" ], [ database_error => "'x'" ], [ id => '9' ], [ id => '-9' ]),
		(map { [ "UPDATE: $_", "$one; SET ROLE changer; UPDATE clerk_invitation_outbox SET $_; RESET ROLE; $show" ] }
			  "role = 'org:admin'", "state = 'canceled'", "state = 'canceled', url = 'x'", 'attempts = 1', 'id = 9',
			"next_attempt_at = now()"),
		[ 'UPDATE: retry', "$failed SET ROLE changer; UPDATE clerk_invitation_outbox SET state = 'queued'; RESET ROLE; $show" ],
		[ 'DELETE', "$one; SET ROLE changer; DELETE FROM clerk_invitation_outbox; RESET ROLE; SELECT count(*) FROM shown;" ],
		[ 'progress', "$one; $insert, state) SELECT 'o', 'a\@b', 'r', s FROM unnest('{sending,verifying,sent,sent,skipped,failed,canceled}'::text[]) AS s;"
			  . " SELECT queued, sending, verifying, sent, skipped, failed, canceled, due, overdue FROM clerk_invitation_progress;" ]);
}

# Publishers that cannot be used are refused by a sentence, and nothing is set
# up for them.
sub check_refusals
{
	my $poor = Hub::Publisher->start('poor', without_script => 1);
	my $node = $poor->node;

	refused($poor, qr/has no publication "clerk_invite"; run hub\/publisher\.sql/,
		'without publisher.sql');
	foreach my $limit ('-1', '1GB')
	{
		$node->append_conf('postgresql.conf', "max_slot_wal_keep_size = $limit\n");
		$node->restart;
		my $run = attempt($node, 'app',
			"SET ROLE app_owner;\n" . slurp_file("$Hub::FOLDER/publisher.sql"));
		is($run->{stderr} =~ /max_slot_wal_keep_size is -1/ ? 'a warning' : '',
			$limit eq '-1' ? 'a warning' : '',
			"publisher.sql warns if slots may keep any amount of WAL: $limit");
	}
	refused($poor, qr/run: SELECT public\.clerk_grant_to_hub\('clerk_hub'\)/,
		'without privileges');
	$poor->install;
	$node->safe_psql('postgres', 'ALTER ROLE clerk_hub NOREPLICATION');
	refused($poor, qr/does not let the hub replicate/, 'without REPLICATION');
	$node->safe_psql('postgres', 'ALTER ROLE clerk_hub REPLICATION');
	$poor->sql('CREATE OR REPLACE FUNCTION clerk_publisher_version() RETURNS integer LANGUAGE sql AS $$SELECT 2$$');
	refused($poor, qr/version 2 of the protocol, but this hub has version 1/,
		'of another version');
	$node->append_conf('postgresql.conf', "wal_level = replica\n");
	$node->restart;
	refused($poor, qr/its wal_level is "replica" and must be "logical"/, 'with another wal_level');
	refused($poor, qr/its connection string is empty/, 'without a connection string',
		CLERK_PUBLISHER => ' ');
	$node->stop;
	my $run = $hub->try_to_add($poor);
	is($run->{status}, 1, 'one that is down can be tried again');
	like($run->{stderr}, qr/cannot connect to the publisher of "poor"/, '... and it is said so');
	is( $hub->node->safe_psql('postgres', q(SELECT count(*) FROM pg_database WHERE datname = 'poor')),
		'0', 'nothing is set up for a publisher that is refused');
	return;
}

sub refused
{
	my ($poor, $sentence, $title, %environment) = @_;
	my $run = $hub->try_to_add($poor, %environment);

	is($run->{status}, 3, "a publisher $title is refused");
	like($run->{stderr}, qr/^\S+: the publisher of "poor" cannot be used: [^\n]*$sentence/, '... by a sentence');
	return;
}

# The initial copy has what was enqueued before, and no member who was there
# before the trigger.
sub check_members_before
{
	$publisher->sql(
		q(CREATE TABLE staff (org_id text, email text);
		INSERT INTO staff SELECT 'org_1', 'old' || n || '@example.com' FROM generate_series(1, 50) AS n;
		CREATE TRIGGER invite AFTER INSERT ON staff REFERENCING NEW TABLE AS n FOR EACH STATEMENT
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');
		INSERT INTO staff VALUES ('org_1', 'before@example.com');));
	return;
}

sub enqueue
{
	my (@emails) = @_;

	$publisher->sql('INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES '
		  . join(', ', map { "('org_1', '$_', 'org:member')" } @emails));
	return;
}

# Such as the one of a database whose collations have another version.
sub check_warning
{
	my $file = PostgreSQL::Test::Utils::tempdir() . '/passwords';

	append_to_file($file, "localhost:1:none:none:none\n");
	chmod(0644, $file);
	my $run = $hub->try_to_add($publisher, PGPASSFILE => $file);
	is($run->{status}, 0, 'a warning at connection is no refusal');
	return;
}

sub check_states
{
	my @names = ('before@example.com', 'ann@example.com', 'member1@example.com',
		'x-error-422-form_param_format_invalid--1@example.com');

	enqueue(@names[ 1 .. 3 ]);
	$publisher->wait_for(
		q(SELECT string_agg(state, ' ' ORDER BY id) FROM clerk_invitation_outbox),
		'sent sent skipped failed');
	is( join(' ', map { $_->{email_address} =~ /^old/ ? 'old' : () } $clerk->all_invitations),
		'', 'an initial copy invites no members who were there before');
	my ($invitation) = $clerk->invitations_for('ann@example.com');
	is( $publisher->sql(
			q(SELECT invitation_id, status, url LIKE 'https://%ticket=%', attempts, settled_at > enqueued_at, expires_at > now()
			FROM clerk_invitation_outbox WHERE email_address = 'ann@example.com')),
		"$invitation->{id}|pending|t|1|t|t",
		'a row has what Clerk answered');
	is( $publisher->sql(
			q(SELECT http_status, error_code, error_message <> '', trace_id <> ''
			FROM clerk_invitation_outbox WHERE state = 'failed')),
		'422|form_param_format_invalid|t|t', '... or why it has failed');
	$clerk->control('accept', { id => $invitation->{id} });
	my ($other) = $clerk->invitations_for('before@example.com');
	$clerk->control('revoke_as_admin', { id => $other->{id} });
	ok($publisher->wait_for(
			q(SELECT string_agg(status || ' ' || (url IS NULL), ', ' ORDER BY id) FROM clerk_invitation_outbox WHERE state = 'sent'),
			'revoked true, accepted true'),
		'what becomes of an invitation arrives, and its url goes');
	is($publisher->sql(q(SELECT string_agg(kind, ' ') FROM clerk_invitation_request)),
		'truncate', 'nothing is kept of requests that are settled');
	return;
}

# Cancel, retry, change, delete, truncate.
sub check_changes
{
	my $later = q(send_after => now() + interval '1 day');

	$publisher->sql("SELECT clerk_enqueue_organization_invitation('org_1', NULL, '$_\@example.com', 'org:member', $later)")
	  foreach qw(canceled deleted changed raced truncated);
	$publisher->wait_for('SELECT waiting FROM clerk_invitation_progress', '0');
	my ($id) = split(/\n/, $publisher->sql(q(SELECT id FROM clerk_invitation_outbox WHERE email_address = 'canceled@example.com')));
	is($publisher->sql("SELECT clerk_cancel_invitation($id)"), 't', 'an invitation that the hub has can be canceled');
	$publisher->sql(
		q(DELETE FROM clerk_invitation_outbox WHERE email_address = 'deleted@example.com';
		UPDATE clerk_invitation_outbox SET email_address = 'new@example.com', public_metadata = '{"a": 1.50}', send_after = now()
		WHERE email_address = 'changed@example.com'));
	$publisher->wait_for(
		q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'new@example.com'), 'sent');
	is(($clerk->invitations_for('new@example.com'))[0]{public_metadata}{a}, 1.5, 'it can be changed');
	$publisher->wait_for('SELECT waiting FROM clerk_invitation_progress', '0');
	is( $hub->sql($publisher, q(SELECT string_agg(state, ' ' ORDER BY id) FROM clerk_invitation_outbox
			WHERE email_address IN ('canceled@example.com', 'deleted@example.com'))),
		'canceled canceled', '... or deleted, and the hub does not send it');

	# What the hub says before it knows of a cancellation means nothing.
	$hub->stop_reports($publisher);
	$publisher->sql("SELECT clerk_enqueue_organization_invitation('org_1', NULL, 'recalled\@example.com', 'org:member', $later)");
	wait_until('the hub has it', sub {
			$hub->sql($publisher, q(SELECT count(*) FROM clerk_invitation_outbox WHERE email_address = 'recalled@example.com')) eq '1'
		});
	$hub->sql($publisher, 'ALTER SUBSCRIPTION clerk_invite DISABLE');
	$publisher->sql(q(SELECT clerk_cancel_invitation(id) FROM clerk_invitation_outbox WHERE email_address = 'recalled@example.com'));
	$hub->start_reports($publisher, CLERK_HUB_REFRESH => 1);
	wait_until('the hub has told all', sub { $hub->sql($publisher, 'SELECT count(*) FROM clerk_hub.change') eq '0' });
	is($publisher->states('recalled@example.com'), 'canceled', 'a report that is older than a cancellation changes nothing');
	$hub->sql($publisher, 'ALTER SUBSCRIPTION clerk_invite ENABLE');
	$publisher->wait_for('SELECT waiting FROM clerk_invitation_progress', '0');
	is($publisher->states('recalled@example.com'), 'canceled', '... nor does a later one');

	# Too late: the hub has sent what was there before.
	$hub->stop_reports($publisher);
	$hub->sql($publisher, 'ALTER SUBSCRIPTION clerk_invite DISABLE');
	$hub->sql($publisher, q(UPDATE clerk_invitation_outbox SET send_after = now() WHERE email_address = 'raced@example.com'));
	wait_until('it is sent', sub { scalar $clerk->invitations_for('raced@example.com') });
	$publisher->sql(q(UPDATE clerk_invitation_outbox SET email_address = 'late@example.com' WHERE email_address = 'raced@example.com'));
	$hub->sql($publisher, 'ALTER SUBSCRIPTION clerk_invite ENABLE');
	$hub->start_reports($publisher, CLERK_HUB_REFRESH => 1);
	ok($publisher->wait_for(
			q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'raced@example.com'), 'sent'),
		'a change that comes too late gives way to what was sent');

	$id = $publisher->sql(q(SELECT id FROM clerk_invitation_outbox WHERE state = 'failed'));
	is($publisher->sql("SELECT clerk_retry_invitation($id), clerk_cancel_invitation($id), clerk_cancel_invitation($id)"),
		't|t|f', 'a failed one is queued again, and canceled');
	$publisher->wait_for('SELECT waiting FROM clerk_invitation_progress', '0');
	is($publisher->states('x-error-422-form_param_format_invalid--1@example.com'), 'canceled', '... and stays so');

	enqueue('x-error-422-form_param_format_invalid--2@example.com');
	$publisher->wait_for(q(SELECT count(*) FROM clerk_invitation_outbox WHERE state = 'failed'), '1');
	$publisher->sql(q(SELECT clerk_retry_invitation(id) FROM clerk_invitation_outbox WHERE state = 'failed'));
	wait_until('it is sent again',
		sub { 2 == $clerk->requests_for('x-error-422-form_param_format_invalid--2@example.com') });
	ok($publisher->wait_for(q(SELECT count(*) FROM clerk_invitation_outbox WHERE state = 'failed'), '1'),
		'what is retried fails again, and that is known');

	$publisher->sql('TRUNCATE clerk_invitation_outbox');
	wait_until('nothing is queued at the hub',
		sub { $hub->sql($publisher, q(SELECT count(*) FROM clerk_invitation_outbox WHERE state = 'queued')) eq '0' });
	is( $hub->sql($publisher, q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'truncated@example.com')),
		'canceled', 'TRUNCATE discards what is queued');
	return;
}

sub check_progress
{
	$hub->sql($publisher, 'ALTER SUBSCRIPTION clerk_invite DISABLE');
	enqueue('waiting@example.com');
	ok($publisher->wait_for(
			q(SELECT waiting = 1 AND queued = 1 AND lag > '0.2 s' AND last_report_at > now() - interval '1 minute'
			AND budget_left LIKE '% + %' FROM clerk_invitation_progress), 't'),
		'progress shows what waits for the hub, and for how long');
	$hub->sql($publisher, 'ALTER SUBSCRIPTION clerk_invite ENABLE');
	ok($publisher->wait_for(q(SELECT waiting = 0 AND lag IS NULL AND sent = 1 FROM clerk_invitation_progress), 't'),
		'... and that nothing does');

	my $listener = start_psql($publisher->node, '\connect app app_owner');
	$publisher->sql(q(UPDATE clerk_hub_status SET notify_channel = 'invitations'));
	run_in_psql($listener, 'LISTEN invitations;');
	enqueue('announced@example.com');
	$publisher->wait_for(q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'announced@example.com'), 'sent');
	my ($said) = run_in_psql($listener, 'SELECT 1;');
	like($said, qr/"invitations" with payload "\d+ sent"/, 'who listens is told');
	$listener->{harness}->finish;
	$publisher->sql(q(DELETE FROM clerk_invitation_outbox WHERE email_address = 'announced@example.com'));

	# A row that a user's transaction has locked, and one that a trigger refuses.
	$publisher->sql(
		q(CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.state = 'sent' AND NEW.email_address ~ '^refused' THEN RAISE 'not that one'; END IF; RETURN NEW; END $$;
		CREATE TRIGGER refuse BEFORE UPDATE ON clerk_invitation_outbox FOR EACH ROW EXECUTE FUNCTION refuse();));
	$hub->sql($publisher, 'ALTER SUBSCRIPTION clerk_invite DISABLE');
	enqueue('held@example.com', 'refused@example.com', 'beside@example.com');
	my $holder = start_psql($publisher->node, '\connect app app_owner');
	run_in_psql($holder, q(BEGIN; SELECT id FROM clerk_invitation_outbox WHERE email_address = 'held@example.com' FOR UPDATE;));
	$hub->sql($publisher, 'ALTER SUBSCRIPTION clerk_invite ENABLE');
	ok($publisher->wait_for(q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'beside@example.com'), 'sent'),
		'a row that is locked, or that a trigger refuses to change, does not hold up the others');
	isnt($publisher->states('held@example.com'), 'sent', '... and is not known yet');
	run_in_psql($holder, 'COMMIT;');
	$holder->{harness}->finish;
	$publisher->sql('DROP FUNCTION refuse() CASCADE');
	ok($publisher->wait_for(q(SELECT count(*) FROM clerk_invitation_outbox WHERE state = 'sent'), '4'),
		'... until it can be changed');
	return;
}

# The members table is the publisher's own affair.
sub check_member_columns
{
	$publisher->sql('ALTER TABLE staff RENAME COLUMN email TO address');
	my $run = attempt($publisher->node, 'app', q(INSERT INTO staff VALUES ('org_1', 'renamed@example.com')),
		extra_params => [ '-U', 'app_owner' ]);
	is($run->{sqlstate}, '42703', 'a column that was renamed fails the INSERT, as with the extension');
	$publisher->sql(
		q(ALTER TABLE staff ADD COLUMN team text;
		DROP TRIGGER invite ON staff;
		CREATE TRIGGER invite AFTER INSERT ON staff REFERENCING NEW TABLE AS n FOR EACH STATEMENT
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'address', '=org:member');
		INSERT INTO staff VALUES ('org_1', 'renamed@example.com', 'red');));
	ok($publisher->wait_for(
			q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'renamed@example.com'), 'sent'),
		'... and is invited from under its new name');
	return;
}

# Who receives webhooks hands them to the hub, which reports what they tell.
sub check_webhook
{
	my $secret = new_secret();

	ClerkTest::write_key($hub->node->data_dir . '/webhook.secret', $secret);
	reconfigure($hub->node, "clerk_invite.webhook_secret_file = 'webhook.secret'");
	enqueue('joined@example.com');
	$publisher->wait_for(q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'joined@example.com'), 'sent');
	my ($invitation) = $clerk->invitations_for('joined@example.com');
	is($hub->sql($publisher, receive_sql(signed(event('accepted', $invitation->{id}, url => undef), secret => $secret))),
		'updated', 'the hub receives a webhook');
	ok($publisher->wait_for(
			q(SELECT status || ' ' || (url IS NULL) FROM clerk_invitation_outbox WHERE email_address = 'joined@example.com'),
			'accepted true'),
		'... and the publisher learns what it tells');
	return;
}

# What is altered of what is published stops the hub, and loses nothing.
sub check_drift
{
	my $log = $hub->node->logfile;

	$publisher->sql('ALTER TABLE clerk_invitation_request ADD COLUMN note text');
	my $offset = -s $log;
	enqueue('drifted@example.com');
	wait_until('the hub says what is wrong',
		sub { slurp_file($log, $offset) =~ /missing replicated column: "note"/ });
	is($publisher->states('drifted@example.com'), 'queued', 'what the hub has no place for stops it');
	$hub->sql($publisher, 'ALTER TABLE clerk_invitation_request ADD COLUMN note text');
	ok($publisher->wait_for(q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'drifted@example.com'), 'sent'),
		'... until it has one');

	# A later publisher.sql may ask for more than this hub knows.
	$publisher->sql(q(INSERT INTO clerk_invitation_request (kind, invitation, request) VALUES ('promote', 1, '{}')));
	$offset = -s $log;
	enqueue('behind@example.com');
	wait_until('the hub says what it does not know',
		sub { slurp_file($log, $offset) =~ /does not know requests of the kind "promote"/ });
	is($publisher->states('behind@example.com'), 'queued', '... and what comes behind it waits');
	$hub->sql($publisher, q(CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
		CREATE TRIGGER a_skip BEFORE INSERT ON clerk_invitation_request FOR EACH ROW WHEN (NEW.kind = 'promote') EXECUTE FUNCTION skip();
		ALTER TABLE clerk_invitation_request ENABLE ALWAYS TRIGGER a_skip;));
	ok($publisher->wait_for(q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'behind@example.com'), 'sent'),
		'... and is sent when the hub can go on');

	# A value that the hub's constraints refuse is the row's own failure.
	$publisher->sql('ALTER TABLE clerk_invitation_outbox DROP CONSTRAINT role_is_clean');
	$publisher->sql(q(INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES ('org_1', 'norole@example.com', '')));
	enqueue('after@example.com');
	ok($publisher->wait_for(
			q(SELECT string_agg(concat_ws(' ', state, error_code), ', ' ORDER BY id) FROM clerk_invitation_outbox
			WHERE email_address IN ('norole@example.com', 'after@example.com')), 'failed refused_by_hub, sent'),
		'what the hub refuses has failed, and holds up nothing');

	$publisher->sql(
		q(DELETE FROM clerk_invitation_outbox WHERE role = '';
		ALTER TABLE clerk_invitation_outbox ADD CONSTRAINT role_is_clean CHECK (role <> '')));
	$publisher->install;
	enqueue('again@example.com');
	ok($publisher->wait_for(q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'again@example.com'), 'sent'),
		'publisher.sql can be run again');
	$hub->stop_reports($publisher);
	$hub->add($publisher);
	$hub->start_reports($publisher);
	enqueue('added@example.com');
	ok($publisher->wait_for(q(SELECT state FROM clerk_invitation_outbox WHERE email_address = 'added@example.com'), 'sent'),
		'... and so can add_publisher.sh');
	return;
}

# A publisher that was restored, or whose standby was promoted, gives out numbers
# again that the hub knows.
sub check_set_back
{
	my $id = $publisher->sql('DELETE FROM clerk_invitation_outbox WHERE id = (SELECT max(id) FROM clerk_invitation_outbox) RETURNING id');

	$publisher->sql(
		"ALTER SEQUENCE clerk_invitation_outbox_id_seq RESTART WITH $id;
		ALTER TABLE clerk_invitation_request ALTER id RESTART WITH 1;");
	enqueue('reused@example.com');
	ok($publisher->wait_for(
			q(SELECT string_agg(id || ' ' || state, ', ') FROM clerk_invitation_outbox WHERE email_address = 'reused@example.com'),
			"$id sent"),
		'an id that had another row is no reason not to invite');
	my ($invitation) = $clerk->invitations_for('reused@example.com');
	is($publisher->sql("SELECT invitation_id FROM clerk_invitation_outbox WHERE id = $id"),
		$invitation->{id}, '... nor do they mix up');
	return;
}

sub check_secrets
{
	my $logs = join('', map { slurp_file($_) } $hub->node->logfile, $publisher->node->logfile,
		glob($hub->node->logfile . '.*'));

	# Not by unlike(), which would show it.
	ok($logs !~ /ticket=\w/, 'no log has the url of an invitation');
	is( $publisher->sql(
			q(SELECT string_agg(DISTINCT grantee, ' ') FROM information_schema.column_privileges
			WHERE table_name = 'clerk_invitation_outbox' AND column_name = 'url' AND privilege_type = 'SELECT')),
		'app_owner changer', 'only who was given it may read it');
	return;
}
