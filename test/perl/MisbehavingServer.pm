# MisbehavingServer - servers on loopback that do what a good one never does
#
#	my $server = MisbehavingServer->silent;
#	... http://127.0.0.1:<$server->port> ...
#	is($server->connections, 0, 'nobody came');
#
# Below the HTTP of the fake Clerk: connections that cannot be made, stall or
# break at a chosen moment.  Each server ends with its object or, if the test
# is killed, with the test.

package MisbehavingServer;

use strict;
use warnings;

use Carp;
use ClerkTest ();
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use PostgreSQL::Test::Utils;

# How long a connection to loopback may take before it counts as hanging.
my $HANGS_AFTER = 0.2;

# Builds the name server of hung_name_server.c, and returns what LD_PRELOAD
# must be for a program to ask it.
sub hung_name_server
{
	my $library =
	  PostgreSQL::Test::Utils::tempdir() . '/hung_name_server.so';

	system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-o', $library,
		"$ClerkTest::TEST_FOLDER/hung_name_server.c", '-ldl');
	return join(':', $library, $ENV{LD_PRELOAD} // ());
}

# Connecting to it hangs: it has more connections waiting than it accepts.
sub unreachable
{
	my ($class) = @_;
	my $self = bless { listener => _listen(1), waiting => [] }, $class;

	for (1 .. 100)
	{
		my $client = IO::Socket::INET->new(
			PeerAddr => '127.0.0.1',
			PeerPort => $self->port,
			Blocking => 0) or croak "could not connect: $@";

		push @{ $self->{waiting} }, $client;
		return $self unless IO::Select->new($client)->can_write($HANGS_AFTER);
	}
	croak 'the queue of connections did not fill';
}

# Takes every connection and says nothing.
sub silent
{
	my ($class) = @_;

	return bless { listener => _listen(100), taken => [] }, $class;
}

# How many connections a silent server has been asked for so far.
sub connections
{
	my ($self) = @_;

	$self->_take;
	return scalar @{ $self->{taken} };
}

# Whether anything has been said on a silent server's connections since the
# last time that this was true.
sub spoken_to
{
	my ($self) = @_;

	$self->_take;
	my $spoken = 0;
	foreach my $connection (IO::Select->new(@{ $self->{taken} })->can_read(0))
	{
		$spoken = 1 if sysread($connection, my $bytes, 65536);
	}
	return $spoken;
}

sub _take
{
	my ($self) = @_;

	while (IO::Select->new($self->{listener})->can_read(0))
	{
		push @{ $self->{taken} }, scalar $self->{listener}->accept;
	}
	return;
}

# On each connection, answers the first request as Clerk would, reads the next
# one to its end and closes.  Records "request EMAIL" for each.
sub losing_every_second_answer
{
	my ($class) = @_;

	return $class->_start(
		sub {
			my ($connection, $record) = @_;

			my $request = _read_request($connection) or return;
			$record->("request $request->{email}");
			_answer($connection, $request);
			$request = _read_request($connection) or return;
			$record->("request $request->{email}");
		});
}

# Closes each connection after one answer that announced to keep it.  Records
# "request EMAIL" and, once that is done, "closed".
sub closing_idle_connections
{
	my ($class) = @_;

	return $class->_start(
		sub {
			my ($connection, $record) = @_;

			my $request = _read_request($connection) or return;
			$record->("request $request->{email}");
			_answer($connection, $request);
			shutdown($connection, 2);
			$record->('closed');
		});
}

# Answers every request with this status line, these header lines and this body.
sub answering
{
	my ($class, $status, $headers, $body) = @_;

	return $class->_start(
		sub {
			my ($connection) = @_;

			while (_read_request($connection))
			{
				syswrite($connection,
						"HTTP/1.1 $status\r\n"
					  . join('', map { "$_\r\n" } @$headers)
					  . 'Content-Length: '
					  . length($body)
					  . "\r\n\r\n$body");
			}
		});
}

# Answers every request with 500, and closes each connection after so many of
# these answers, which announced to keep it.  Records "request" for each.
sub failing
{
	my ($class, $answers) = @_;

	return $class->_start(
		sub {
			my ($connection, $record) = @_;

			for (1 .. $answers)
			{
				_read_request($connection) or return;
				$record->('request');
				syswrite($connection,
					"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
				);
			}
		});
}

# Begins an answer and goes on with it byte by byte, without a pause.
sub babbling
{
	my ($class) = @_;

	return $class->_start(
		sub {
			my ($connection) = @_;

			_read_request($connection) or return;
			syswrite($connection,
				"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n");
			1 while syswrite($connection, ' ');
		});
}

