# What was sent counts for an hour, whatever becomes of the server meanwhile:
# it is stopped in the middle of a backlog, in every way, and Clerk neither
# refuses a request afterwards nor gets one less than it would have taken.
use strict;
use warnings;

use ClerkTest;
use Driver;
use Packing;
use POSIX qw(ceil);
use PostgreSQL::Test::Utils;
use RateLimitDriver;
use Test::More;
use WorkerTest;

# Of Clerk's hour, stops of the server may cost so much, in percent, and in
# any case one request: it has been counted, but may not have gone out.
my $MOST_LOST = 1;

my ($clusters, $backlogs) = (0, 0);

# Calls of a session before the backlog is sent.
my $CALLS = 20;

# Endpoints as rate_limit.h numbers them, and where the driver's time begins.
my ($SINGLE, $BULK) = (0, 1);
my $START = '2030-01-01 00:00:00+00';

# What a server is in when it stops: each is to meet the middle of a burst.
my @ways = (
	[ 'a fast stop', sub { $_[0]->stop('fast'); $_[0]->start; } ],
	[ 'an immediate stop', \&restart_immediately ],
	[ 'SIGKILL of the worker', sub { kill_process($_[0], worker_of($_[0], 'postgres')) } ],
	[ 'pg_terminate_backend() of the worker', \&terminate_worker ],
	[ 'SIGKILL of the postmaster', \&kill_postmaster ]);

# So that what was lost is looked up at once; each answer takes a while.
my $SETTINGS = q(
restart_after_crash = on
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
);

check_backlog($_) foreach 'without preload', 'with preload';
check_short_windows($_) foreach qw(sliding fixed);
check_clock();
check_file();
done_testing();

# Clerk's own hour, and a backlog that it does not take in one: what it has got
# in the end tells what was lost, however long anything took.
sub check_backlog
{
	my ($how) = @_;
	my $clerk = ClerkTest::Fake->start;
	my $node = cluster($how, $clerk);

	foreach (1 .. $CALLS)
	{
		$node->safe_psql('postgres', invite("call$_\@example.com"));
	}
	foreach my $way ($how eq 'with preload' ? @ways[ 0, 1 ] : @ways)
	{
		my ($title, $end) = @$way;
		my $before = posts($clerk);

		# A batch of 15 requests, of which 10 are under way at a time, for two
		# seconds.  Without preload, its commit starts the worker.  Each row costs a
		# lookup later, of which there are 4 in a second.
		enqueue_backlog($node, 'x-slow-1000--', 14, 10);
		wait_until("a batch has begun before $title",
			sub { posts($clerk) >= $before + 5 });
		cmp_ok(posts($clerk), '<', $before + 15, "$how: $title is in the middle of it");
		$end->($node);
	}
	enqueue_backlog($node, 'rest', 300, 700);
	wait_until('all of the hour is spent', sub { is_spent($node) });
	check_hour($how, $clerk);

	# The places come back when they would have.
	my $before = available_at($node);
	foreach my $way (grep { $_->[0] =~ /stop|postmaster/ } @ways)
	{
		my ($title, $end) = @$way;

		$end->($node);
		cmp_ok(
			(sort { $b <=> $a }
				  map { abs(available_at($node)->[$_] - $before->[$_]) } 0, 1)[0],
			'<', 1,
			"$how: $title does not change when there will be more");
	}
	$node->stop;
	return;
}

# What Clerk has got must be what it takes in an hour.
sub check_hour
{
	my ($how, $clerk) = @_;
	my @posts = grep { $_->{method} eq 'POST' } $clerk->journal;
	my %got = (single => 0, bulk => 0);

	is_deeply([ grep { $_->{status} == 429 } @posts ],
		[], "$how: Clerk refuses no request");
	$got{ $_->{path} =~ /bulk$/ ? 'bulk' : 'single' }++ foreach @posts;
	note "$how: $got{single} single requests, $got{bulk} bulk requests";
	cmp_ok($got{single}, '>=', $SINGLES - ceil($SINGLES * $MOST_LOST / 100),
		"$how: no more than $MOST_LOST % of the single requests are lost");
	cmp_ok($got{bulk}, '>=', $BULKS - ceil($BULKS * $MOST_LOST / 100),
		"$how: no more than $MOST_LOST % of the bulk requests, or one, are lost");
	return;
}

