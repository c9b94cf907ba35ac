# The collector for sql_exporter: it is well-formed, its metrics have the names
# that Prometheus asks for, and each query gives a role with the documented
# rights the columns that its metrics read, without reading the whole outbox.
# postgres_exporter makes the same metrics of its queries, and all that the
# dashboard and the alert rules ask Prometheus for is among them.
use strict;
use warnings;

use ClerkTest;
use WorkerTest;
use Cwd qw(abs_path);
use HTTP::Tiny;
use IO::Socket::INET;
use JSON::PP;
use PostgreSQL::Test::Utils;
use PromQuery qw(complaints_about);
use Test::More;

my $FOLDER = abs_path("$ClerkTest::TEST_FOLDER/../monitoring");

# Rows that were settled long ago, as many of each final state.
my $SETTLED = 40000;

# Types of columns that sql_exporter can read as a number.
my %NUMBERS = map { $_ => 1 } 'integer', 'bigint', 'double precision';

# Grafana's screen has as many columns.
my $DASHBOARD_WIDTH = 24;

my $text = slurp_file("$FOLDER/clerk_invite.collector.yml");
my $collector = parse($text);
my %queries = map { $_->{query_name} => $_->{query} } @{ $collector->{queries} };
my @metrics = @{ $collector->{metrics} };

my $dashboard = decode_json(slurp_file("$FOLDER/clerk_invite.dashboard.json"));
my $rules = slurp_file("$FOLDER/../docs/monitoring.md");
my @alerts = $rules =~ /^        expr: (?:>-\n)?((?:          )?.*\n(?: {10}.*\n)*)/mg;
my $clerk = ClerkTest::Fake->start;
my $node = worker_cluster('main', $clerk);

check_form();
check_dashboard_form();
fill_outbox();
grant();
check_columns();
check_values();
check_plans();
check_exporter();

$node->stop;
done_testing();

# The part of YAML that the file keeps to: scalars, lists of scalars in
# brackets, literal blocks, and two lists of mappings.
sub parse
{
	my %top;
	my ($list, $item, $block);

	foreach my $line (split(/\n/, $_[0]))
	{
		next if $line =~ /^\s*#/;
		if ($line =~ /^      (\s*\S.*)$/ && $block)
		{
			$item->{$block} .= "$1\n";
			next;
		}
		$block = undef;
		next if $line eq '';
		if ($line =~ /^(\w+):$/)
		{
			$list = $top{$1} = [];
		}
		elsif ($line =~ /^(\w+): (.+)$/)
		{
			$top{$1} = $2;
		}
		elsif ($line =~ /^  (-| ) (\w+): (.+)$/ && $list)
		{
			push @$list, $item = {} if $1 eq '-';
			die "$2 is there twice" if exists $item->{$2};
			$block = $2 if $3 eq '|';
			$item->{$2} = $block ? '' : scalar_or_list($3);
		}
		else
		{
			die "cannot read this line: $line";
		}
	}
	return \%top;
}

sub scalar_or_list
{
	my ($value) = @_;

	return [ split(/, /, $1) ] if $value =~ /^\[(.*)\]$/;
	return $1 if $value =~ /^'([^']*)'$/;
	die "a string that needs quotes: $value" if $value =~ /[:#'"{}\[\]]/;
	return $value;
}

