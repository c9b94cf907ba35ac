# Wherever its sender is killed, an invitation is sent once: the backend or the
# whole server, by SIGKILL, by an immediate stop, by cancel or terminate;
# before the claim commits, before or after the request has gone out, before
# the settling commits.  The fake Clerk's ledger is the judge.
use strict;
use warnings;

use ClerkTest;
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;

# The key of the lock that stops a commit.
my $LOCK = 4711;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $silent = MisbehavingServer->silent;

# A commit that does not wait for the disk is lost with the server, since
# nobody else writes the log meanwhile: whoever calls so must not lose a claim.
my $node = clerk_cluster(
	'main', $clerk,
	conf => q(
restart_after_crash = on
wal_writer_delay = '10s'
clerk_invite.request_timeout = '20s'
clerk_invite.bulk_requests_per_hour = 0
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
));

# Stops a sender's commit as long as another session has the lock: the claim's
# in a database where claims are stopped, the settling's in one of these.
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

# Where a sender is: how it is stopped there, how the test knows that it got
# there, and how often each row was sent by then.
my @points = (
	{
		name => 'before the claim commits',
		emails => [ map { "claim$_" } 1 .. 4 ],
		stop_at => 'sending',
		reached => \&waits_for_lock,
		state => 'queued',
		requests => [ (0) x 4 ]
	},
	{
		name => 'after the claim, before the send',
		emails => [ map { "unsent$_" } 1 .. 4 ],
		settings => "SET clerk_invite.api_url = '" . $silent->url('https') . "';",
		reached => sub { $silent->spoken_to },
		state => 'sending',
		requests => [ (0) x 4 ]
	},
	{
		name => 'after the send, before the answer',
		# Some of them Clerk has done, some it never will.
		emails => [
			'x-hang-after--1', 'x-slow-600000--2',
			'x-hang-once--3', 'x-hang-once--4', 'quick5'
		],
		reached => \&all_are_sent,
		state => 'sending',
		requests => [ (1) x 5 ]
	},
	{
		name => 'after the answer, before the settling commits',
		emails => [ map { "settle$_" } 1 .. 4 ],
		stop_at => 'sent',
		reached => \&waits_for_lock,
		state => 'sending',
		requests => [ (1) x 4 ]
	},
	{
		name => 'while looking up what was lost',
		emails => [ 'x-drop-after--1', 'x-drop-after--2', 'x-drop-once--3' ],
		lookup => 'hang',
		reached => \&all_are_looked_up,
		state => 'verifying',
		requests => [ (1) x 3 ]
	});

my @ways = (
	{ name => 'SIGKILL of the backend', end => \&kill_backend, crash => 1 },
	{
		name => 'SIGKILL of the postmaster',
		end => \&kill_postmaster,
		crash => 1
	},
	{ name => 'an immediate stop', end => \&stop_at_once, crash => 1 },
	{ name => 'pg_cancel_backend()', end => signals('pg_cancel_backend') },
	{
		name => 'pg_terminate_backend()',
		end => signals('pg_terminate_backend')
	});

foreach my $way (@ways)
{
	foreach my $point (@points)
	{
		check_end($way, $point);
	}
}

$node->stop;
done_testing();

# Ends a sender at that point in that way, and looks at what comes of its rows.
sub check_end
{
	my ($way, $point) = @_;
	my $title = "$way->{name} $point->{name}";
	my $tag = $title =~ s/\W+/-/gr;
	my $run = {
		point => $point,
		emails => [ map { "$_--$tag\@example.com" } @{ $point->{emails} } ]
	};

	begin_run($run);
	wait_until("a sender is there for $title",
		sub { $point->{reached}->($run) });
	is(states($run), join(' ', ($point->{state}) x @{ $run->{emails} }),
		"$title: all rows are $point->{state} when it happens");
	is_deeply([ map { requests($_) } @{ $run->{emails} } ],
		$point->{requests}, "$title: as many requests have been sent");

	$way->{end}->($run);
	end_run($run);
	is_deeply(
		[ grep { requests($_) > 1 } @{ $run->{emails} } ],
		[],
		"$title: nothing is sent before it is known what became of it");

	send_until_settled($node);
	is(states($run), join(' ', ('sent') x @{ $run->{emails} }),
		"$title: every row is sent in the end");
	is_deeply(
		[ map { created($_) } @{ $run->{emails} } ],
		[ own_invitations($run) ],
		"$title: each has one invitation, which is the row's");
	my @once = grep { !/^x-\w+-once/ } @{ $run->{emails} };
	is_deeply([ map { requests($_) } @once ],
		[ (1) x @once ], "$title: and was sent once, unless Clerk never had it")
	  if $point->{state} ne 'sending' || $point->{requests}[0];
	return;
}