# Windows of some seconds, so that places come back while servers come and go.
sub check_short_windows
{
	my ($kind) = @_;
	my $window = 6;
	my $clerk = ClerkTest::Fake->start(
		'--window' => $window,
		'--window-kind' => $kind);
	my $node = cluster('without preload', $clerk,
		"clerk_invite.rate_limit_window = '${window}s'\n");
	my $left = "SELECT count(*) FROM clerk_invitation_outbox WHERE state <> 'sent'";

	enqueue_backlog($node, 'quick', 600, 700);
	foreach my $way (@ways[ 0 .. 2 ], $ways[4])
	{
		my ($title, $end) = @$way;
		my $before = posts($clerk);

		wait_until("the backlog goes on before $title, or is sent",
			sub {
				posts($clerk) >= $before + 100
				  || $node->safe_psql('postgres', $left) eq '0';
			});
		enqueue_backlog($node, 'more', 1, 0);
		wait_until('there is a worker',
			sub { worker_of($node, 'postgres') }) if $title =~ /worker/;
		$end->($node);
		enqueue_backlog($node, 'more', 1, 0);
	}
	wait_until('all is sent',
		sub { $node->safe_psql('postgres', $left) eq '0' });
	is_deeply(
		[ grep { $_->{status} == 429 } $clerk->journal ],
		[],
		"$kind windows of $window s: Clerk refuses no request");
	is(scalar(() = $clerk->all_invitations),
		$node->safe_psql('postgres', 'SELECT count(*) FROM clerk_invitation_outbox'),
		'... and everybody is invited, once');
	$node->stop;
	return;
}

# A server whose clock of day is a day ahead for a while, or has been.
sub check_clock
{
	my $clerk = ClerkTest::Fake->start;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/clock';
	my $library = PostgreSQL::Test::Utils::tempdir() . '/stepping_clock.so';
	my $set = sub {
		my ($seconds) = @_;
		unlink $file;
		append_to_file($file, $seconds);
		return;
	};
	my $node;

	system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-o', $library,
		"$ClerkTest::TEST_FOLDER/stepping_clock.c", '-ldl');
	$set->(86400);
	{
		local $ENV{LD_PRELOAD} = $library;
		local $ENV{CLERK_CLOCK_FILE} = $file;
		$node = cluster('without preload', $clerk);
		is( $node->safe_psql('postgres',
				"SELECT now() > to_timestamp(${\time}) + interval '23 h'"),
			't',
			'a server has a clock that is a day ahead');
		attempt($node, 'postgres', invite('x-429-100--1@example.com'));
		like(status($node), qr/^single 1 closed (?:100|[6-9]\d)$/m,
			'... where Clerk closes an endpoint');
		$set->(0);
		like(status($node), qr/^single 1 closed (?:100|[6-9]\d)$/m,
			'the clock is put right: the endpoint is closed as long as Clerk said');
		attempt($node, 'postgres', invite('ann@example.com'));
		$set->(7200);
		like(status($node), qr/^single 2 closed (?:100|[6-9]\d)$/m,
			'the clock is put ahead: what was sent counts, what was closed is');
		$set->(-7200);
		like(status($node), qr/^single 2 closed (?:100|[6-9]\d)$/m,
			'... and so they do if it is put back');
		$set->(86400);
		attempt($node, 'postgres', invite('bob@example.com'));
		$set->(0);
		$node->restart;
		like(status($node), qr/^single 3 closed (?:100|[3-9]\d)$/m,
			'a restart with a clock that was ahead closes nothing for longer');
		is($node->safe_psql('postgres',
				"SELECT count(*) FROM clerk_rate_limit_status()"
				  . " WHERE closed_until > now() + interval '100 s'"
				  . " OR available_at > now() + interval '1 h 1 min'"),
			0, '... and no budget, either');
		$node->stop;
	}
	return;
}