# Fields as sql_exporter documents them, names as Prometheus does.
sub check_form
{
	my %known = map { $_ => 1 }
	  qw(metric_name type help key_labels value_label values query_ref);

	is($collector->{collector_name}, 'clerk_invite', 'the collector has a name');
	is_deeply([ sort keys %$collector ],
		[qw(collector_name metrics min_interval queries)],
		'... and the parts that a collector has');
	foreach my $metric (@metrics)
	{
		my $name = $metric->{metric_name};
		my @labels = (@{ $metric->{key_labels} // [] }, $metric->{value_label} // ());

		is_deeply([ grep { !$known{$_} } keys %$metric ],
			[], "$name has no field that sql_exporter does not know");
		like($name, qr/^clerk_invite_[a-z_]+$/, '... has a name that Prometheus accepts');
		is($metric->{type}, 'gauge', '... is a gauge, since rows are removed');
		unlike($name, qr/_(?:total|ms|minutes|hours)$/,
			'... so that it has no suffix of a counter, and base units');
		like($metric->{help}, qr/^\S.*\.$/, '... is explained');
		ok(exists $queries{ $metric->{query_ref} }, '... refers to a query');
		is_deeply([ grep { !/^[a-z_]+$/ } @labels ], [], '... and has good labels');
		is(@{ $metric->{values} } > 1, defined $metric->{value_label},
			'... one to tell its values apart if there are several');
	}
	my %used = map { $_->{query_ref} => 1 } @metrics;
	is_deeply([ sort keys %used ], [ sort keys %queries ], 'every query is used');
	unlike($text, qr/sk_(?:test|live)|password|postgres:/, 'there is no secret in it');
	return;
}

# Most of the rows were settled long ago, and are as wide as such rows are.
sub fill_outbox
{
	$node->safe_psql(
		'postgres', qq(
		SET clerk_invite.worker = off;
		INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, state, attempts, settled_at,
			 invitation_id, url)
		SELECT 'org_' || i % 100, i || '\@example.com', 'org:member',
			(ARRAY['sent', 'skipped', 'failed', 'canceled'])[i % 4 + 1], 1,
			now() - interval '1 day' - i * interval '1 second',
			'orginv_' || md5(i::text),
			'https://example.com/v1/tickets/accept?ticket=' || repeat(md5(i::text), 10)
		FROM generate_series(1, $SETTLED) AS i;
		INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, state, attempts, settled_at, error_code)
		VALUES ('org_a', 'a\@example.com', 'org:member', 'sent', 1, now(), NULL),
			('org_a', 'b\@example.com', 'org:member', 'sent', 3, now(), NULL),
			('org_a', 'c\@example.com', 'org:member', 'failed', 1, now(), 'quota'),
			('org_a', 'd\@example.com', 'org:member', 'failed', 5, now(), NULL);
		INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, send_after)
		VALUES ('org_a', 'due\@example.com', 'org:member', now() - interval '5 min'),
			('org_a', 'later\@example.com', 'org:member', now() + interval '1 day');
		INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, state, attempts, next_attempt_at)
		VALUES ('org_a', 'e\@example.com', 'org:member', 'verifying', 4, now() + interval '1 day');));
	$node->safe_psql('postgres', 'VACUUM ANALYZE clerk_invitation_outbox');
	return;
}

# What the file's head says, and nothing else.
sub grant
{
	my @grants = $text =~ /^#\t(GRANT .*;)$/mg;

	is(@grants, 3, 'the rights are documented');
	$node->safe_psql('postgres', join("\n", 'CREATE ROLE monitor LOGIN;', @grants));
	return;
}

sub as_monitor
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', 'monitor' ]);
}

# psql's \gdesc tells the columns of a query.
sub columns_of
{
	my ($query) = @_;

	return map { split(/\|/, $_, 2) } split(/\n/, as_monitor("$query\\gdesc"));
}

