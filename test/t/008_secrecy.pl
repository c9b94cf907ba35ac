# Neither the secret key nor the ticket in an invitation's url can be found
# where they do not belong: not in the server's log at its most talkative, not
# in what sessions are told, not in what roles can read of settings,
# activities and statements.
use strict;
use warnings;

use ClerkTest;
use HTTP::Tiny;
use JSON::PP qw(decode_json);
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;

# Random, so that no part of a key can be in a text by chance.
sub random_key
{
	return 'sk_test_' . join('', map { ('a' .. 'z')[ rand 26 ] } 1 .. 36);
}

my %key = map { $_ => random_key() }
  qw(accepted wrong misfit environment configured reloaded);
my $clerk = ClerkTest::Fake->start('--secret-key', $key{accepted},
	'--single-limit', 10_000);
my $node = clerk_cluster('main', $clerk);
my $library = ClerkTest::library_name($node);

ClerkTest::write_key($node->data_dir . '/clerk.key', $key{accepted});
ClerkTest::write_key($node->data_dir . '/wrong.key', $key{wrong});
ClerkTest::write_key($node->data_dir . '/misfit.key', "$key{misfit} x");
ClerkTest::write_key($node->data_dir . '/publishable.key',
	$key{misfit} =~ s/^sk_/pk_/r);

