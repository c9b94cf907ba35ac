# What is put into the outbox, by members' triggers and by roles that may insert
# and no more, can't hold others up: it is refused at the door, or it is sent.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;
use WorkerTest;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
# The longest address has letters that not every encoding has.
my $node = worker_cluster('main', $clerk,
	extra => [ '--encoding=UTF8', '--locale=C' ]);

check_long_address();
check_longest_address();
check_insert_only();
check_progress();
check_numbers();
check_encodings();

$node->stop;
done_testing();

# An address of megabytes, whose first answer would be lost and whose look-up
# would be a URL that no library takes.
sub check_long_address
{
	$node->safe_psql(
		'postgres', q(
		CREATE TABLE members (email text);
		CREATE TRIGGER invite AFTER INSERT ON members FOR EACH ROW
			EXECUTE FUNCTION clerk_invitation_trigger('=org_test', '', 'email', '=org:member');));
	my $result = attempt(
		$node, 'postgres', q(
		INSERT INTO members VALUES
			('x-drop-after--' || repeat('x', 9000000) || '@example.com')));
	is($result->{sqlstate}, '23514',
		'a member with an address of 9 MB is refused');
	like($result->{stderr}, qr/"email_address_is_an_address"/,
		'... by the name of what it violates');
	cmp_ok(length $result->{stderr}, '<', 2000, '... and few words');

	$node->safe_psql('postgres',
		"INSERT INTO members VALUES ('neighbor\@example.com')");
	wait_for_states($node, 'postgres', 'sent 1', 'neighbor@example.com');
	pass('... so that others are sent');
}

# The longest that the constraints take, of letters that take the most bytes in
# a URL, in an organization with the longest ID: its look-up is one.
sub check_longest_address
{
	$node->safe_psql(
		'postgres', q(
		INSERT INTO clerk_invitation_outbox
			(organization_id, inviter_user_id, email_address, role, redirect_url)
		SELECT rpad('org_long', 255, 'x'), NULL,
			rpad('x-drop-after--', 308, chr(128512)) || '@example.com', 'org:member',
			rpad('https://example.com/', 8000, 'x');));
	my $state = 'SELECT state FROM clerk_invitation_outbox WHERE char_length(organization_id) = 255';
	wait_until(
		'the longest address is settled',
		sub {
			return $node->safe_psql('postgres', $state) =~ /^(sent|skipped|failed)$/;
		});
	is($node->safe_psql('postgres', $state),
		'sent', 'what is as long as it may be is looked up, and sent');
	is(scalar(() = grep { $_->{email_address} =~ /^x-drop-after/ } $clerk->all_invitations),
		1, '... once');
}

