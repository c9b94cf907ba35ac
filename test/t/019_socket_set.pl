# Whatever libcurl opens and closes, and whether it says so or not, the set of
# sockets that a process waits for stays right.
use strict;
use warnings;

use ClerkTest;
use Driver;
use List::Util qw(uniq);
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;

# Functions of socket_set_driver.c and what comes after them in CREATE FUNCTION.
my %functions = (
	driver_open => '(integer, boolean) RETURNS void',
	driver_open_file => '(integer) RETURNS void',
	driver_close => '(integer, boolean) RETURNS void',
	driver_say => '(integer) RETURNS void',
	driver_hang_up => '(integer) RETURNS void',
	driver_watch => '(integer, boolean, boolean) RETURNS boolean',
	driver_rest => '(integer) RETURNS void',
	driver_clear => '() RETURNS void',
	driver_wait => '() RETURNS integer[]',
	driver_count => '() RETURNS integer',
	driver_made => '() RETURNS integer',
	driver_hold => '(integer) RETURNS void',
	driver_room => '() RETURNS integer',
	driver_release => '() RETURNS void',
	driver_random => '(integer, integer) RETURNS integer');

# What steps() makes of its arguments.
my %meaning = (
	told => 'true',
	untold => 'false',
	read => 'true, false',
	write => 'false, true');

my $clerk = ClerkTest::Fake->start('--single-limit', '100000',
	'--bulk-limit', '100000');
my $node = clerk_cluster(
	'main', $clerk,
	conf => q(
clerk_invite.single_requests_per_hour = 1000000
clerk_invite.bulk_requests_per_hour = 0
clerk_invite.max_attempts = 1000
clerk_invite.max_concurrent_requests = 20
clerk_invite.verify_delay = '10ms'
clerk_invite.retry_delay = '1ms'
clerk_invite.retry_delay_max = '10ms'
));
my $library = Driver::build('socket_set_driver');
my $driver = join('',
	map { "CREATE FUNCTION $_$functions{$_} LANGUAGE c STRICT AS '$library';\n" }
	  sort keys %functions);

$node->safe_psql('postgres', $driver);

# The set itself, in each order

is( steps(q(open 600 told, watch 600 read, say 600, wait)),
	'{600}', 'a socket that is readable is reported');
is( steps(q(open 600 told, watch 600 read, say 600, wait, rest 600, wait, wait,
		watch 600 read, wait)),
	'{600} {} {} {600}', '... but not while it rests');
is( steps(q(open 600 told, watch 600 read, wait, rest 600, made, watch 600 read,
		wait, rest 600, watch 600 read, wait, made)),
	'{} 1 {} {} 1', 'between requests on a connection no wait set is made');
is( steps(q(open 600 told, watch 600 read, wait, rest 600, hang_up 600, wait, made,
		wait, made, wait, made)),
	'{} {} 1 {} 2 {} 2', '... but one when a socket that rests is closed there');
is( steps(q(open 600 told, watch 600 write, wait, close 600 told, rest 600,
		open 600 told, watch 600 write, wait)),
	'{600} {600}', 'a number comes back after a closing that was told');
is( steps(q(open 600 told, watch 600 write, wait, close 600 untold, rest 600,
		open 600 told, watch 600 write, wait, count)),
	'{600} {600} 1', '... and after one that was not');
is( steps(q(open 600 told, watch 600 read, wait, close 600 untold, rest 600,
		open 600 told, watch 600 read, say 600, wait)),
	'{} {600}', '... of a socket that was watched for the same');
is( steps(q(open 600 told, watch 600 read, wait, close 600 untold,
		open 600 told, say 600, wait, rest 600, wait)),
	'{} {600} {}', '... and of one that was watched to its end');
is( steps(q(open 600 told, watch 600 write, wait, close 600 untold,
		open 600 told, rest 600, wait, watch 600 write, wait)),
	'{600} {} {600}', '... which is told when the number is in use again');
is( steps(q(open 600 told, watch 600 read, wait, rest 600, close 600 untold,
		open 600 untold, watch 600 read, say 600, wait)),
	'{} {600}', '... and by a socket that nobody told of');
