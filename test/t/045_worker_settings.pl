# A database's or a role's settings are for the sessions of its users: whatever
# they are, worker and CALL send the row, once, and record the same.
use strict;
use warnings;

use ClerkTest;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $ROWS = 'clerk_invitation_outbox';

# What a statement means, or how long it may take.  A name that the server does
# not have is passed over.  Several databases are tried at a time, so that the
# test need not wait for each worker to leave.
my %known;
my $emails = 0;
my @DATABASES = map { "settings$_" } 1 .. 12;

my @SETTINGS = (
	# Limits of time.
	[ statement_timeout => '1ms' ],
	[ lock_timeout => '1ms' ],
	[ idle_in_transaction_session_timeout => '1ms' ],
	[ transaction_timeout => '1ms' ],
	[ idle_session_timeout => '1ms' ],
	[ deadlock_timeout => '1ms' ],
	# Transactions.
	[ default_transaction_isolation => 'repeatable read' ],
	[ default_transaction_isolation => 'serializable' ],
	[ default_transaction_deferrable => 'on' ],
	[ synchronous_commit => 'off' ],
	[ synchronous_commit => 'remote_apply' ],
	[ commit_delay => '100' ],
	[ exit_on_error => 'on' ],
	# Who and what is meant.
	[ role => 'nobody' ],
	[ search_path => 'elsewhere, public' ],
	[ search_path => q('') ],
	[ row_security => 'off' ],
	[ session_replication_role => 'replica' ],
	[ session_replication_role => 'local' ],
	[ local_preload_libraries => 'none_such' ],
	[ session_preload_libraries => 'none_such' ],
	# What a text means, and what a value looks like.
	[ client_encoding => 'SQL_ASCII' ],
	[ client_encoding => 'LATIN1' ],
	[ client_encoding => 'SJIS' ],
	[ datestyle => q('SQL, DMY') ],
	[ intervalstyle => 'sql_standard' ],
	[ timezone => 'Pacific/Chatham' ],
	[ timezone_abbreviations => 'India' ],
	[ array_nulls => 'off' ],
	[ standard_conforming_strings => 'off' ],
	[ escape_string_warning => 'off' ],
	[ backslash_quote => 'off' ],
	[ transform_null_equals => 'on' ],
	[ operator_precedence_warning => 'on' ],
	[ quote_all_identifiers => 'on' ],
	[ extra_float_digits => '-15' ],
	[ bytea_output => 'escape' ],
	[ xmlbinary => 'hex' ],
	[ xmloption => 'document' ],
	[ lc_messages => 'C' ],
	[ lc_monetary => 'C' ],
	[ lc_numeric => 'C' ],
	[ lc_time => 'C' ],
	[ default_text_search_config => 'simple' ],
	[ check_function_bodies => 'off' ],
	[ createrole_self_grant => q('set') ],
	# How it is done.
	[ plan_cache_mode => 'force_custom_plan' ],
	[ plan_cache_mode => 'force_generic_plan' ],
	(map { [ "enable_$_" => 'off' ] } qw(seqscan indexscan indexonlyscan bitmapscan tidscan
		sort incremental_sort hashagg nestloop hashjoin mergejoin material memoize gathermerge)),
	[ constraint_exclusion => 'on' ],
	[ from_collapse_limit => '1' ],
	[ join_collapse_limit => '1' ],
	[ geqo_threshold => '2' ],
	[ cursor_tuple_fraction => '0' ],
	[ work_mem => '64kB' ],
	[ temp_buffers => '800kB' ],
	[ maintenance_work_mem => '1MB' ],
	[ force_parallel_mode => 'on' ],
	[ debug_parallel_query => 'on' ],
	[ max_parallel_workers_per_gather => '8' ],
	[ parallel_setup_cost => '0' ],
	[ jit => 'on', jit_above_cost => '0', jit_inline_above_cost => '0', jit_optimize_above_cost => '0' ],
	# Where it goes.
	[ default_tablespace => 'pg_default' ],
	[ temp_tablespaces => 'none_such' ],
	[ default_table_access_method => 'none_such' ],
	[ default_toast_compression => 'pglz' ],
	# What is told.
	[ log_statement => 'all' ],
	[ log_min_duration_statement => '0' ],
	[ log_min_messages => 'debug5' ],
	[ log_min_messages => 'panic' ],
	[ log_min_error_statement => 'debug5' ],
	[ log_error_verbosity => 'verbose' ],
	[ client_min_messages => 'error' ],
	[ debug_print_plan => 'on', debug_print_parse => 'on', debug_print_rewritten => 'on' ],
	[ log_parameter_max_length_on_error => '-1' ],
	[ track_activities => 'off' ],
	[ track_functions => 'all' ],
	[ wal_compression => 'on' ],
	[ vacuum_cost_delay => '1' ]);

