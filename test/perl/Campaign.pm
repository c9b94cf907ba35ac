# Campaign - invitations flow, faults happen, and the ledger is compared
#
#	my $campaign = Campaign->new(seed => 1, disk => $folder, say => sub { ... });
#	$campaign->run(10000, 500);
#	my @violations = $campaign->finish;
#
# Everything that can be decided is decided by the seed: what the applications
# do, which fault comes when.  What it meets is up to the machine.

package Campaign;

use strict;
use warnings;

use Carp;
use ClerkTest;
use Faults;
use Ledger;
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use SeededRandom;
use Time::HiRes qw(time sleep);
use Workload;

# Requests given up arrive within verify_delay, also on a busy machine; nobody
# waits longer for a name server or for an answer.  What fails is refused for
# good, since attempts do not run out.  A commit is in the log when it is
# reported, so that a killed server keeps it.
my $SETTINGS = q(
restart_after_crash = on
clerk_invite.single_requests_per_hour = 1000000
clerk_invite.bulk_requests_per_hour = 1000000
clerk_invite.max_concurrent_requests = 8
clerk_invite.max_attempts = 1000
clerk_invite.verify_delay = '2s'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '200ms'
clerk_invite.connect_timeout = '1s'
clerk_invite.request_timeout = '1500ms'
max_wal_size = '64MB'
min_wal_size = '32MB'
log_line_prefix = '%m [%p] %b %q%a '
);

# Functions of the campaign's own.  A sender with the setting loses its lock
# whenever it changes rows, as by a user's trigger; then others send as well.
my $SCHEMA = q(
CREATE FUNCTION lose_lock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_catalog.current_setting('ledger.lose_lock', true) = 'on' THEN
		PERFORM pg_catalog.pg_advisory_unlock_all();
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER lose_lock AFTER UPDATE ON clerk_invitation_outbox
	FOR EACH STATEMENT EXECUTE FUNCTION lose_lock();

CREATE FUNCTION await_sender(patience interval, moment float8) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
	sender integer;
BEGIN
	WHILE clock_timestamp() < now() + patience LOOP
		SELECT pid INTO sender FROM pg_locks
			WHERE locktype = 'advisory' AND objsubid = x'434C'::integer AND granted LIMIT 1;
		IF FOUND THEN
			PERFORM pg_sleep(moment);
			RETURN sender;
		END IF;
		PERFORM pg_sleep(0.002);
	END LOOP;
	RETURN NULL;
END $$;
);

my $OPEN = q(SELECT count(*) FROM clerk_invitation_outbox WHERE state IN ('queued', 'sending', 'verifying'));

# Seconds that a session, or the outbox, may take to come to its end.
my $SESSION_PATIENCE = 60;
my $DRAIN_PATIENCE = 240;

# Seconds within which a server notices that one of its processes was killed.
my $CRASH_PATIENCE = 5;

# Of the people, so many are invited by others beforehand.
my $INVITED = 0.03;

# The fake takes so many seconds to answer.
my $LATENCY = 0.02;

# %params: seed; disk, a folder of a small file system for the server's data,
# without which its disk is never full; without, a pattern of faults that are left
# out; say, what takes lines of progress.
sub new
{
	my ($class, %params) = @_;
	my $folder = PostgreSQL::Test::Utils::tempdir();
	my $clerk = ClerkTest::Fake->start(
		'--single-limit', 1000000,
		'--bulk-limit', 1000000,
		'--latency', $LATENCY,
		'--memory', "$folder/memory");
	my $self = bless {
		clerk => $clerk,
		folder => $folder,
		disk => $params{disk},
		say => $params{say} // sub { },
		seed => $params{seed},
		random => SeededRandom->new($params{seed}, 'moments'),
		workload => Workload->new($params{seed}),
		name_server => MisbehavingServer::hung_name_server(),
		injected => {},
		sessions => [],
		number => 0,
		ledger => Ledger->new($clerk),
	}, $class;

	$self->_make_server;
	$self->{faults} = Faults->new($self, $params{seed}, $params{without});
	return $self;
}

sub node
{
	my ($self) = @_;

	return $self->{node};
}

sub clerk
{
	my ($self) = @_;

	return $self->{clerk};
}

