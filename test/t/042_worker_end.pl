# However a worker ends, an invitation is sent once: with the server, by a
# signal, or killed.  The rows that were under way are verified by the next one,
# which comes by itself unless the server has been started anew.
# A server that pg_upgrade has started has none.
use strict;
use warnings;

use ClerkTest;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = worker_cluster(
	'main', $clerk,
	conf => q(
restart_after_crash = on
clerk_invite.request_timeout = '1 h'
));

check_fast_stop();
check_end('pg_terminate_backend()', 1,
	sub { $node->safe_psql('postgres', "SELECT pg_terminate_backend($_[0])") });
check_end('SIGKILL', 1, sub { kill_process($node, @_) });
check_end('an immediate stop', 0, sub { $node->stop('immediate'); $node->start; });
check_binary_upgrade();

$node->stop;
done_testing();

# In the middle of requests: one that Clerk has carried out, one it will not.
sub check_fast_stop
{
	my @seconds;

	foreach my $round (1 .. 3)
	{
		my @emails = begin("fast-$round");
		my $begun = time;
		$node->stop('fast');
		push @seconds, time - $begun;
		$node->start;
		check_rows("a fast stop, round $round", 0, @emails);
	}
	@seconds = sort { $a <=> $b } @seconds;
	note sprintf('pg_ctl stop -m fast took %s s',
		join(', ', map { sprintf('%.2f', $_) } @seconds));
	cmp_ok($seconds[1], '<', 1,
		'in the middle of a request the server stops within a second (median of 3)');
	return;
}

sub check_end
{
	my ($title, $restarted, $end) = @_;
	my @emails = begin($title =~ s/\W+/-/gr);
	my $worker = worker_of($node, 'postgres');

	$end->($worker);
	wait_until("the worker is gone after $title", sub { !kill(0, $worker) });
	check_rows($title, $restarted, @emails);
	return;
}

# A worker with two requests under way.
sub begin
{
	my ($tag) = @_;
	my @emails = ("x-hang-after--$tag\@example.com", "x-hang-once--$tag\@example.com");

	enqueue($node, 'postgres', @emails);
	wait_until('both requests hang', sub { requests($clerk, @emails) eq '1 1' });
	return @emails;
}

# The server is up; a worker is on its way, or comes with the next commit.
sub check_rows
{
	my ($title, $restarted, @emails) = @_;

	if (!$restarted)
	{
		my $next = 'next' . $emails[0] =~ s/x-hang-after--//r;

		is(states($node, 'postgres', @emails),
			'sending 1, sending 1', "$title: the rows say that they are under way");
		is(join(' ', workers($node)), '', '... and there is no worker');
		enqueue($node, 'postgres', $next);
		wait_for_states($node, 'postgres', 'sent 1', $next);
	}
	wait_for_states($node, 'postgres', 'sent 1', $emails[0]);
	wait_for_states($node, 'postgres', 'sent 2', $emails[1]);
	is(created($clerk, @emails), '1 1',
		"$title: the next worker sees to it that each is invited once");
	is(requests($clerk, @emails), '1 2', '... and sends only what Clerk does not have');
	wait_until_gone($node);
	return;
}

# As pg_upgrade starts the servers: with or without preload.
sub check_binary_upgrade
{
	my $library = ClerkTest::library_name($node);

	foreach my $preload ('', $library)
	{
		my $title = $preload ? 'preloaded' : 'not preloaded';
		my $email = $preload ? 'upgrade1@example.com' : 'upgrade2@example.com';
		my @command = (
			'pg_ctl', 'start', '-w', '-D', $node->data_dir, '-l', $node->logfile,
			'-o', '-b -c log_min_messages=debug1');

		$node->stop;
		$node->append_conf('postgresql.conf', "shared_preload_libraries = '$preload'");
		system_or_bail(@command);
		$node->safe_psql('postgres', enqueue_sql($email));
		is( $node->safe_psql('postgres',
				"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'clerk%'"),
			'0',
			"$title: in a server for pg_upgrade a commit starts no worker");
		system_or_bail('pg_ctl', 'stop', '-w', '-D', $node->data_dir, '-m', 'fast');
		unlike(
			slurp_file($node->logfile),
			qr/starting background worker process "clerk/,
			'... not even for a moment, and there is no launcher');
		is(requests($clerk, $email), '0', '... and nothing is sent');
		$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
		$node->start;
	}
	return;
}
