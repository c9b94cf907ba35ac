# Odd values for every argument of every SQL function, of every procedure, and of
# the trigger: each call ends with a result, or with an error of a kind that is
# documented, and nothing crashes.  What there is to call is read from the
# catalogs, so that a new function takes part by itself.
#
# FUZZ_CALLS in the environment is the number of calls, FUZZ_SEED what chooses
# the values; see fuzz.sh.
use strict;
use warnings;

use ClerkTest;
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Utils;
use Test::More;

my $calls = $ENV{FUZZ_CALLS} // 1500;
my $seed = $ENV{FUZZ_SEED} // 1;

# Each argument gets each of its values once, however few calls are asked for.
my %values = (
	text => [
		map { "E'$_'" } (
			'', ' ', '\t', 'a\nb', '\x01', '\x7f', 'org_test', 'org:member',
			'ann@example.com', '@', 'a@', '@b', 'a@b@c', '"a b"@example.com',
			'../..', '%00', '%s%n', '\'\'', '"', '\\\\', '=', '{}', 'null', '-1',
			'\u00a0a@b.c\u3000', '\u202ea@b.c', "\xc3\xbc\@xn--", '\u30e1@\u4f8b.jp',
			'\U0001F600@b.c', 'http://x/?a=b#c', 'orginv_1', 'user_1', 'pending')
	],
	jsonb => [
		map { "'$_'" } (
			'null', 'true', '1', '1e1000', '"x"', '[]', '{}', '[null]', '[1]',
			'[[]]', '[{}]', '[{"email_address": 1}]', '{"": {"": []}}',
			'[{"email_address": "a@b", "role": null}]',
			'[{"email_address": "a@b", "role": "r", "expires_in_days": 1e300}]',
			'[{"email_address": "a@b", "role": "r", "expires_in_days": -0.0}]',
			'[{"email_address": "a@b", "role": "r", "notify": "yes"}]',
			'[{"email_address": "a@b", "role": "r", "public_metadata": [{}]}]',
			'[{"email_address": "a@b", "role": "r", "unknown": {}}]',
			'[{"email_address": "a@b", "role": "r"}, {"email_address": "A@B", "role": "r"}]',
			'{"a": "\ud83d\ude00 \u00e4 \\\\ \" \u0001"}')
	],
	integer => [qw(0 1 -1 365 366 2147483647 -2147483648)],
	bigint => [qw(0 1 -1 4611686018427387904 9223372036854775807 -9223372036854775808)],
	boolean => [qw(true false)],
	'timestamp with time zone' => [
		map { "'$_'" }
		  'infinity', '-infinity', 'epoch', '4714-11-24 00:00:00+00 BC',
		'294276-12-31 23:59:59.999999+00'
	],
	'text[]' => [
		map { "'$_'" } '{}', '{NULL}', '{pending}', '{""}', '{pending,pending}',
		'{{a,b},{c,d}}', '[0:1]={a,b}', '{{{{{{a}}}}}}'
	]);
push @{ $values{text} }, "repeat('x', 256)", "repeat(E'\\u00e4', 330) || '\@b.c'",
  "repeat('a\@b ', 250000)", "repeat(E'\\u3000', 100000)";
push @{ $values{jsonb} },
  "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
  "(repeat('{\"a\":', 3000) || '1' || repeat('}', 3000))::jsonb",
  "jsonb_build_object('a', repeat('x', 8192))",
  "jsonb_build_object('a', repeat('x', 1000000))",
  "(SELECT jsonb_agg(n) FROM generate_series(1, 10000) AS n)";
push @{ $values{'text[]'} }, "array_fill('a'::text, ARRAY[100])",
  "array_fill('a'::text, ARRAY[101])", "ARRAY[repeat('x', 1000000)]";
push @{ $values{$_} }, 'NULL' foreach keys %values;

# Good values of the other arguments, by name: most calls should get past the
# checks of those.  The rest is NULL.
my %good = (
	org_id => "'org_test'",
	role => "'org:member'",
	invitation_id => "'orginv_1'",
	id => '1',
	status => "'{pending}'",
	max_invitations => '3');