# What a file may look like that a server finds, and what it is like.
sub check_file
{
	my $clerk = ClerkTest::Fake->start;
	my $node = cluster('without preload', $clerk);
	my $file = $node->data_dir . '/pg_stat/clerk_invite.budgets.2';
	my $used = sub { return (split(/\s/, status($node)))[1]; };
	my $calls = 0;
	my $call = sub {
		$node->safe_psql('postgres', invite('file' . ++$calls . '@example.com'));
	};

	ok(!-e $file, 'nothing is written before something is sent');
	is($used->(), 0, '... and nobody misses it');
	ok(!-e $file, '... not even who looks');
	$call->();
	ok(-f $file, 'what is sent is written');
	is((stat $file)[2] & 07777, 0600, '... to a file that only the server reads');
	unlike(slurp_file($file), qr/sk_test|api_url|http|org_test|example\.com/,
		'... without the key, an address or anybody');

	$node->stop;
	my $good = slurp_file($file);
	foreach my $case (
		[ 'an empty file', '', 0 ],
		[ 'half a record', substr($good, 0, 500), 0 ],
		[ 'a record that was torn', substr($good, 0, 600) . "\1" . substr($good, 601), 0 ],
		[ 'a record of zeros', "\0" x length $good, 0 ],
		[ 'the file itself', $good, 1 ])
	{
		my ($title, $content, $expected) = @$case;
		write_binary($file, $content);
		$node->start;
		is($used->(), $expected, "$title is worth $expected requests");
		$call->();
		is($used->(), $expected + 1, '... and counting goes on');
		restart_immediately($node);
		is($used->(), $expected + 1, '... and is remembered');
		$node->stop;
	}

	# The disk is full, or the file somebody else's; only root could write it.
	my $log = -s $node->logfile;
	unlink $file;
	mkdir $file or die "could not make a folder: $!";
	$node->start;
	is($used->(), 0, 'a server that cannot read or write the file has an empty budget');
	$call->() foreach 1 .. 3;
	is($used->(), 3, '... and counts nevertheless');
	my $complaints = () = slurp_file($node->logfile, $log) =~
	  /LOG:  could not access request budget file "pg_stat\/clerk_invite\.budgets\.2": /g;
	cmp_ok($complaints, '>=', 1, '... and says so');
	cmp_ok($complaints, '<=', 2, '... once for each that it tries');
	rmdir $file or die "could not remove a folder: $!";
	$call->();
	restart_immediately($node);
	is($used->(), 4, 'when it can be written again, all is written');

	check_under_way($node);
	$node->stop;
	return;
}

# What was under way when the memory went, and how long the server was down.
sub check_under_way
{
	my ($node) = @_;
	my $instance = 0;
	my $used = sub { return "SELECT driver_used($instance, $SINGLE)"; };
	my $restart = 'SELECT driver_restart()';
	my $drive = sub {
		my @lines = split /\n/, $node->safe_psql(
			'postgres',
			join(
				";\n",
				RateLimitDriver::session($node)
				  . 'SELECT driver_set_window(127000)',
				clock(0), 'SELECT driver_restart()', @_));
		return join(' ', grep { $_ ne '' } @lines);
	};
	my $answered = sub {
		return "SELECT driver_answered($_[0], '$START'::timestamptz"
		  . " + interval '$_[1] s')";
	};

	# What was answered is written with the next request.
	my @answer_some =
	  ('SELECT driver_start(10)', $answered->(4, 0), 'SELECT driver_start(1)');

	RateLimitDriver::install($node);
	$instance++;
	is( $drive->(
			"SELECT driver_reserve($instance, $SINGLE, 100)",
			'SELECT driver_start(10)', $answered->(4, 0),
			$used->(), $restart, $used->(),
			clock(127), $used->(), clock(128), $used->()),
		'100 100 10 10 0',
		'what was only reserved is gone with the memory, what was started is not');
	$instance++;
	is( $drive->(
			"SELECT driver_reserve($instance, $SINGLE, 11)",
			@answer_some, clock(20), $restart, $used->(), clock(128), $used->(),
			clock(147), $used->(), clock(148), $used->()),
		'11 11 7 7 0',
		'what was under way counts from when the memory is made');
	$instance++;
	is( $drive->(
			"SELECT driver_reserve($instance, $SINGLE, 11)",
			@answer_some, clock(90), $restart, $used->(), clock(128), $used->(),
			clock(157), $used->(), clock(158), $used->()),
		'11 11 7 7 0',
		'... but no later than it can have been answered');
	$instance++;
	is( $drive->(
			"SELECT driver_take($instance, $SINGLE, 10)", $answered->(10, 0),
			"SELECT driver_close($instance, $SINGLE, 100)",
			clock(50), 'SELECT driver_step_clock(-86400)', $restart, $used->(),
			"SELECT extract(epoch FROM driver_closed_until($instance, $SINGLE)"
			  . " - '$START')::integer",
			clock(177), $used->(), clock(178), $used->()),
		'10 10 -86250 10 0',
		'a clock that was ahead: no time has passed while the server was down');
	$instance++;
	is( $drive->(
			"SELECT driver_count($instance, $SINGLE)",
			$answered->(1, 0), $restart, clock(500), $used->()),
		'0',
		'what is old is forgotten');
	return;
}

