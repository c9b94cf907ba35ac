# ClerkTest - a PostgreSQL cluster with clerk_invite, and a fake Clerk for it
#
#	my $clerk = ClerkTest::Fake->start('--tls', $cert, $key);
#	my $node = clerk_cluster('main', $clerk);
#	$node->safe_psql('postgres', "SELECT ...");
#	my @requests = $clerk->journal;
#
# CLERK_DESTDIR names the folder that "make install DESTDIR=" filled; without
# it the extension must be installed.

package ClerkTest;

use strict;
use warnings;

use Exporter 'import';
use Carp;
use File::Basename qw(dirname);
use List::Util qw(max min);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(
  clerk_cluster
  reconfigure
  start_psql
  run_in_psql
  send_to_psql
  output_of_psql
  backend_of
  peak_memory_of
  invite
  attempt
  status_of_psql
  send_until_settled
  wait_until
);

# Where the scripts beside this module are.
our $TEST_FOLDER = dirname(dirname(__FILE__));

# The key that the fake accepts unless told otherwise.
our $KEY = 'sk_test_fakeclerk000000000000000000000000000';

# A running cluster with the extension in its database postgres, whose
# sessions talk to the given fake (or to nothing, without one).  It sends only
# when it is called, unless "worker" is true.  "conf" is appended to
# postgresql.conf; other %params go to PostgreSQL::Test::Cluster->init.
sub clerk_cluster
{
	my ($name, $clerk, %params) = @_;
	my $conf = delete $params{conf} // '';
	my $worker = delete $params{worker} ? 'on' : 'off';
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(%params);
	$node->append_conf('postgresql.conf', library_settings($node));
	write_key($node->data_dir . '/clerk.key', $KEY);
	$node->append_conf('postgresql.conf',
		"clerk_invite.secret_key_file = 'clerk.key'\n");
	$node->append_conf('postgresql.conf',
		"clerk_invite.api_url = '" . $clerk->url . "'\n")
	  if $clerk;
	$node->append_conf('postgresql.conf', "clerk_invite.worker = $worker\n");
	$node->append_conf('postgresql.conf', $conf);
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION clerk_invite');
	return $node;
}

# How a server finds an extension that is not installed: Debian's own setting
# up to 17, PostgreSQL's from 18.
sub library_settings
{
	my ($node) = @_;
	my $destdir = $ENV{CLERK_DESTDIR} or return '';
	my ($version) = slurp_file($node->data_dir . '/PG_VERSION') =~ /^(\d+)/;

	return "extension_destdir = '$destdir'\n" if $version < 18;
	my $share = $destdir . $node->config_data('--sharedir');
	my $library = $destdir . $node->config_data('--pkglibdir');
	return "extension_control_path = '$share:\$system'\n"
	  . "dynamic_library_path = '$library:\$libdir'\n";
}

# What LOAD and the preload settings call the library: extension_destdir stands
# in for $libdir only where that is written.
sub library_name
{
	my ($node) = @_;

	return library_settings($node) =~ /^extension_destdir/
	  ? '$libdir/clerk_invite'
	  : 'clerk_invite';
}

# Whether the server comes with this library.
sub has_library
{
	my ($name) = @_;
	my ($folder) = run_command([ 'pg_config', '--pkglibdir' ]);
	my @files = glob("$folder/$name.*");

	return @files > 0;
}

# Adds to postgresql.conf; sessions that start from now on know it.
sub reconfigure
{
	my ($node, $settings) = @_;
	my $reload = ++$node->{clerk_test_reloads};

	$node->append_conf('postgresql.conf',
		"$settings\nclerk_test.reloads = $reload\n");
	$node->reload;
	$node->poll_query_until('postgres',
		"SELECT current_setting('clerk_test.reloads', true) = '$reload'")
	  or croak 'the server does not read its configuration again';
	return;
}

