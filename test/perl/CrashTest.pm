# CrashTest - ends a sender at a chosen point, and looks at what comes of it
#
#	my $crash = CrashTest->new($node, $clerk, 'CALL');
#	$crash->check($way, $point) foreach ...
#
# The fake Clerk's ledger is the judge: whatever has happened, each address has
# one invitation in the end, and none is lost.

package CrashTest;

use strict;
use warnings;

use Exporter 'import';
use ClerkTest;
use MisbehavingServer;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  $CRASH_SETTINGS
  %CRASH_POINTS
  @CRASH_WAYS
  @STOP_WAYS
);

# A commit that does not wait for the disk is lost with the server, since
# nobody else writes the log meanwhile: no sender may lose a claim so.
our $CRASH_SETTINGS = q(
restart_after_crash = on
wal_writer_delay = '10s'
clerk_invite.request_timeout = '20s'
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
);

# The key of the lock that stops a commit.
my $LOCK = 4711;

# Where a sender is: how it is stopped there, how the test knows that it got
# there, in which state all rows are then, and how often each was sent.
our %CRASH_POINTS = (
	claim => {
		title => 'before the claim commits',
		stop_at => 'sending',
		reached => \&_waits_for_lock,
		state => 'queued',
		requests => 0
	},
	unsent => {
		title => 'after the claim, before the send',
		silent => 1,
		reached => sub { $_[0]{silent}->spoken_to },
		state => 'sending',
		requests => 0
	},
	answer => {
		title => 'after the send, before the answer',
		reached => \&_all_are_sent,
		state => 'sending',
		requests => 1
	},
	settle => {
		title => 'after the answer, before the settling commits',
		stop_at => 'sent',
		reached => \&_waits_for_lock,
		state => 'sending',
		requests => 1
	},
	lookup => {
		title => 'while looking up what was lost',
		lookup => 'hang',
		reached => \&_all_are_looked_up,
		state => 'verifying',
		requests => 1
	});

# How it ends there.
our @CRASH_WAYS = (
	{ title => 'SIGKILL of the sender', end => \&_kill_sender },
	{ title => 'SIGKILL of the postmaster', end => \&_kill_postmaster },
	{ title => 'an immediate stop', end => \&_stop_at_once });
our @STOP_WAYS = map {
	{ title => "$_()", end => _signals($_) }
} qw(pg_cancel_backend pg_terminate_backend);

# The sender is 'CALL' or 'worker'.  If it is the worker, the library must be
# preloaded, so that there is another one after the crash.
sub new
{
	my ($class, $node, $clerk, $sender) = @_;
	my $self = bless {
		node => $node,
		clerk => $clerk,
		sender => $sender
	}, $class;

	# Stops a sender's commit as long as another session has the lock.
	$node->safe_psql(
		'postgres', qq(
		CREATE TABLE stop_at (state text);
		CREATE FUNCTION stop_commit() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			PERFORM pg_catalog.pg_advisory_xact_lock_shared($LOCK)
				FROM public.stop_at AS s WHERE s.state = NEW.state;
			RETURN NULL;
		END \$\$;
		CREATE CONSTRAINT TRIGGER stop_commit
			AFTER UPDATE ON clerk_invitation_outbox
			DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION stop_commit();));
	$node->safe_psql('postgres',
		'ALTER DATABASE postgres SET synchronous_commit = off');
	return $self;
}

