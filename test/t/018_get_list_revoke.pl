# The functions that get, list and revoke invitations: what a list costs and what
# it has while it changes, and that errors, ends and privileges are those of the
# function that creates one.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Milliseconds that an end may take, in the best of so many attempts: the
# machine may have other things to do.
my $PROMPT = 200;
my $ATTEMPTS = 3;
my $STATEMENT_TIMEOUT = 400;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000', '--bulk-limit',
	'100000');
my $node = clerk_cluster('main', $clerk);
my $observer = start_psql($node, '');

# An invitation to look at, and how many there are to revoke.
my $id = query(invite('looked-at@example.com'));
my $to_revoke = 0;

# What invite_many() has invited: IDs by address.
my %ids;

# What an unanswered request leaves is known for those that only read.
my @functions = (
	{
		operation => 'GetOrganizationInvitation',
		name => 'clerk_get_organization_invitation',
		arguments => "'org_test', '$id'",
		unknown => '08006'
	},
	{
		operation => 'ListOrganizationInvitations',
		name => 'clerk_list_organization_invitations',
		arguments => "'org_test'",
		unknown => '08006'
	},
	{
		operation => 'ListInstanceOrganizationInvitations',
		name => 'clerk_list_instance_organization_invitations',
		arguments => '',
		unknown => '08006'
	},
	{
		operation => 'RevokeOrganizationInvitation',
		name => 'clerk_revoke_organization_invitation',
		unknown => '08007',
		writes => 1
	});
my @lists = (
	{
		list => q(clerk_list_organization_invitations('org_test', '{%s}')),
		title => "an organization's list"
	},
	{
		list => q(clerk_list_instance_organization_invitations('{%s}')),
		title => "the instance's list"
	});

check_errors($_) foreach @functions;
foreach my $function (@functions)
{
	check_end($function, $_)
	  foreach qw(pg_cancel_backend pg_terminate_backend statement_timeout);
}
check_privileges($_) foreach @functions;
foreach my $list (@lists)
{
	check_cost($list);
	check_end_of_reading($list);
	check_leaving($list);
	check_joining($list);
}
check_arguments();

$observer->{harness}->finish;
$node->stop;
done_testing();

# What Clerk, or the way to it, may do to any request.
sub check_errors
{
	my ($function) = @_;
	my $unknown = $function->{unknown};

	foreach my $case (
		[ 'error-400-bad_request' => '22023' ],
		[ 'error-401-clerk_key_invalid' => '28000' ],
		[ 'error-403-not_allowed_access' => '42501' ],
		[ 'error-404-resource_not_found' => '22023' ],
		[ 'error-422-form_param_value_invalid' => '22023' ],
		[ '429-17' => '53400' ],
		[ '500' => $unknown ],
		[ 'html-502' => $unknown ],
		[ 'drop-after' => $unknown ],
		[ 'truncated' => $unknown ],
		[ 'wrong-type-email_address' => $unknown ])
	{
		my ($behaviour, $sqlstate) = @$case;

		misbehave($function, $behaviour);
		my $result = attempt($node, 'postgres', call_of($function));
		is($result->{sqlstate}, $sqlstate,
			"$function->{name} raises $sqlstate for $behaviour");
		like($result->{stderr}, qr/^HINT:  .*\b17 seconds/m,
			'... and says when to try again')
		  if $behaviour eq '429-17';
	}
	is( attempt(
			$node, 'postgres',
			"SET clerk_invite.api_url = 'http://127.0.0.1:1';" . call_of($function))
		  ->{sqlstate},
		'08001',
		"$function->{name} raises 08001 if Clerk cannot be reached");
	is( attempt(
			$node, 'postgres',
			"SET clerk_invite.secret_key_file = '';" . call_of($function))
		  ->{sqlstate},
		'55000',
		"$function->{name} raises 55000 without a key");
	return;
}

# Ends a statement while Clerk does not answer.
sub check_end
{
	my ($function, $way) = @_;
	my $title = "$way ends $function->{name}";
	my $best;

	for (1 .. $ATTEMPTS)
	{
		my $run = end_call($function, $way);

		$best = $run if !$best || $run->{took} < $best->{took};
		last if $best->{took} < $PROMPT;
	}
	cmp_ok($best->{took}, '<', $PROMPT, "$title within $PROMPT ms");
	my @sqlstates = $best->{stderr} =~ /(?:ERROR|FATAL):  (\w{5}):/g;
	is("@sqlstates", $way eq 'pg_terminate_backend' ? '57P01' : '57014',
		'... with its own SQLSTATE');
	my $warning =
	  qr/WARNING:  08007: .*had already been sent\nDETAIL:  The invitation may have been revoked\./;
	if ($function->{writes})
	{
		like($best->{stderr}, $warning, '... and a warning, since it was sent');
	}
	else
	{
		unlike($best->{stderr}, qr/WARNING/, '... without a warning');
	}
	return;
}

