# A backlog drains as fast as Clerk allows, and not one request faster: the
# worker against fakes that enforce Clerk's budgets in windows of some seconds.
#
# A window's budget may be spent in one burst, so what fills N windows is gone
# after N - 1 of them and a burst.  That is the ideal time; how long a burst
# takes is the machine's matter, and the first one is taken for it.  Clerk's
# ceiling is reached to 98 % if the ideal time is 98 % of the real one.  All
# times are those of the fake's journal.
#
# CLERK_PACE_WINDOW in the environment sets the window, in seconds, and
# CLERK_PACE_CEILING the percentage; see bench/pace.sh.
use strict;
use warnings;

use ClerkTest;
use List::Util qw(max sum0);
use Packing;
use PostgreSQL::Test::Utils;
use Test::More;

my $WINDOW = $ENV{CLERK_PACE_WINDOW} // 6;
my $CEILING_PERCENT = $ENV{CLERK_PACE_CEILING} // 98;
my $ROWS = 3000;

# The best of so many attempts counts: the machine may have other things to do.
my $ATTEMPTS = 2;

# Of the window.  A sender that is slow to begin must not look ideal.
my $LONGEST_BURST = 0.25;

# The mixed backlog is drawn from this seed and fills so many windows.
my $SEED = 20;
my $MIXED_WINDOWS = 6;

my $node = clerk_cluster(
	'main', undef,
	worker => 1,
	conf => "clerk_invite.rate_limit_window = '${WINDOW}s'\n");

# At the same time, since all of them mostly wait.
my @starts = (
	sub { start_drain('in one organization', [$ROWS]) },
	sub {
		start_drain('in one organization, by fixed windows',
			[$ROWS], '--window-kind' => 'fixed');
	},
	sub { start_drain('in organizations of many sizes', [ mixed_organizations() ]) },
	sub { start_drain('in an organization each', [ (1) x $ROWS ]) },
	\&start_shared_drain);
my @drains = map { { %{ $_->() }, start => $_ } } @starts;
check_drain($_) foreach @drains;
$node->stop;
done_testing();

# A database with a Clerk of its own and a backlog for it.
sub start_drain
{
	my ($what, $organizations, @options) = @_;
	my $clerk = start_clerk(@options);
	my $database = make_database($clerk);

	enqueue($database, @$organizations);
	return {
		what => sum0(@$organizations) . " $what",
		databases => [$database],
		clerk => $clerk,
		organizations => $organizations
	};
}

# Two databases with one key: what the first sends before, and what the second
# calls synchronously then, is missing in the budget of both backlogs.
sub start_shared_drain
{
	my $clerk = start_clerk();
	my @databases = map { make_database($clerk) } 1 .. 2;
	my ($first, $calls, $backlog) = (100, 50, 1400);

	enqueue($databases[0], (1) x $first);
	wait_until_drained($databases[0]);
	$node->safe_psql($databases[1],
		    'SELECT count(clerk_create_organization_invitation('
		  . "'org_test', NULL, 'called-' || n || '\@example.com', 'org:member'))"
		  . " FROM generate_series(1, $calls) AS n");
	enqueue($_, $backlog) foreach @databases;
	return {
		what => 2 * $backlog . ' in two databases',
		databases => \@databases,
		clerk => $clerk,
		organizations => [ (1) x ($first + $calls), $backlog, $backlog ]
	};
}

sub start_clerk
{
	return ClerkTest::Fake->start(
		'--single-limit' => $SINGLES,
		'--bulk-limit' => $BULKS,
		'--window' => $WINDOW,
		@_);
}

sub make_database
{
	my ($clerk) = @_;
	my $database = 'drain_' . ++$node->{databases_made};
	my $url = $clerk->url;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql('postgres',
		"ALTER DATABASE $database SET clerk_invite.api_url = '$url'");
	$node->safe_psql($database, 'CREATE EXTENSION clerk_invite');
	return $database;
}

# Invitations to organizations of these sizes, in an order that has nothing to
# do with the organizations; each call's are for others.
sub enqueue
{
	my ($database, @sizes) = @_;
	my $sizes = join(',', @sizes);
	my $prefix = 'x' . ++$node->{backlogs_made};

	$node->safe_psql(
		$database, qq(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
		SELECT 'org_${prefix}n' || organization,
			format('p%s-%s-$prefix\@example.com', organization, person),
			'org:member'
		FROM unnest('{$sizes}'::integer[]) WITH ORDINALITY AS o (size, organization),
			generate_series(1, size) AS person
		ORDER BY hashint8(organization * 1000 + person)));
	return;
}

sub mixed_organizations
{
	srand($SEED);
	return backlog_that_fills(
		$MIXED_WINDOWS,
		sub {
			my $kind = rand;

			return 1 + int(rand(4)) if $kind < 0.5;
			return 5 + int(rand(8)) if $kind < 0.8;
			return 10 + int(rand(50));
		});
}

sub check_drain
{
	my ($drain) = @_;
	my $figures = end_drain($drain);

	foreach (2 .. $ATTEMPTS)
	{
		last if $figures->{percent} >= $CEILING_PERCENT;
		$figures = end_drain($drain->{start}->());
	}
	cmp_ok($figures->{percent}, '>=', $CEILING_PERCENT,
		"$drain->{what}: Clerk's ceiling is reached");
	return;
}

# Waits for the end of a drain; returns its figures.
sub end_drain
{
	my ($drain) = @_;
	my $what = $drain->{what};

	wait_until_drained($_) foreach @{ $drain->{databases} };
	my $figures = figures($drain);
	note "$what: $figures->{text}";
	is($figures->{refused}, 0, "$what: Clerk refuses no request");
	is($figures->{created}, sum0(@{ $drain->{organizations} }),
		"$what: every invitation is created, once");
	cmp_ok($figures->{burst}, '<', $LONGEST_BURST * $WINDOW,
		"$what: a window's budget is spent at once");
	return $figures;
}

# What the journal tells.
sub figures
{
	my ($drain) = @_;
	my @requests = grep { $_->{method} eq 'POST' } $drain->{clerk}->journal;
	my @times = sort { $a <=> $b } map { $_->{time} / 1000 } @requests;
	my $windows = windows_needed(@{ $drain->{organizations} });
	my $seconds = $times[-1] - $times[0];
	my $burst = max(grep { $_ < $times[0] + $WINDOW } @times) - $times[0];
	my $ideal = ($windows - 1) * $WINDOW + $burst;
	my $percent = 100 * $ideal / $seconds;

	return {
		refused => scalar(grep { $_->{status} != 200 } @requests),
		created => sum0(map { scalar @{ $_->{created} } } @requests),
		windows => $windows,
		seconds => $seconds,
		burst => $burst,
		percent => $percent,
		text => sprintf(
			'%d windows of %g s in %.2f s, ideally %.2f s; a burst of %.2f s; %.2f %%',
			$windows, $WINDOW, $seconds, $ideal, $burst, $percent)
	};
}

sub wait_until_drained
{
	my ($database) = @_;

	$node->poll_query_until($database,
		'SELECT NOT EXISTS (SELECT FROM clerk_invitation_outbox'
		  . " WHERE state <> 'sent')")
	  or die "$database has invitations left that were not sent";
	return;
}
