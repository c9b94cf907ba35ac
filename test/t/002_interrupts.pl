# Whatever PostgreSQL wants of a session that waits for Clerk happens at once,
# in every phase of a request: Ctrl-C, pg_cancel_backend(), statement_timeout,
# pg_terminate_backend(), the postmaster's death.
use strict;
use warnings;

use ClerkTest;
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC time);

# Milliseconds that an end may take, in the best of so many attempts: the
# machine may have other things to do.
my $PROMPT = 200;
my $ATTEMPTS = 3;

# The statement_timeout, in milliseconds: long enough to reach each phase.
my $STATEMENT_TIMEOUT = 400;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $unreachable = MisbehavingServer->unreachable;
my $silent = MisbehavingServer->silent;
my $name_server = MisbehavingServer::hung_name_server();
my $node;
{
	local $ENV{LD_PRELOAD} = $name_server;
	$node = clerk_cluster('main', $clerk);
}
my $observer = start_psql($node, '');
my $invited = 0;

# Servers before 17 know no names for what an extension waits for.
my ($version) = slurp_file($node->data_dir . '/PG_VERSION') =~ /^(\d+)/;
my $wait_event = $version < 17 ? 'Extension' : 'ClerkInviteHttp';

# What a session waits for, whether it has got so far, and whether Clerk may
# have the request by then.
my @phases = (
	{
		name => 'while the name server hangs',
		url => 'https://hung.invalid',
		reached => sub { 1 },
		also => \&check_resolver_thread
	},
	{
		name => 'while connecting hangs',
		url => $unreachable->url,
		reached => sub { 1 }
	},
	{
		name => 'in a stalled TLS handshake',
		url => $silent->url('https'),
		reached => sub { $silent->spoken_to }
	},
	{
		name => 'while the answer is awaited',
		url => $clerk->url,
		behaviour => 'hang',
		sent => 1,
		reached => sub { scalar $clerk->requests_for($_[0]) }
	},
	{
		name => 'while the answer trickles in',
		url => $clerk->url,
		behaviour => 'trickle',
		sent => 1,
		# The fake sends a byte every tenth of a second.
		reached => sub {
			my ($request) = $clerk->requests_for($_[0]);
			return $request && time * 1000 > $request->{time} + 250;
		}
	});

my @ways = (
	{ name => 'Ctrl-C', end => \&press_ctrl_c, sqlstate => '57014' },
	{
		name => 'pg_cancel_backend()',
		end => sub { signal_backend('pg_cancel_backend', @_) },
		sqlstate => '57014',
		session_stays => 1
	},
	{
		name => 'statement_timeout',
		end => \&await_statement_timeout,
		sqlstate => '57014',
		session_stays => 1
	},
	{
		name => 'pg_terminate_backend()',
		end => sub { signal_backend('pg_terminate_backend', @_) },
		sqlstate => '57P01'
	});

foreach my $phase (@phases)
{
	foreach my $way (@ways)
	{
		check_end($phase, $way);
	}
}
check_postmaster_death($_) foreach @phases;

$observer->{harness}->finish;
$node->stop;
done_testing();

# Ends an invitation in that phase in that way, and looks at what comes of it.
sub check_end
{
	my ($phase, $way) = @_;
	my $title = "$way->{name} $phase->{name}";
	my $best;

	for (1 .. $ATTEMPTS)
	{
		my $run = end_invitation($phase, $way);

		$best = $run if !$best || $run->{took} < $best->{took};
		last if $best->{took} < $PROMPT;
	}
	cmp_ok($best->{took}, '<', $PROMPT,
		"$title ends the statement within $PROMPT ms");
	my @sqlstates = $best->{stderr} =~ /(?:ERROR|FATAL):  (\w{5}):/g;
	is("@sqlstates", $way->{sqlstate}, "$title gives $way->{sqlstate}");
	if ($phase->{sent})
	{
		like(
			$best->{stderr},
			qr/WARNING:  08007: .*had already been sent.*(?:ERROR|FATAL):/s,
			"$title comes with a warning first, since the request had been sent"
		);
	}
	else
	{
		unlike($best->{stderr}, qr/WARNING/,
			"$title comes without a warning, since nothing had been sent");
	}
	return;
}

# Returns how long the end took, in milliseconds, and what psql said.
sub end_invitation
{
	my ($phase, $way) = @_;
	my $run = new_run($phase, $way);

	$way->{end}->($run);
	return $run;
}

# An invitation that is to be ended in that phase in that way.
sub new_run
{
	my ($phase, $way) = @_;
	my $name = $phase->{behaviour} ? "x-$phase->{behaviour}" : 'invite';
	my $email = "$name--" . ++$invited . '@example.com';

	return {
		title => "$way->{name} $phase->{name}",
		email => $email,
		reached => $phase->{reached},
		also => $phase->{also},
		invite => invite($email),
		set_url => "SET clerk_invite.api_url = '$phase->{url}'"
	};
}

# psql runs what -c says also after a Ctrl-C, but would end a script.
sub press_ctrl_c
{
	my ($run) = @_;
	my $next = "next-$run->{email}" =~ s/x-//r;
	my $psql = start_psql(
		$node, '',
		'-v', 'VERBOSITY=verbose',
		'-c', $run->{set_url},
		'-c', $run->{invite},
		'-c', '\\warn the statement has ended',
		'-c', 'RESET clerk_invite.api_url',
		'-c', invite($next));

	wait_until_reached($run);
	my $pressed = now();
	$psql->{harness}->signal('INT');
	# It may end before it was given an input, which it does not need.
	eval { $psql->{harness}->pump; }
	  until $psql->{stderr} =~ /has ended/ || $psql->{timer}->is_expired;
	$run->{took} = now() - $pressed;
	$psql->{harness}->finish;
	$run->{stderr} = $psql->{stderr};
	is(scalar $clerk->requests_for($next),
		1, "after $run->{title} the session invites again");
	return;
}

