# The examples of README.md and docs/: every block of SQL is run, page by page
# and in order, and does what the page shows.
#
# What cannot be run or compared says why, in the page; how many these are is
# asserted here, so that it is seen when they become more.
use strict;
use warnings;

use ClerkTest;
use Cwd qw(abs_path);
use MarkdownPage;
use PostgreSQL::Test::Utils;
use PsqlOutput;
use Test::More;

my $EXAMPLES_NOT_RUN = 3;
my $RESULTS_NOT_COMPARED = 1;

# Until when an invitation must be due for "a moment later" to wait for it.
my $SOON = "now() + interval '10 minutes'";

# An address at which nobody listens.
my $NOWHERE = 'http://127.0.0.1:1';

my $source = abs_path("$ClerkTest::TEST_FOLDER/..");
my $etc = PostgreSQL::Test::Utils::tempdir();
my $has_cron = ClerkTest::has_library('pg_cron');
my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster(
	'documentation', $clerk,
	worker => 1,
	conf => q(
max_worker_processes = 20
)
	  . (
		$has_cron
		? q(
shared_preload_libraries = 'pg_cron'
cron.database_name = 'app'
cron.use_background_workers = on
)
		: ''));
my $psql;

# The steps that pages name.
my %STEPS = (
	'a new database' => \&make_database,
	'hub/publisher.sql' => sub { sql(slurp_file("$source/hub/publisher.sql")) },
	'pg_cron' => sub { sql('CREATE EXTENSION pg_cron') },
	'the key in /etc/clerk_invite.key' => sub {
		ClerkTest::write_key("$etc/clerk_invite.key", $ClerkTest::KEY);
		configure('secret_key_file', "$etc/clerk_invite.key");
	},
	'250 people in as many organizations' => sub {
		sql(
			q(INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
			SELECT 'org_' || i, i || '@example.com', 'org:member'
			FROM generate_series(1, 250) AS i));
		wait_until_sent();
	},
	'an import of 4,200 people, 3,000 of whom are queued' => sub {
		# Another address has limits of its own, of which nothing is used.
		configure('worker', 'off');
		configure('api_url', $NOWHERE);
		sql('TRUNCATE clerk_invitation_outbox');
		$node->poll_query_until('app',
			'SELECT count(*) = 0 FROM clerk_worker_status()')
		  or die 'the worker does not leave';
		sql(
			q(INSERT INTO clerk_invitation_outbox
				(organization_id, email_address, role, state, settled_at)
			SELECT 'org_acme', i || '@example.com', 'org:member', s.state,
				CASE WHEN s.state <> 'queued' THEN now() END
			FROM (VALUES ('queued', 3000), ('sent', 1152), ('skipped', 36), ('failed', 12))
				AS s (state, people), generate_series(1, s.people) AS i));
	},
	'a table members' => sub {
		sql(
			q(CREATE TABLE members (
			org_id text NOT NULL,
			email text NOT NULL,
			invited_by text,
			PRIMARY KEY (org_id, email))));
	},
	'40 invitations, of which 10 were accepted, 1 revoked and 1 has expired' => sub {
		sql(
			q(INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
			SELECT 'org_acme', i || '@example.com', 'org:member'
			FROM generate_series(1, 40) AS i));
		wait_until_sent();
		my ($revoked, $expired, @accepted) = split(
			/\n/,
			$node->safe_psql('app',
				'SELECT invitation_id FROM clerk_invitation_outbox ORDER BY id LIMIT 12'));
		$clerk->control('revoke_as_admin', { id => $revoked });
		$clerk->control('expire', { id => $expired });
		$clerk->control('accept', { id => $_ }) foreach @accepted;
	},
	'a role marketing' => sub { sql('CREATE ROLE marketing') },
	'a role app' => sub { sql('CREATE ROLE app') },
	'a table waiting_list' => sub {
		sql('CREATE TABLE waiting_list (email text PRIMARY KEY, invited_at timestamptz)');
	},
	'roles monitor and support' => sub {
		sql('CREATE ROLE monitor; CREATE ROLE support');
	},
	'an invitation of ann@example.com' => sub {
		sql(
			q(SELECT id FROM clerk_create_organization_invitation(
				'org_acme', NULL, 'ann@example.com', 'org:member')));
	},
	'an invitation for later' => sub {
		sql(
			q(INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
			VALUES ('org_acme', 'later@example.com', 'org:member', now() + interval '1 day')));
		$node->poll_query_until('app',
			q(SELECT state = 'waiting' FROM clerk_worker_status()))
		  or die 'the worker does not wait';
	},
	'Clerk cannot be reached' => sub {
		configure('api_url', $NOWHERE);
		sql(
			q(INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
			VALUES ('org_acme', 'during-an-outage@example.com', 'org:member')));
		$node->poll_query_until('app',
			q(SELECT state = 'waiting' AND last_error IS NOT NULL FROM clerk_worker_status()))
		  or die 'the worker has no trouble';
	},
	'5,000 rows in new_people' => sub {
		sql(
			q(INSERT INTO new_people
			SELECT i || '@example.com', 'org:member', 'red' FROM generate_series(1, 4999) AS i
			UNION ALL VALUES (' 1@Example.com ', 'org:member', 'red'), ('not given', 'org:member', 'red'))
		);
	},
	q(the hour's limits are used up) => sub {
		$node->poll_query_until('app',
			'SELECT sum(remaining) = 0 FROM clerk_rate_limit_status()')
		  or die 'the limits are not used up';
		# A statement of its own: the snapshot of the one before may be older
		# than the last claim.
		$node->poll_query_until('app',
			q(SELECT NOT EXISTS (SELECT FROM clerk_invitation_outbox WHERE state = 'sending')))
		  or die 'requests are under way';
	},
	'the jobs have been run, without waiting for pg_cron' => sub {
		sql(
			split(
				/\0/,
				$node->safe_psql('app',
					q(SELECT command FROM cron.job ORDER BY jobname),
					extra_params => ['--record-separator-zero'])));
		wait_until_sent();
	},
	'every job has run' => sub {
		$node->poll_query_until(
			'app', q(
			SELECT bool_and(EXISTS (SELECT FROM cron.job_run_details AS run
				WHERE run.jobid = job.jobid AND run.status IN ('succeeded', 'failed')))
			FROM cron.job))
		  or die 'not every job has run';
	});