sub restart_immediately
{
	my ($node) = @_;

	$node->stop('immediate');
	$node->start;
	return;
}

sub cluster
{
	my ($how, $clerk, $conf) = @_;
	my $node = clerk_cluster(
		'main' . ++$clusters, $clerk,
		worker => 1,
		conf => $SETTINGS . ($conf // ''));

	if ($how eq 'with preload')
	{
		my $library = ClerkTest::library_name($node);
		$node->append_conf('postgresql.conf',
			"shared_preload_libraries = '$library'");
		$node->restart;
	}
	return $node;
}

# So many people in an organization each, and so many in one.
sub enqueue_backlog
{
	my ($node, $prefix, $each, $together) = @_;
	my $number = ++$backlogs;

	$node->safe_psql(
		'postgres', qq(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
		SELECT 'org_' || CASE WHEN n <= $each THEN 'b${number}n' || n ELSE 'all' END,
			'$prefix' || n || '-b$number\@example.com', 'org:member'
		FROM generate_series(1, $each + $together) AS n));
	return;
}

# How many requests Clerk has got that count.
sub posts
{
	my ($clerk) = @_;

	return scalar grep { $_->{method} eq 'POST' } $clerk->journal;
}

# Nothing can go out, nothing is under way, and nothing is to be looked up.
sub is_spent
{
	my ($node) = @_;

	return $node->safe_psql(
		'postgres', q(
		SELECT bool_and(remaining = 0) AND NOT EXISTS (
			SELECT FROM clerk_invitation_outbox
			WHERE state IN ('sending', 'verifying'))
		FROM clerk_rate_limit_status())) eq 't';
}

# When each endpoint takes more, in seconds.
sub available_at
{
	my ($node) = @_;

	return [
		split(
			/\n/,
			$node->safe_psql('postgres',
				'SELECT extract(epoch FROM available_at)'
				  . ' FROM clerk_rate_limit_status() ORDER BY endpoint')) ];
}

# An endpoint a line: how much is used, and for how many seconds it is closed.
sub status
{
	my ($node) = @_;

	return $node->safe_psql(
		'postgres', q(
		SELECT endpoint || ' ' || used || coalesce(' closed '
			|| extract(epoch FROM closed_until - clock_timestamp())::integer, '')
		FROM clerk_rate_limit_status() ORDER BY endpoint DESC));
}

sub terminate_worker
{
	my ($node) = @_;
	my $pid = worker_of($node, 'postgres');

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	wait_until('the worker has ended', sub { worker_of($node, 'postgres') ne $pid });
	return;
}

# Its children end when they notice; before that a server refuses to start.
sub kill_postmaster
{
	my ($node) = @_;
	my ($pid) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	$node->kill9;
	wait_until('the server is gone', sub { !kill(0, $pid) });
	wait_until('the server starts', sub { $node->start(fail_ok => 1) });
	return;
}

sub clock
{
	my ($seconds) = @_;

	return "SELECT driver_set_clock('$START'::timestamptz"
	  . " + interval '$seconds s')";
}

sub write_binary
{
	my ($file, $content) = @_;

	open(my $handle, '>:raw', $file) or die "could not open $file: $!";
	print $handle $content;
	close $handle;
	return;
}