sub end_call
{
	my ($function, $way) = @_;
	my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');
	my $pid = backend_of($psql);
	my $call = call_of($function);
	my $mark = requests();

	misbehave($function, 'hang');
	run_in_psql($psql, "SET statement_timeout = $STATEMENT_TIMEOUT;")
	  if $way eq 'statement_timeout';
	my $begun = time;
	send_to_psql($psql, "$call;");
	wait_until('the request is on its way', sub { requests() > $mark });
	if ($way ne 'statement_timeout')
	{
		$begun = time;
		run_in_psql($observer, "SELECT $way($pid);");
	}
	my (undef, $stderr) = output_of_psql($psql);
	my $took = 1000 * (time - $begun)
	  - ($way eq 'statement_timeout' ? $STATEMENT_TIMEOUT : 0);
	is( (run_in_psql(
				$psql,
				"SELECT status <> '' FROM clerk_get_organization_invitation('org_test', '$id');"
			))[0],
		"t\n",
		"after $way in $function->{name} the session goes on")
	  if $way ne 'pg_terminate_backend';
	$psql->{harness}->finish;
	return { took => $took, stderr => $stderr };
}

# Each is granted by itself, and needs nothing else.
sub check_privileges
{
	my ($function) = @_;
	my @as_role = (extra_params => [ '-U', 'reader' ]);

	query('DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN');
	is(attempt($node, 'postgres', call_of($function), @as_role)->{sqlstate},
		'42501', "$function->{name} is nobody's until it is granted");
	query("GRANT EXECUTE ON FUNCTION $function->{name} TO reader");
	is(attempt($node, 'postgres', call_of($function), @as_role)->{sqlstate},
		'', '... and works then');
	query("REVOKE EXECUTE ON FUNCTION $function->{name} FROM reader");
	return;
}

# Pages of 200 are asked for as rows are read, and none of them twice by one call
# in a statement, however its plan goes about it.
sub check_cost
{
	my ($list) = @_;
	my $call = sprintf($list->{list}, 'pending');
	my $numbers = 'generate_series(1, 3) AS n';
	my $counted = "(SELECT count(*) FROM $call WHERE id <> n::text)";

	invite_many(450);
	foreach my $case (
		[ "SELECT id FROM $call LIMIT 5" => 5, 1, 'LIMIT 5 in FROM' ],
		[ "SELECT id FROM $call LIMIT 300" => 300, 2, 'LIMIT 300 there' ],
		[ "SELECT $call LIMIT 5" => 5, 1, 'LIMIT 5 in the SELECT list' ],
		[ "SELECT ($call).id LIMIT 300" => 300, 2, 'LIMIT 300 there' ],
		[ "SELECT id FROM $call" => 450, 3, 'the whole' ],
		[
			"SELECT FROM $numbers WHERE $counted = 450" => 3,
			3, 'a subquery that runs for each row'
		],
		[
			"SELECT FROM $numbers JOIN $call AS i ON i.id <> n::text" => 1350,
			3, 'the inner side of a join'
		],
		[
			"SELECT FROM $numbers, LATERAL (SELECT FROM $call LIMIT n * 150) AS l" => 900,
			3, 'more of the same in each scan'
		],
		[ "SELECT FROM $call WITH ORDINALITY LIMIT 5" => 5, 3, 'a call that stays one' ])
	{
		my ($sql, $rows, $requests, $title) = @$case;
		my $mark = requests();

		is( query(
				"SET enable_material = off; SET enable_hashjoin = off; SET work_mem = '64kB';"
				  . "SELECT count(*) FROM ($sql) AS s"),
			$rows,
			"$title gives $rows rows of $list->{title}");
		is(requests() - $mark, $requests, "... for $requests requests");
	}
	return;
}

# Each list is of its own arguments.
sub check_arguments
{
	invite_many(3);
	is( query(
			q(SELECT string_agg(i.email_address, ' ' ORDER BY n)
			FROM generate_series(1, 4) AS n, LATERAL clerk_list_organization_invitations(
				'org_test', CASE WHEN n < 4 THEN '{pending}'::text[] END,
				'many' || n / 2 + 1 || '@example.com') AS i)),
		join(' ', map { "many$_\@example.com" } 1, 2, 2, 3),
		'a list with other arguments is another list');
	return;
}