# A row that makes use of all that could be misunderstood, and what it must
# have in the end.
my $ROW = q('org_test', '%s', 'org:member', 'https://app.example.com/?a=\x&b=''', )
  . q('{"text": "caf\u00e9 \\\\ ''single'' \"double\"", "nothing": null, "number": 0.1}', 5);
my $RESULT = qq(
	SELECT state, attempts, status, url IS NOT NULL, invitation_id LIKE 'orginv_%%',
		http_status IS NULL, error_code IS NULL, error_message IS NULL, next_attempt_at IS NULL,
		settled_at BETWEEN enqueued_at AND now(), settled_at >= claimed_at,
		expires_at - settled_at BETWEEN '4 days 23:00' AND '5 days 01:00',
		public_metadata
	FROM public.$ROWS WHERE email_address = '%s');
my $EXPECTED = q(sent|1|pending|t|t|t|t|t|t|t|t|t|{"text": "café \\\\ 'single' \"double\"", "number": 0.1, "nothing": null});

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = worker_cluster(
	'main', $clerk,
	extra => [ '--encoding=UTF8', '--locale=C' ],
	conf => "max_worker_processes = 20\n");

make_database($node, 'template');
$node->safe_psql('template', q(
	CREATE SCHEMA elsewhere;
	CREATE TABLE elsewhere.clerk_invitation_outbox ();
	CREATE ROLE nobody;));
$node->safe_psql('postgres', "CREATE DATABASE $_ TEMPLATE template") foreach @DATABASES;

# What Clerk gets of a session without settings, which all others must give it.
send_by('CALL', 'template', 'usual@example.com');
my %usual = %{ what_clerk_had('usual@example.com') };
is($usual{expires_in_days}, 5, 'what Clerk gets is known');

%known = map { $_ => 1 } split(/\n/,
	$node->safe_psql('postgres', 'SELECT lower(name) FROM pg_settings'));
# Since 19 the server refuses to turn it off.
delete $known{standard_conforming_strings}
  if attempt($node, 'postgres', 'SET standard_conforming_strings = off')->{sqlstate};
my @settings = map { [ set_clauses(@$_) ] } @SETTINGS;
@settings = grep { @$_ } @settings;
while (my @some = splice(@settings, 0, scalar @DATABASES))
{
	check_settings(@some);
}
check_settings_of_roles();

$node->stop;
done_testing();

