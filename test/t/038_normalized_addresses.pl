# A Clerk that normalizes addresses: drops white space, writes an
# internationalized domain as the DNS does, and small letters for capitals; or
# changes them in a way that nobody could foresee.  Everybody is invited once,
# and every row knows its invitation.
use strict;
use warnings;

use ClerkTest;
use Encode qw(decode);
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# The strings of this file are bytes, in UTF-8; so are psql's in and output.
local $ENV{PGCLIENTENCODING} = 'UTF8';

my @limits = ('--single-limit', '100000', '--bulk-limit', '100000');
my @foreseen = map { ('--normalize', $_) } qw(white-space punycode lower-case);
my $clerk = ClerkTest::Fake->start(@limits, @foreseen);

# Its list looks for an address as it is asked for.
my $exact = ClerkTest::Fake->start(@limits, @foreseen, '--exact-filter');

# It drops a "+tag", too.
my $odd = ClerkTest::Fake->start(@limits, @foreseen, '--normalize', 'tag');

my %cluster = (
	extra => [ '--encoding=UTF8', '--locale=C' ],
	conf => q(
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
));
my $node = clerk_cluster('main', $clerk, %cluster);
my %databases = (
	utf8 => q(ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'),
	latin1 => q(ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'),
	sql_ascii => q(ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'));
my $database = 'postgres';
my $cases = 0;

# libcurl may be too old for internationalized domains, or built without them.
my $has_idn =
  is_same('a@bücher.example', 'a@xn--bcher-kva.example') eq 'same';
diag('libcurl knows no internationalized domains') unless $has_idn;

foreach my $name (sort keys %databases)
{
	use_database($name);
	check_bulk();
	check_singles();
	check_lost_answers();
	check_exact_filter();
	check_function();
	check_same_address();
	check_named();
}
$database = 'utf8';
check_unforeseen();
check_unforeseen_lost();
check_unforeseen_before();
check_unforeseen_function();
check_named_in_other_forms();
check_forms();
$node->stop;

$node = clerk_cluster('worker', $exact, %cluster, worker => 1);
foreach my $name (sort keys %databases)
{
	use_database($name);
	check_worker();
}
$node->stop;
done_testing();

sub use_database
{
	my ($name) = @_;

	$database = $name;
	$node->safe_psql('postgres',
		"CREATE DATABASE $name TEMPLATE template0 $databases{$name}");
	$node->safe_psql($name, 'CREATE EXTENSION clerk_invite');
	return;
}

# A domain of its own for each check, and addresses there in forms that this
# Clerk changes.
sub addresses
{
	my (@prefixes) = @_;
	my $domain = ($has_idn ? 'bücher' : 'buecher') . ++$cases . '.example';

	@prefixes = ('') unless @prefixes;
	return map { "$_\@$domain" }
	  (map { ("${_}Ann", "${_}b ob", "${_}Jürgen") } @prefixes), 'plain';
}

# All of an organization in one request.
sub check_bulk
{
	my @emails = (addresses(), addresses('two-'), addresses('three-'));

	enqueue(@emails);
	settle();
	is(states(), 'sent 1', "$database: a bulk request settles all of its rows");
	is(created_once($clerk, @emails), scalar @emails, '... and creates each once');
	is(known(), 't', '... which every row knows');
	is(looks($clerk), 0, '... and nothing has to be looked up');
	return;
}

sub check_singles
{
	my @emails = addresses();

	enqueue(@emails);
	settle('SET clerk_invite.bulk_requests_per_hour = 0;');
	is(states(), 'sent 1', "$database: single requests settle their rows");
	is(created_once($clerk, @emails), scalar @emails, '... and create each once');
	is(known(), 't', '... which every row knows');
	return;
}

sub check_lost_answers
{
	foreach my $case ([ 'single', 0 ], [ 'bulk', 50 ])
	{
		my ($what, $bulks) = @$case;
		my @emails = (addresses('x-drop-after--'), addresses('x-drop-after--'));

		enqueue(@emails);
		settle("SET clerk_invite.bulk_requests_per_hour = $bulks;");
		is(states(), 'sent 1',
			"$database: looks find what a lost answer of a $what request was about");
		is(created_once($clerk, @emails),
			scalar @emails, '... and it is created once');
		is(known(), 't', '... which every row knows');
	}
	return;
}

# What is looked for in the form that was sent is not found, until Clerk refuses
# to create it again.
sub check_exact_filter
{
	my @emails = grep { !/plain/ } addresses('x-drop-after-once--');

	enqueue(@emails);
	settle(use_clerk($exact) . 'SET clerk_invite.bulk_requests_per_hour = 0;');
	# Case alone keeps no filter from finding an address.
	is(states(), $has_idn ? 'sent 2' : 'sent 1, sent 2',
		"$database: a Clerk that looks for nothing but its own form is asked for that"
	);
	is(created_once($exact, @emails), scalar @emails, '... and each is created once');
	is(known(), 't', '... which every row knows');
	return;
}

# The function returns rows in the order of the array.
sub check_function
{
	my @emails = (addresses(), addresses('two-'), addresses('three-'));
	my $result = attempt($node, $database, invite_all(@emails));

	is($result->{sqlstate}, '', "$database: the function takes answers that are normalized");
	is($result->{stdout}, join("\n", map { normalized($_) } @emails),
		'... and returns them in its order');
	return;
}

# Two forms of one address.
sub check_same_address
{
	my @emails = addresses();
	my @again = map { my $same = lc s/ //gr; $same eq $_ ? "$same " : $same } @emails;
	my $sent = scalar(() = $clerk->journal);

	enqueue(@emails, @again);
	settle();
	is( value(q(SELECT string_agg(DISTINCT state, ', ') || ' ' ||
			count(*) FILTER (WHERE state = 'sent') FROM clerk_invitation_outbox)),
		'sent, skipped ' . @emails,
		"$database: forms of one address are invited once");
	my @requests = ($clerk->journal)[ $sent .. scalar(() = $clerk->journal) - 1 ];
	is( scalar(
			grep { has_repeated($_) } grep { ref $_->{body} eq 'ARRAY' } @requests),
		0,
		'... and never in one request');
	is(attempt($node, $database, invite_all($emails[0], $again[0]))->{sqlstate},
		'22023', '... and the function refuses them');
	return;
}

# Clerk refuses a batch for one that is pending, which it names in its form.
sub check_named
{
	my @emails = addresses();

	$node->safe_psql($database, invite_all($emails[1]));
	wait_until_distinct();
	enqueue(@emails, addresses());
	settle();
	is( value("SELECT state || ' ' || attempts FROM clerk_invitation_outbox"
			  . " WHERE email_address = '$emails[1]'"),
		'skipped 1',
		"$database: who is named in another form is looked up at once");
	is( value("SELECT string_agg(DISTINCT state || ' ' || attempts, ', ') FROM"
			  . " clerk_invitation_outbox WHERE email_address <> '$emails[1]'"),
		'sent 2',
		'... and the others share another request');
	return;
}

# A worker has no client's encoding to convert with.
sub check_worker
{
	my @emails = (
		(grep { !/plain/ } addresses('x-drop-after-once--')),
		addresses());

	enqueue(@emails);
	wait_until('the worker has sent', sub { ends() eq 'sent' });
	is(created_once($exact, @emails),
		scalar @emails, "$database: a worker invites each once");
	is(known(), 't', '... which every row knows');
	return;
}

# One that cannot be matched belongs to the row that is left; with two of them
# Clerk's refusal tells what a look has found.
sub check_unforeseen
{
	foreach my $tagged (1, 2)
	{
		my @emails = (addresses(), addresses());

		s/\@/+tag\@/ foreach @emails[ 0 .. $tagged - 1 ];
		enqueue(@emails);
		settle(use_clerk($odd));
		is(ends(), 'sent',
			"what is left of a bulk request finds its row, of $tagged");
		is(states(), 'sent 1', '... at once') if $tagged == 1;
		is(created_once($odd, @emails), scalar @emails, '... and each is created once');
		is(known(), 't', '... which every row knows');
	}
	return;
}

# A look finds something, and Clerk says that it is pending for the row.
sub check_unforeseen_lost
{
	foreach my $case (
		[ 'single', 0, 10, '-once' ],
		[ 'bulk', 50, 10, '-once' ],
		[ 'single', 0, 1, '' ],
		[ 'single', 0, 2, '' ],
		[ 'bulk', 50, 2, '' ])
	{
		my ($what, $bulks, $attempts, $once) = @$case;
		my @emails =
		  map { s/\@/+tag\@/r } (addresses("x-drop-after$once--"), addresses());

		enqueue(@emails);
		settle(use_clerk($odd)
			  . "SET clerk_invite.bulk_requests_per_hour = $bulks;"
			  . "SET clerk_invite.max_attempts = $attempts;");
		is(ends(), 'sent',
			"a lost $what request is found whatever Clerk makes of it");
		is(created_once($odd, @emails), scalar @emails, '... and is created once');
		is(known(), 't', '... which every row knows');
	}
	return;
}

# The same, but somebody else's.
sub check_unforeseen_before
{
	my @emails = map { s/\@/+tag\@/r } addresses();

	$node->safe_psql($database,
		use_clerk($odd) . join('', map { invite_all($_) } @emails));
	wait_until_distinct();
	enqueue(@emails);
	settle(use_clerk($odd));
	is(ends(), 'skipped',
		'a pending invitation of somebody else has its rows skipped');
	is(value('SELECT count(invitation_id) FROM clerk_invitation_outbox'),
		0, '... and is not taken for theirs');
	return;
}

sub check_unforeseen_function
{
	my @emails = addresses();

	$emails[1] =~ s/\@/+tag\@/;
	my $result = attempt($node, $database, use_clerk($odd) . invite_all(@emails));
	is($result->{stdout}, join("\n", map { normalized($_) =~ s/\+tag//r } @emails),
		'the function finds the one that is left');

	# Of two that are left nobody knows which is which.
	@emails = addresses();
	s/\@/+tag\@/ foreach @emails[ 0, 1 ];
	$result = attempt($node, $database, use_clerk($odd) . invite_all(@emails));
	is($result->{sqlstate}, '08007', '... but not of two');
	like(
		$result->{stderr},
		qr/Invitations created, which remain: 2; possibly created: 2; not created: 0\./,
		'... which it says');
	return;
}

# Texts of Clerk's about an address.
sub check_named_in_other_forms
{
	my $address = 'b ob@bücher.example';

	foreach my $named (($has_idn ? 'bob@xn--bcher-kva.example' : ()),
		'B ob@Bücher.example', 'bob@bücher.example')
	{
		foreach my $error (
			qq("meta": {"email_addresses": ["$named"]}),
			qq("long_message": "There is $named, already."),
			qq("long_message": "There is \\"$named\\"."))
		{
			my $server = MisbehavingServer->answering('400 Bad Request', [],
				qq({"errors": [{"message": "m", "code": "organization_invitation_not_unique", $error}]}));

			like(
				attempt($node, $database,
					use_clerk($server) . invite_all('other@example.com', $address))->{stderr},
				qr/could not invite "\Q$address\E" to/,
				"an address is known in: $error");
		}
	}
	foreach my $named ('jbob@xn--bcher-kva.example', 'bob@xn--bcher-kva.example.org')
	{
		my $server = MisbehavingServer->answering('400 Bad Request', [],
			qq({"errors": [{"message": "m", "code": "c", "meta": {"email_addresses": ["$named"]}}]}));

		like(
			attempt($node, $database,
				use_clerk($server) . invite_all('other@example.com', $address))->{stderr},
			qr/could not invite 2 addresses/,
			"another one is not: $named");
	}
	return;
}

# Which forms are the same.
sub check_forms
{
	foreach my $case (
		[ 'same', 'a b@example.com', 'ab@example.com' ],
		[ 'same', "a\xc2\xa0b\@example.com", 'ab@example.com' ],
		[ 'same', "\xef\xbb\xbfab\@example.com", 'ab@example.com' ],
		[ 'same', "ab\@example\xe3\x80\x80.com", 'ab@example.com' ],
		[ 'same', "a\tb\@example.com", 'ab@example.com' ],
		[ 'same', 'é@example.com', "e\xcc\x81\@example.com" ],
		[ 'same', 'É@example.com', "e\xcc\x81\@example.com" ],
		[ 'same', 'a@BÜCHER.example', 'a@XN--BCHER-KVA.example' ],
		[ 'same', "a\@bu\xcc\x88cher.example", 'a@xn--bcher-kva.example' ],
		[ 'same', 'a@straße.example', 'a@xn--strae-oqa.example' ],
		[ 'same', 'a@例え.テスト', 'a@xn--r8jz45g.xn--zckzah' ],
		[ 'same', 'ä@bücher.example', 'Ä@xn--bcher-kva.example' ],
		[ 'other', 'ä@bücher.example', 'a@xn--bcher-kva.example' ],
		[ 'other', 'a@bücher.example', 'a@bucher.example' ],
		[ 'other', 'a.b@example.com', 'ab@example.com' ],
		[ 'other', 'a+b@example.com', 'a@example.com' ],
		[ 'other', 'bücher@example.com', 'xn--bcher-kva@example.com' ],
		[ 'other', 'a@' . 'ü' x 300 . '.example', 'a@' . 'ü' x 301 . '.example' ])
	{
		my ($expected, $first, $second) = @$case;

		next if $second =~ /\@xn--/i && !$has_idn;
		is(is_same($first, $second), $expected,
			"$expected: " . substr("$first, $second", 0, 80));
	}
	return;
}

sub is_same
{
	my (@emails) = @_;

	return attempt($node, $database,
		"SET clerk_invite.secret_key_file = '';" . invite_all(@emails))->{sqlstate} eq
	  '22023' ? 'same' : 'other';
}

sub use_clerk
{
	my ($fake) = @_;

	return "SET clerk_invite.api_url = '" . $fake->url . "';";
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
	my $list = join(',', map { "'$_'" } @_);

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
	my ($settings) = @_;

	$settings //= '';
	wait_until(
		'everything is settled',
		sub {
			return value(
				qq(
				SET client_min_messages = error;
				$settings
				CALL clerk_send_invitations();
				SELECT count(*) FROM clerk_invitation_outbox
				WHERE state IN ('queued', 'sending', 'verifying');)) eq '0';
		});
	return;
}

# Waits until what has been created can be told from what will be: Clerk tells
# its time in whole seconds.
sub wait_until_distinct
{
	my $then = time + 2.2;

	wait_until('enough time has passed', sub { time > $then });
	return;
}

sub value
{
	my ($query) = @_;

	return $node->safe_psql($database, $query);
}

# The states of the outbox with the attempts that they took.
sub states
{
	return value(q(SELECT string_agg(DISTINCT state || ' ' || attempts, ', ')
		FROM clerk_invitation_outbox));
}

# Whether every row has an invitation, and one of its own.
sub known
{
	return value(q(SELECT count(DISTINCT invitation_id) = count(*)
		AND count(invitation_id) = count(*) FROM clerk_invitation_outbox));
}

sub ends
{
	return value(
		q(SELECT string_agg(DISTINCT state, ', ') FROM clerk_invitation_outbox));
}

# How many of these addresses Clerk has created just once.
sub created_once
{
	my ($fake, @emails) = @_;
	my %count;

	$count{ $_->{email_address} }++ foreach $fake->all_invitations;
	return scalar grep { ($count{ decode('UTF-8', normalized($_)) =~ s/\+tag//r } // 0) == 1 }
	  @emails;
}

# An address in the form that this Clerk gives it, as bytes.
sub normalized
{
	my ($email) = @_;
	my ($local, $domain) = split(/@/, $email =~ s/ //gr =~ s/Ann/ann/r =~ s/Jür/jür/r);

	return "$local\@" . ascii_domain($domain);
}

# "bücher7.example" in the DNS, by another's knowledge.
my %ascii_domains;

sub ascii_domain
{
	my ($domain) = @_;

	$ascii_domains{$domain} //= (
		run_command(
			[
				'python3', '-c',
				'import sys; print(sys.argv[1].encode("idna").decode())', $domain
			]))[0];
	return $ascii_domains{$domain};
}

# How often this Clerk was asked about the addresses of the outbox.
sub looks
{
	my ($fake) = @_;
	my $domain = ($has_idn ? 'bücher' : 'buecher') . "$cases.example";

	return scalar grep {
		index($_->{query}{email_address}[0] // '', decode('UTF-8', $domain)) >= 0
	} $fake->journal;
}

# Whether a bulk request has two forms of an address.
sub has_repeated
{
	my ($request) = @_;
	my %seen;

	$seen{ lc $_->{email_address} =~ s/\s//gr }++ foreach @{ $request->{body} };
	return scalar grep { $_ > 1 } values %seen;
}
