# CronTest - clusters in which pg_cron runs jobs, in each of its two ways
#
#	skip_without_pg_cron();
#	my @clusters = cron_clusters();
#	... cron.schedule() in the {node} of each ...
#	wait_for_cron(sub { ... });
#
# pg_cron looks at its jobs once a minute, which is what such a test waits for;
# the jobs of all clusters wait at the same time.

package CronTest;

use strict;
use warnings;

use ClerkTest;
use Exporter 'import';
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  skip_without_pg_cron
  cron_clusters
  wait_for_cron
  check_what_jobs_leave_behind
);

# A minute passes until a job starts, another if the first one was missed or if
# the job needs what another one does in the same minute.
my $PATIENCE = 130;

my $deadline;

# Before anything else is done.
sub skip_without_pg_cron
{
	plan skip_all => 'pg_cron is not installed'
	  unless ClerkTest::has_library('pg_cron');
	return;
}

# Each is a hash of name, node and clerk.  The time that wait_for_cron() allows
# begins now.
sub cron_clusters
{
	my @clusters = (
		_cluster('connection', sub { "cron.host = '" . $_[0]->host . "'" }),
		_cluster('worker', sub { 'cron.use_background_workers = on' }));

	$deadline = time + $PATIENCE;
	return @clusters;
}

sub _cluster
{
	my ($name, $setting) = @_;
	my $clerk = ClerkTest::Fake->start;
	my $node = clerk_cluster(
		$name, $clerk,
		conf => qq(
shared_preload_libraries = 'pg_cron'
cron.database_name = 'postgres'
max_worker_processes = 20
));

	$node->append_conf('postgresql.conf', $setting->($node));
	$node->restart;
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_cron');
	return { name => $name, node => $node, clerk => $clerk };
}

# Waits until the code returns true, or for as long as jobs may take: what the
# jobs have done is then for the test to look at.
sub wait_for_cron
{
	my ($done) = @_;

	until (time > $deadline || $done->())
	{
		select(undef, undef, undef, 0.2);
	}
	return;
}

# Looks for secrets where pg_cron and the server tell of jobs; $known is a text
# that is there.
sub check_what_jobs_leave_behind
{
	my ($cluster, $known) = @_;
	my ($name, $node) = @{$cluster}{qw(name node)};
	my $text =
	  $node->safe_psql('postgres', 'SELECT * FROM cron.job_run_details')
	  . slurp_file($node->logfile);

	ok(index($text, $known) >= 0,
		"$name: the jobs are in what they leave behind");
	ok(index($text, $ClerkTest::KEY) < 0,
		"$name: no key is in what the jobs leave behind");
	ok(index($text, '?ticket=') < 0,
		"$name: no url is in what the jobs leave behind");
	return;
}

1;