# A role that may insert and no more can't choose what senders reckon with.
sub check_insert_only
{
	$node->safe_psql(
		'postgres', q(
		CREATE ROLE app LOGIN;
		GRANT INSERT ON clerk_invitation_outbox TO app;
		GRANT USAGE ON SEQUENCE clerk_invitation_outbox_id_seq TO app;));
	my %attacks = (
		'no room for an attempt' => "attempts) VALUES (2147483647",
		'attempts below zero' => "attempts) VALUES (-2147483648",
		'a row that was under way' => "state) VALUES ('verifying'",
		'an invitation that is not its own' => "invitation_id) VALUES ('orginv_other'",
		'a claim in the future' => "first_claimed_at) VALUES ('infinity'",
		'a time that counts from another' => "next_attempt_at) VALUES ('-infinity'",
		'a time before all times' => "send_after) VALUES ('-infinity'",
		'all numbers at once' => "id) VALUES (9223372036854775807",
		'a number that is next' =>
		  "id) VALUES ((SELECT pg_sequence_last_value('clerk_invitation_outbox_id_seq') + 1)",
	);
	foreach my $attack (sort keys %attacks)
	{
		my $sql = "INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, "
		  . $attacks{$attack} =~ s/VALUES \(/VALUES ('org_test', 'attack\@example.com', 'org:member', /r
		  . ')';

		like(
			attempt($node, 'postgres', $sql, extra_params => [ '-U', 'app' ])->{sqlstate},
			qr/^(42501|23514)$/,
			"a role that may insert can't have $attack");
	}
	$node->safe_psql(
		'postgres',
		"INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
		VALUES ('org_test', ' by-app\@example.com\t', 'org:member')",
		extra_params => [ '-U', 'app' ]);
	wait_for_states($node, 'postgres', 'sent 1', 'by-app@example.com');
	is(scalar(() = $clerk->requests_for('by-app@example.com')),
		1, 'it can have an invitation sent, without the white space around it');
}

# What infinity is good for: a row that is never due.
sub check_progress
{
	$node->safe_psql(
		'postgres', q(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
		VALUES ('org_test', 'never@example.com', 'org:member', 'infinity'),
			('org_test', 'long-ago@example.com', 'org:member', '4713-01-01 BC');));
	wait_for_states($node, 'postgres', 'sent 1', 'long-ago@example.com');
	is( $node->safe_psql(
			'postgres', 'SELECT queued, due, overdue FROM clerk_invitation_progress'),
		'1|0|',
		'a row that is never due is not in the way of the view');
	$node->safe_psql('postgres',
		"DELETE FROM clerk_invitation_outbox WHERE email_address = 'never\@example.com'");
	return;
}

# Sessions that draw numbers at the same time, after a restore has set the
# sequence back: none fails, and the sequence is moved once.
sub check_numbers
{
	my $script = PostgreSQL::Test::Utils::tempdir() . '/enqueue.sql';

	append_to_file(
		$script, q(
INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
SELECT 'org_test', 'numbers@example.com', 'org:member', 'infinity' FROM generate_series(1, 10);
));
	foreach my $ahead (50, 100_000)
	{
		$node->safe_psql(
			'postgres', qq(
			TRUNCATE clerk_invitation_outbox;
			SELECT setval('clerk_invitation_outbox_id_seq', 10);
			INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role, send_after)
			SELECT 10 + n, 'org_test', 'numbers\@example.com', 'org:member', 'infinity'
			FROM generate_series(1, $ahead) AS n;));
		$node->command_ok(
			[
				'pgbench', '-n', '-c', '4', '-j', '2', '-t', '50', '-f', $script,
				'-d', $node->connstr('postgres')
			],
			"no session meets any of $ahead rows that were restored");
		is( $node->safe_psql(
				'postgres', 'SELECT count(*), max(id) FROM clerk_invitation_outbox'),
			($ahead + 2000) . '|' . (10 + $ahead + 2000),
			'... and the numbers go on after these');
	}

	# As a subscription's rows come, or a restore's with its triggers disabled.
	$node->safe_psql(
		'postgres', q(
		SET session_replication_role = replica;
		INSERT INTO clerk_invitation_outbox (id, organization_id, email_address, role, send_after)
		SELECT max(id) + 1, 'org_test', 'replica@example.com', 'org:member', 'infinity'
		FROM clerk_invitation_outbox;));
	is(attempt($node, 'postgres', "INSERT INTO members VALUES ('after-replica\@example.com')")->{stderr},
		'', 'nor one that came without firing triggers');
	wait_for_states($node, 'postgres', 'sent 1', 'after-replica@example.com');
	$node->safe_psql('postgres', 'TRUNCATE clerk_invitation_outbox');
	return;
}

# White space that is not ASCII, as each encoding has it; where the database does
# not know what its bytes mean, as UTF-8 has it.
sub check_encodings
{
	my %cases = (
		LATIN1 => [ '\xa0', 'no-break space', '\xe9' ],
		WIN1252 => [ '\xa0', 'no-break space', '\xe9' ],
		KOI8R => [ '\x9a', 'no-break space', '\xc5' ],
		EUC_JP => [ '\xa1\xa1', 'ideographic space', '\xa4\xa2' ],
		SQL_ASCII => [ '\xc2\xa0', 'no-break space', '\xe9' ],
	);

	foreach my $encoding (sort keys %cases)
	{
		my ($space, $name, $letter) = @{ $cases{$encoding} };
		my $database = 'in_' . lc $encoding;

		$node->safe_psql('postgres',
			"CREATE DATABASE $database ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
		);
		$node->safe_psql('postgres',
			"ALTER DATABASE $database SET clerk_invite.worker = off");
		is( $node->safe_psql(
				$database, qq(
				CREATE EXTENSION clerk_invite;
				CREATE TABLE given AS SELECT
					convert_from(decode('@{[ unescaped("$letter\@b.example") ]}', 'hex'), '$encoding') AS address,
					convert_from(decode('@{[ unescaped(" $space$letter\@b.example$space$space\t") ]}', 'hex'), '$encoding') AS spaced;
				INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
				SELECT 'org_test', spaced, 'org:member' FROM given;
				SELECT length(spaced) - length(address) >= 5, email_address = address
				FROM given, clerk_invitation_outbox;)),
			't|t',
			"in a database in $encoding $name is taken off, and no letter");
		$node->safe_psql('postgres', "DROP DATABASE $database");
	}
	return;
}

# Bytes written as \x.., in hexadecimal digits.
sub unescaped
{
	my ($text) = @_;

	$text =~ s/\\x([0-9a-f]{2})/chr hex $1/ge;
	return unpack('H*', $text);
}
