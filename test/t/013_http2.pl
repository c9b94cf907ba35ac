# What holds over HTTP/1.1 holds over HTTP/2, too, which Clerk speaks: calls
# share a connection, can be ended, are bounded, and none is sent twice.
#
# The fake Clerk speaks HTTP/1.1 only, so nginx stands in front of it, as the
# edge stands in front of Clerk.
use strict;
use warnings;

use ClerkTest;
use HTTP::Tiny;
use IO::Socket::INET;
use JSON::PP qw(decode_json);
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use TestCertificates;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC time);

# Milliseconds that an end may take, in the best of so many attempts: the
# machine may have other things to do.
my $PROMPT = 200;
my $ATTEMPTS = 3;

# Limits on a statement or a request, in milliseconds: long enough to get as
# far as is wanted.
my $LIMIT = 400;

# The largest answer that is read, and what it may cost, in kB.
my $BOUND = 4 * 1024;
my $COST = 4 * $BOUND;

# Requests after which one of nginx's ports ends a connection.
my $REQUESTS = 3;

my ($program) =
  grep { -x } '/usr/sbin/nginx', map { "$_/nginx" } split(/:/, $ENV{PATH});
plan skip_all => 'nginx is not installed' unless $program;
plan skip_all => 'this nginx does not speak HTTP/2'
  unless qx($program -V 2>&1) =~ /http_v2_module/;

# nginx before 1.19.7 counts the requests of HTTP/2 by another name.
my ($minor, $patch) = qx($program -v 2>&1) =~ m{nginx/1\.(\d+)\.(\d+)};
my $request_limit =
  defined $minor && ($minor <=> 19 || $patch <=> 7) < 0
  ? 'http2_max_requests'
  : 'keepalive_requests';

# The process that kills nginx at the end of the pipe.
my ($guardian, $life);
END
{
	# Keep the test's own exit status.
	local ($?, $!);
	kill_nginx();
}

my $folder = PostgreSQL::Test::Utils::tempdir();
my $authority = TestCertificates->new($folder, 'ours');
my $stranger = TestCertificates->new($folder, 'stranger');
my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my %port = free_ports(qw(lasting brief stranger));
write_configuration();
start_nginx();

my $node = clerk_cluster(
	'main', undef,
	conf => "clerk_invite.ca_file = '" . $authority->file . "'\n"
	  . "clerk_invite.api_url = 'https://localhost:$port{lasting}'\n");
my $observer = start_psql($node, '');
my $sessions = 0;
my $invited = 0;

# The addresses of invitations, and what became of them.
my %outcome;

# HTTP/2 is spoken, and connections are kept

my $session = start_session();
is(invite_in($session), 'pending', 'an invitation over HTTP/2 succeeds');
is((log_of($session, 1))[0]{protocol},
	'HTTP/2.0', 'what is spoken with a server that can is HTTP/2');
is(join(' ', map { invite_in($session) } 2 .. 5),
	'pending pending pending pending', 'more invitations succeed');
is(connections_of($session, 5), 1, '... and share a connection');
is(invite_in($session, 'x-error-404-resource_not_found'),
	'22023', 'a refusal is understood');
is(invite_in($session), 'pending', '... and followed by a success');
is(connections_of($session, 7), 1, '... on that connection');
finish($session);

# The call can be ended

foreach my $phase (
	{
		name => 'while the answer is awaited',
		behaviour => 'x-hang',
		reached => sub { scalar $clerk->requests_for($_[0]) }
	},
	{
		name => 'while the answer trickles in',
		behaviour => 'x-trickle',
		# The fake sends a byte every tenth of a second.
		reached => sub {
			my ($request) = $clerk->requests_for($_[0]);
			return $request && time * 1000 > $request->{time} + 250;
		}
	})
{
	check_end($phase, 'pg_cancel_backend()', \&cancel);
	check_end($phase, 'statement_timeout', \&await_statement_timeout);
	check_end($phase, 'request_timeout', \&await_request_timeout);
}

# The server ends a connection

$session = start_session('brief');
my @outcomes = map { invite_in($session) } 1 .. 12;
is(join(' ', grep { !/^(?:pending|08007)$/ } @outcomes),
	'',
	'calls over connections that the server ends succeed or are unknown outcomes'
);
is(scalar(grep { $_ eq 'pending' } @outcomes),
	12, '... and none is an unknown outcome');
is( connections_of($session, 12),
	12 / $REQUESTS,
	'... and a new connection is made when the server ended one');
finish($session);

# No POST goes out twice