# Rows, and a sender on its way.
sub begin_run
{
	my ($run) = @_;
	my $point = $run->{point};
	my $settings = $point->{settings} // '';

	$node->safe_psql(
		'postgres',
		'TRUNCATE stop_at;'
		  . join(
			'',
			map {
				"SELECT clerk_enqueue_organization_invitation('org_test', NULL, '$_', 'org:member');"
			} @{ $run->{emails} }));
	if ($point->{lookup})
	{
		$clerk->control(
			'misbehave',
			{
				operation => 'ListOrganizationInvitations',
				behaviour => $point->{lookup},
				times => scalar @{ $run->{emails} }
			});
	}
	$run->{holder} = start_psql($node, '');
	if ($point->{stop_at})
	{
		$node->safe_psql('postgres',
			"INSERT INTO stop_at VALUES ('$point->{stop_at}')");
		run_in_psql($run->{holder}, "SELECT pg_advisory_lock($LOCK);");
	}
	$run->{sender} = start_psql($node, '', '-v', 'VERBOSITY=verbose');
	($run->{pid}) = run_in_psql($run->{sender},
		"SET synchronous_commit = off; $settings SELECT pg_backend_pid();");
	chomp $run->{pid};
	send_to_psql($run->{sender}, 'CALL clerk_send_invitations();');
	return;
}

# The sender is gone, or free; nothing stops the next one.
sub end_run
{
	my ($run) = @_;

	end_sessions($run);
	$node->safe_psql('postgres', 'TRUNCATE stop_at');
	return;
}

# A server that is started must not inherit their pipes: they would not end.
sub end_sessions
{
	my ($run) = @_;

	foreach my $psql (delete @{$run}{qw(holder sender)})
	{
		$psql->{harness}->finish if $psql;
	}
	return;
}

sub waits_for_lock
{
	my ($run) = @_;

	return $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
		  . " AND pid = $run->{pid} AND NOT granted") eq '1';
}

sub all_are_sent
{
	my ($run) = @_;

	return !grep { !requests($_) } @{ $run->{emails} };
}

sub all_are_looked_up
{
	my ($run) = @_;
	my %looked_up =
	  map { ($_->{query}{email_address}[0] // '') => 1 } $clerk->journal;

	return !grep { !$looked_up{$_} } @{ $run->{emails} };
}

# The server notices that one of its processes has died, and starts anew.
sub kill_backend
{
	my ($run) = @_;
	my $before = start_of_server();

	kill('KILL', $run->{pid}) or die "could not kill: $!";
	wait_until(
		'the server is up again',
		sub {
			my $now = eval { start_of_server() } // '';
			return $now ne '' && $now ne $before;
		});
	return;
}

# Its children notice that it is gone, and end; before that a server refuses to
# start.
sub kill_postmaster
{
	my ($run) = @_;
	my ($postmaster) =
	  slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	$node->kill9;
	wait_until('server and sender are gone',
		sub { !kill(0, $postmaster) && !kill(0, $run->{pid}) });
	end_sessions($run);
	wait_until('the server starts', sub { $node->start(fail_ok => 1) });
	return;
}

sub stop_at_once
{
	my ($run) = @_;

	$node->stop('immediate');
	end_sessions($run);
	$node->start;
	return;
}

# A way that calls one of PostgreSQL's functions that signal a backend.
sub signals
{
	my ($function) = @_;

	return sub {
		my ($run) = @_;

		$node->safe_psql('postgres', "SELECT $function($run->{pid})");
		my (undef, $stderr) = output_of_psql($run->{sender});
		like($stderr, qr/(?:ERROR|FATAL):  57(?:014|P01):/,
			"$function ends the CALL");
		return;
	};
}

# Changes with each start, also after a crash.
sub start_of_server
{
	my ($stdout, $stderr);
	my $failed = $node->psql(
		'postgres',
		"SELECT pid, backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'",
		stdout => \$stdout,
		stderr => \$stderr);

	return $failed ? '' : $stdout;
}

# The states of a run's rows, in their order.
sub states
{
	my ($run) = @_;

	return $node->safe_psql('postgres',
		    "SELECT string_agg(state, ' ' ORDER BY id) "
		  . 'FROM clerk_invitation_outbox WHERE '
		  . of_run($run));
}

# What the fake must have for each of a run's rows, by what they say.
sub own_invitations
{
	my ($run) = @_;

	return split(
		/\n/,
		$node->safe_psql('postgres',
			'SELECT invitation_id FROM clerk_invitation_outbox WHERE '
			  . of_run($run)
			  . ' ORDER BY id'));
}

sub of_run
{
	my ($run) = @_;

	return
	  'email_address IN ('
	  . join(', ', map { "'$_'" } @{ $run->{emails} }) . ')';
}

# The invitations that were ever created for an address, in one text.
sub created
{
	my ($email) = @_;

	return join(' ', map { $_->{id} } $clerk->invitations_for($email));
}

# How often Clerk was asked to invite an address.
sub requests
{
	my ($email) = @_;

	return scalar(() = $clerk->requests_for($email));
}