# Calls one of PostgreSQL's functions that signal a backend.
sub signal_backend
{
	my ($function, $run) = @_;
	my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');

	run_in_psql($psql, "$run->{set_url};");
	send_to_psql($psql, "$run->{invite};");
	my $pid = wait_until_reached($run);
	my $signaled = now();
	run_in_psql($observer, "SELECT $function($pid);");
	(undef, $run->{stderr}) = output_of_psql($psql);

	# A session that ends takes its process along.
	wait_until("the process of $run->{title} is gone", sub { !kill(0, $pid) })
	  if $function eq 'pg_terminate_backend';
	$run->{took} = now() - $signaled;
	check_session_works($psql, $run) if $function eq 'pg_cancel_backend';
	$psql->{harness}->finish;
	return;
}

sub await_statement_timeout
{
	my ($run) = @_;
	my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');

	run_in_psql($psql,
		"$run->{set_url}; SET statement_timeout = $STATEMENT_TIMEOUT;");
	my $begun = now();
	(undef, $run->{stderr}) = run_in_psql($psql, "$run->{invite};");
	$run->{took} = now() - $begun - $STATEMENT_TIMEOUT;
	ok($run->{reached}->($run->{email}),
		"$run->{title} has something to end");
	check_session_works($psql, $run);
	$psql->{harness}->finish;
	return;
}

# Kills the postmaster while an invitation is in that phase: nobody can tell
# the session to end, and its client may never look.
sub check_postmaster_death
{
	my ($phase) = @_;
	my $best;

	for (1 .. $ATTEMPTS)
	{
		my $took = end_with_postmaster($phase);

		$best = $took if !defined $best || $took < $best;
		last if $best < $PROMPT;
	}
	cmp_ok($best, '<', $PROMPT,
		"the postmaster's death $phase->{name} ends the session within $PROMPT ms"
	);
	return;
}

# Returns how long the end took, in milliseconds.
sub end_with_postmaster
{
	my ($phase) = @_;
	my $run = new_run($phase, { name => "the postmaster's death" });
	my $psql = start_psql($node, '');

	run_in_psql($psql, "$run->{set_url};");
	send_to_psql($psql, "$run->{invite};");
	my $pid = wait_until_reached($run);
	my ($postmaster) =
	  slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	my $killed = now();
	$node->kill9;
	# It ends with its connection.
	output_of_psql($psql);
	my $took = now() - $killed;

	foreach my $client ($psql, $observer)
	{
		eval { $client->{harness}->finish; };
	}
	wait_until('server and session are gone',
		sub { !kill(0, $postmaster) && !kill(0, $pid) });

	local $ENV{LD_PRELOAD} = $name_server;
	wait_until('the server starts', sub { $node->start(fail_ok => 1) });
	$observer = start_psql($node, '');
	return $took;
}

# Whether another statement and another invitation succeed in a session.
sub check_session_works
{
	my ($psql, $run) = @_;
	my $email = "next-$run->{email}" =~ s/x-//r;

	my ($stdout) = run_in_psql($psql,
		"RESET clerk_invite.api_url; SELECT 'usable'; "
		  . invite($email, 'status')
		  . ';');
	is($stdout, "usable\npending\n",
		"after $run->{title} the session is usable and invites again");
	return;
}

# Waits until the invitation of a run is in its phase; returns the backend.
sub wait_until_reached
{
	my ($run) = @_;
	my $pid;

	wait_until(
		"an invitation is in the phase of $run->{title}",
		sub {
			my ($stdout) = run_in_psql($observer,
				    'SELECT pid FROM pg_stat_activity '
				  . "WHERE wait_event_type = 'Extension' "
				  . "AND wait_event = '$wait_event' "
				  . "AND state = 'active' "
				  . "AND query LIKE '%''$run->{email}''%' "
				  . 'AND pid <> pg_backend_pid();');

			($pid) = $stdout =~ /(\d+)/;
			return $pid && $run->{reached}->($run->{email});
		});
	$run->{also}->($run, $pid) if $run->{also};
	return $pid;
}

# PostgreSQL's signal handlers must not run in a thread of libcurl's.
sub check_resolver_thread
{
	my ($run, $pid) = @_;
	my @threads = grep { !m{/$pid$} } glob("/proc/$pid/task/*");

  SKIP:
	{
		skip 'this system does not show threads in /proc', 1
		  unless -e "/proc/$pid/task/$pid/status";

		my @blocked = map {
			slurp_file("$_/status") =~ /^SigBlk:\s*([0-9a-f]+)$/m ? $1 : ''
		} @threads;
		my @deaf = grep { blocks_everything($_) } @blocked;
		ok(@threads > 0 && @deaf == @threads,
			"libcurl's thread blocks all signals before $run->{title}")
		  or diag("blocked: @blocked");
	}
	return;
}

# Whether a mask as /proc shows it has all signals in it.  SIGKILL and SIGSTOP
# never are, and 32 to 34 are the C library's own.
sub blocks_everything
{
	my ($mask) = @_;
	my $bits = reverse unpack('B*', pack('H*', $mask));
	my @missing =
	  grep { substr($bits, $_ - 1, 1) eq '0' } 1 .. length $bits;

	return length $bits >= 64
	  && !grep { $_ != 9 && $_ != 19 && ($_ < 32 || $_ > 34) } @missing;
}

sub now
{
	return clock_gettime(CLOCK_MONOTONIC) * 1000;
}