# Rows that were read go with the statement, whatever ends it, and however many
# they are.
sub check_end_of_reading
{
	my ($list) = @_;
	my $log = -s $node->logfile;
	my $select = 'SELECT id FROM ' . sprintf($list->{list}, 'pending');

	foreach my $case (
		[ "SELECT 1 / (300 - row_number() OVER ()) FROM ($select) AS s" => '22012' ],
		[ "BEGIN; DECLARE c CURSOR FOR $select; MOVE 300 IN c; ROLLBACK" => '' ],
		[
			"BEGIN; DECLARE c CURSOR FOR $select; MOVE 300 IN c; SAVEPOINT s; "
			  . 'MOVE 100 IN c; ROLLBACK TO s; MOVE 100 IN c; COMMIT' => ''
		],
		[ "BEGIN; DECLARE c CURSOR WITH HOLD FOR $select; COMMIT; MOVE 300 IN c" => '' ])
	{
		my ($sql, $sqlstate) = @$case;

		is( attempt($node, 'postgres', "SET work_mem = '64kB'; $sql; SELECT 1;")->{sqlstate},
			$sqlstate,
			"of $list->{title}: $sql");
	}
	unlike(slurp_file($node->logfile, $log), qr/WARNING|FATAL|PANIC/,
		'... and nothing is left behind');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_ls_tmpdir()'), 0, '... on disk');
	return;
}

# Invitations leave the list, read and unread ones, and new ones come.
sub check_leaving
{
	my ($list) = @_;

	invite_many(900);
	my ($psql, @read) = begin_list($list, 'pending', 150);
	my %revoked;
	foreach my $n (1 .. 140, 300 .. 390, 700 .. 900)
	{
		$revoked{"many$n\@example.com"} = 1;
		$clerk->control('revoke_as_admin', { id => id_of("many$n\@example.com") });
	}
	invite_many(20, 'new');
	push @read, rest_of_list($psql);
	my %times;
	$times{$_}++ foreach @read;
	is( join(' ', grep { $times{$_} > 1 } sort keys %times),
		'',
		"while some leave $list->{title}, nothing is repeated");
	is( join(' ',
			grep { !$revoked{$_} && !$times{$_} }
			map { "many$_\@example.com" } 1 .. 900),
		'',
		'... nor is anything lost that is there throughout');
	is(scalar(grep { $times{"new$_\@example.com"} } 1 .. 20),
		20, '... and what joined at the end is there');
	return;
}

# Others join the list in front of what was read: all places move.
sub check_joining
{
	my ($list) = @_;

	invite_many(900);
	$clerk->control('accept', { id => id_of("many$_\@example.com") })
	  foreach 201 .. 900;
	my ($psql, @read) = begin_list($list, 'accepted', 150);
	$clerk->control('accept', { id => id_of("many$_\@example.com") })
	  foreach 1 .. 200;
	push @read, rest_of_list($psql);
	my %times;
	$times{$_}++ foreach @read;
	is( join(' ', grep { $times{$_} > 1 } sort keys %times),
		'',
		"while others join $list->{title}, nothing is repeated");
	is( join(' ', grep { !$times{$_} } map { "many$_\@example.com" } 201 .. 900),
		'',
		'... nor is anything lost');
	return;
}

# Reads the first addresses of a list; returns the session and these.
sub begin_list
{
	my ($list, $status, $count) = @_;
	my $call = sprintf($list->{list}, $status);
	my $psql = start_psql($node, '');
	my ($read) = run_in_psql($psql,
		"BEGIN; DECLARE list CURSOR FOR SELECT ($call).email_address;"
		  . " FETCH $count FROM list;");

	return ($psql, split /\n/, $read);
}

sub rest_of_list
{
	my ($psql) = @_;
	my ($read, $stderr) = run_in_psql($psql, 'FETCH ALL FROM list; COMMIT;');

	is($stderr, '', 'a list that changes while it is read is no error');
	$psql->{harness}->finish;
	return split /\n/, $read;
}

# Makes Clerk forget what it had if these are "many".
sub invite_many
{
	my ($count, $name) = @_;

	unless ($name)
	{
		$clerk->control('reset');
		%ids = ();
		$name = 'many';
	}
	my $rows = query(
		qq(SELECT email_address, id
		FROM clerk_create_organization_invitation_bulk('org_test', (
			SELECT jsonb_agg(jsonb_build_object('email_address',
				'$name' || n || '\@example.com', 'role', 'org:member') ORDER BY n)
			FROM generate_series(1, $count) AS n))));
	%ids = (%ids, map { split /\|/ } split /\n/, $rows);
	return;
}

sub id_of
{
	my ($email) = @_;

	return $ids{$email};
}

# A call; each of one that revokes has a pending invitation of its own.
sub call_of
{
	my ($function) = @_;
	my $arguments = $function->{arguments} // "'org_test', '"
	  . query(invite('revoked' . ++$to_revoke . '@example.com')) . "'";

	return "SELECT count(status) FROM $function->{name}($arguments)";
}

sub misbehave
{
	my ($function, $behaviour) = @_;

	$clerk->control(
		'misbehave',
		{
			operation => $function->{operation},
			behaviour => $behaviour,
			times => 1
		});
	return;
}

# How many requests Clerk has had.
sub requests
{
	return scalar(() = $clerk->journal);
}

sub query
{
	return $node->safe_psql('postgres', $_[0]);
}