# What may be the end of a call: documented on the page of errors, or raised by
# the server when it reads the values.
my $expected = qr/^(?:00000|22...|54...|235(?:02|05|14)|0800[167]|25006|28000|2D000
	|39P01|42501|42703|53400|5500[06])$/x;

srand($seed);
my $clerk = ClerkTest::Fake->start('--single-limit', 1_000_000, '--bulk-limit', 1_000_000);

# Which statuses there are is Clerk's to say.
$clerk->expect_violations(qr/query\.status\.\d+: violates enum/);
my $node = clerk_cluster('main', $clerk, extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf',
	"log_error_verbosity = verbose\nstatement_timeout = '1min'\n");
$node->reload;

my $addresses = 0;
my @functions = functions();
cmp_ok(scalar @functions, '>=', 20, 'the catalogs list the functions');
is_deeply([ missing_types(@functions) ], [], 'there are values of each type of an argument');
fuzz_functions();
fuzz_direct_trigger_calls();
make_members();
fuzz_other_triggers();
fuzz_trigger();
my $log = slurp_file($node->logfile);
unlike($log, qr/was terminated by signal/, 'no process has crashed');
unlike($log, qr/ XX\d{3}: /, 'no error is an internal one');

done_testing();

# What the extension has that can be called, with its input arguments.
sub functions
{
	my $rows = $node->safe_psql('postgres', <<'END');
SELECT jsonb_build_object('name', p.proname, 'kind', p.prokind,
           'result', p.prorettype::regtype,
           'types', ARRAY(SELECT type::regtype::text
                          FROM unnest(p.proargtypes) WITH ORDINALITY AS t (type, n)
                          ORDER BY n),
           'arguments', coalesce(p.proargnames[1:p.pronargs], '{}'))
FROM pg_proc AS p
WHERE EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
              WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND
                    d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND
                    e.extname = 'clerk_invite')
ORDER BY p.proname
END

	return map { decode_json($_) } split(/\n/, $rows);
}

sub missing_types
{
	my %types = map { $_ => 1 } map { @{ $_->{types} } } @_;

	return grep { !$values{$_} } sort keys %types;
}

