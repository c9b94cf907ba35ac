# Hub - a hub and its publishers: servers on loopback, and the loops that report
#
#	my $hub = Hub->start('hub', $clerk);
#	my $publisher = Hub::Publisher->start('shop');
#	$hub->add($publisher);
#	$hub->start_reports($publisher);
#	$publisher->sql("INSERT INTO clerk_invitation_outbox ...");
#
# A publisher's server has neither the extension nor what it takes to find it.
# CLERK_PUBLISHER_PATH in the environment names another installation of
# PostgreSQL for it.  What is written here to its database app is done by the
# role app_owner, which is no superuser; the hub comes as the role clerk_hub.

package Hub;

use strict;
use warnings;

use Carp;
use ClerkTest;
use Cwd qw(abs_path);
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our $FOLDER = abs_path("$ClerkTest::TEST_FOLDER/../hub");

# Neither delays nor the pauses of a subscription that has lost its publisher
# are what these tests are about.
my $SETTINGS = q(
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '50ms'
clerk_invite.retry_delay_max = '500ms'
max_logical_replication_workers = 10
max_sync_workers_per_subscription = 2
max_worker_processes = 20
wal_retrieve_retry_interval = '200ms'
);

# A hub that sends to this Clerk; "conf" and %params as for clerk_cluster().
sub start
{
	my ($class, $name, $clerk, %params) = @_;
	my $conf = delete $params{conf} // '';
	my $node = clerk_cluster(
		$name, $clerk,
		worker => 1,
		conf => $SETTINGS . $conf,
		%params);

	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = '" . ClerkTest::library_name($node) . "'");
	$node->restart;
	return $class->on($node);
}

# The hub of a server that is there, such as a promoted standby.
sub on
{
	my ($class, $node) = @_;

	return bless { node => $node, loops => {} }, $class;
}

sub node
{
	my ($self) = @_;

	return $self->{node};
}

# Runs add_publisher.sh to its end; returns status, stdout and stderr.
sub try_to_add
{
	my ($self, $publisher, %environment) = @_;
	my $run = { stdout => '', stderr => '' };

	local %ENV = (
		%ENV, $self->_environment,
		CLERK_PUBLISHER => $publisher->connstr,
		%environment);
	IPC::Run::run(
		[ 'sh', "$FOLDER/add_publisher.sh", $publisher->{name} ],
		'<', \undef,
		'>', \$run->{stdout},
		'2>', \$run->{stderr});
	$run->{status} = $? >> 8;
	return $run;
}

sub add
{
	my ($self, $publisher) = @_;
	my $run = $self->try_to_add($publisher);

	croak "add_publisher.sh failed: $run->{stderr}" if $run->{status};
	return;
}

# Lets report.sh run until the object is gone, or stop_reports() is called.
sub start_reports
{
	my ($self, $publisher, %environment) = @_;
	my $log = $self->{node}->logfile . ".$publisher->{name}";

	local %ENV = (%ENV, $self->_environment, %environment);
	my $pid = fork() // croak "could not fork: $!";
	if ($pid == 0)
	{
		setpgrp(0, 0);
		open(STDIN, '<', '/dev/null') or die;
		open(STDOUT, '>>', $log) or die;
		open(STDERR, '>&', \*STDOUT) or die;
		exec('sh', "$FOLDER/report.sh", $publisher->{name});
		die "could not run report.sh: $!";
	}
	$self->{loops}{ $publisher->{name} } = { pid => $pid, log => $log };
	return;
}

# What a loop has written.
sub log_of
{
	my ($self, $publisher) = @_;

	return slurp_file($self->{loops}{ $publisher->{name} }{log});
}

sub stop_reports
{
	my ($self, @publishers) = @_;

	foreach my $name (
		@publishers ? (map { $_->{name} } @publishers) : keys %{ $self->{loops} })
	{
		my $loop = delete $self->{loops}{$name} or next;

		kill('TERM', $loop->{pid});
		waitpid($loop->{pid}, 0);
	}
	return;
}

# SQL in the hub's database for a publisher.
sub sql
{
	my ($self, $publisher, $sql) = @_;

	return $self->{node}->safe_psql($publisher->{name}, $sql);
}

sub _environment
{
	my ($self) = @_;

	return (
		PGHOST => $self->{node}->host,
		PGPORT => $self->{node}->port,
		PGDATABASE => 'postgres');
}

sub DESTROY
{
	my ($self) = @_;

	# Keep the test's own exit status.
	local ($?, $!);
	$self->stop_reports;
	return;
}

package Hub::Publisher;

use strict;
use warnings;

use Carp;
use ClerkTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

