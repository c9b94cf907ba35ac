# WorkerTest - what the tests of the background worker have in common
#
#	my $node = worker_cluster('main', $clerk);
#	enqueue($node, 'postgres', 'ann@example.com');
#	wait_until_settled($node, 'postgres', 'ann@example.com');
#	my $worker = worker_of($node, 'postgres');

package WorkerTest;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use ClerkTest;
use Driver;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(
  worker_cluster
  install_slots_driver
  make_database
  enqueue
  enqueue_sql
  states
  wait_for_states
  created
  requests
  workers
  worker_of
  wait_for_worker
  wait_until_gone
  kill_process
  wakeups
  wait_until_asleep
  switches
);

# Neither budgets nor delays are what these tests are about.
my $SETTINGS = q(
clerk_invite.single_requests_per_hour = 1000000
clerk_invite.bulk_requests_per_hour = 0
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
max_logical_replication_workers = 0
);

# A cluster whose commits start workers; as clerk_cluster().
sub worker_cluster
{
	my ($name, $clerk, %params) = @_;
	my $conf = delete $params{conf} // '';

	return clerk_cluster(
		$name, $clerk,
		worker => 1,
		conf => $SETTINGS . $conf,
		%params);
}

# Functions of worker_slots_driver.c in the database postgres.
sub install_slots_driver
{
	my ($node) = @_;
	my $library = Driver::build('worker_slots_driver');

	$node->safe_psql(
		'postgres', qq(
		CREATE FUNCTION driver_reserve_slots(integer) RETURNS integer
			LANGUAGE c STRICT AS '$library';
		CREATE FUNCTION driver_age_starts(integer) RETURNS void
			LANGUAGE c STRICT AS '$library';));
	return;
}

# Another database with the extension.
sub make_database
{
	my ($node, $database) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION clerk_invite');
	return;
}

# SQL that puts these addresses into the outbox, to be sent after $delay, an
# interval, if it begins with one.
sub enqueue_sql
{
	my $delay = $_[0] =~ /@/ ? '0' : shift;

	return 'INSERT INTO clerk_invitation_outbox '
	  . '(organization_id, email_address, role, send_after) VALUES '
	  . join(', ',
		map { "('org_test', '$_', 'org:member', now() + interval '$delay')" }
		  @_);
}

# The same, in a session and a transaction of its own.
sub enqueue
{
	my ($node, $database, @emails) = @_;

	$node->safe_psql($database, enqueue_sql(@emails));
	return;
}

# State and attempts of the rows for these addresses, in the order of ids.
sub states
{
	my ($node, $database, @emails) = @_;
	my $emails = join(', ', map { "'$_'" } @emails);

	return $node->safe_psql($database,
		"SELECT string_agg(state || ' ' || attempts, ', ' ORDER BY id) "
		  . "FROM clerk_invitation_outbox WHERE email_address IN ($emails)");
}

# Waits until each of these addresses is in that state after that many attempts.
sub wait_for_states
{
	my ($node, $database, $states, @emails) = @_;

	return wait_until(
		"@emails are $states",
		sub {
			return states($node, $database, @emails) eq
			  join(', ', ($states) x @emails);
		});
}

# How many invitations each of these addresses has ever had.
sub created
{
	my ($clerk, @emails) = @_;

	return join(' ', map { scalar(() = $clerk->invitations_for($_)) } @emails);
}

# How often Clerk was asked to invite each of these addresses.
sub requests
{
	my ($clerk, @emails) = @_;

	return join(' ', map { scalar(() = $clerk->requests_for($_)) } @emails);
}

# The databases that have a worker.
sub workers
{
	my ($node) = @_;

	return split(
		/\n/,
		$node->safe_psql('postgres',
			'SELECT database FROM clerk_worker_status() ORDER BY 1'));
}

# The process of a database's worker; 0 if it has none.
sub worker_of
{
	my ($node, $database) = @_;

	return $node->safe_psql('postgres',
		    'SELECT coalesce(max(pid), 0) FROM clerk_worker_status() '
		  . "WHERE database = '$database'");
}

# Waits until a database's worker waits, and returns its process.
sub wait_for_worker
{
	my ($node, $database) = @_;

	wait_until(
		"the worker of $database waits",
		sub {
			return $node->safe_psql('postgres',
				    'SELECT count(*) FROM clerk_worker_status() WHERE '
				  . "database = '$database' AND state = 'waiting'") eq '1';
		});
	return worker_of($node, $database);
}

# Waits until none of these databases, or of all, has a worker.
sub wait_until_gone
{
	my ($node, @databases) = @_;

	return wait_until(
		"no worker is left of @databases",
		sub {
			my %left = map { $_ => 1 } workers($node);
			return !(@databases ? grep { $left{$_} } @databases : %left);
		});
}

# How often a process that sleeps is woken within so many seconds; needs /proc.
sub wakeups
{
	my ($pid, $seconds) = @_;
	my $before;

	wait_until_asleep($pid);
	$before = switches($pid);
	# Nothing can be waited for: what counts is that nothing happens.
	sleep($seconds);
	return switches($pid) - $before;
}

sub wait_until_asleep
{
	my ($pid) = @_;

	return wait_until("process $pid sleeps",
		sub { slurp_file("/proc/$pid/stat") =~ /\) S/ });
}

# How often a process has been switched to; needs /proc.
sub switches
{
	my ($pid) = @_;
	my $sum = 0;

	$sum += $_
	  foreach slurp_file("/proc/$pid/status") =~ /_ctxt_switches:\s+(\d+)/g;
	return $sum;
}

# Kills a server process with SIGKILL, and waits until the server has got over
# it; restart_after_crash must be on.
sub kill_process
{
	my ($node, $pid) = @_;
	my $before = _start_of_server($node);

	kill('KILL', $pid) or croak "could not kill $pid: $!";
	return wait_until(
		'the server is up again',
		sub {
			my $now = _start_of_server($node);
			return $now ne '' && $now ne $before;
		});
}

# Changes with each start, also after a crash; empty if the server is not up.
sub _start_of_server
{
	my ($node) = @_;
	my ($stdout, $stderr);
	my $failed = status_of_psql(
		$node,
		'postgres',
		"SELECT pid, backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'",
		stdout => \$stdout,
		stderr => \$stderr);

	return $failed ? '' : $stdout;
}

1;