my @pages = ('README.md', map { "docs/$_" } pages_in("$source/docs"));
my (@not_run, @not_compared);

foreach my $page (grep { chosen($_) } @pages)
{
	start_afresh();
	run_page($page, MarkdownPage->read("$source/$page"));
}
unless ($ENV{PAGES})
{
	is(scalar(@not_run), $EXAMPLES_NOT_RUN,
		"$EXAMPLES_NOT_RUN examples are not run");
	is(scalar(@not_compared), $RESULTS_NOT_COMPARED,
		"$RESULTS_NOT_COMPARED results are not compared");
}

done_testing();

# To try some pages alone: PAGES="README.md docs/outbox.md".
sub chosen
{
	my ($page) = @_;

	return !$ENV{PAGES} || grep { $_ eq $page } split(/ /, $ENV{PAGES});
}

sub pages_in
{
	my ($folder) = @_;

	opendir(my $handle, $folder) or die "could not open $folder: $!";
	return sort grep { /\.md$/ } readdir($handle);
}

# A server that knows nothing of the pages before, and a Clerk that does not.
sub start_afresh
{
	if ($psql)
	{
		$psql->{harness}->finish;
		$psql = undef;
		$node->safe_psql('postgres', 'ALTER SYSTEM RESET ALL');
		$node->safe_psql('postgres', 'DROP DATABASE app WITH (FORCE)');
		$node->safe_psql('postgres', "DROP ROLE $_")
		  foreach split(
			/\n/,
			$node->safe_psql('postgres',
				q(SELECT quote_ident(rolname) FROM pg_roles WHERE oid >= 16384)));
	}
	$clerk->control('reset');
	$clerk->control('add_member',
		{ organization_id => 'org_acme', email_address => "member-$_\@example.com" })
	  foreach qw(ida joe ben);
	make_database();
	sql('CREATE EXTENSION clerk_invite');
	return;
}

# One without the extension, and a session of the page in it.  Without its file
# the server has forgotten the counts of the rate limits, and restarted it has
# pg_cron's launcher again, which would not come back after it was ended with
# the old database.
sub make_database
{
	$psql->{harness}->finish if $psql;
	$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS app WITH (FORCE)');
	$node->safe_psql('postgres', 'CREATE DATABASE app');
	$node->stop;
	unlink glob($node->data_dir . '/pg_stat/clerk_invite.budgets.*');
	$node->start;
	$psql = start_psql($node, '', '-P', 'format=aligned', '-P',
		'tuples_only=off');
	session('\connect app');
	return;
}