is( steps(q(open 600 untold, watch 600 read, wait, close 600 untold, rest 600,
		open 600 untold, watch 600 read, say 600, wait)),
	'{} {600}', '... after one that nobody told of');
is( steps(q(open 600 untold, watch 600 read, wait, close 600 untold,
		open 600 untold, watch 600 read, say 600, wait)),
	'{} {600}', '... and was watched to its end');
is( steps(q(open 600 untold, watch 600 read, wait, close 600 untold, rest 600,
		open 600 told, watch 600 read, say 600, wait, count)),
	'{} {600} 1', '... by one that is told of');
is( steps(q(open 600 told, watch 600 read, wait, rest 600, close 600 untold,
		open_file 600, wait, open 600 told, watch 600 read, say 600, wait)),
	'{} {} {600}', '... and by a file in between');
is( steps(q(open 600 told, open 601 told, watch 600 read, watch 601 read, wait,
		close 600 untold, close 601 untold, clear, count, wait,
		open 601 told, watch 601 read, say 601, wait, count)),
	'{} 0 {} {601} 1', 'nothing is left of those of a multi handle that is gone');
is( steps(join(', ', map { "open $_ told, watch $_ read, say $_" } 600 .. 620)
		  . ', made, wait, made'),
	'0 {' . join(',', 600 .. 620) . '} 1', 'many sockets come at once');
is( steps(join(', ', map { "open $_ told, watch $_ read, say $_, wait" } 600 .. 620)
		  . ', made') =~ s/.* //r,
	3, '... or one after the other, and the wait set grows by steps');

# It does not fill up, and what cannot be watched does no harm

is( steps(join(', ', map { "open $_ told, watch $_ read, rest $_, close $_ untold" } 600 .. 790)
		  . ', count, wait, count'),
	'91 {} 0', 'there is room for sockets instead of those that were closed untold');
is( steps(join(', ', map { "open $_ told" } 600 .. 700)
		  . ', close 650 told, open 701 told, watch 701 read, say 701, wait, count'),
	'ERROR {701} 100', '... and no more than that');
is( steps(q(open_file 600, watch 600 read, open 601 told, watch 601 read, say 601,
		wait, wait, watch 600 read, wait, wait)),
	'ERROR {601} ERROR {601}', 'a file that cannot be watched is one error, not a bad set');
is( steps(q(open 600 told, open 601 told, watch 600 read, watch 601 read, say 601,
		close 600 untold, wait, wait, count)),
	'ERROR {601} 1', '... and so is a number that stands for nothing');
is( steps(q(open 600 told, watch 600 read, wait, open 601 told, watch 601 read, say 601,
		close 600 untold, watch 600 write, wait, wait,
		open 600 told, watch 600 write, wait)),
	'{} ERROR {601} {601,600}', '... when something else is wanted of it');
is( steps(q(open 600 told, watch 600 read, say 600, hold 0, wait, release, wait)),
	'ERROR {600}', 'without a descriptor for the wait set there is an error, once');

# Any order

foreach my $seed (1 .. 20)
{
	my $result = attempt($node, 'postgres', "SELECT driver_random($seed, 20000)");

	is($result->{stderr}, '', "what is reported is right in an order at random ($seed)");
	cmp_ok($result->{stdout}, '>', 100, '... and sockets are reported');
}

# libcurl itself, with a Clerk that fails and closes connections

check_calls($_) foreach (1, 5);
check_function();
SKIP:
{
	skip 'this system does not show descriptors in /proc', 2
	  unless -d '/proc/self/fd';
	check_worker();
}

# What sockets take of a process's descriptors is PostgreSQL's to know

check_reservations();
check_shortage();
$node->stop;
SKIP:
{
	skip 'this system does not show descriptors in /proc', 4
	  unless -d '/proc/self/fd';
	check_files();
}

done_testing();