sub has_small_disk
{
	my ($self) = @_;

	return defined $self->{disk};
}

# So many invitations while so many faults happen.
sub run
{
	my ($self, $invitations, $faults) = @_;
	my $begun = time;

	$self->_invite(@$_) foreach $self->{workload}->invited_people($invitations * $INVITED);
	foreach my $number (1 .. $faults)
	{
		my $left = $invitations - $self->{workload}{planned};

		$self->step($left > 0 ? $left / ($faults - $number + 1) : 0);
		$self->{say}->(sprintf('%4d s: %d faults, %d invitations',
				time - $begun, $number, $self->{workload}{planned}))
		  if $number % 50 == 0;
	}
	while ($self->{workload}{planned} < $invitations)
	{
		$self->_start_session($self->{workload}->session(50));
		$self->_finish_sessions;
	}
	return;
}

# Other faults from now on, as for new().
sub use_faults
{
	my ($self, $seed, $without) = @_;

	$self->{faults}->end;
	$self->{faults} = Faults->new($self, $seed, $without);
	return;
}

# Applications, perhaps a sender that is called, and a fault in their middle.
sub step
{
	my ($self, $invitations) = @_;
	my ($random, $workload) = @{$self}{qw(random workload)};
	my ($title, $inject) = $self->{faults}->next;
	my $sessions = 1 + $random->below(3);
	my @work = map { $workload->session($invitations / $sessions) } 1 .. $sessions;

	$self->_start_session($_) foreach @work;
	$self->start_sender if $random->happens(0.5);
	$self->_invite(@$_) foreach $workload->take_raced;
	$self->{clerk}->control('delete_organization', { organization_id => $workload->delete_organization })
	  if $workload->may_delete_organization && $random->happens(0.05);
	$self->wait_a_moment($random->fraction * 0.15);
	$inject->();
	$self->{injected}{$title}++;
	$self->wait_a_moment($random->fraction * 0.15);
	$self->_finish_sessions;
	$self->_ensure_server;
	return;
}

# Waits until no row is open, and returns what is wrong.
sub finish
{
	my ($self) = @_;
	my $begun = time;

	$self->{faults}->end;
	$self->set_url(undef);
	$self->_drain;
	$self->{say}->(sprintf('no row is open %d s after the last fault', time - $begun));
	ClerkTest::wait_until('whoever accepts or revokes has done so', sub { !$self->_is_anybody_undecided });
	$self->_sql('SET client_min_messages = error; CALL clerk_refresh_invitations();');

	my $workload = $self->{workload};
	return (
		$self->{ledger}->violations(
			outboxes => [ $self->{node} ],
			committed => $workload->{committed},
			rolled_back => $workload->{rolled_back},
			may_fail => $Workload::MAY_FAIL,
			synchronous => qr/^sync\b/,
			statuses => 1),
		$self->_crashes);
}

# Faults by kind, and rows by state, as lines of a table.  What others have
# invited before may be taken for ours when Clerk's clock was set back.
sub table
{
	my ($self) = @_;
	my $states = $self->{ledger}->states($self->{node});
	my $ledger = $self->{clerk}->ledger;
	my ($faults, $rows) = (0, 0);
	my @lines = ('faults');

	foreach my $title ($self->{faults}->titles)
	{
		push @lines, sprintf('  %-40s %6d', $title, $self->{injected}{$title} // 0);
		$faults += $self->{injected}{$title} // 0;
	}
	push @lines, sprintf('  %-40s %6d', 'all', $faults), 'rows of the outbox';
	foreach my $state (sort keys %$states)
	{
		push @lines, sprintf('  %-40s %6d', $state, $states->{$state});
		$rows += $states->{$state};
	}
	push @lines, sprintf('  %-40s %6d', 'all', $rows),
	  sprintf('  %-40s %6d', 'of others, taken for ours', $self->{ledger}->mistaken),
	  'invitations at Clerk';
	foreach my $origin (qw(client control))
	{
		push @lines, sprintf('  %-40s %6d',
			$origin eq 'client' ? 'created for the outbox' : 'created by others',
			scalar grep { $_->{origin} eq $origin } @{ $ledger->{invitations} });
	}
	push @lines, 'addresses',
	  map { sprintf('  %-40s %6d', $_->[0], scalar @{ $self->{workload}{ $_->[1] } }) }
	  [ 'reported as committed' => 'committed' ], [ 'rolled back' => 'rolled_back' ];
	return @lines;
}

# The kinds of faults that have not happened.
sub kinds_left_out
{
	my ($self) = @_;

	return grep { !$self->{injected}{$_} } $self->{faults}->titles;
}

# Faults, as Faults.pm calls them.

sub kill_sender
{
	my ($self) = @_;

	$self->_kill($self->_sender);
	return;
}

sub signal_sender
{
	my ($self, $function) = @_;

	$self->_try_sql("SELECT $function(" . $self->_sender . ')');
	return;
}

# One in the middle of a transaction.
sub kill_client
{
	my ($self) = @_;

	$self->_start_transaction;
	$self->_kill($self->_client);
	return;
}

sub terminate_clients
{
	my ($self) = @_;

	$self->_start_transaction;
	$self->_client;
	$self->_try_sql(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'client'));
	return;
}