# A server with the database app; "conf" is appended to postgresql.conf.
# %params: encoding; initdb, more options; own_installation, for a server that
# is to have the extension; without_script, to leave publisher.sql out.
sub start
{
	my ($class, $name, %params) = @_;
	my @options = @{ $params{initdb} // [] };
	my $node = PostgreSQL::Test::Cluster->new($name,
		install_path => $params{own_installation} ? undef : $ENV{CLERK_PUBLISHER_PATH});
	my $self = bless { name => $name, node => $node }, $class;

	$node->init(
		allows_streaming => 'logical',
		extra => [ '--encoding', $params{encoding} // 'UTF8', '--locale', 'C', @options ]);
	$node->append_conf('postgresql.conf', $params{conf} // '');
	$node->start;
	$node->safe_psql(
		'postgres', q(
		CREATE ROLE app_owner LOGIN;
		CREATE ROLE clerk_hub LOGIN REPLICATION;
		CREATE DATABASE app OWNER app_owner;));
	$node->safe_psql('app', 'ALTER SCHEMA public OWNER TO app_owner');
	$self->install unless $params{without_script};
	return $self;
}

# Runs publisher.sql as the owner of the application's database.
sub install
{
	my ($self) = @_;

	$self->sql(slurp_file("$Hub::FOLDER/publisher.sql"));
	$self->sql(q(SELECT clerk_grant_to_hub('clerk_hub')));
	return;
}

sub node
{
	my ($self) = @_;

	return $self->{node};
}

# What the hub connects with.
sub connstr
{
	my ($self) = @_;

	return $self->{node}->connstr('app') . ' user=clerk_hub';
}

# SQL as the application's owner.
sub sql
{
	my ($self, $sql) = @_;

	return $self->{node}->safe_psql('app', $sql, extra_params => [ '-U', 'app_owner' ]);
}

# State and attempts of the rows for these addresses, in the order of ids.
sub states
{
	my ($self, @emails) = @_;
	my $emails = join(', ', map { "'$_'" } @emails);

	return $self->sql(
		"SELECT string_agg(state, ' ' ORDER BY id) FROM clerk_invitation_outbox"
		  . (@emails ? " WHERE email_address IN ($emails)" : ''));
}

# Waits until a query of one value gives this.
sub wait_for
{
	my ($self, $sql, $value) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	my $last;

	while (time <= $deadline)
	{
		status_of_psql(
			$self->{node}, 'app', $sql,
			stdout => \$last,
			extra_params => [ '-U', 'app_owner' ]);
		return 1 if defined $last && $last eq $value;
		select(undef, undef, undef, 0.05);
	}
	croak("$self->{name} has not $value, but $last, for $sql");
}

# Ends a server without a word, and starts it again; "how" is 'SIGKILL' or
# 'immediate'.
sub Hub::crash
{
	my ($node, $how) = @_;

	if ($how eq 'immediate')
	{
		$node->stop('immediate');
		$node->start;
		return;
	}
	my ($postmaster) =
	  PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	# Its children notice that it is gone; before that a server refuses to start.
	$node->kill9;
	ClerkTest::wait_until('the server is gone', sub { !kill(0, $postmaster) });
	ClerkTest::wait_until('the server starts', sub { $node->start(fail_ok => 1) });
	return;
}

package Hub::Door;

# What stands between a hub and its Clerk, and can be killed: Clerk keeps what
# it has, as the real one does.

use strict;
use warnings;

use Carp;
use IO::Select;
use IO::Socket::INET;
use POSIX ();

sub open
{
	my ($class, $clerk) = @_;
	my $self = bless { clerk => $clerk, port => 0 }, $class;

	$self->reopen;
	return $self;
}

sub url
{
	my ($self) = @_;

	return "http://127.0.0.1:$self->{port}";
}

sub reopen
{
	my ($self) = @_;
	my $listener;

	# What was killed a moment ago may still hold the port.
	ClerkTest::wait_until(
		'the port is free',
		sub {
			return $listener = IO::Socket::INET->new(
				LocalAddr => '127.0.0.1',
				LocalPort => $self->{port},
				Listen => 100,
				ReuseAddr => 1);
		});
	$self->{port} = $listener->sockport;
	$self->{pid} = fork() // croak "could not fork: $!";
	if ($self->{pid} == 0)
	{
		setpgrp(0, 0);
		eval { $self->_serve($listener); };
		POSIX::_exit(1);
	}
	return;
}

# SIGKILL, for all connections as well.
sub kill
{
	my ($self) = @_;

	return unless $self->{pid};
	CORE::kill('KILL', -$self->{pid}, $self->{pid});
	waitpid(delete $self->{pid}, 0);
	return;
}

sub _serve
{
	my ($self, $listener) = @_;

	local $SIG{CHLD} = 'IGNORE';
	# Ends with the test, also if that is killed.
	while (getppid() != 1)
	{
		next unless IO::Select->new($listener)->can_read(1);
		my $client = $listener->accept or next;

		next if fork();
		close $listener;
		my $clerk = IO::Socket::INET->new(
			PeerAddr => '127.0.0.1',
			PeerPort => $self->{clerk}{port}) or POSIX::_exit(1);
		my %other = ($client => $clerk, $clerk => $client);
		my $sockets = IO::Select->new($client, $clerk);

		while (my @ready = $sockets->can_read)
		{
			foreach my $from (@ready)
			{
				sysread($from, my $data, 65536) or POSIX::_exit(0);
				while (length $data)
				{
					my $written = syswrite($other{$from}, $data) or POSIX::_exit(0);
					substr($data, 0, $written, '');
				}
			}
		}
	}
	return;
}

sub DESTROY
{
	my ($self) = @_;

	# Keep the test's own exit status.
	local ($?, $!);
	$self->kill;
	return;
}

1;