# The parts of ALTER DATABASE; none if the server does not have the setting.
sub set_clauses
{
	my (@pairs) = @_;
	my @clauses;

	while (my ($name, $value) = splice(@pairs, 0, 2))
	{
		push @clauses, "SET $name = " . ($value =~ /[,']/ ? $value : "'$value'")
		  if $known{$name};
	}
	return @clauses;
}

# A list of such parts for each database, as far as there are any.
sub check_settings
{
	my (@lists) = @_;
	my @databases = @DATABASES[ 0 .. $#lists ];
	my %list;

	@list{@databases} = @lists;
	$node->safe_psql('postgres', join('', map {
			my $database = $_;
			map { "ALTER DATABASE $database $_;" } @{ $list{$database} }
		} @databases));
	foreach my $sender (qw(worker CALL))
	{
		my %email;

		foreach my $database (@databases)
		{
			next if $sender eq 'CALL' && !suits_call("@{ $list{$database} }");
			$email{$database} = 'setting' . ++$emails . '@example.com';
			send_by($sender, $database, $email{$database});
		}
		foreach my $database (sort keys %email)
		{
			my $email = $email{$database};

			wait_until("$email is settled",
				sub { result_of($database, $email) =~ /^(?:sent|failed|skipped)/ })
			  if $sender eq 'worker';
			is(result_of($database, $email), $EXPECTED, "$sender with @{ $list{$database} }");
			is_deeply(what_clerk_had($email), \%usual, '... and the same request');
		}
		# The next one has other settings, and a CALL is to be alone.
		wait_until_gone($node);
	}
	$node->safe_psql('postgres',
		join('', map { "ALTER DATABASE $_ RESET ALL;" } @databases));
	return;
}

# The worker is the bootstrap superuser, who may have settings of his own.
sub check_settings_of_roles
{
	my $superuser = $node->safe_psql('postgres', 'SELECT rolname FROM pg_roles WHERE oid = 10');
	my $number = 0;

	foreach my $whose ("ROLE $superuser", "ROLE $superuser IN DATABASE settings1", 'ROLE ALL')
	{
		my $email = 'role' . ++$number . '@example.com';

		$node->safe_psql('postgres', qq(
			ALTER $whose SET default_transaction_isolation = 'serializable';
			ALTER $whose SET search_path = elsewhere;
			ALTER $whose SET exit_on_error = on;
			ALTER $whose SET datestyle = 'SQL, DMY';));
		send_by('worker', 'settings1', $email);
		wait_until("$email is settled",
			sub { result_of('settings1', $email) =~ /^(?:sent|failed|skipped)/ });
		is(result_of('settings1', $email), $EXPECTED, "worker with settings of $whose");
		in_usual_session('postgres', "ALTER $whose RESET ALL");
		wait_until_gone($node);
	}
	return;
}

# The rows are those of a session that has none of the settings that matter.
sub send_by
{
	my ($sender, $database, $email) = @_;
	my $worker = $sender eq 'worker' ? 'on' : 'off';

	in_usual_session($database,
		    "SET clerk_invite.worker = $worker; INSERT INTO public.$ROWS (organization_id, "
		  . 'email_address, role, redirect_url, public_metadata, expires_in_days) VALUES ('
		  . sprintf($ROW, $email) . ')');
	attempt($node, $database, 'SET clerk_invite.worker = off; CALL public.clerk_send_invitations();')
	  if $sender eq 'CALL';
	return;
}

sub result_of
{
	my ($database, $email) = @_;

	return in_usual_session($database, sprintf($RESULT, $email));
}

sub in_usual_session
{
	my ($database, $sql) = @_;

	local $ENV{PGCLIENTENCODING} = 'UTF8';
	local $ENV{PGOPTIONS} = join(' ', map { "-c $_" } qw(
		search_path=public datestyle=ISO intervalstyle=postgres timezone=UTC
		session_replication_role=origin standard_conforming_strings=on
		statement_timeout=0 lock_timeout=0 idle_session_timeout=0
		idle_in_transaction_session_timeout=0 client_min_messages=error
		exit_on_error=off backslash_quote=safe_encoding transform_null_equals=off
		local_preload_libraries= session_preload_libraries=),
		$known{transaction_timeout} ? 'transaction_timeout=0' : ());
	return $node->safe_psql($database, "RESET ROLE; $sql");
}

# What Clerk was asked, but for the address.
sub what_clerk_had
{
	my ($email) = @_;
	my @requests = map { $_->{body} } $clerk->requests_for($email);

	return { requests => scalar @requests } unless @requests == 1;
	delete $requests[0]{email_address};
	return $requests[0];
}

# A CALL obeys what its session is to obey: who calls, how long it may take, and
# what it cannot even begin with.
sub suits_call
{
	my ($clauses) = @_;

	return $clauses !~ /timeout|role = 'nobody'|preload/;
}