# Makes a file that the server accepts as a key file.
sub write_key
{
	my ($file, $key, $mode) = @_;

	unlink $file;
	append_to_file($file, "$key\n");
	chmod($mode // 0600, $file) or croak "could not chmod $file: $!";
	return;
}

# SQL that invites an address and returns one column of the invitation.
sub invite
{
	my ($email, $column) = @_;

	$column //= 'id';
	return "SELECT $column FROM clerk_create_organization_invitation("
	  . "'org_test', NULL, '$email', 'org:member')";
}

# Runs SQL where there may be no connection; returns psql's exit status.  A psql
# that cannot connect ends without reading its input, and if that has not been
# written yet, IPC::Run dies of it.  Nothing has run then, so it is tried again.
sub status_of_psql
{
	my ($node, $database, $sql, %params) = @_;

	for (1 .. 10)
	{
		my $status = eval { scalar $node->psql($database, $sql, %params) };

		return $status if defined $status;
		croak $@ unless $@ =~ /^ack Broken pipe/;
	}
	croak 'psql ended ten times without reading its input';
}

# Runs SQL that may fail, to its end.  Returns what came of it: stdout, stderr
# with the errors in full, and the SQLSTATE of the last error or ''.  %params
# go to PostgreSQL::Test::Cluster->psql.
sub attempt
{
	my ($node, $database, $sql, %params) = @_;
	my ($stdout, $stderr);

	status_of_psql(
		$node, $database, "\\set VERBOSITY verbose\n$sql",
		stdout => \$stdout,
		stderr => \$stderr,
		on_error_stop => 0,
		%params);
	my @sqlstates = $stderr =~ /(?:ERROR|FATAL):  ([0-9A-Z]{5}):/g;
	return {
		stdout => $stdout,
		stderr => $stderr,
		sqlstate => $sqlstates[-1] // ''
	};
}

# A psql that runs beside the test: its process and its output.
#
#	my $psql = start_psql($node, 'SELECT pg_sleep(10)');
#	... $psql->{harness}->finish; like($psql->{stderr}, ...)
sub start_psql
{
	my ($node, $sql, @options) = @_;
	my $psql = { stdin => "$sql\n", stdout => '', stderr => '' };

	$psql->{timer} =
	  IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default);
	$psql->{harness} = IPC::Run::start(
		[
			'psql', '-XAtq',
			@options, '-d',
			$node->connstr('postgres'), '-f',
			'-'
		],
		'<',
		\$psql->{stdin},
		'>',
		\$psql->{stdout},
		'2>',
		\$psql->{stderr},
		$psql->{timer});
	return $psql;
}

# Runs more SQL in such a psql, to its end.  Returns what that wrote to
# standard output and to standard error.
sub run_in_psql
{
	my ($psql, $sql) = @_;

	send_to_psql($psql, $sql);
	return output_of_psql($psql);
}

# The same in two steps: the test can do something in between.
sub send_to_psql
{
	my ($psql, $sql) = @_;
	my $mark = $psql->{mark} = '-- end ' . ++$psql->{statements} . ' --';

	$psql->{stdout} = $psql->{stderr} = '';
	$psql->{stdin} .= "$sql\n\\echo $mark\n\\warn $mark\n";
	# Without waiting for what psql may have to say to it.
	$psql->{harness}->pump_nb while length $psql->{stdin};
	return;
}

