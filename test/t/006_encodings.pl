# Text crosses encodings: what a database of any encoding holds is sent as
# UTF-8, what Clerk says is stored in the database's encoding, and what cannot
# be expressed on the other side is a clear error.
use strict;
use warnings;

use ClerkTest;
use Encode qw(decode);
use IO::Socket::INET;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

# The strings of this file are bytes, in UTF-8; so are psql's in and output.
local $ENV{PGCLIENTENCODING} = 'UTF8';

my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster('main', $clerk,
	extra => [ '--encoding=UTF8', '--locale=C' ]);

foreach my $encoding (qw(LATIN1 SQL_ASCII EUC_JP UTF8))
{
	$node->safe_psql('postgres',
			"CREATE DATABASE \L$encoding\E TEMPLATE template0"
		  . " ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
	$node->safe_psql(lc $encoding, 'CREATE EXTENSION clerk_invite');
}

# SQL that invites an address with these public metadata.
sub invite_with
{
	my ($email, $metadata, $column) = @_;

	return "SELECT $column FROM clerk_create_organization_invitation("
	  . "'org_test', NULL, $email, 'org:member', metadata => $metadata)";
}

# SQL that invites these addresses, which are SQL, with one call.
sub invite_all
{
	return 'SELECT email_address FROM clerk_create_organization_invitation_bulk('
	  . "'org_test', jsonb_build_array("
	  . join(', ',
		map { "jsonb_build_object('email_address', $_, 'role', 'org:member')" }
		  @_)
	  . '))';
}

# The one request that names this address.
sub request_for
{
	my ($email) = @_;
	my @requests = $clerk->requests_for(decode('UTF-8', $email));

	return @requests == 1 ? $requests[0] : {};
}

# A server on loopback that gives one request this answer; returns its URL.
# For answers that no request makes the fake Clerk give.
sub answer_once
{
	my ($status, $json) = @_;
	my $listener = IO::Socket::INET->new(
		Listen => 1,
		LocalAddr => '127.0.0.1',
		Proto => 'tcp') or die "could not listen: $!";
	my $url = 'http://127.0.0.1:' . $listener->sockport;
	my $pid = fork() // die "could not fork: $!";

	return $url if $pid != 0;

	# Ends by itself if nobody asks.
	alarm $PostgreSQL::Test::Utils::timeout_default;
	my $connection = $listener->accept;
	my $length = 0;
	while (defined(my $line = <$connection>))
	{
		$length = $1 if $line =~ /^Content-Length: (\d+)/i;
		last if $line eq "\r\n";
	}
	read($connection, my $body, $length);
	print $connection "HTTP/1.1 $status\r\n"
	  . "Content-Type: application/json\r\n"
	  . 'Content-Length: '
	  . length($json) . "\r\n"
	  . "Connection: close\r\n\r\n$json";
	close $connection;
	# Not exit(): that would stop the cluster.
	POSIX::_exit(0);
}

# What the databases can hold is sent.

foreach my $database (qw(latin1 sql_ascii euc_jp utf8))
{
	my $email = "jürgen\@$database.example.com";

	is( attempt(
			$node, $database,
			invite_with("'$email'", q('{"Straße": "Überlänge"}'), 'email_address')
		)->{stdout},
		$email,
		"an address with an umlaut makes the round trip from $database");
	is_deeply(
		request_for($email)->{body},
		{
			email_address => decode('UTF-8', $email),
			role => 'org:member',
			public_metadata =>
			  { decode('UTF-8', 'Straße') => decode('UTF-8', 'Überlänge') }
		},
		"address and metadata from $database are sent in UTF-8");
}

foreach my $database (qw(sql_ascii euc_jp utf8))
{
	my $email = "yamada\@$database.example.com";

	is( attempt(
			$node,
			$database,
			invite_with(
				"'$email'",
				q('{"氏名": "山田 太郎"}'),
				q(public_metadata->>'氏名'))
		)->{stdout},
		'山田 太郎',
		"Japanese metadata make the round trip from $database");
	is_deeply(
		request_for($email)->{body}{public_metadata},
		{ decode('UTF-8', '氏名') => decode('UTF-8', '山田 太郎') },
		"Japanese metadata from $database are sent in UTF-8");
}

# What Clerk says is stored.

foreach my $database (qw(latin1 sql_ascii euc_jp utf8))
{
	is( attempt(
			$node, $database,
			invite("x-latin1--$database\@example.com", 'role_name'))->{stdout},
		'Geschäftsführer',
		"a German role name reaches $database");
}

foreach my $database (qw(sql_ascii euc_jp utf8))
{
	is( attempt(
			$node,
			$database,
			invite(
				"x-japanese--$database\@example.com",
				q(role_name, public_metadata->>'部署')))->{stdout},
		'メンバー|営業部',
		"a Japanese role name and Japanese metadata reach $database");
}

my %bytes = (latin1 => 15, sql_ascii => 17, euc_jp => 19, utf8 => 17);
is_deeply(
	{
		map {
			$_ => attempt(
				$node, $_,
				invite("x-latin1--bytes-$_\@example.com",
					'octet_length(role_name)'))->{stdout}
		} keys %bytes
	},
	\%bytes,
	"what Clerk says is stored in the encoding of the database");

# What the database cannot hold is an error that knows of the invitation.

my $result = attempt($node, 'latin1', invite('x-japanese--a@example.com'));
is($result->{sqlstate}, '22P05',
	'Japanese in the answer is an untranslatable character in LATIN1');
my $id = request_for('x-japanese--a@example.com')->{created}[0]{id};
like(
	$result->{stderr},
	qr/HINT:  Clerk has created the invitation "$id"\. Do not try again\./,
	'the error names the invitation that Clerk has created, and warns of a second try'
);

$result = attempt($node, 'latin1',
	"SET clerk_invite.api_url = '"
	  . answer_once('200 OK',
		'{"id": "orginv_escaped", "role_name": "\u30e1"}')
	  . "';\n"
	  . invite('escaped@example.com'));
is($result->{sqlstate}, '22P05',
	'an escaped Japanese character is untranslatable in LATIN1, too');
like(
	$result->{stderr},
	qr/Clerk has created the invitation "orginv_escaped"/,
	'the error about the escaped character names the invitation');

$result = attempt($node, 'latin1',
	invite_all("'jürgen-1\@example.com'", "'x-japanese--b\@example.com'"));
is($result->{sqlstate}, '22P05',
	'Japanese in the answer about many is untranslatable in LATIN1, too');
like(
	$result->{stderr},
	qr/Invitations created, which remain: 2; possibly created: 0; not created: 0\./,
	'... and all of them are known to be created');
my @ids = map { $_->{id} } @{ request_for('x-japanese--b@example.com')->{created} };
like($result->{stderr}, qr/\Q$ids[0]\E, \Q$ids[1]\E|\Q$ids[1]\E, \Q$ids[0]\E/,
	'... and named by the warning');
is( attempt($node, 'latin1',
		invite_all("'jürgen-2\@example.com'", "'x-latin1--b\@example.com'"))
	  ->{stdout},
	"jürgen-2\@example.com\nx-latin1--b\@example.com",
	'addresses with umlauts find their answers in LATIN1');

# Clerk escapes U+2028.  SQL_ASCII holds it as three bytes of no meaning, but
# not every server has a way from the escape to the bytes.
$result = attempt($node, 'sql_ascii',
	invite_with("'line\@example.com'", qq('{"two": "a\xe2\x80\xa8b"}'), 'id'));
$id = request_for('line@example.com')->{created}[0]{id};
like(
	"$result->{stdout}$result->{stderr}",
	qr/$id/,
	'an invitation whose answer has an escaped character is returned in SQL_ASCII, or named by the error'
);

# What UTF-8 cannot express is refused before anything is sent.

my $requests = () = $clerk->journal;
foreach my $case (
	[
		'sql_ascii', 'an address that is not UTF-8',
		q(E'j\xfcrgen@example.com'), q('{}')
	],
	[
		'sql_ascii', 'metadata that are not UTF-8',
		q('a@example.com'), q((E'{"a": "\xfc"}')::jsonb)
	],
	[
		'sql_ascii', 'an address with half a character',
		q(E'a\xe3\x83@example.com'), q('{}')
	],
	[
		'euc_jp', 'a character that Unicode does not have',
		q('a@example.com'), q((E'{"a": "\xa9\xa1"}')::jsonb)
	])
{
	my ($database, $what, $email, $metadata) = @$case;

	is( attempt($node, $database, invite_with($email, $metadata, 'id'))
		  ->{sqlstate},
		'22021',
		"$what is refused in $database");
}
$result = attempt($node, 'sql_ascii',
	invite_all((map { "'a$_\@example.com'" } 1 .. 10), q(E'j\xfcrgen@example.com')));
is($result->{sqlstate}, '22021',
	'an address among many that is not UTF-8 is refused in sql_ascii');
like($result->{stderr}, qr/argument "invitations", element 11:/,
	'... with its position');

# In the outbox as well: it fails its own row, at once, beside others, and if its
# sender died before it could say so.

$node->safe_psql(
	'sql_ascii', q(
	SET client_min_messages = error;
	SET clerk_invite.single_requests_per_hour = 0;
	INSERT INTO clerk_invitation_outbox
		(organization_id, email_address, role, state, attempts,
		first_claimed_at, claimed_at)
	VALUES ('org_test', E'crash-j\xfcrgen@example.com', 'org:member', 'sending', 1,
			now() - interval '1 hour', now() - interval '1 hour');
	INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
	VALUES ('org_test', E'j\xfcrgen@example.com', 'org:member'),
		('org_test', E'half-\xe3\x83@example.com', 'org:member');
	CALL clerk_send_invitations();
	SET clerk_invite.single_requests_per_hour = 250;
	CALL clerk_send_invitations();));
is( $node->safe_psql(
		'sql_ascii',
		"SELECT string_agg(state || ' ' || attempts, ', ' ORDER BY id), "
		  . "bool_and(error_message LIKE 'the request cannot be %' AND settled_at IS NOT NULL) "
		  . 'FROM clerk_invitation_outbox'),
	'failed 1, failed 2, failed 2|t',
	'an address that is not UTF-8 fails its row, also after a crash');
is(scalar(() = $clerk->journal),
	$requests, 'nothing was sent for what was refused');

# Errors keep their meaning in every encoding.

foreach my $database (qw(latin1 sql_ascii euc_jp utf8))
{
	my $email = "x-error-403-not_allowed_access--jürgen\@$database.example.com";
	my $refused = attempt($node, $database, invite($email));

	is($refused->{sqlstate}, '42501',
		"a refusal that quotes an umlaut has its SQLSTATE in $database");
	like(
		$refused->{stderr},
		qr/DETAIL:  Clerk says: \Q$email\E is not allowed/,
		"the refusal is quoted with its umlaut in $database");
}

my $refusal =
	'{"errors": [{"message": "m", "long_message": "招待 exists",'
  . ' "code": "organization_invitation_not_unique",'
  . ' "meta": {"param_name": "email_address"}}]}';
$result = attempt($node, 'latin1',
	"SET clerk_invite.api_url = '"
	  . answer_once('400 Bad Request', $refusal)
	  . "';\n"
	  . invite('refused@example.com'));
is($result->{sqlstate}, '23505',
	'a refusal that LATIN1 cannot hold has its SQLSTATE');
like(
	$result->{stderr},
	qr/Clerk says: \?\? exists \[organization_invitation_not_unique\]/,
	'the refusal is quoted without the characters that LATIN1 lacks');
like($result->{stderr}, qr/^COLUMN NAME:  email_address$/m,
	'the refusal still tells which field it is about');

done_testing();