sub kill_postmaster
{
	my ($self) = @_;

	$self->_end_server('KILL');
	return;
}

sub stop_at_once
{
	my ($self) = @_;

	$self->_end_server('QUIT');
	return;
}

sub let_senders_fight
{
	my ($self) = @_;

	$self->_enqueue_some;
	$self->start_sender("SET ledger.lose_lock = on;\n") for 1 .. 2;
	$self->start_sender;
	$self->wait_a_moment(0.3);
	return;
}

# Until the server has a response that Clerk has sent since then: a row that was
# claimed, or has begun to be looked up, since then is settled as sent.
sub await_response_since
{
	my ($self, $moment) = @_;
	my $sent = "SELECT count(*) FROM (SELECT FROM clerk_invitation_outbox
		WHERE state = 'sent' AND claimed_at > to_timestamp($moment) LIMIT 1) AS s";

	ClerkTest::wait_until(
		'Clerk has responded',
		sub {
			return 1 if $self->_try_sql($sent) eq "1\n";
			$self->_ensure_server;
			$self->_enqueue_some;
			$self->_try_sql('SET client_min_messages = error; CALL clerk_send_invitations();');
			return 0;
		});
	return;
}

# Until the server has noticed, but not for long.
sub fill_disk
{
	my ($self) = @_;
	my $filler = "$self->{disk}/filler";
	my $log = -s $self->{node}->logfile;
	my $until = time + 3;

	open(my $file, '>:raw', $filler) or croak "could not open $filler: $!";
	foreach my $size (1048576, 8192, 1)
	{
		while (syswrite($file, "\0" x $size)) { }
	}
	$self->start_sender;
	until (time > $until
		|| slurp_file($self->{node}->logfile, $log) =~ /No space left on device/)
	{
		$self->_enqueue_some;
		$self->wait_a_moment(0.02);
	}
	$self->wait_a_moment(0.3);
	close $file;
	unlink $filler or croak "could not remove $filler: $!";
	$self->_ensure_server;
	return;
}

# Where senders find Clerk; undef: where it is.
sub set_url
{
	my ($self, $url) = @_;

	$self->_ensure_server;
	$self->_sql($url ? "ALTER SYSTEM SET clerk_invite.api_url = '$url'" : 'ALTER SYSTEM RESET clerk_invite.api_url');
	$self->_sql('SELECT pg_reload_conf()');
	return;
}

# What is waited for is that something happens in the meantime.
sub wait_a_moment
{
	my ($self, $seconds) = @_;

	sleep($seconds);
	return;
}