# Statements in sessions of their own.
sub sql
{
	my (@statements) = @_;

	$node->safe_psql('app', $_) foreach @statements;
	return;
}

# Sets a setting for the server.  The session of the page knows it then.
sub configure
{
	my ($setting, $value) = @_;

	sql("ALTER SYSTEM SET clerk_invite.$setting = '$value'",
		'SELECT pg_reload_conf()');
	wait_until(
		"the session knows $setting",
		sub {
			return session("SHOW clerk_invite.$setting;") =~ /^ \Q$value\E$/m;
		});
	return;
}

# A statement in the session of the page.  Returns what psql has shown.
sub session
{
	my ($statement) = @_;
	my ($stdout, $stderr) = run_in_psql($psql, $statement);

	return $stdout . "\n" . $stderr;
}

sub run_page
{
	my ($name, $page) = @_;

	foreach my $example ($page->examples)
	{
		my $place = "$name:$example->{line}";

		if ($example->{not_run})
		{
			push @not_run, $place;
			note("not run: $place: $example->{not_run}");
			next;
		}
		if ($example->{not_compared})
		{
			push @not_compared, $place;
			note("not compared: $place: $example->{not_compared}");
		}
	  SKIP:
		{
			skip "$place: pg_cron is not installed", 1
			  if !$has_cron
			  && grep { /\b(?:pg_)?cron\b/ } $example->{sql},
			  @{ $example->{given} };
			foreach my $step (@{ $example->{given} })
			{
				my $code = $STEPS{$step} or die "$place: there is no step \"$step\"";
				$code->();
			}
			check_example($place, $example, run_example($example));
		}
	}
	note("without SQL: $name:$_->{line}")
	  foreach $page->results_without_sql;
	return;
}


# Returns what psql has shown.
sub run_example
{
	my ($example) = @_;
	my $library = ClerkTest::library_name($node);
	my $sql = $example->{sql} =~ s{/etc/}{$etc/}gr =~
	  s/LOAD 'clerk_invite'/LOAD '$library'/gr;
	my $shown = '';

	foreach my $file ($sql =~ m{'(\Q$etc\E/[^']+\.key)'}g)
	{
		ClerkTest::write_key($file, $ClerkTest::KEY);
	}
	foreach my $part (split(/^-- A moment later:\n/m, $sql))
	{
		wait_until_sent() if $shown ne '';
		$shown .= session($part) . "\n";
	}
	return $shown;
}

sub wait_until_sent
{
	$node->poll_query_until(
		'app', qq(
		SELECT count(*) = 0 FROM clerk_invitation_outbox
		WHERE state IN ('sending', 'verifying')
			OR state = 'queued' AND coalesce(next_attempt_at, send_after) < $SOON))
	  or die 'the outbox is not sent';
	return;
}

# A page may show less than all: the last tables, and no notices.  Of a result
# that cannot be compared this much can: nothing fails.
sub check_example
{
	my ($place, $example, $output) = @_;
	my $got = PsqlOutput->new(
		$output,
		qr/\Q$etc\E/ => '/etc',
		quotemeta($clerk->url) . '(?!\S*ticket)' => 'https://api.clerk.com/v1',
		quotemeta($clerk->url) => 'https://clerk.example.com');
	my $wanted = PsqlOutput->new(
		$example->{not_compared} ? '' : $example->{result} // '');
	my @got = wanted_messages([ $got->messages ], [ $wanted->messages ]);
	my @tables = $got->tables;
	my $missing = @tables - $wanted->tables;

	is_deeply(\@got, [ $wanted->messages ],
		defined $example->{result}
		? "$place: says what it should"
		: "$place: says nothing bad")
	  or diag($output);
	return unless $wanted->tables;
	splice(@tables, 0, $missing) if $missing > 0;
	is_deeply(
		[ map { in_order($example, $_) } @tables ],
		[ map { in_order($example, $_) } $wanted->tables ],
		"$place: gives what it should") or diag($output);
	return;
}

# Notices and notifications count if the page shows one.
sub wanted_messages
{
	my ($got, $wanted) = @_;
	my @wanted = @$got;

	foreach my $kind (qr/^NOTICE/, qr/^Asynchronous/)
	{
		@wanted = grep { !/$kind/ } @wanted unless grep { /$kind/ } @$wanted;
	}
	return @wanted;
}

# Without ORDER BY rows may come in any order.
sub in_order
{
	my ($example, $rows) = @_;

	return $example->{sql} =~ /ORDER BY/ ? $rows : [ sort @$rows ];
}
