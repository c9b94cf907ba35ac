# A worker whose next row is due later waits for a minute, and is then replaced
# by a process that has no connection and that nothing wakes until there is
# something to do.
use strict;
use warnings;

use ClerkTest;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;

# What hangs is an error, long before the test is given up.
my $BOUNDED = "SET statement_timeout = '30 s';";

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = worker_cluster(
	'main', $clerk,
	conf => q(
autovacuum = off
max_worker_processes = 20
));
my $crowded = worker_cluster('crowded', $clerk, conf => 'max_worker_processes = 1');
my $log = -s $node->logfile;
my %connected;

# All of them wait for the same minute.
enqueue($crowded, 'postgres', '1 day', 'crowded@example.com');
my $occupant = wait_for_worker($crowded, 'postgres');
my $first_wait = next_run_of($crowded, 'postgres');

foreach my $database (qw(dropped emptied terminated woken))
{
	make_database($node, $database);
	enqueue($node, $database, '1 day', "$database\@example.com");
}
my ($due) = $node->safe_psql('postgres',
	enqueue_sql('80 s', 'punctual@example.com') . ' RETURNING extract(epoch FROM send_after) * 1000');
$connected{$_} = wait_for_worker($node, $_) foreach qw(postgres dropped emptied terminated woken);
is(connections($node, 'postgres', 'dropped', 'emptied', 'terminated', 'woken'),
	'5', 'a worker with a row that is due later keeps its connection at first');

check_punctuality();
check_rest();
check_no_room();
check_wakeup();
check_ends();
unlike(slurp_file($node->logfile, $log),
	qr/ERROR|FATAL(?!:  terminating background worker)/,
	'nothing of that is an error');
$node->stop;
$crowded->stop;
done_testing();

# The wait is the sum of one with a connection and one without.
sub check_punctuality
{
	wait_until_resting('postgres');
	is($node->safe_psql('postgres',
			q(SELECT abs(extract(epoch FROM w.next_run_at - o.send_after)) < 1 FROM clerk_worker_status() AS w,
			clerk_invitation_outbox AS o WHERE w.database = 'postgres')),
		't', 'a process without a connection waits for the row');
	wait_for_states($node, 'postgres', 'sent 1', 'punctual@example.com');
	my ($request) = $clerk->requests_for('punctual@example.com');
	my $late = $request->{time} - $due;

	note sprintf('it was sent %.0f ms after it was due', $late);
	# The fake cuts its time to the millisecond.
	cmp_ok($late, '>=', -1, '... and does not send it earlier');
	cmp_ok($late, '<', 2000, '... nor much later');
	wait_until_gone($node, 'postgres');
	return;
}

sub check_rest
{
	wait_until_resting($_) foreach qw(dropped emptied terminated woken);
	isnt(worker_of($node, 'dropped'), $connected{dropped},
		'a worker for whose row it is too early is replaced');
	is(connections($node, 'dropped', 'emptied', 'terminated', 'woken'),
		'0', '... by one that needs no connection');
	is( $node->safe_psql('postgres',
			q(SELECT next_run_at BETWEEN now() + interval '50 min' AND now() + interval '1 h'
			FROM clerk_worker_status() WHERE database = 'dropped')),
		't',
		'... checks once an hour, in case the clock was changed');
	is( $node->safe_psql('postgres',
			'SELECT count(*) FROM clerk_worker_status() WHERE last_error IS NOT NULL'),
		'0',
		'... and has no trouble');
  SKIP:
	{
		skip 'needs /proc', 1 unless -e "/proc/$$/status";
		is(wakeups(worker_of($node, 'dropped'), 3), 0, '... and is never woken');
	}
	return;
}

# Where there is no place for a second process the first one goes on.
sub check_no_room
{
	wait_until('it has checked again',
		sub { next_run_of($crowded, 'postgres') > $first_wait + 30 });
	is(wait_for_worker($crowded, 'postgres'),
		$occupant, 'a worker that finds no room for another process stays');
	is(connections($crowded, 'postgres'), '1', '... with its connection');
	enqueue($crowded, 'postgres', 'soon@example.com');
	wait_for_states($crowded, 'postgres', 'sent 1', 'soon@example.com');
	is(worker_of($crowded, 'postgres'), $occupant, '... and goes on sending');
	return;
}

sub check_wakeup
{
	my $resting = worker_of($node, 'woken');

	enqueue($node, 'woken', 'now@example.com');
	wait_for_states($node, 'woken', 'sent 1', 'now@example.com');
	is(worker_of($node, 'woken'), $resting, 'a commit wakes one that rests');
	is(created($clerk, 'now@example.com'), '1', '... which sends');
	is(states($node, 'woken', 'woken@example.com'), 'queued 0', '... what is due');
	return;
}

# Nobody has to wait for a process that rests.
sub check_ends
{
	my $resting = worker_of($node, 'terminated');

	kill('TERM', $resting) or die "could not signal $resting: $!";
	wait_until('there is another one', sub { worker_of($node, 'terminated') !~ /^(?:0|$resting)$/ });
	my $successor = wait_for_worker($node, 'terminated');
	pass('one that is terminated while it rests is replaced');

	is(attempt($node, 'postgres', "$BOUNDED DROP DATABASE dropped;")->{sqlstate},
		'', 'a database whose worker rests can be dropped');
	is(attempt($node, 'emptied', "$BOUNDED DROP EXTENSION clerk_invite;")->{sqlstate},
		'', 'so can the extension');
	$node->reload;
	wait_until('two workers are gone',
		sub { $node->safe_psql('postgres', 'SELECT count(*) FROM clerk_worker_status()') eq '2' });
	pass('... and its worker leaves when it checks, as after a reload');
	is(wait_for_worker($node, 'terminated'), $successor, '... if there is nothing to wait for');
	return;
}

# Workers that are connected to these databases.
sub connections
{
	my ($server, @databases) = @_;
	my $databases = join(', ', map { "'$_'" } @databases);

	return $server->safe_psql('template1',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clerk_invite worker' "
		  . "AND datname IN ($databases)");
}

sub wait_until_resting
{
	my ($database) = @_;

	return wait_until(
		"the worker of $database rests",
		sub {
			return $node->safe_psql('postgres',
				"SELECT count(*) FROM clerk_worker_status() WHERE database = '$database' AND state = 'waiting' "
				  . 'AND pid NOT IN (SELECT pid FROM pg_stat_activity)') eq '1';
		});
}

# When it checks next, in seconds since 1970.
sub next_run_of
{
	my ($server, $database) = @_;

	return $server->safe_psql('postgres',
		"SELECT extract(epoch FROM next_run_at) FROM clerk_worker_status() WHERE database = '$database'");
}