# A proxy for https that behaves well, but leads nowhere outside loopback: a
# client that asks for another host is told so.  Records each line it is asked.
sub proxy
{
	my ($class) = @_;

	return $class->_start(
		sub {
			my ($connection, $record) = @_;

			my $head = _read_head($connection) // return;
			$record->($_) for split(/\r\n/, $head);
			my ($port) = $head =~ /^CONNECT (?:localhost|127\.0\.0\.1):(\d+) /;
			my $server = $port && IO::Socket::INET->new(
				PeerAddr => '127.0.0.1',
				PeerPort => $port);

			if (!$server)
			{
				syswrite($connection, "HTTP/1.1 502 Bad Gateway\r\n\r\n");
				return;
			}
			syswrite($connection, "HTTP/1.1 200 OK\r\n\r\n");
			_relay($connection, $server);
		});
}

sub port
{
	my ($self) = @_;

	return $self->{listener}->sockport;
}

sub url
{
	my ($self, $scheme) = @_;

	return ($scheme // 'http') . '://127.0.0.1:' . $self->port;
}

# What the server has recorded so far.
sub records
{
	my ($self) = @_;

	return split(/\n/, slurp_file($self->{records}));
}

sub _listen
{
	my ($queue) = @_;

	return IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		LocalPort => 0,
		Listen => $queue) // croak "could not listen: $@";
}

# A process that serves each connection with the code, in a process of its own.
sub _start
{
	my ($class, $serve) = @_;
	my $self = bless { listener => _listen(100) }, $class;

	$self->{records} = PostgreSQL::Test::Utils::tempdir() . '/records';
	append_to_file($self->{records}, '');
	pipe(my $test_lives, my $life) or croak "could not make a pipe: $!";
	$self->{pid} = fork() // croak "could not fork: $!";
	if ($self->{pid} == 0)
	{
		# Other servers end when nobody holds their pipe's end any more.
		_let_go_of_all_but($self->{listener}, $test_lives);
		# Leave without the test's own cleanup, whatever happens.
		eval { $self->_accept_while($test_lives, $serve); };
		kill 'KILL', -$$;
		POSIX::_exit(1);
	}
	close $test_lives;
	$self->{life} = $life;
	return $self;
}

sub _accept_while
{
	my ($self, $test_lives, $serve) = @_;
	my $select = IO::Select->new($self->{listener}, $test_lives);
	my $record = sub { append_to_file($self->{records}, "$_[0]\n"); };

	# One group for all its processes, so that they end together.
	setpgrp(0, 0);
	local @SIG{qw(TERM INT PIPE CHLD)} =
	  ('DEFAULT', 'DEFAULT', 'IGNORE', 'IGNORE');
	while (1)
	{
		my @ready = $select->can_read;

		return if grep { $_ == $test_lives } @ready;
		next unless @ready;
		my $connection = $self->{listener}->accept or next;
		my $pid = fork() // die "could not fork: $!";
		if ($pid == 0)
		{
			eval { $serve->($connection, $record); };
			POSIX::_exit(0);
		}
	}
}

# Lets go of the files that a process has inherited; a test has far fewer than
# it looks for.  Replaced rather than closed: perl counts who uses each number.
sub _let_go_of_all_but
{
	my %keep = map { fileno($_) => 1 } @_;
	my $nothing = POSIX::open('/dev/null', POSIX::O_RDWR());

	foreach my $file (grep { !$keep{$_} } 3 .. 1023)
	{
		my $copy = POSIX::dup($file) // next;

		POSIX::close($copy);
		POSIX::dup2($nothing, $file);
	}
	return;
}

# Everything up to the empty line, or nothing if the client left.
sub _read_head
{
	my ($connection) = @_;
	my $head = '';

	until ($head =~ /\r\n\r\n\z/)
	{
		sysread($connection, $head, 1, length $head) or return;
	}
	return $head;
}

sub _read_request
{
	my ($connection) = @_;
	my $head = _read_head($connection) // return;
	my ($length) = $head =~ /^content-length: (\d+)/mi;
	my $body = '';

	while (length $body < ($length // 0))
	{
		sysread($connection, $body, $length - length $body, length $body)
		  or return;
	}
	my ($email) = $body =~ /"email_address":\s*"([^"]*)"/;
	return { email => $email };
}

sub _answer
{
	my ($connection, $request) = @_;
	my $body =
		'{"object":"organization_invitation","id":"orginv_misbehaving",'
	  . qq("email_address":"$request->{email}","role":"org:member",)
	  . '"status":"pending","created_at":1700000000000,"updated_at":1700000000000}';

	syswrite($connection,
			"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
		  . 'Content-Length: '
		  . length($body)
		  . "\r\n\r\n$body");
	return;
}

# Carries bytes both ways until one side ends.
sub _relay
{
	my ($client, $server) = @_;
	my $select = IO::Select->new($client, $server);

	while (1)
	{
		foreach my $from ($select->can_read)
		{
			my $to = $from == $client ? $server : $client;

			sysread($from, my $bytes, 65536) or return;
			syswrite($to, $bytes);
		}
	}
}

sub DESTROY
{
	my ($self) = @_;

	return unless $self->{pid};
	# Keep the test's own exit status.
	local ($?, $!);
	close $self->{life};
	waitpid($self->{pid}, 0);
	return;
}

1;
