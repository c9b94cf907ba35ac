# Clerk does not tell upper from lower case in an address, in any script.  Nor
# may the database, whatever its encoding and locale: an answer with the address
# in other case is about the same person, who is invited once.
use strict;
use warnings;

use ClerkTest;
use Encode qw(decode encode);
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;

# The strings of this file are bytes, in UTF-8; so are psql's in and output.
local $ENV{PGCLIENTENCODING} = 'UTF8';

my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster(
	'main', $clerk,
	extra => [ '--encoding=UTF8', '--locale=C' ],
	conf => q(
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.max_attempts = 3
));
my $has_icu = $node->safe_psql('postgres',
	q(SELECT count(*) FROM pg_collation WHERE collname = 'tr-x-icu'));
my %databases = (
	utf8 => q(ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'),
	latin1 => q(ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'),
	sql_ascii => q(ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'));

# Turkish has another small letter for "I".
$databases{turkish} = q(ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'tr' LOCALE 'C')
  if $has_icu
  && $node->safe_psql('postgres', 'SHOW server_version_num') >= 150000;

foreach my $database (sort keys %databases)
{
	$node->safe_psql('postgres',
		"CREATE DATABASE $database TEMPLATE template0 $databases{$database}");
	$node->safe_psql($database, 'CREATE EXTENSION clerk_invite');
	check_bulk_function($database);
	check_outbox($database);
	check_lost_answers($database);
	check_twice($database);
	check_named($database);
}
check_worker('latin1');
check_table();

$node->stop;
done_testing();

# The answers' addresses are in other case, and in another order.
sub check_bulk_function
{
	my ($database) = @_;
	my @emails = map { "$_\@function.$database.example.com" }
	  ('x-other-case--ÄNNE', 'I.INAN', 'Örs', 'plain');

	is( attempt($node, $database, invite_all(@emails))->{stdout},
		join("\n", map { other_case($_) } @emails),
		"answers in other case are matched in $database");
	is( attempt($node, $database, invite_all("ß-É\@$database.example.com", "ß-é\@$database.example.com"))
		  ->{sqlstate},
		'22023',
		"an address is the same in other case in $database");
	return;
}

# A bulk request of the outbox, and one that finds what it has created.
sub check_outbox
{
	my ($database) = @_;
	my @emails = map { "$_\@outbox.$database.example.com" }
	  ('x-other-case--ÄNNE', 'I.INAN', 'Örs', 'plain1', 'plain2', 'plain3');

	enqueue($database, @emails);
	settle($database);
	is(states($database), 'sent 1', "answers in other case settle their rows in $database");
	is(created(@emails), 6, '... and are created once');
	is(looks('outbox', $database), 0, '... and need not be looked up');
	return;
}

# Nothing was heard, and the look finds the addresses in other case.
sub check_lost_answers
{
	my ($database) = @_;
	my @emails = map { "$_\@lost.$database.example.com" }
	  ('x-drop-after--ÄNNE', 'x-drop-after--I.INAN');

	$clerk->control(
		'misbehave',
		{
			operation => 'ListOrganizationInvitations',
			behaviour => 'other-case',
			times => 100
		});
	foreach my $email (@emails)
	{
		enqueue($database, $email);
		settle($database);
		is(states($database), 'sent 1',
			"what a look finds in other case settles its row in $database");
		is(created($email), 1, '... and is created once');
	}
	$clerk->control(
		'misbehave',
		{
			operation => 'ListOrganizationInvitations',
			behaviour => 'other-case',
			times => 0
		});
	return;
}

# The same address in several rows is never in one request.
sub check_twice
{
	my ($database) = @_;
	my @emails = map { "$_\@twice.$database.example.com" } qw(ÄI äI Äi äi other1 other2);

	enqueue($database, @emails);
	settle($database);
	is( $node->safe_psql(
			$database,
			q(SELECT string_agg(DISTINCT state || ' ' || (error_code IS NULL), ', ')
			FROM clerk_invitation_outbox)),
		'sent true, skipped false',
		"the same address in other case is invited once in $database");
	my %together;
	foreach my $request ($clerk->journal)
	{
		next unless ref $request->{body} eq 'ARRAY';
		my %seen;
		$seen{ lc $_->{email_address} }++ foreach @{ $request->{body} };
		$together{$_} = 1 foreach grep { $seen{$_} > 1 } keys %seen;
	}
	is_deeply(\%together, {}, '... and never asked for twice in a request');
	return;
}

# Clerk names an address in other case.
sub check_named
{
	my ($database) = @_;
	my $refusal =
		'{"errors": [{"message": "m", "code": "organization_invitation_not_unique",'
	  . ' "meta": {"email_addresses": ["äi@example.com"]}}]}';
	my $server = MisbehavingServer->answering('400 Bad Request', [], $refusal);
	my $url = $server->url;

	like(
		attempt($node, $database,
			"SET clerk_invite.api_url = '$url';"
			  . invite_all('other@example.com', 'ÄI@example.com'))->{stderr},
		qr/could not invite "ÄI\@example\.com" to/,
		"an address that Clerk names in other case is named in $database");
	return;
}

# The worker converts, too.
sub check_worker
{
	my ($database) = @_;
	my @emails = map { "$_\@worker.$database.example.com" } qw(JÜRGEN Jörg a b c d);

	$node->safe_psql('postgres',
		"ALTER DATABASE $database SET clerk_invite.worker = on");
	enqueue($database, @emails);
	wait_until('the worker has sent', sub { states($database) eq 'sent 1' });
	is(created(@emails), 6, "a worker sends umlauts from $database");
	return;
}

# The letters of many scripts, by another's knowledge of them.
sub check_table
{
  SKIP:
	{
		skip 'the server lacks ICU', 1 unless $has_icu;
		is( $node->safe_psql(
				'utf8', q(
				CREATE FUNCTION is_same(a text, b text) RETURNS boolean
				LANGUAGE plpgsql AS $$
				BEGIN
					PERFORM clerk_create_organization_invitation_bulk('org_test',
						jsonb_build_array(
							jsonb_build_object('email_address', a || '@example.com', 'role', 'org:member'),
							jsonb_build_object('email_address', b || '@example.com', 'role', 'org:member')));
					RETURN false;
				EXCEPTION WHEN invalid_parameter_value THEN
					RETURN true;
				WHEN OTHERS THEN
					RETURN false;
				END $$;
				SET clerk_invite.secret_key_file = '';
				SELECT count(*) > 800, string_agg(letter, '') FILTER (WHERE NOT is_same(letter, small))
				FROM generate_series(32, 8580) AS code,
					LATERAL (SELECT chr(code) AS letter) AS c,
					LATERAL (SELECT lower(letter COLLATE "und-x-icu") AS small) AS s
				WHERE small <> letter AND length(small) = 1
					AND code NOT BETWEEN 7296 AND 7311;)),
			't|',
			'capital and small letters of other scripts are the same');
	}
	return;
}

# SQL that invites these addresses with one call.
sub invite_all
{
	return 'SELECT email_address FROM clerk_create_organization_invitation_bulk('
	  . "'org_test', jsonb_build_array("
	  . join(', ',
		map { "jsonb_build_object('email_address', '$_', 'role', 'org:member')" }
		  @_)
	  . '));';
}

# Puts nothing but these into the outbox.
sub enqueue
{
	my ($database, @emails) = @_;
	my $list = join(',', map { "'$_'" } @emails);

	$node->safe_psql(
		$database, qq(
		DELETE FROM clerk_invitation_outbox;
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
		SELECT 'org_test', email, 'org:member' FROM unnest(ARRAY[$list]) AS email));
	return;
}

# Sends until nothing is open.
sub settle
{
	my ($database) = @_;

	wait_until(
		'everything is settled',
		sub {
			return $node->safe_psql(
				$database, q(
				SET client_min_messages = error;
				CALL clerk_send_invitations();
				SELECT count(*) FROM clerk_invitation_outbox
				WHERE state IN ('queued', 'sending', 'verifying');)) eq '0';
		});
	return;
}

# The states of the outbox with the attempts that they took.
sub states
{
	my ($database) = @_;

	return $node->safe_psql($database,
		q(SELECT string_agg(DISTINCT state || ' ' || attempts, ', ')
		FROM clerk_invitation_outbox));
}

# How many requests have looked for the addresses of a check.
sub looks
{
	my ($check, $database) = @_;

	return scalar grep {
		($_->{query}{email_address}[0] // '') =~ /\@$check\.$database\./
	} $clerk->journal;
}

# How many invitations Clerk has for these addresses.
sub created
{
	my %wanted = map { decode('UTF-8', $_) => 1 } @_;

	return scalar grep { $wanted{ $_->{email_address} } } $clerk->all_invitations;
}

# An address with capitals for small letters, and the other way round.
sub other_case
{
	my ($email) = @_;

	return encode(
		'UTF-8',
		join('', map { lc $_ eq $_ ? uc $_ : lc $_ } split //,
			decode('UTF-8', $email)));
}