$session = start_session();
foreach my $end ('drop', 'drop-after', 'reset-after', 'half-body')
{
	my $email = address("x-$end");

	is(invite_in($session, $email), '08007', "x-$end is an unknown outcome");
	is(scalar $clerk->requests_for($email),
		1, '... and the request was sent once');
	is(invite_in($session), 'pending', '... and the next call succeeds');
}

# A worker's death breaks its connections, and leaves a server that could be
# asked again: libcurl would, on a connection that it has used before.
my ($request) = reverse log_of($session, 8);
my $email = send_invitation($session, 'x-hang');
kill('KILL', $request->{worker});
is(outcome_in($session, $email),
	'08007', 'a kept connection that breaks is an unknown outcome');
is(invite_in($session), 'pending', '... and the next call succeeds');
is(scalar $clerk->requests_for($email), 1, '... and the request was sent once');
finish($session);

$session = start_session();
$email = send_invitation($session, 'x-hang');
kill_nginx();
is(outcome_in($session, $email),
	'08007', 'a server that is killed leaves the outcome unknown');
is(invite_in($session), '08001',
	'while it is away, certainly nothing is sent');
start_nginx();
is(invite_in($session), 'pending',
	'when it is back, the session invites again');
is(scalar $clerk->requests_for($email),
	1, '... and the request that was under way was sent once');
finish($session);

# A server that has stopped does not say so: whoever waited in vain for an
# answer must not wait for another one on that connection.
$session = start_session();
is(invite_in($session), 'pending', 'an invitation opens a connection');
kill('STOP', (log_of($session, 1))[0]{worker});
run_in_psql($session, "SET clerk_invite.request_timeout = $LIMIT;");
is(invite_in($session), '08007',
	'a connection on which nothing comes leaves the outcome unknown');
run_in_psql($session, 'SET clerk_invite.request_timeout = 3000;');
is(invite_in($session), 'pending', '... and is not used for the next call');
finish($session);
kill_nginx();
start_nginx();

# An answer takes bounded memory