# Returns early if the psql ends.
sub output_of_psql
{
	my ($psql) = @_;
	my $end = qr/^\Q$psql->{mark}\E\r?\n/m;

	until ($psql->{stdout} =~ $end && $psql->{stderr} =~ $end)
	{
		croak 'timed out waiting for psql'
		  if $psql->{timer}->is_expired;
		last unless $psql->{harness}->pumpable;
		# It may have ended since the line before.
		eval { $psql->{harness}->pump; };
	}
	return map { s/$end//r } @{$psql}{qw(stdout stderr)};
}

# The process that serves such a psql.
sub backend_of
{
	my ($psql) = @_;
	my ($pid) = run_in_psql($psql, 'SELECT pg_backend_pid();');

	chomp $pid;
	return $pid;
}

# The most memory that this process has had so far, in kB.
sub peak_memory_of
{
	my ($psql) = @_;

	return slurp_file('/proc/' . backend_of($psql) . '/status') =~
	  /^VmHWM:\s*(\d+) kB$/m ? $1 : croak 'no VmHWM';
}

# Sends what is in the outbox, again and again, until nothing in it is open;
# dies if that takes longer than a minute.  $settings is SQL to run before.
sub send_until_settled
{
	my ($node, $settings, %params) = @_;
	my $open = "FROM clerk_invitation_outbox"
	  . " WHERE state IN ('queued', 'sending', 'verifying')";
	my $deadline = time + 60;
	my $left;

	$settings //= '';
	while (time < $deadline)
	{
		$left = $node->safe_psql(
			'postgres', qq(
			SET client_min_messages = error;
			$settings
			CALL clerk_send_invitations();
			SELECT count(*) $open;), %params);
		return if $left eq '0';
	}
	my $rows = $node->safe_psql('postgres',
		"SELECT id, email_address, state, attempts, error_message $open");
	croak "the outbox still has $left open rows:\n$rows";
}

# Waits until the code returns true; dies with the sentence if it never does.
# What takes long is looked for less often, since most of the code starts psql,
# and other tests need the processor.
sub wait_until
{
	my ($sentence, $code) = @_;
	my $slept = 0;

	while ($slept < $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $code->();
		my $pause = min(max(0.01, $slept / 10), 0.3);

		select(undef, undef, undef, $pause);
		$slept += $pause;
	}
	croak "timed out waiting until $sentence";
}

package ClerkTest::Fake;

use strict;
use warnings;

use Carp;
use HTTP::Tiny;
use JSON::PP qw(decode_json encode_json);
use PostgreSQL::Test::Utils;
use Test::More ();

# How many fakes of this process have had this port.
my %fakes_of_port;

# Where the fakes of this process note violations of Clerk's contract, and the
# violations that the test expects there.
my @violation_logs;
my $process = $$;

# A test fails if a request, or an answer of the fake's, has violated the
# contract (fake_clerk/contract.json), unless it expects that.
END
{
	if ($$ == $process)
	{
		foreach my $log (@violation_logs)
		{
			my @unexpected = _unexpected_violations($log);

			next unless @unexpected;
			Test::More::diag("Clerk's contract was violated:\n", @unexpected);
			$? ||= 1;
		}
	}
}

# Starts a fake Clerk with these options of fake_clerk.py.  It ends with this
# object, or with this process if that is killed: its standard input ends.
#
# The system may give the port of one that has ended once more.  A server would
# take the two for the same Clerk, and add to what it has counted for the first;
# which is what is meant if the options name a port.
sub start
{
	my ($class, @options) = @_;

	return $class->_launch(@options) if grep { $_ eq '--port' } @options;
	for (1 .. 20)
	{
		my $self = $class->_launch(@options);

		return $self unless $fakes_of_port{ $self->{port} }++;
	}
	croak 'no port that no fake Clerk has had';
}

sub _launch
{
	my ($class, @options) = @_;
	my $journal = PostgreSQL::Test::Utils::tempdir() . '/journal';
	my $self = bless {
		journal => $journal,
		journal_read => 0,
		requests => [],
		options => \@options
	}, $class;

	$self->{violations} = { file => "$journal.violations", expected => [] };
	append_to_file($_, '') foreach $journal, $self->{violations}{file};
	push @violation_logs, $self->{violations};
	$self->{port} = $self->_run;
	$self->{scheme} = (grep { $_ eq '--tls' } @options) ? 'https' : 'http';
	return $self;
}

# Runs the program with more options, and returns its port.
sub _run
{
	my ($self, @more) = @_;

	pipe(my $stdin, my $life) or croak "could not make a pipe: $!";
	pipe(my $output, my $stdout) or croak "could not make a pipe: $!";
	$self->{pid} = fork() // croak "could not fork: $!";
	if ($self->{pid} == 0)
	{
		close $life;
		close $output;
		open(STDIN, '<&', $stdin) or die;
		open(STDOUT, '>&', $stdout) or die;
		exec('python3', "$ClerkTest::TEST_FOLDER/fake_clerk.py",
			'--exit-with-stdin', '--journal', $self->{journal},
			'--violations', $self->{violations}{file},
			@{ $self->{options} }, @more);
		die "could not run the fake Clerk: $!";
	}
	close $stdin;
	close $stdout;
	$self->{life} = $life;
	my $port = <$output> // croak 'the fake Clerk did not start';
	chomp $port;
	return $port;
}

# Kills it with SIGKILL: what it has done is kept only with the option
# --memory, and the connections are broken.
sub kill
{
	my ($self) = @_;

	CORE::kill('KILL', $self->{pid});
	waitpid($self->{pid}, 0);
	close $self->{life};
	$self->{pid} = undef;
	return;
}

# Starts it again where it was.
sub revive
{
	my ($self) = @_;
	my $port;

	ClerkTest::wait_until(
		'the port is free',
		sub {
			$port = eval { $self->_run('--port', $self->{port}) };
			return $port;
		});
	return;
}

sub url
{
	my ($self) = @_;
	my $host = $self->{scheme} eq 'https' ? 'localhost' : '127.0.0.1';

	return "$self->{scheme}://$host:$self->{port}";
}

# Everything that the fake has been asked, oldest first.  Tests ask again and
# again while they wait, so each line is decoded once.
sub journal
{
	my ($self) = @_;
	my $new = PostgreSQL::Test::Utils::slurp_file($self->{journal},
		$self->{journal_read}) // '';

	# The last line may not be complete yet.
	$new =~ s/[^\n]*\z//;
	$self->{journal_read} += length $new;
	push @{ $self->{requests} }, map { decode_json($_) } split(/\n/, $new);
	return @{ $self->{requests} };
}

# Says that violations of the contract that match are what this test is about.
sub expect_violations
{
	my ($self, $pattern) = @_;

	push @{ $self->{violations}{expected} }, $pattern;
	return;
}

# All violations of the contract, one a line.
sub violations
{
	my ($self) = @_;

	return PostgreSQL::Test::Utils::slurp_file($self->{violations}{file}) =~
	  /^.*\n/mg;
}

sub _unexpected_violations
{
	my ($log) = @_;
	my @found =
	  PostgreSQL::Test::Utils::slurp_file($log->{file}) =~ /^.*\n/mg;

	foreach my $pattern (@{ $log->{expected} })
	{
		@found = grep { !/$pattern/ } @found;
	}
	return @found;
}

# Those requests that name this address.
sub requests_for
{
	my ($self, $email) = @_;

	return grep {
		my $body = $_->{body};

		grep { ref $_ eq 'HASH' && ($_->{email_address} // '') eq $email }
		  ref $body eq 'ARRAY' ? @$body : $body
	} $self->journal;
}

# Calls one of the fake's own operations, such as "accept"; plain http only.
sub control
{
	my ($self, $operation, $body) = @_;
	my $answer = HTTP::Tiny->new->post(
		$self->url . "/_fake/$operation",
		{
			headers => { 'content-type' => 'application/json' },
			content => encode_json($body // {})
		});

	croak "fake Clerk refused $operation: $answer->{content}"
	  unless $answer->{success};
	return;
}

# Every invitation that was ever created, oldest first, without its url; plain
# http only.
sub all_invitations
{
	my ($self) = @_;
	my $answer = HTTP::Tiny->new->get($self->url . '/_fake/invitations');

	croak "fake Clerk refused invitations: $answer->{content}"
	  unless $answer->{success};
	return @{ decode_json($answer->{content})->{data} };
}

# All that has ever happened: {invitations}, each with its origin ('client' or
# 'control') and whether its organization was deleted; {members}, pairs of
# organization and address in lower case; {deleted_organizations}; plain http
# only.
sub ledger
{
	my ($self) = @_;
	my $answer = HTTP::Tiny->new->get($self->url . '/_fake/ledger');

	croak "fake Clerk refused ledger: $answer->{content}"
	  unless $answer->{success};
	return decode_json($answer->{content});
}

# Those for this address.
sub invitations_for
{
	my ($self, $email) = @_;

	return grep { $_->{email_address} eq $email } $self->all_invitations;
}

sub stop
{
	my ($self) = @_;

	return unless $self->{pid};
	close $self->{life};
	waitpid($self->{pid}, 0);
	$self->{pid} = undef;
	return;
}

sub DESTROY
{
	my ($self) = @_;

	# Keep the test's own exit status.
	local ($?, $!);
	$self->stop;
	return;
}

1;