# A session that sends, beside the worker.
sub start_sender
{
	my ($self, $settings) = @_;

	$self->_start_psql('sender', ($settings // '') . "CALL clerk_send_invitations();\n");
	return;
}

# The server.

# Its data may be on the small disk, its log is elsewhere.
sub _make_server
{
	my ($self) = @_;
	my $node = $self->{node} = clerk_cluster(
		'campaign', $self->{clerk},
		worker => 1,
		conf => $SETTINGS,
		extra => [ '--wal-segsize', '4' ]);

	$node->safe_psql('postgres', Workload::SCHEMA . $SCHEMA);
	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = '" . ClerkTest::library_name($node) . "'");
	$node->stop;
	if ($self->{disk})
	{
		my $data = $node->data_dir;

		system_or_bail('mv', $data, "$self->{disk}/data");
		symlink("$self->{disk}/data", $data) or croak "could not make a link: $!";
	}
	$self->_ensure_server;
	return;
}

# With SIGKILL its children notice that it is gone, and end; before that a
# server refuses to start.  SIGQUIT is what an immediate stop sends.
sub _end_server
{
	my ($self, $signal) = @_;
	my $postmaster = $self->_postmaster;

	kill($signal, $postmaster) if $postmaster;
	ClerkTest::wait_until('the server is gone', sub { !$self->_postmaster });
	$self->_ensure_server;
	return;
}

# Starts the server if it is not running, and waits until it takes connections.
sub _ensure_server
{
	my ($self) = @_;

	return if $self->_is_up;
	local $ENV{LD_PRELOAD} = $self->{name_server};
	ClerkTest::wait_until(
		'the server is up',
		sub {
			return 1 if $self->_is_up;
			unless ($self->_postmaster)
			{
				# The node does not know how it has ended.
				$self->{node}{_pid} = undef;
				$self->{node}->start(fail_ok => 1);
			}
			return 0;
		});
	return;
}

sub _is_up
{
	my ($self) = @_;

	return $self->_try_sql('SELECT 1') eq "1\n";
}

# Its process, if there is one; a file may be left of one that was killed.
sub _postmaster
{
	my ($self) = @_;
	my $file = $self->{node}->data_dir . '/postmaster.pid';
	my ($pid) = -s $file ? slurp_file($file) =~ /^(\d+)/ : 0;

	return 0 unless $pid && kill(0, $pid);
	# It may be a zombie, or somebody else's by now.
	return slurp_file("/proc/$pid/stat") =~ /^\d+ \(postgres\) [^ZX]/ ? $pid : 0;
}

# Kills a process of the server's, and waits until that has noticed, but not for
# long: the process may have been about to end by itself.
sub _kill
{
	my ($self, $pid) = @_;
	my $start = q(SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer');
	my $before = $self->_try_sql($start);
	my $until = time + $CRASH_PATIENCE;

	return unless $pid =~ /^\d+$/ && kill('KILL', $pid);
	ClerkTest::wait_until(
		'the server has got over it',
		sub {
			my $now = $self->_try_sql($start);

			return $now ne '' && ($now ne $before || time > $until);
		});
	return;
}

# The process that is sending, in the middle of that.
sub _sender
{
	my ($self) = @_;
	my $pid = 'NULL';

	for (1 .. 5)
	{
		$self->_enqueue_some;
		$self->start_sender;
		($pid) = $self->_try_sql("SELECT await_sender('1 s', " . $self->{random}->fraction * 0.05 . ')') =~ /(\d+)/;
		last if $pid;
		$self->_ensure_server;
	}
	return $pid // 'NULL';
}

# A client that has inserted, and will not commit.
sub _start_transaction
{
	my ($self) = @_;
	my $email = 'person.k' . ++$self->{number} . '@example.com';

	$self->_start_psql('client',
		"BEGIN;\nINSERT INTO members_by_row VALUES ('org_killed', '$email');\nSELECT pg_sleep(60);\nROLLBACK;\n");
	push @{ $self->{workload}{rolled_back} }, $email;
	return;
}

sub _client
{
	my ($self) = @_;
	my $pid;

	ClerkTest::wait_until(
		'a client is in its transaction',
		sub {
			($pid) = $self->_try_sql(
				q(SELECT pid FROM pg_stat_activity WHERE application_name = 'client' AND query LIKE 'SELECT pg_sleep%' LIMIT 1)) =~ /(\d+)/;
			return $pid;
		});
	return $pid;
}

# Something for a sender to do, in one organization and in others.
sub _enqueue_some
{
	my ($self) = @_;
	my @emails = map { 'person.f' . ++$self->{number} . '@example.com' } 1 .. 6;
	my $sql = 'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES '
	  . join(', ', map { "('org_" . ($_ < 3 ? 'fault' : "fault$self->{number}n$_") . "', '$emails[$_]', 'org:member')" } 0 .. $#emails);

	push @{ $self->{workload}{committed} }, @emails
	  if $self->_try_sql("$sql RETURNING 1") =~ /1/;
	return;
}

sub _invite
{
	my ($self, $organization, $email) = @_;

	# Ours may have been there before.
	eval { $self->{clerk}->control('invite', { organization_id => $organization, email_address => $email }); };
	return;
}

# Sessions.

# SQL that must succeed.
sub _sql
{
	my ($self, $sql) = @_;

	return Ledger::run_sql($self->_connection('campaign'), $sql);
}

# SQL that may fail; then returns ''.
sub _try_sql
{
	my ($self, $sql) = @_;

	return eval { $self->_sql($sql) } // '';
}

sub _connection
{
	my ($self, $name) = @_;

	return $self->{node}->connstr('postgres') . " application_name=$name";
}

sub _start_session
{
	my ($self, $work) = @_;

	$self->_start_psql('client', $work->{sql}, $work);
	return;
}

# Reads and writes files: a server that is started must not inherit pipes.
sub _start_psql
{
	my ($self, $name, $sql, $work) = @_;
	my $file = "$self->{folder}/session" . ++$self->{number};
	my @command = ('psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $self->_connection($name), '-f', "$file.sql");

	append_to_file("$file.sql", "SET statement_timeout = '${SESSION_PATIENCE}s';\n$sql");
	my $pid = fork() // croak "could not fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<', '/dev/null') or die;
		open(STDOUT, '>', "$file.out") or die;
		open(STDERR, '>', "$file.err") or die;
		exec(@command);
		die "could not run psql: $!";
	}
	push @{ $self->{sessions} }, { pid => $pid, name => $name, file => $file, work => $work };
	return;
}

sub _finish_sessions
{
	my ($self) = @_;

	foreach my $session (splice @{ $self->{sessions} })
	{
		waitpid($session->{pid}, 0);
		$self->{workload}->learn($session->{work}, slurp_file("$session->{file}.out"))
		  if $session->{work};
		unlink glob("$session->{file}.*");
	}
	return;
}

# Sends and retries until nothing is open.  A worker that has had many errors
# waits long, unless it is told to read its configuration again; each session
# looks up as much as it may.
sub _drain
{
	my ($self) = @_;
	my $until = time + $DRAIN_PATIENCE;
	my $retry = q(SELECT count(*) FROM (SELECT clerk_retry_invitation(id) FROM clerk_invitation_outbox
		WHERE state = 'failed' AND email_address LIKE 'x-error-422-form\_param\_value\_invalid-once--%') AS r);

	while (time < $until)
	{
		$self->_ensure_server;
		$self->_try_sql('SELECT pg_reload_conf()');
		$self->_try_sql('SET client_min_messages = error; CALL clerk_send_invitations();');
		return if $self->_try_sql($OPEN) eq "0\n" && $self->_try_sql($retry) eq "0\n";
	}
	return;
}

# Whether somebody is about to accept or revoke an invitation; see ledger.py.
sub _is_anybody_undecided
{
	my ($self) = @_;

	return grep {
		$_->{status} eq 'pending' && !$_->{deleted} && $_->{email_address} =~ /@(?:accepts|revokes)-/
	} @{ $self->{clerk}->ledger->{invitations} };
}

# What the server has not got over as it should: SIGKILL, which is ours, has
# number 9, and SIGQUIT is the postmaster's.  A disk that is full makes the
# server PANIC.
sub _crashes
{
	my ($self) = @_;
	my $log = slurp_file($self->{node}->logfile);
	my @crashes = grep { !/signal (?:9|3):/ } $log =~ /^.*was terminated by signal.*$/mg;

	push @crashes, grep { !/No space left on device/ } $log =~ /^.*(?:PANIC:|TRAP:|stack smashing).*$/mg;
	# A PANIC ends its process by SIGABRT.
	@crashes = grep { !/signal 6:/ } @crashes if $log =~ /PANIC:.*No space left on device/;
	return map { { kind => 'crash', text => $_ } } @crashes;
}

sub DESTROY
{
	my ($self) = @_;

	# Keep the test's own exit status.
	local ($?, $!);
	foreach my $session (@{ $self->{sessions} // [] })
	{
		kill('KILL', $session->{pid});
		waitpid($session->{pid}, 0);
	}
	return;
}

1;
