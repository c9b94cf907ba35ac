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
# %params: encoding; without_script, to leave publisher.sql out.
sub start
{
	my ($class, $name, %params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name,
		install_path => $ENV{CLERK_PUBLISHER_PATH});
	my $self = bless { name => $name, node => $node }, $class;

	$node->init(
		allows_streaming => 'logical',
		extra => [ '--encoding', $params{encoding} // 'UTF8', '--locale', 'C' ]);
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
		(undef, $last) = $self->{node}->psql('app', $sql, extra_params => [ '-U', 'app_owner' ]);
		return 1 if defined $last && $last eq $value;
		select(undef, undef, undef, 0.05);
	}
	croak("$self->{name} has not $value, but $last, for $sql");
}

1;