# Takes these steps in a session of its own: names of functions of the driver
# with their arguments.  Returns what those say that return something, and ERROR
# for each step that fails.
sub steps
{
	my ($steps) = @_;
	my $sql = '';

	foreach my $step (split(/,\s*/, $steps =~ s/^\s+//r))
	{
		my ($name, @arguments) = split(' ', $step);

		$sql .= 'SELECT '
		  . ($name =~ /^(?:wait|count|made)$/ ? '' : 'FROM ')
		  . "driver_$name("
		  . join(', ', map { $meaning{$_} // $_ } @arguments)
		  . ");\n\\if :ERROR\n\\echo ERROR\n\\endif\n";
	}
	$node->psql(
		'postgres', $sql,
		stdout => \my $stdout,
		stderr => \my $stderr,
		on_error_stop => 0);
	return join(' ', grep { $_ ne '' } split(/\n/, $stdout));
}

# One session's deliveries are ended by a time limit while they connect, and
# then while Clerk fails and closes connections; afterwards that session delivers
# all.
sub check_calls
{
	my ($answers) = @_;
	my $unreachable = MisbehavingServer->unreachable;
	my $failing = MisbehavingServer->failing($answers);
	my $psql = start_session($failing);
	my $call = 'CALL clerk_send_invitations();';
	my @errors;

	$node->safe_psql('postgres', enqueue("calls$answers"));
	for (1 .. 10)
	{
		run_in_psql($psql, 'SET statement_timeout = 50;' . talk_to($unreachable));
		push @errors, errors_in($psql, $call);
		run_in_psql($psql, 'SET statement_timeout = 100;' . talk_to($failing));
		push @errors, errors_in($psql, $call);
	}
	is_deeply([ uniq(@errors) ], ['57014'],
		"calls that are ended while Clerk closes after answers ($answers) are just that");

	run_in_psql($psql, 'SET statement_timeout = 0;' . talk_to($clerk));
	@errors = ();
	wait_until(
		'everything is delivered',
		sub {
			push @errors, errors_in($psql, $call);
			return @errors || !open_rows();
		});
	is("@errors", '', '... and then the session delivers');
	$psql->{harness}->finish;
	return;
}

# The same with a function that calls Clerk.
sub check_function
{
	my $unreachable = MisbehavingServer->unreachable;
	my $failing = MisbehavingServer->failing(1);
	my $psql = start_session($clerk);
	my %errors;

	foreach my $number (1 .. 10)
	{
		my $sql =
		  "SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', "
		  . "(SELECT jsonb_agg(jsonb_build_object('email_address', "
		  . "format('bulk$number-%s\@example.com', n), 'role', 'org:member')) "
		  . 'FROM generate_series(1, 200) n));';

		run_in_psql($psql, 'SET statement_timeout = 50;' . talk_to($unreachable));
		$errors{unreachable}{$_}++ foreach errors_in($psql, $sql);
		run_in_psql($psql, 'SET statement_timeout = 0;' . talk_to($failing));
		$errors{failing}{$_}++ foreach errors_in($psql, $sql);
		run_in_psql($psql, talk_to($clerk));
		$errors{good}{$_}++ foreach errors_in($psql, $sql);
	}
	is_deeply(
		\%errors,
		{ unreachable => { 57014 => 10 }, failing => { '08007' => 10 } },
		'a function that is ended while it connects, or whose Clerk closes, leaves nothing bad');
	$psql->{harness}->finish;
	return;
}

# The same in a worker, whose looks are canceled.
sub check_worker
{
	my $unreachable = MisbehavingServer->unreachable;
	my $failing = MisbehavingServer->failing(1);
	my $from = -s $node->logfile;
	my $worker = "FROM clerk_worker_status() WHERE database = 'postgres'";
	my $pid;

	reconfigure($node, "clerk_invite.worker = on\n" . api_url($unreachable));
	$node->safe_psql('postgres', enqueue('worker'));
	foreach my $round (1 .. 3)
	{
		wait_until(
			'the worker connects',
			sub {
				$pid = $node->safe_psql('postgres',
					"SELECT coalesce(max(pid), 0) $worker AND state = 'sending'");
				return $pid && connections_of($pid) >= 15;
			});
		$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
		wait_until(
			'its look has ended',
			sub { return $round == (() = log_since($from) =~ /canceling statement/g) });
	}
	reconfigure($node, api_url($failing));
	wait_until('Clerk has failed often', sub { $failing->records >= 30 });
	reconfigure($node, api_url($clerk));
	# Its look goes on as long as Clerk fails.
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	wait_until('the worker delivers everything', sub { !open_rows() });
	is($node->safe_psql('postgres', "SELECT pid $worker"),
		$pid, 'a worker whose looks were canceled delivers');
	unlike(
		log_since($from),
		qr/epoll_ctl|kevent|file descriptors/,
		'... and had no other trouble');
	return;
}

# What is reserved comes back, whatever becomes of the requests.
sub check_reservations
{
	my $refusing = MisbehavingServer->failing(1);
	my $psql = start_session($clerk);
	my $room = sub { value_in($psql, 'SELECT driver_room();') };
	my $before = $room->();
	my @taken;
	my $take = sub {
		my ($name, $settings, $sql) = @_;

		run_in_psql($psql, "$settings; $sql;");
		run_in_psql($psql, 'RESET statement_timeout; ' . talk_to($clerk));
		push @taken, "$name " . ($before - $room->());
	};

	$take->('kept', 'SELECT', invite('kept@example.com')) for 1 .. 3;
	$take->('refused', 'SELECT', invite('x-error-404-resource_not_found--1@example.com'));
	$take->('aborted', 'SET statement_timeout = 100', invite('x-hang--1@example.com'));
	$take->('new', 'SELECT', invite('new@example.com'));
	$take->('lost', talk_to($refusing), invite('lost@example.com'));
	$take->('unusable', "SET clerk_invite.api_url = 'http://127.0.0.1:1'", invite('nobody@example.com'));
	$take->('aborted', 'SET statement_timeout = 100', many('hang', 'x-hang-after'));
	$take->('new', 'SELECT', invite('again@example.com'));
	is_deeply(
		\@taken,
		[
			# The wait set, and the file of the budgets; both ends of a multi
			# handle's, and a connection.
			'kept 5', 'kept 5', 'kept 5', 'refused 5', 'aborted 2', 'new 5',
			'lost 6', 'unusable 2', 'aborted 2', 'new 5'
		],
		'what is reserved with PostgreSQL is what there is');
	$psql->{harness}->finish;
	return;
}

# Requests wait for descriptors, or are not sent.
sub check_shortage
{
	my $other = ClerkTest::Fake->start;
	my $psql = start_session($clerk);
	my $said;

	run_in_psql($psql, 'SELECT driver_hold(4);');
	(undef, $said) = run_in_psql($psql, invite('short@example.com') . ';');
	like($said, qr/ERROR:  08001: .*too many file descriptors/s,
		'without descriptors a call fails');
	is(scalar $clerk->requests_for('short@example.com'), 0, '... and nothing is sent');
	# The first call has opened the file of the budgets, which stays open.
	my $room = value_in($psql, 'SELECT driver_room();');
	run_in_psql($psql, invite('short@example.com') . ';');
	is(value_in($psql, 'SELECT driver_room();'), $room, '... and nothing stays reserved');
	(undef, $said) = run_in_psql($psql, "SELECT count(*) FROM clerk_list_organization_invitations('org_test');");
	like($said, qr/ERROR:  08001:.*too many/s, '... nor does a list');

	run_in_psql($psql, 'SELECT driver_release(), driver_hold(5);');
	is_deeply([ errors_in($psql, invite('enough@example.com') . ';') ], [], 'five are enough for a call');
	is_deeply([ errors_in($psql, many('few', 'few') . ';') ], [],
		'... and for many requests, one after the other');
	is( scalar(
			grep { $_->{email_address} =~ /^few/ }
			map { @{ $_->{body} } } grep { ref $_->{body} eq 'ARRAY' } $clerk->journal),
		200,
		'... each of which is sent once');
	run_in_psql($psql, 'SELECT driver_release(), driver_hold(1);' . talk_to($other));
	is_deeply([ errors_in($psql, invite('other@example.com') . ';') ],
		[], 'a connection that is only kept makes room');

	# Delivery, too.
	$node->safe_psql('postgres', "ALTER SYSTEM SET clerk_invite.worker = off");
	reconfigure($node, '');
	run_in_psql($psql, 'SELECT driver_release();' . talk_to($clerk));
	$node->safe_psql('postgres', enqueue('shortage'));
	run_in_psql($psql, 'SELECT driver_hold(9); CALL clerk_send_invitations();');
	is($node->safe_psql('postgres', "SELECT DISTINCT state || attempts FROM clerk_invitation_outbox WHERE email_address LIKE 'shortage-%'"),
		'sent1', 'with few descriptors everything is delivered');
	$psql->{harness}->finish;
	return;
}

# A process that has as many files open as it may closes some of them.
sub check_files
{
	my $most = 100;
	my $small = clerk_cluster('small', $clerk, conf => "
max_files_per_process = $most
clerk_invite.max_concurrent_requests = 100
");
	my $psql = start_psql($small, '', '-v', 'VERBOSITY=verbose');
	my $pid = backend_of($psql);
	my $files = sub { scalar(() = glob("/proc/$pid/fd/*")) };

	$small->safe_psql('postgres', $driver);
	$small->safe_psql('postgres', "
		CREATE TABLE parts (n integer) PARTITION BY LIST (n);
		DO \$\$BEGIN FOR n IN 1 .. 200 LOOP
			EXECUTE format('CREATE TABLE part%s PARTITION OF parts FOR VALUES IN (%s)', n, n);
		END LOOP; END\$\$;
		INSERT INTO parts SELECT generate_series(1, 200);");
	run_in_psql($psql, 'SELECT count(*) FROM parts;');
	my $room = value_in($psql, 'SELECT driver_room();');
	run_in_psql($psql, 'SELECT count(*) FROM parts;');
	my $open = $files->();

	# One for the wait set, one for the file of the budgets, two for a multi
	# handle, and two for each request.
	my $together = int(($room - 4) / 2);
	send_to_psql($psql, many('files', 'x-hang-after') . ';');
	wait_until('requests are under way',
		sub { connections_of($pid) >= $together });
	cmp_ok($open, '>', $most - 30, 'a session has many files open');
	cmp_ok($files->(), '<=', $most, '... and fewer when requests are under way');
	is(connections_of($pid), $together, '... as many as there is room for');
	$small->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	output_of_psql($psql);
	is(value_in($psql, 'SELECT count(*) FROM parts;'), 200, 'it goes on');
	$psql->{harness}->finish;
	$small->stop;
	return;
}

# SQL that invites 200 addresses in requests of ten.
sub many
{
	my ($name, $behavior) = @_;

	return "SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_test', "
	  . "(SELECT jsonb_agg(jsonb_build_object('email_address', "
	  . "format('$behavior-" . ($behavior =~ /^x-/ ? "-$name" : '') . "%s\@example.com', n), 'role', 'org:member')) "
	  . 'FROM generate_series(1, 200) n))';
}

# How many TCP connections a process has; needs /proc.
sub connections_of
{
	my ($pid) = @_;
	my %connections = map { (split)[9] => 1 } split(/\n/, slurp_file('/proc/net/tcp'));

	return scalar grep { (readlink($_) // '') =~ /^socket:\[(\d+)\]/ && $connections{$1} }
	  glob("/proc/$pid/fd/*");
}

sub log_since
{
	my ($from) = @_;

	return slurp_file($node->logfile, $from);
}

sub start_session
{
	my ($server) = @_;
	my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');

	run_in_psql($psql, talk_to($server));
	return $psql;
}

sub talk_to
{
	my ($server) = @_;

	return 'SET ' . api_url($server) . ';';
}

sub api_url
{
	my ($server) = @_;

	return "clerk_invite.api_url = '" . $server->url . "'";
}

# The value that a session gives.
sub value_in
{
	my ($psql, $sql) = @_;
	my ($stdout) = run_in_psql($psql, $sql);

	chomp $stdout;
	return $stdout;
}

# SQLSTATEs of the errors that a session says.
sub errors_in
{
	my ($psql, $sql) = @_;
	my (undef, $stderr) = run_in_psql($psql, $sql);

	return $stderr =~ /ERROR:  (\w{5})/g;
}

sub enqueue
{
	my ($name) = @_;

	return 'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) '
	  . "SELECT 'org_test', format('$name-%s\@example.com', n), 'org:member' "
	  . 'FROM generate_series(1, 40) n';
}

sub open_rows
{
	return $node->safe_psql('postgres',
		'SELECT count(*) FROM clerk_invitation_outbox '
		  . "WHERE state IN ('queued', 'sending', 'verifying')");
}