SKIP:
{
	skip 'this system does not show memory in /proc', 4
	  unless -r '/proc/self/status';

	$session = start_session();
	invite_in($session);
	my $before = peak_memory_of($session);
	is(invite_in($session, 'x-huge'),
		'08007', 'an answer of 64 MiB leaves the outcome unknown');
	like(
		$session->{stderr},
		qr/the response is too large/,
		'... since it is cut off');
	is(invite_in($session), 'pending', '... and the next call succeeds');
	my $cost = peak_memory_of($session) - $before;
	finish($session);
	skip "sanitizers, which test/sanitize.sh sets in INSTRUMENT, take memory of their own", 1
	  if ($ENV{INSTRUMENT} // '') =~ /sanitize/;
	cmp_ok($cost, '<', $COST, "... and all that costs less than $COST kB");
}

# Certificates

$session = start_session('stranger');
is(invite_in($session), '08001',
	'a certificate of an unknown authority is refused');
finish($session);

$session = start_session();
is(invite_in($session), 'pending', 'a certificate of a known one is not');
run_in_psql($session,
	"SET clerk_invite.ca_file = '" . $stranger->file . "';");
is(invite_in($session), '08001',
	'... until another authority counts, also if a connection is open');
finish($session);

# Everything together

my %sent;
$sent{ $_->{body}{email_address} }++ foreach $clerk->journal;
is(join(' ', grep { $sent{$_} != 1 } sort keys %sent),
	'', 'no address was sent to Clerk twice');
is( join(' ', grep { $sent{$_} } grep { $outcome{$_} eq '08001' } keys %outcome),
	'', 'what was certainly not sent was not sent');
my %created;
$created{ $_->{email_address} }++ foreach ledger();
is(join(' ', grep { $created{$_} != 1 } sort keys %created),
	'', 'no address was invited twice');
is( join(' ',
		grep { !$created{$_} }
		grep { $outcome{$_} eq 'pending' } sort keys %outcome),
	'',
	'each invitation that a call returned exists');

$observer->{harness}->finish;
$node->stop;
done_testing();

# A psql that reaches the fake through one of nginx's ports, under a path by
# which nginx's log tells its requests from others.
sub start_session
{
	my ($port) = @_;
	my $session = start_psql($node, '', '-v', 'VERBOSITY=verbose');

	$port //= 'lasting';
	$session->{name} = 's' . ++$sessions;
	$session->{url} = "https://localhost:$port{$port}/$session->{name}";
	run_in_psql($session, "SET clerk_invite.api_url = '$session->{url}';");
	return $session;
}

sub finish
{
	my ($session) = @_;

	$session->{harness}->finish;
	return;
}

# An address that has not been used yet.
sub address
{
	my ($behaviour) = @_;

	return ($behaviour // 'invite') . '--' . ++$invited . '@example.com';
}

# Invites an address, or a new one with this behaviour, in that session;
# returns the invitation's status or the SQLSTATE.
sub invite_in
{
	my ($session, $email) = @_;

	$email = address($email) unless ($email // '') =~ /@/;
	send_to_psql($session, invite($email, 'status') . ';');
	return outcome_in($session, $email);
}

# The same up to where the fake has the request; returns the address.
sub send_invitation
{
	my ($session, $behaviour) = @_;
	my $email = address($behaviour);

	send_to_psql($session, invite($email, 'status') . ';');
	wait_until('the fake has the request',
		sub { scalar $clerk->requests_for($email) });
	return $email;
}

sub outcome_in
{
	my ($session, $email) = @_;
	my ($stdout, $stderr) = output_of_psql($session);

	chomp $stdout;
	return $outcome{$email} = $stderr =~ /ERROR:  (\w{5}):/ ? $1 : $stdout;
}

# Ends an invitation in that phase in that way, and looks at what comes of it.
sub check_end
{
	my ($phase, $way, $end) = @_;
	my $title = "$way $phase->{name}";
	my $sqlstate = $way eq 'request_timeout' ? '08007' : '57014';
	my $best;

	for (1 .. $ATTEMPTS)
	{
		my $run = {
			session => start_session(),
			email => address($phase->{behaviour}),
			reached => $phase->{reached}
		};

		$end->($run);
		is($run->{outcome}, $sqlstate, "$title gives $sqlstate");
		ok($run->{reached}->($run->{email}), "$title had something to end");
		$run->{stderr} = $run->{session}{stderr};
		is(scalar $clerk->requests_for($run->{email}),
			1, "$title: the request was sent once");
		run_in_psql($run->{session},
			'RESET statement_timeout; RESET clerk_invite.request_timeout;');
		is(invite_in($run->{session}),
			'pending', "after $title the session invites again");
		finish($run->{session});
		$best = $run if !$best || $run->{took} < $best->{took};
		last if $best->{took} < $PROMPT;
	}
	cmp_ok($best->{took}, '<', $PROMPT,
		"$title ends the statement within $PROMPT ms");
	if ($sqlstate eq '57014')
	{
		like(
			$best->{stderr},
			qr/WARNING:  08007: .*had already been sent.*ERROR:/s,
			"$title comes with a warning first, since the request had been sent"
		);
	}
	return;
}

sub cancel
{
	my ($run) = @_;
	my $pid = backend_of($run->{session});

	send_to_psql($run->{session}, invite($run->{email}, 'status') . ';');
	wait_until('the call is in its phase',
		sub { $run->{reached}->($run->{email}) });
	my $begun = now();
	run_in_psql($observer, "SELECT pg_cancel_backend($pid);");
	$run->{outcome} = outcome_in($run->{session}, $run->{email});
	$run->{took} = now() - $begun;
	return;
}

sub await_statement_timeout
{
	my ($run) = @_;

	await_limit($run, 'statement_timeout');
	return;
}

sub await_request_timeout
{
	my ($run) = @_;

	await_limit($run, 'clerk_invite.request_timeout');
	return;
}

sub await_limit
{
	my ($run, $setting) = @_;

	run_in_psql($run->{session}, "SET $setting = $LIMIT;");
	my $begun = now();
	$run->{outcome} = invite_in($run->{session}, $run->{email});
	$run->{took} = now() - $begun - $LIMIT;
	return;
}

sub now
{
	return clock_gettime(CLOCK_MONOTONIC) * 1000;
}

# All invitations that exist at the fake.
sub ledger
{
	my $answer = HTTP::Tiny->new->get($clerk->url . '/_fake/invitations');

	die "the fake does not tell: $answer->{content}" unless $answer->{success};
	return @{ decode_json($answer->{content})->{data} };
}

# A port for each name.  All are held until the last one is found, so that they
# differ.
sub free_ports
{
	my %sockets = map {
		$_ => IO::Socket::INET->new(
			Listen => 1,
			LocalAddr => '127.0.0.1',
			LocalPort => 0) // die "no port is free: $!"
	} @_;

	return map { $_ => $sockets{$_}->sockport } @_;
}

# Two workers, so that one is there while the other is stopped.  Nothing is
# buffered or tried again, so that what the fake does is what the client sees.
sub write_configuration
{
	my ($certificate, $key) = $authority->sign('good');
	my ($other_certificate, $other_key) = $stranger->sign('good');

	append_to_file("$folder/nginx.conf", <<EOC);
error_log $folder/nginx_error.log;
pid $folder/nginx.pid;
daemon off;
worker_processes 2;

events {
	worker_connections 64;
}

http {
	log_format test '\$pid \$connection \$server_protocol \$request_uri';
	access_log $folder/nginx_access.log test;
	client_body_temp_path $folder/nginx_body;
	proxy_temp_path $folder/nginx_proxy;
	fastcgi_temp_path $folder/nginx_fastcgi;
	uwsgi_temp_path $folder/nginx_uwsgi;
	scgi_temp_path $folder/nginx_scgi;
	proxy_http_version 1.1;
	proxy_buffering off;
	proxy_request_buffering off;
	proxy_next_upstream off;
	proxy_read_timeout 60s;
	proxy_intercept_errors off;

	ssl_certificate $certificate;
	ssl_certificate_key $key;

	server {
		listen 127.0.0.1:$port{lasting} ssl http2;
		location ~ ^/\\w+(/v1/.*)\$ {
			proxy_pass http://127.0.0.1:$clerk->{port}\$1;
		}
	}
	server {
		listen 127.0.0.1:$port{brief} ssl http2;
		$request_limit $REQUESTS;
		location ~ ^/\\w+(/v1/.*)\$ {
			proxy_pass http://127.0.0.1:$clerk->{port}\$1;
		}
	}
	server {
		listen 127.0.0.1:$port{stranger} ssl http2;
		ssl_certificate $other_certificate;
		ssl_certificate_key $other_key;
		location ~ ^/\\w+(/v1/.*)\$ {
			proxy_pass http://127.0.0.1:$clerk->{port}\$1;
		}
	}
}
EOC
	return;
}

# Starts nginx under a guardian that kills it when the test ends, even if the
# test is killed: the guardian's end of a pipe is closed then.
sub start_nginx
{
	unlink "$folder/nginx.pid";
	pipe(my $end, $life) or die "could not make a pipe: $!";
	$guardian = fork() // die "could not fork: $!";
	guard_nginx(fileno $end) if $guardian == 0;
	close $end;
	# It writes that file when it listens.
	wait_until(
		'nginx has started',
		sub {
			die "nginx did not start:\n" . slurp_file("$folder/nginx_output.log")
			  if waitpid($guardian, POSIX::WNOHANG()) == $guardian;
			return -s "$folder/nginx.pid";
		});
	return;
}

# Runs nginx in a process group of its own, by which its workers can be killed
# with it, until the pipe with this descriptor has ended.
sub guard_nginx
{
	my ($end) = @_;

	# What is inherited would keep psql from seeing the end of its input.
	foreach my $descriptor (3 .. 255)
	{
		POSIX::close($descriptor) unless $descriptor == $end;
	}
	setpgrp(0, 0);
	my $nginx = fork() // POSIX::_exit(1);
	if ($nginx == 0)
	{
		setpgrp(0, 0);
		POSIX::close($end);
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>>', "$folder/nginx_output.log");
		open(STDERR, '>&', \*STDOUT);
		{
			no warnings 'exec';
			exec $program, '-p', $folder, '-c', "$folder/nginx.conf";
		}
		POSIX::_exit(1);
	}
	# That nginx ends by itself is for the test to notice.
	local $SIG{CHLD} = sub { POSIX::_exit(1) };
	POSIX::read($end, my $nothing, 1) if waitpid($nginx, POSIX::WNOHANG()) == 0;
	$SIG{CHLD} = 'DEFAULT';
	kill('KILL', -$nginx);
	waitpid($nginx, 0);
	POSIX::_exit(0);
}

sub kill_nginx
{
	return unless $guardian;
	close $life;
	waitpid($guardian, 0);
	$guardian = undef;
	return;
}

# nginx's log of a session, once it has so many requests.
sub log_of
{
	my ($session, $count) = @_;
	my @entries;

	wait_until(
		'nginx has logged the requests',
		sub {
			@entries = ();
			foreach (split(/\n/, slurp_file("$folder/nginx_access.log")))
			{
				my %entry;

				@entry{qw(worker connection protocol path)} = split;
				push @entries, \%entry
				  if $entry{path} =~ m{^/\Q$session->{name}\E/};
			}
			return @entries >= $count;
		});
	return @entries;
}

sub connections_of
{
	my %connections =
	  map { ("$_->{worker} $_->{connection}" => 1) } log_of(@_);

	return scalar keys %connections;
}