# Each value of each argument among good ones, then values at random.
sub fuzz_functions
{
	my @callable = grep { $_->{result} ne 'trigger' } @functions;
	my @statements;

	foreach my $function (@callable)
	{
		push @statements, call_of($function, good_values($function));
		foreach my $position (0 .. $#{ $function->{types} })
		{
			foreach my $value (@{ $values{ $function->{types}[$position] } })
			{
				my @given = good_values($function);

				$given[$position] = $value;
				push @statements, call_of($function, @given);
			}
		}
	}
	my @with_arguments = grep { @{ $_->{types} } } @callable;
	while (@statements < $calls)
	{
		my $function = any(@with_arguments);

		my @given = good_values($function);

		foreach my $position (0 .. $#given)
		{
			$given[$position] = odd_value($function->{types}[$position]) if rand() < 0.3;
		}
		push @statements, call_of($function, @given);
	}
	compare('functions and procedures', $expected, @statements);
	return;
}

sub good_values
{
	my ($function) = @_;

	return map {
		    $_ eq 'email' ? "'" . new_address() . "'"
		  : $_ eq 'invitations' ? qq('[{"email_address": ") . new_address() . qq(", "role": "org:member"}]')
		  : $good{$_} // 'NULL'
	} @{ $function->{arguments} };
}

sub new_address
{
	return 'person' . ++$addresses . '@example.com';
}

# Half of the JSON is invitations.
sub odd_value
{
	my ($type) = @_;

	return $type eq 'jsonb' && rand() < 0.5
	  ? odd_invitations()
	  : any(@{ $values{$type} });
}

# An array of invitations, each with a field that may be wrong.
sub odd_invitations
{
	my @invitations = map {
		my %invitation = (email_address => new_address(), role => 'org:member');

		$invitation{ any(qw(email_address role inviter_user_id redirect_url
				public_metadata private_metadata expires_in_days notify other)) } =
		  any('', 'x', undef, 1, -1, 1e300, [], {}, { a => [1] }, ' a@b.c ',
			'x' x 400, 'x' x 9000, "a\tb\@c", '7.0', \1, \0);
		\%invitation;
	} 1 .. 1 + int(rand(12));

	return literal(JSON::PP->new->canonical->ascii->encode(\@invitations));
}

sub call_of
{
	my ($function, @given) = @_;
	my @types = @{ $function->{types} };
	my $list = join(', ', map { "($given[$_])::$types[$_]" } 0 .. $#types);

	return "CALL $function->{name}($list)" if $function->{kind} eq 'p';
	return "SELECT * FROM $function->{name}($list)" if rand() < 0.5;
	return "SELECT $function->{name}($list)";
}

# Without a trigger.
sub fuzz_direct_trigger_calls
{
	compare('trigger functions that are called', qr/^39P01$/,
		map { "SELECT $_->{name}()" } grep { $_->{result} eq 'trigger' } @functions);
	return;
}

# A table of members, with columns of many types and one that is gone.  Each
# attempt leaves it as it was.
sub make_members
{
	$node->safe_psql('postgres', q(
		CREATE DOMAIN address AS text CHECK (VALUE <> 'never');
		CREATE TABLE members (
			org text DEFAULT 'org_test', inviter varchar(40), email text, role char(20),
			gone integer, redirect text, meta jsonb, json json, n numeric, a integer[],
			t timestamptz, b bytea, address address, "odd ""name" text, id bigserial);
		ALTER TABLE members DROP COLUMN gone;));
	return;
}

# Odd arguments of the trigger, with odd rows.
sub fuzz_trigger
{
	my @arguments = (
		qw(org inviter email role redirect meta json n a t b address id), 'odd "name',
		'', '=', '==', '=x', "='", '="', '={}', '=[]', '={"a": 1}', '={', '=null', '= ',
		'=org_test', '=org:member', '=a@b.c', "=\t", '=' . 'x' x 9000, 'x' x 100,
		'no_such', 'ctid', 'tableoid', 'xmin', '........pg.dropped.5........', 'ORG',
		'members', 'members.org', '*', '1', "=\xc3\xa4\@b.c");
	my @good = ('org', 'inviter', 'email', '=org:member', '', 'meta');
	my @statements;

	foreach my $position (0 .. $#good)
	{
		foreach my $argument (@arguments)
		{
			my @given = @good;

			$given[$position] = $argument;
			push @statements, attempt_with(row_trigger(@given));
		}
	}
	push @statements, map {
		attempt_with(
			any(\&row_trigger, \&statement_trigger)->(map { any(@arguments) } 1 .. int(rand(9))))
	} 1 .. $calls / 5;
	compare('arguments of the trigger', qr/^(?:00000|22...|23502|23514|39P01|42703|54...)$/,
		@statements);
	return;
}

sub row_trigger
{
	return 'AFTER INSERT OR UPDATE ON members FOR EACH ROW EXECUTE FUNCTION'
	  . ' clerk_invitation_trigger(' . join(', ', map { literal($_) } @_) . ')';
}

sub statement_trigger
{
	return 'AFTER INSERT ON members REFERENCING NEW TABLE AS added FOR EACH STATEMENT'
	  . ' EXECUTE FUNCTION clerk_invitation_trigger('
	  . join(', ', map { literal($_) } @_) . ')';
}

# All of the trigger functions, on a table that is none of theirs, at each time
# at which triggers fire.
sub fuzz_other_triggers
{
	my $arguments = "('org', '', 'email', '=org:member')";
	my @statements;

	foreach my $function (grep { $_->{result} eq 'trigger' } @functions)
	{
		my $execute = "EXECUTE FUNCTION $function->{name}$arguments";

		foreach my $event (
			'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',
			'INSERT OR UPDATE OR DELETE', 'UPDATE OF email')
		{
			foreach my $when ('BEFORE', 'AFTER')
			{
				push @statements,
				  map { attempt_with("$when $event ON members FOR EACH $_ $execute") }
				  $event eq 'TRUNCATE' ? 'STATEMENT' : ('ROW', 'STATEMENT');
			}
		}
		push @statements,
		  attempt_with(
			"AFTER INSERT ON members DEFERRABLE INITIALLY DEFERRED FOR EACH ROW $execute",
			'CONSTRAINT');
	}
	compare('triggers at any time', qr/^(?:00000|22...|23502|23514|39P01|55000)$/,
		@statements);
	return;
}

# SQL that creates a trigger, makes it fire, and ends with no trace of it.
sub attempt_with
{
	my ($trigger, $kind) = @_;
	my @columns = qw(org inviter email role redirect meta n t);
	my @row = (
		any("'org_test'", "'org_test'", 'NULL', "E'a\\nb'", "repeat('x', 300)"),
		any('NULL', "'user_1'", "''"),
		any("'a\@b.c'", "E'\\u00a0A\@B.C '", 'NULL', "'never'", "''", "repeat('a\@', 1000)"),
		any("'org:member'", 'NULL', "''"),
		any('NULL', "'https://x/'", "E'\\x01'"),
		any('NULL', "'{}'", "'1'", "'[]'", "jsonb_build_object('a', repeat('x', 9000))"),
		any('NULL', "'NaN'", '1e100'),
		any('NULL', "'infinity'", 'now()'));
	my $insert = 'INSERT INTO members (' . join(', ', @columns) . ') SELECT '
	  . join(', ', @row) . ' FROM generate_series(1, 3)';

	$kind //= '';
	return 'DO ' . literal(<<"BLOCK");
BEGIN
	INSERT INTO members (email) VALUES ('x\@y.z');
	CREATE $kind TRIGGER fuzz $trigger;
	$insert;
	UPDATE members SET email = 'updated' || id || '\@example.com';
	SET CONSTRAINTS ALL IMMEDIATE;
	DELETE FROM members;
	TRUNCATE members;
	RAISE EXCEPTION 'undo it' USING ERRCODE = 'ZZ999';
END
BLOCK
}

# A string as a literal of SQL.
sub literal
{
	my ($string) = @_;

	return q(E') . ($string =~ s/([\\'])/\\$1/gr =~ s/\n/\\n/gr =~ s/\t/\\t/gr) . q(');
}

# Runs the statements in one session, and compares how each of them ends.
sub compare
{
	my ($what, $may_be, @statements) = @_;
	my ($stdout, $stderr) = ('', '');
	my %ends;
	my @wrong;

	$node->psql(
		'postgres',
		join('', "SET client_min_messages = error;\n\\o /dev/null\n",
			map { "$_;\n\\warn == :SQLSTATE\n" } @statements),
		stdout => \$stdout,
		stderr => \$stderr,
		on_error_stop => 0);
	my @sqlstates = map { $_ eq 'ZZ999' ? '00000' : $_ } $stderr =~ /^== (\S{5})$/mg;
	is(scalar @sqlstates, scalar @statements, "$what: all statements end")
	  or diag('the last was: ' . shortened($statements[@sqlstates] // ''));
	foreach my $i (0 .. $#sqlstates)
	{
		$ends{ $sqlstates[$i] }++;
		push @wrong, "$sqlstates[$i]: " . shortened($statements[$i])
		  unless $sqlstates[$i] =~ $may_be;
	}
	is_deeply(\@wrong, [], '... with a result or an error that is expected')
	  or diag(join("\n", @wrong[0 .. ($#wrong < 20 ? $#wrong : 20)]));
	cmp_ok($ends{'00000'} // 0, '>', 0, '... some with a result')
	  if '00000' =~ $may_be;
	note("$what: " . join(', ', map { "$ends{$_} $_" } sort keys %ends));
	return;
}

sub shortened
{
	my ($text) = @_;

	return length $text > 600 ? substr($text, 0, 600) . '...' : $text;
}

sub any
{
	return $_[ rand @_ ];
}