my $statements = ClerkTest::has_library('pg_stat_statements');
$node->append_conf(
	'postgresql.conf', qq(
shared_preload_libraries = '$library)
	  . ($statements ? ', pg_stat_statements' : '') . qq('
clerk_invite.secret_key = '$key{configured}'
log_statement = all
log_min_messages = debug5
log_min_error_statement = debug5
log_error_verbosity = verbose
log_duration = on
log_min_duration_statement = 0
log_parameter_max_length = -1
log_parameter_max_length_on_error = -1
log_connections = on
log_disconnections = on
debug_print_parse = on
debug_print_rewritten = on
debug_print_plan = on
));
$node->append_conf(
	'postgresql.conf', q(
pg_stat_statements.track = all
)) if $statements;
$node->append_conf(
	'postgresql.conf', q(
session_preload_libraries = auto_explain
auto_explain.log_min_duration = 0
auto_explain.log_analyze = on
auto_explain.log_verbose = on
auto_explain.log_nested_statements = on
)) if ClerkTest::has_library('auto_explain');
$node->restart;

# From debug3 on a server logs its whole environment when it starts, before it
# loads any library: with a key in the environment it starts less talkative.
# No name server is asked for the name that nobody has.
$node->append_conf('postgresql.conf', 'log_min_messages = info');
{
	local $ENV{CLERK_SECRET_KEY} = $key{environment};
	local $ENV{LD_PRELOAD} = MisbehavingServer::hung_name_server();
	$node->restart;
}
reconfigure($node, "log_min_messages = debug5");
$node->safe_psql('postgres', 'CREATE EXTENSION pg_stat_statements')
  if $statements;

# Who calls: a superuser, and a role that may call the function and no more.
$node->safe_psql('postgres', 'CREATE DATABASE restricted');
$node->safe_psql(
	'restricted', q(
	CREATE EXTENSION clerk_invite;
	CREATE ROLE app LOGIN;
	GRANT EXECUTE ON FUNCTION clerk_create_organization_invitation TO app;
));
my ($superuser) = $node->safe_psql('postgres', 'SELECT CURRENT_USER');
my @callers = (
	{ role => $superuser, database => 'postgres' },
	{ role => 'app', database => 'restricted' });

# What sessions were told, and what was to be seen of them from outside.  Only
# ok() looks at these: the other functions print what they do not like.
my $told = '';
my $activity = '';

my $addresses = 0;

# SQL that invites somebody new; Clerk misbehaves like this.
sub invite_from
{
	my ($behaviour) = @_;

	$addresses++;
	return invite("$behaviour--$addresses\@example.com") . ";\n";
}

# Runs SQL as one of the callers, in a session which is told everything.
sub told_to
{
	my ($caller, $sql) = @_;
	my $result = attempt($node, $caller->{database},
		"SET client_min_messages = debug5;\n$sql",
		extra_params => [ '-U', $caller->{role} ]);

	$told .= "$result->{stdout}\n$result->{stderr}\n";
	return $result;
}

# The same, with a setting that only a superuser can choose.
sub told_with
{
	my ($caller, $setting, $value, $sql) = @_;

	$node->safe_psql('postgres',
		"ALTER ROLE $caller->{role} SET clerk_invite.$setting = '$value'");
	my $result = told_to($caller, $sql);
	$node->safe_psql('postgres',
		"ALTER ROLE $caller->{role} RESET clerk_invite.$setting");
	return $result;
}

# What all statements have to show for themselves while one of them waits for
# Clerk; then the call that ends it.
sub watch_and_end
{
	my ($caller, $how) = @_;
	my $sql = invite_from('x-hang-after');
	my ($email) = $sql =~ /(x-hang.*com)/;
	my $psql = start_psql($node, '');

	# It is not told everything: nobody reads what it says while it waits.
	send_to_psql($psql, "\\c $caller->{database} $caller->{role}\n$sql");
	ClerkTest::wait_until('Clerk has the request',
		sub { index(slurp_file($clerk->{journal}), $email) >= 0 });
	foreach my $role ($superuser, 'app')
	{
		$activity .= attempt(
			$node, 'postgres',
			'SELECT * FROM pg_stat_activity',
			extra_params => [ '-U', $role ])->{stdout};
	}
	$node->safe_psql('postgres',
		"SELECT $how(pid) FROM pg_stat_activity WHERE query LIKE '%$email%' AND pid <> pg_backend_pid()"
	);
	my ($stdout, $stderr) = output_of_psql($psql);
	eval { $psql->{harness}->finish; };
	$told .= "$stdout\n$stderr\n";
	return $stderr;
}

# Every way in which a call can end.
my @behaviours = (
	qw(plain x-latin1 x-minimal x-extra x-odd-times x-stale x-slow-20),
	qw(x-echo-key x-echo-key-after x-echo-url),
	qw(x-error-400-organization_invitation_not_unique),
	qw(x-error-400-already_a_member_in_organization),
	qw(x-error-401-clerk_key_invalid x-error-402-insufficient_seats),
	qw(x-error-403-organization_membership_quota_exceeded),
	qw(x-error-403-missing_organization_permission),
	qw(x-error-404-resource_not_found x-error-409-conflict),
	qw(x-error-413-request_body_too_large x-several-errors x-no-meta),
	qw(x-no-trace x-no-ids x-errors-not-array x-errors-empty x-gone),
	qw(x-429 x-429-60 x-429-empty x-429-date x-429-none),
	qw(x-500 x-503-after x-html-502 x-html-502-after x-html-200),
	qw(x-empty-200 x-empty-401 x-nested x-not-object x-huge x-redirect),
	qw(x-drop x-drop-after x-reset x-reset-after),
	qw(x-huge-header x-half-body x-truncated x-nul x-not-utf8),
	qw(x-escaped-nul x-wrong-type-id x-wrong-type-url x-wrong-type-created_at)
);

foreach my $caller (@callers)
{
	my $who = "$caller->{role} in $caller->{database}";
	$who = 'a superuser' if $caller->{role} eq $superuser;
	my $result;

	foreach my $behaviour (@behaviours)
	{
		$result = told_to($caller, invite_from($behaviour));
		ok($result->{stderr} =~ /DETAIL:.*The key \*+ is not liked/,
			"Clerk quotes the key, and $who is told the rest")
		  if $behaviour =~ /echo-key/;
		ok($result->{stderr} =~ /DETAIL:.*Could not send https:[^ ]*\?\*+/,
			"Clerk quotes the url, and $who is told the rest")
		  if $behaviour =~ /echo-url/;
	}

	# Statements of other kinds, which log and explain other things.
	$result = told_to(
		$caller,
		invite_from('pending')
		  . "\\g\n"
		  . "CREATE TEMP TABLE kept AS SELECT * FROM ("
		  . (invite('kept' . ++$addresses . '@example.com', '*'))
		  . ") AS invitation;\n"
		  . "PREPARE invite(text) AS SELECT id FROM clerk_create_organization_invitation('org_test', NULL, \$1, 'org:member');\n"
		  . "EXECUTE invite('prepared$addresses\@example.com');\n"
		  . "EXECUTE invite('x-echo-key--prepared$addresses\@example.com');\n"
		  . "EXPLAIN (ANALYZE, VERBOSE) "
		  . invite_from('explained')
		  . "BEGIN;\n"
		  . invite_from('rolled-back')
		  . "SAVEPOINT here;\n"
		  . invite_from('rolled-back')
		  . "ROLLBACK TO here;\n"
		  . "ROLLBACK;\n");
	ok($result->{stderr} =~ /WARNING:.*1 invitation created in Clerk/,
		"$who is told of the invitations of a rolled-back transaction");
	foreach my $behaviour (qw(x-echo-key x-echo-url x-truncated))
	{
		my $call = invite_from($behaviour) =~ s/SELECT/PERFORM/r;

		$result = told_to(
			$caller, qq(DO \$\$
			DECLARE a text; b text; c text; d text; e text; f text;
			BEGIN $call
			EXCEPTION WHEN OTHERS THEN
				GET STACKED DIAGNOSTICS a = message_text,
					b = pg_exception_detail, c = pg_exception_hint,
					d = constraint_name, e = column_name,
					f = pg_exception_context;
				RAISE NOTICE 'caught: %', ARRAY[a, b, c, d, e, f];
			END \$\$;));
		ok( $result->{stderr} =~ /NOTICE:.*caught: \{"could not invite/,
			"$who can look at all there is to an error after $behaviour");
	}

	# Timeouts, cancelled and terminated sessions.
	$result = told_to($caller,
		"SET clerk_invite.request_timeout = '100ms';\n"
		  . invite_from('x-hang-after')
		  . invite_from('x-trickle'));
	is($result->{sqlstate}, '08007', "a request of $who is given up");
	$result = told_to($caller,
		"SET statement_timeout = '100ms';\n" . invite_from('x-hang-after'));
	is($result->{sqlstate}, '57014', "a statement of $who runs out of time");
	ok( watch_and_end($caller, 'pg_cancel_backend') =~ /canceling statement/,
		"a statement of $who is cancelled");
	ok( watch_and_end($caller, 'pg_terminate_backend') =~
		  /terminating connection/,
		"a session of $who is terminated");

	# Bad keys and bad addresses.
	$clerk->expect_violations(qr/: headers\.clerk-api-version: violates enum/);
	foreach my $case (
		[ 'secret_key_file', 'wrong.key', '28000' ],
		[ 'secret_key_file', 'misfit.key', '55000' ],
		[ 'secret_key_file', 'publishable.key', '55000' ],
		[ 'secret_key_file', 'nowhere.key', '55000' ],
		[ 'secret_key_file', '', '28000' ],
		[ 'api_version', '1999-12-31', '22023' ],
		[ 'api_url', 'https://localhost:' . $clerk->{port}, '08001' ],
		[ 'api_url', 'http://127.0.0.1:1', '08001' ],
		[ 'api_url', 'https://clerk.invalid', '08001' ],
		[ 'api_url', 'http://clerk.example.com', '55000' ],
		[ 'ca_file', '/dev/null', '' ])
	{
		my ($setting, $value, $sqlstate) = @$case;

		is( told_with($caller, $setting, $value, invite_from('plain'))
			  ->{sqlstate},
			$sqlstate,
			"$who calls with $setting = '$value'");
	}
}

# Statements inside of the procedures, which are given urls; and lists of them.
my $sent = told_to(
	$callers[0], q(
	INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
	SELECT 'org_test', 'outbox--' || n || '@example.com', 'org:member'
	FROM generate_series(1, 12) AS n;
	CALL clerk_send_invitations();
	CALL clerk_refresh_invitations();
	SELECT 'urls kept: ' || count(url) FROM clerk_invitation_outbox;
	SELECT count(id) FROM clerk_create_organization_invitation_bulk('org_test',
		'[{"email_address": "bulk--1@example.com", "role": "org:member"}]');
	SELECT count(id) FROM clerk_list_organization_invitations('org_test');
	SELECT count(id) FROM clerk_list_instance_organization_invitations();
	SELECT 'revoked: ' || count(i.id) FROM clerk_invitation_outbox AS o,
		LATERAL clerk_get_organization_invitation('org_test', o.invitation_id) AS g,
		LATERAL clerk_revoke_organization_invitation('org_test', g.id) AS i
	WHERE o.email_address = 'outbox--12@example.com';));
ok( $sent->{stdout} =~ /^urls kept: 12$/m && $sent->{stdout} =~ /^revoked: 1$/m,
	'the outbox is sent and refreshed, and all functions are called');

# The server logs each parameter that a reload has changed.
foreach my $case (
	[ 'another secret_key', $key{reloaded}, '28000' ],
	[ 'the right secret_key', $key{accepted}, '' ],
	[ 'no secret_key but one in the environment', '', '28000' ])
{
	my ($what, $value, $sqlstate) = @$case;

	reconfigure($node, "clerk_invite.secret_key = '$value'");
	told_to($_, 'SHOW clerk_invite.secret_key') foreach @callers;
	is( told_with(
			$callers[0], 'secret_key_file', '', invite_from('reloaded'))
		  ->{sqlstate},
		$sqlstate,
		"a reload finds $what in postgresql.conf");
}

# The search.

my $answer =
  HTTP::Tiny->new(agent => 'clerk_invite/1.0 PostgreSQL/0')->get(
	$clerk->url . '/v1/organizations/org_test/invitations?limit=500',
	{
		headers => {
			'accept' => 'application/json',
			'authorization' => "Bearer $key{accepted}",
			'clerk-api-version' => '2026-05-12',
			'content-type' => 'application/json'
		}
	});
my $created = decode_json($answer->{content});
my @tickets = map { $_->{url} =~ /\?ticket=(.*)/ }
  grep { $_->{status} eq 'pending' } @{ $created->{data} };

is(scalar @tickets, $created->{total_count} - 1,
	'every ticket of a pending one is known');
cmp_ok(scalar @tickets, '>', 40, 'there are many tickets');

# Enough of a secret to know it by, from its start and from its end; a message
# may have cut it anywhere.  A ticket starts with what all of them have.
my @traces;
foreach my $secret ((map { s/^sk_test_//r } values %key),
	(map { s/^[^.]*\.//r } @tickets))
{
	push @traces, substr($secret, 0, 16), substr($secret, -16);
}

# Checks one text.  The markers are what is known to be in it: the search does
# look at the right thing, and it finds.
sub holds_no_secret
{
	my ($what, $text, @markers) = @_;

	ok(index($text, $_) >= 0, "the search finds \"$_\" in $what")
	  foreach @markers;
	is(scalar(grep { index($text, $_) >= 0 } @traces),
		0, "no key and no ticket is in $what");
	return;
}

# Statements, trees, errors, a changed parameter and, perhaps, explained plans.
holds_no_secret(
	'the log',
	slurp_file($node->logfile),
	'explained--',
	':funcid',
	'DETAIL:  Clerk says: The key ****',
	'parameter "clerk_test.reloads" changed to "3"',
	ClerkTest::has_library('auto_explain')
	? 'Function Call: clerk_create_organization_invitation'
	: ());
holds_no_secret('what sessions were told', $told, 'DEBUG:  ');
holds_no_secret('pg_stat_activity', $activity, 'x-hang-after--');
holds_no_secret(
	'pg_stat_statements',
	$node->safe_psql('postgres', 'SELECT * FROM pg_stat_statements'),
	'clerk_create_organization_invitation') if $statements;
holds_no_secret(
	'the journal of the fake Clerk',
	slurp_file($clerk->{journal}),
	'x-echo-url--');

reconfigure($node, "clerk_invite.secret_key = '$key{configured}'");
$node->safe_psql('postgres',
	"ALTER DATABASE template1 SET clerk_invite.secret_key_file = 'elsewhere.key'"
);
foreach my $caller (@callers)
{
	my $who = $caller->{role} eq 'app' ? 'an ordinary role' : 'a superuser';

	foreach my $case (
		[ 'pg_settings', 'SELECT * FROM pg_settings', 'clerk_invite.api_url' ],
		[ 'SHOW ALL', 'SHOW ALL', 'clerk_invite.api_url' ],
		[
			'pg_db_role_setting',
			'SELECT * FROM pg_db_role_setting',
			'clerk_invite.secret_key_file=elsewhere.key'
		])
	{
		my ($what, $query, $marker) = @$case;

		my $result = attempt($node, $caller->{database}, $query,
			extra_params => [ '-U', $caller->{role} ]);
		holds_no_secret("$what of $who", $result->{stdout}, $marker);
	}
}
is( attempt(
		$node, 'restricted',
		'SELECT * FROM pg_file_settings',
		extra_params => [ '-U', 'app' ])->{sqlstate},
	'42501',
	'an ordinary role cannot look into postgresql.conf');

done_testing();