# Ends a sender of these rows at that point in that way, and looks at what
# comes of them.  The rows are lists of local parts, each list for an
# organization of its own; one with x-NAME-once Clerk does not get at first.
sub check
{
	my ($self, $way, $point, @lists) = @_;
	my $title = "$self->{sender}: $way->{title} $point->{title}";
	my $tag = $title =~ s/\W+/-/gr;
	my $org = 'org_' . ($title =~ s/[\W_]//gr);
	my $number = 0;

	local @{$self}{qw(point emails)} = ($point, []);
	my @rows = map {
		my $list = $_;
		my $id = $org . ++$number;
		map { [ $id, "$_--$tag\@example.com" ] } @$list;
	} @lists;
	my @emails = map { $_->[1] } @rows;
	my @once = map {
		my $list = $_;
		(!grep { /^x-\w+-once/ } @$list) x @$list
	} @lists;
	$self->{emails} = \@emails;

	$self->_begin(@rows);
	wait_until("a sender is there for $title",
		sub { $self->{pid} && $point->{reached}->($self) });
	is($self->_states, join(' ', ($point->{state}) x @emails),
		"$title: all rows are $point->{state} when it happens");
	is_deeply([ $self->_requests ], [ ($point->{requests}) x @emails ],
		"$title: as many requests have been sent");

	$self->_reset;
	$way->{end}->($self);
	$self->_end_sessions;
	$self->_settle($title);
	is($self->_states, join(' ', ('sent') x @emails),
		"$title: every row is sent in the end");
	is_deeply(
		[ $self->_created ],
		[ $self->_own_invitations ],
		"$title: each has one invitation, which is the row's");

	my @requests = $self->_requests;
	is_deeply(
		[ map { $requests[$_] > 1 && $once[$_] ? $emails[$_] : () } 0 .. $#emails ],
		[],
		"$title: and was sent once, unless Clerk never had it")
	  if $point->{state} ne 'sending' || $point->{requests};
	return;
}

# Rows, and a sender on its way.
sub _begin
{
	my ($self, @rows) = @_;
	my $point = $self->{point};
	my $silent = $self->{silent} = MisbehavingServer->silent;
	my $url = $silent->url('https');
	my $insert =
		'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES '
	  . join(', ', map { "('$_->[0]', '$_->[1]', 'org:member')" } @rows);

	$self->{node}->safe_psql('postgres', 'TRUNCATE stop_at');
	$self->_end_worker if $self->{sender} eq 'worker';
	$self->{clerk}->control(
		'misbehave',
		{
			operation => 'ListOrganizationInvitations',
			behaviour => $point->{lookup},
			times => scalar @rows
		}) if $point->{lookup};
	if ($point->{stop_at})
	{
		$self->{holder} = start_psql($self->{node}, '');
		$self->{node}->safe_psql('postgres',
			"INSERT INTO stop_at VALUES ('$point->{stop_at}')");
		run_in_psql($self->{holder}, "SELECT pg_advisory_lock($LOCK);");
	}
	if ($self->{sender} eq 'worker')
	{
		$self->{node}->safe_psql('postgres',
			"ALTER DATABASE postgres SET clerk_invite.api_url = '$url'")
		  if $point->{silent};
		$self->{node}->safe_psql('postgres',
			"SET synchronous_commit = on; $insert");
		wait_until('there is a worker',
			sub { $self->{pid} = worker_of($self->{node}, 'postgres') });
		return;
	}
	$self->{node}->safe_psql('postgres', "SET synchronous_commit = on; $insert");
	$self->{psql} = start_psql(
		$self->{node},
		$point->{silent} ? "SET clerk_invite.api_url = '$url';" : '',
		'-v', 'VERBOSITY=verbose');
	$self->{pid} = backend_of($self->{psql});
	send_to_psql($self->{psql}, 'CALL clerk_send_invitations();');
	return;
}

# There is no worker, and nothing that one would do.
sub _end_worker
{
	my ($self) = @_;

	wait_until(
		'nothing is open',
		sub {
			return $self->{node}->safe_psql('postgres',
				'SELECT count(*) FROM clerk_invitation_outbox '
				  . "WHERE state IN ('queued', 'sending', 'verifying')") eq '0';
		});
	$self->{node}->safe_psql('postgres',
		'SELECT pg_terminate_backend(pid) FROM clerk_worker_status() WHERE pid IS NOT NULL');
	wait_until_gone($self->{node});
	return;
}

# What the next sender must not find.
sub _reset
{
	my ($self) = @_;

	$self->{node}->safe_psql('postgres',
		'SET synchronous_commit = on; ALTER DATABASE postgres RESET clerk_invite.api_url')
	  if $self->{point}{silent};
	return;
}

# A server that is started must not inherit their pipes: they would not end.
sub _end_sessions
{
	my ($self) = @_;

	foreach my $psql (delete @{$self}{qw(holder psql)})
	{
		$psql->{harness}->finish if $psql;
	}
	return;
}

# All is sent, by a worker that nobody has called, or by another CALL.
sub _settle
{
	my ($self, $title) = @_;

	if ($self->{sender} eq 'worker')
	{
		wait_until("all is sent after $title",
			sub { $self->_states !~ /queued|sending|verifying/ });
		return;
	}
	is_deeply([ grep { $_ > 1 } $self->_requests ],
		[], "$title: nothing is sent before it is known what became of it");
	$self->{node}->safe_psql('postgres', 'TRUNCATE stop_at');
	send_until_settled($self->{node});
	return;
}

sub _waits_for_lock
{
	my ($self) = @_;

	return $self->{node}->safe_psql('postgres',
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
		  . " AND pid = $self->{pid} AND NOT granted") eq '1';
}

sub _all_are_sent
{
	my ($self) = @_;

	return !grep { !$_ } $self->_requests;
}

sub _all_are_looked_up
{
	my ($self) = @_;
	my %looked_up =
	  map { ($_->{query}{email_address}[0] // '') => 1 }
	  $self->{clerk}->journal;

	return !grep { !$looked_up{$_} } @{ $self->{emails} };
}

# The server notices that one of its processes has died, and starts anew.
sub _kill_sender
{
	my ($self) = @_;

	return kill_process($self->{node}, $self->{pid});
}

# Its children notice that it is gone, and end; before that a server refuses to
# start.
sub _kill_postmaster
{
	my ($self) = @_;
	my $node = $self->{node};
	my ($postmaster) =
	  slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	$node->kill9;
	wait_until('server and sender are gone',
		sub { !kill(0, $postmaster) && !kill(0, $self->{pid}) });
	$self->_end_sessions;
	wait_until('the server starts', sub { $node->start(fail_ok => 1) });
	return;
}

sub _stop_at_once
{
	my ($self) = @_;

	$self->{node}->stop('immediate');
	$self->_end_sessions;
	$self->{node}->start;
	return;
}

# A way that calls one of PostgreSQL's functions that signal a backend.
sub _signals
{
	my ($function) = @_;

	return sub {
		my ($self) = @_;

		$self->{node}->safe_psql('postgres', "SELECT $function($self->{pid})");
		my (undef, $stderr) = output_of_psql($self->{psql});
		like($stderr, qr/(?:ERROR|FATAL):  57(?:014|P01):/,
			"$function ends the CALL");
		return;
	};
}

# The states of the rows, in their order.
sub _states
{
	my ($self) = @_;

	return $self->{node}->safe_psql('postgres',
		    "SELECT string_agg(state, ' ' ORDER BY id) "
		  . 'FROM clerk_invitation_outbox WHERE '
		  . $self->_of_run);
}

# What the fake must have for each of the rows, by what they say.
sub _own_invitations
{
	my ($self) = @_;

	return split(
		/\n/,
		$self->{node}->safe_psql('postgres',
			'SELECT invitation_id FROM clerk_invitation_outbox WHERE '
			  . $self->_of_run
			  . ' ORDER BY id'));
}

sub _of_run
{
	my ($self) = @_;

	return
	  'email_address IN ('
	  . join(', ', map { "'$_'" } @{ $self->{emails} }) . ')';
}

# The invitations that were ever created for each address, in one text.
sub _created
{
	my ($self) = @_;
	my %created;

	push @{ $created{ $_->{email_address} } }, $_->{id}
	  foreach $self->{clerk}->all_invitations;
	return map { join(' ', @{ $created{$_} // [] }) } @{ $self->{emails} };
}

# How often Clerk was asked to invite each address.
sub _requests
{
	my ($self) = @_;
	my %times;

	foreach my $request ($self->{clerk}->journal)
	{
		my $body = $request->{body};

		$times{ $_->{email_address} // '' }++
		  foreach ref $body eq 'ARRAY' ? @$body : ref $body eq 'HASH' ? $body : ();
	}
	return map { $times{$_} // 0 } @{ $self->{emails} };
}

1;