sub check_columns
{
	foreach my $metric (@metrics)
	{
		my $name = $metric->{metric_name};
		my %types = columns_of($queries{ $metric->{query_ref} });

		is_deeply([ grep { ($types{$_} // '') ne 'text' } @{ $metric->{key_labels} // [] } ],
			[], "the labels of $name are columns of its query, and text");
		is_deeply([ grep { !$NUMBERS{ $types{$_} // '' } } @{ $metric->{values} } ],
			[], '... and its values are, and numbers');
	}
	return;
}

# A metric as Prometheus would see it: labels, and the value.
sub series
{
	my ($name) = @_;
	my ($metric) = grep { $_->{metric_name} eq $name } @metrics;
	my @labels = @{ $metric->{key_labels} // [] };
	my %series;

	foreach my $value (@{ $metric->{values} })
	{
		my $labels = join(" || ',' || ", @labels) || "''";
		my $query = $queries{ $metric->{query_ref} };

		$labels = "'$value'" if defined $metric->{value_label};
		foreach my $row (split(/\n/, as_monitor("SELECT $labels, $value FROM ($query) AS q")))
		{
			my ($key, $number) = split(/\|/, $row);

			die "$name has {$key} twice" if exists $series{$key};
			$series{$key} = $number;
		}
	}
	return \%series;
}

# Each query of the dashboard, with the legend of its result; the queries of its
# variables are those of their labels' values.
sub dashboard_queries
{
	return (
		(
			map { [ $_->{expr}, $_->{legendFormat} ] }
			map { @{ $_->{targets} } } @{ $dashboard->{panels} }
		),
		(
			map { [ $_->{query}{query} =~ s/^label_values\((.*), (\w+)\)$/count by ($2) ($1)/r ] }
			grep { $_->{type} eq 'query' } @{ $dashboard->{templating}{list} }
		));
}

# What Grafana asks for in a dashboard, and what it lets pass and shows badly.
sub check_dashboard_form
{
	my @panels = @{ $dashboard->{panels} };
	my @ids = map { $_->{id} } @panels;
	my %variables = map { $_->{name} => 1 } @{ $dashboard->{templating}{list} };
	my @used = JSON::PP->new->canonical->encode($dashboard) =~ /\$\{?(\w+)/g;
	my %taken;

	is_deeply([ grep { !length($dashboard->{$_} // '') } qw(title uid schemaVersion) ],
		[], 'the dashboard has a title, an id, and a version of its form');
	cmp_ok(scalar(@ids), '>', 0, '... and panels');
	is_deeply([ grep { !/^[1-9][0-9]*$/ } @ids ], [], '... whose ids are numbers');
	is(scalar(keys %{ { map { $_ => 1 } @ids } }), scalar(@ids), '... and unique');
	foreach my $panel (@panels)
	{
		my $place = $panel->{gridPos};
		my @refs = map { $_->{refId} } @{ $panel->{targets} };

		foreach my $x ($place->{x} .. $place->{x} + $place->{w} - 1)
		{
			$taken{"$x,$_"}++ foreach $place->{y} .. $place->{y} + $place->{h} - 1;
		}
		cmp_ok($place->{x} + $place->{w}, '<=', $DASHBOARD_WIDTH, "$panel->{title} fits in");
		like($panel->{description}, qr/^\S.*\.$/, '... is explained');
		is(scalar(keys %{ { map { $_ => 1 } @refs } }),
			scalar(@{ $panel->{targets} }), '... and tells its queries apart');
		is_deeply([ grep { $_->{datasource}{uid} ne '${datasource}' } $panel, @{ $panel->{targets} } ],
			[], '... which ask the chosen data source');
	}
	is_deeply([ grep { $taken{$_} > 1 } keys %taken ], [], 'no two panels overlap');
	is_deeply([ grep { !$variables{$_} && $_ ne '__all' } @used ], [], 'every variable is defined');
	return;
}

# What is asked for is there, as far as it is known what is there.
sub check_dashboard
{
	my ($served) = @_;
	my $text = join("\n", map { $_->[0] } dashboard_queries());

	foreach my $query (dashboard_queries(), map { [$_] } @alerts)
	{
		my ($expression, $legend) = @$query;

		is_deeply([ complaints_about($expression, $served, $legend) ],
			[], 'there is what this names: ' . $expression =~ s/\s+/ /gr);
	}
	is_deeply([ grep { $text !~ /\b$_\b/ } sort keys %$served ],
		[], 'every metric is on the dashboard');
	return;
}

# A state in which no metric is without a series: there is a key, and something
# that keeps the worker from sending, which does not try again while the
# exporter is asked.
sub make_trouble
{
	reconfigure($node,
		"clerk_invite.api_url = 'http://127.0.0.1:1'\nclerk_invite.retry_delay = '1h'");
	enqueue($node, 'postgres', 'unreachable@example.com');
	wait_until(
		'the worker cannot reach Clerk',
		sub {
			$node->safe_psql('postgres',
				q(SELECT state = 'waiting' AND last_error ~ 'connect' FROM clerk_worker_status())) eq 't';
		});
	return;
}

# What Prometheus gets from postgres_exporter and its file.
sub check_exporter
{
	my ($program) = grep { -x } map {
		("$_/postgres_exporter", "$_/prometheus-postgres-exporter")
	} split(/:/, $ENV{PATH});

  SKIP:
	{
		skip 'there is no postgres_exporter', @metrics + dashboard_queries() + @alerts + 3
		  if !$program;
		make_trouble();
		my ($exported, $served) = scrape($program);

		is_deeply([ sort keys %$exported ], [ sort map { $_->{metric_name} }
				grep { %{ series($_->{metric_name}) } } @metrics ],
			'postgres_exporter knows the same metrics');
		foreach my $name (sort map { $_->{metric_name} } @metrics)
		{
			my $expected = series($name);

			# Time goes on.
			if ($name eq 'clerk_invite_oldest_due_age_seconds')
			{
				cmp_ok(abs($exported->{$name}{''} - $expected->{''}),
					'<', 300, "... with the same value of $name");
				next;
			}
			is_deeply($exported->{$name} // {}, $expected, "... with the same values of $name");
		}
		is(scalar(keys %$served), scalar(@metrics), '... all of which have series now');
		check_dashboard($served);
	}
	return;
}

# The metrics of ours, as series() has them, that an exporter gives, and the
# labels of each of their series.
sub scrape
{
	my ($program) = @_;
	my $port = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1')->sockport;
	my $url = "http://127.0.0.1:$port/metrics";
	my $log = PostgreSQL::Test::Utils::tempdir() . "/postgres_exporter.log";
	my $answer;
	my (%exported, %served);

	local $ENV{DATA_SOURCE_NAME} = sprintf(
		'host=%s port=%d user=monitor dbname=postgres sslmode=disable',
		$node->host, $node->port);
	my $exporter = IPC::Run::start(
		[
			$program, '--disable-default-metrics', '--disable-settings-metrics',
			'--extend.query-path', "$FOLDER/clerk_invite.queries.yaml",
			'--web.listen-address', "127.0.0.1:$port"
		],
		'<', \undef, '>&', $log);
	wait_until('the exporter answers',
		sub { $answer = HTTP::Tiny->new->get($url); $answer->{success} });
	$exporter->kill_kill;
	foreach my $line (split(/\n/, $answer->{content}))
	{
		my ($name, $labels, $value) = $line =~ /^(clerk_invite_\w+)\{(.*)\} (\S+)$/ or next;
		my @labels = grep { !/^server=/ } $labels =~ /(\w+="(?:[^"\\]|\\.)*")/g;

		$exported{$name}{ join(',', map { /="(.*)"$/ } @labels) } = $value + 0;
		push @{ $served{$name} }, { map { /^(\w+)="(.*)"$/ } @labels };
	}
	return (\%exported, \%served);
}

sub check_values
{
	my $quarter = $SETTLED / 4;

	is_deeply(
		series('clerk_invite_invitations'),
		{
			queued => 2, sending => 0, verifying => 1, canceled => $quarter,
			sent => $quarter + 2, skipped => $quarter, failed => $quarter + 2
		},
		'the rows are counted by state');
	is_deeply(series('clerk_invite_due_invitations'), { '' => 1 }, '... and what is due');
	my $age = series('clerk_invite_oldest_due_age_seconds')->{''};
	cmp_ok($age, '>=', 300, '... since then');
	cmp_ok($age, '<', 300 + 600, '... in seconds');
	is_deeply(series('clerk_invite_under_way_attempts_max'),
		{ '' => 4 }, '... and attempts');
	is_deeply(
		series('clerk_invite_last_hour_invitations'),
		{ sent => 2, skipped => 0, failed => 2, canceled => 0 },
		'the last hour is told apart');
	is_deeply(
		series('clerk_invite_last_hour_attempts'),
		{ sent => 4, skipped => 0, failed => 6, canceled => 0 },
		'... with its attempts');
	is_deeply(series('clerk_invite_last_hour_failures'),
		{ quota => 1, none => 1 }, '... and its failures by code');
	is_deeply(series('clerk_invite_limit_requests'),
		{ single => 1000000, bulk => 0 }, 'the limits are there');
	is_deeply(series('clerk_invite_remaining_requests'),
		{ single => 1000000, bulk => 0 }, '... and what is left of them');
	is_deeply(series('clerk_invite_closed_seconds'),
		{ single => 0, bulk => 0 }, '... for open endpoints');
	is_deeply(series('clerk_invite_time_to_empty_seconds'),
		{ '' => 0 }, 'the time to empty is a number where the limits allow all');
	is_deeply(
		series('clerk_invite_worker_present'),
		{ none => 1, wanted => 0, starting => 0, restarting => 0, sending => 0, waiting => 0 },
		'there is no worker');
	is_deeply(series('clerk_invite_worker_error_present'), {}, '... so none is in trouble');

	# Without a key it cannot be told, and something keeps a worker from sending.
	reconfigure($node, "clerk_invite.secret_key_file = ''");
	is_deeply(series('clerk_invite_time_to_empty_seconds'),
		{ '' => 'Infinity' }, 'without a key it is never');
	enqueue($node, 'postgres', 'no-key@example.com');
	wait_for_worker($node, 'postgres');
	is_deeply(
		series('clerk_invite_worker_present'),
		{ none => 0, wanted => 0, starting => 0, restarting => 0, sending => 0, waiting => 1 },
		'a worker is there');
	is_deeply([ values %{ series('clerk_invite_worker_error_present') } ],
		[1], '... and in trouble, which has a name');
	reconfigure($node, "clerk_invite.secret_key_file = 'clerk.key'");
	return;
}

sub check_plans
{
	foreach my $query (sort keys %queries)
	{
		unlike(as_monitor("EXPLAIN $queries{$query}"),
			qr/Seq Scan on clerk_invitation_outbox/, "query $query goes by indexes");
	}
	return;
}
