# demo.sh shows the main job in less than two minutes, and leaves no file and no
# process behind; nor does it when it fails, or is stopped half-way.  A server
# that the caller's environment tells of is neither asked nor stopped.
#
# pg_cron looks at its jobs once a minute, which is what most of the time goes
# to.
use strict;
use warnings;

use Checkout;
use ClerkTest;
use CronTest;
use PostgreSQL::Test::Utils;
use Test::More;

skip_without_pg_cron();

# The caller's own server, as far as pg_ctl looks at it: who wants to stop it
# sends SIGQUIT to this test.
my $stopped = 0;
my $data = PostgreSQL::Test::Utils::tempdir();
local $SIG{QUIT} = sub { $stopped++ };
append_to_file("$data/postmaster.pid", "$$\n$data\n");
append_to_file("$data/PG_VERSION", "15\n");
my %environment = (
	PGDATA => $data,
	PGHOST => '/nowhere',
	PGHOSTADDR => '127.0.0.1',
	PGPORT => 1,
	PGDATABASE => 'nowhere',
	PGUSER => 'nobody',
	PGOPTIONS => '-c nonsense=on',
	PGSERVICE => 'nowhere');

check_installing();
check_failures();
check_stopped();
check_real_invitation();
check_usage();
check_demonstration();
is($stopped, 0, "the caller's own server is let alone");

done_testing();

# What is done with root's privileges when packages are missing, by a user who
# may use sudo: the setting that keeps them from making a cluster goes again.
sub check_installing
{
	my $log = PostgreSQL::Test::Utils::tempdir() . '/log';
	my $programs = PostgreSQL::Test::Utils::tempdir();
	my $folder = '/etc/postgresql-common/createcluster.d';
	my $install = 'set -eu; . test/machine.sh; install_packages no-such-package';

	append_to_file("$programs/sudo", <<'EOF');
#!/bin/sh
echo "$*" >>"$SUDO_LOG"
case "$*" in
	*apt-get*) eval "$APT_GET" ;;
	tee*) cat >/dev/null ;;
esac
EOF
	chmod(0755, "$programs/sudo") or die "could not chmod: $!";
	foreach my $case (
		[ 'are installed', ':', 0 ],
		[ 'cannot be installed', 'exit 100', 100 ],
		[ 'are being installed when Ctrl-C is pressed', 'kill -INT $PPID', 130 ])
	{
		my ($title, $apt_get, $status) = @$case;
		my $checkout = Checkout->new;
		my $run = $checkout->finish(
			$checkout->start(
				[ '-c', $install ],
				PATH => "$programs:$ENV{PATH}",
				SUDO_LOG => $log,
				APT_GET => $apt_get));

		is($run->{status}, $status, "packages $title: that is the status")
		  or diag($run->{stderr});
		is_deeply(
			[ split(/\n/, slurp_file($log)) ],
			[
				"mkdir -p $folder",
				"tee $folder/clerk_invite.conf",
				'env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq'
				  . ' --no-install-recommends no-such-package',
				"rm -f $folder/clerk_invite.conf",
				-d $folder
				? ()
				: "rmdir -p --ignore-fail-on-non-empty $folder"
			],
			'... and nothing of ours stays in the configuration');
		unlink $log;
	}
	return;
}

sub check_failures
{
	my $checkout = Checkout->new;

	fails('the server is not there to build for',
		$checkout, qr/pg_config/, PG_CONFIG => '/nowhere/pg_config');

	foreach my $case (
		[
			'the fake Clerk does not start', 'test/fake_clerk.py',
			qr/^import /m, "raise SystemExit('no Clerk')\nimport ",
			qr/no Clerk/
		],
		[
			'the server does not start', 'test/run_demo.sh',
			qr/'pg_cron'/, "'no_such_library'", qr/no_such_library/
		],
		[
			'a statement fails', 'test/run_demo.sh',
			qr/INSERT INTO members/, 'INSERT INTO nobodies',
			qr/"nobodies" does not exist/
		])
	{
		my ($title, $file, $pattern, $text, $said) = @$case;

		$checkout = Checkout->new;
		$checkout->with_what_is_built;
		$checkout->change($file, $pattern, $text);
		fails($title, $checkout, $said);
	}
	return;
}

sub fails
{
	my ($title, $checkout, $said, %more) = @_;
	my $run = $checkout->run('test/demo.sh', %environment, %more);

	isnt($run->{status}, 0, "the demonstration fails if $title");
	like("$run->{stdout}$run->{stderr}", $said, '... and says so');
	is_deeply([ $checkout->left_behind ],
		[], '... and leaves no file and no process behind');
	return;
}

# As Ctrl-C does it, a terminal that is closed, and a service manager.
sub check_stopped
{
	foreach my $case (
		[ INT => qr/What Clerk received/ ],
		[ HUP => qr/Nobody listens/ ],
		[ TERM => qr/Clerk is back/ ])
	{
		my ($signal, $moment) = @$case;
		my $checkout = Checkout->new;

		$checkout->with_what_is_built;
		my $run = $checkout->start(['test/demo.sh'], %environment);
		$checkout->wait_for($run, $moment);
		$checkout->signal_group($run, $signal);
		$checkout->finish($run);
		isnt($run->{status}, 0, "SIG$signal stops the demonstration");
		unlike($run->{stdout}, qr/cleo/, '... before its end');
		is_deeply([ $checkout->left_behind ],
			[], '... and leaves no file and no process behind');
	}
	return;
}

# What is done with a real key, with a Clerk that is none.
sub check_real_invitation
{
	my $clerk = ClerkTest::Fake->start;
	my $checkout = Checkout->new;
	my $invite = sub {
		my $run = $checkout->start(
			[ 'test/demo.sh', 'org_real', @_ ],
			%environment,
			CLERK_SECRET_KEY => $ClerkTest::KEY,
			CLERK_API_URL => $clerk->url);

		return $checkout->finish($run);
	};

	$checkout->with_what_is_built;
	my $run = $invite->('eve@example.com');
	is($run->{status}, 0, 'a real invitation succeeds')
	  or diag($run->{stderr});
	like($run->{stdout},
		qr/^ orginv_\w+ +\| eve\@example\.com +\| org:member +\| pending +\| \d/m,
		'... and is shown');
	is_deeply(
		[ map { "$_->{path} $_->{body}{email_address}" } $clerk->journal ],
		['/v1/organizations/org_real/invitations eve@example.com'],
		'... and is all that Clerk is asked for');
	isnt($invite->('member1@example.com')->{status},
		0, 'a real invitation that Clerk refuses is a failure');
	is_deeply([ $checkout->left_behind ],
		[], '... and neither leaves a file or a process behind');
	ok(index($run->{stdout} . $run->{stderr}, $ClerkTest::KEY) < 0
		  && index($run->{stdout}, 'ticket=') < 0,
		'... or shows the key or the url');
	return;
}

sub check_usage
{
	my $checkout = Checkout->new;

	foreach my $case (
		[ 'an organization only', { CLERK_SECRET_KEY => $ClerkTest::KEY }, 'org_real' ],
		[ 'no key', {}, 'org_real', 'eve@example.com' ])
	{
		my ($title, $more, @arguments) = @$case;
		my $run = $checkout->finish(
			$checkout->start([ 'test/demo.sh', @arguments ], %$more));

		is($run->{status}, 2, "with $title a real invitation is refused");
		like($run->{stderr}, qr/^usage: /, '... and it is said what it takes');
	}
	return;
}

sub check_demonstration
{
	my $checkout = Checkout->new;
	my $run = $checkout->run('test/demo.sh', %environment,
		CLERK_SECRET_KEY => 'sk_test_mine');
	my $id = qr/orginv_\w+/;

	is($run->{status}, 0, 'the demonstration succeeds')
	  or diag($run->{stderr});
	cmp_ok($run->{seconds}, '<', 120, '... in less than two minutes');
	is_deeply([ $checkout->left_behind ],
		[], '... and leaves no file and no process behind');
	ok("$run->{stdout}$run->{stderr}" !~ /sk_test_|ticket=/,
		'... and shows neither a key nor the url of an invitation');

	my %part = map { /\A(.*)\n/; $1 => $_ } split(/^== /m, $run->{stdout});
	my ($query, $trigger, $outbox, $outage, $lost, $hub, $job) = @part{
		'A query',
		'A trigger on a members table',
		'The outbox: invitations that follow the commit',
		'Clerk is down, and comes back',
		'Clerk invites, but its answer is lost',
		'A managed database, on which nothing can be installed',
		'A pg_cron job'
	};
	like($query,
		qr/^ $id \| ann\@example\.com \| org:member \| pending \| \d/m,
		'the query shows the invitation');
	is_deeply([ received($query) ],
		['ann@example.com: 200'], '... and what Clerk received');
	like($trigger, qr/^ ann\@example\.com \| red  \| *$/m,
		'the trigger leaves alone who was invited already');
	like($trigger, qr/^ bob\@example\.com \| blue \| $id$/m,
		'... and invites the other one');
	is_deeply(
		[ received($trigger) ],
		[ 'ann@example.com: 400', 'bob@example.com: 200' ],
		'... which is what Clerk received');
	check_outbox($outbox);
	check_outage($outage);
	check_lost_answer($lost);
	like($hub, qr/^ +0\n\(1 row\)$/m, 'the managed database has no extension');
	like($hub, qr/^ kim\@example\.com \| sent  \| pending \| $id$/m,
		'... and is told what became of its invitation');
	is_deeply([ received($hub) ],
		['kim@example.com: 200'], '... which is what Clerk received');
	like($job, qr/^ succeeded \|/m, 'the job succeeds');
	my @waiting = ('cleo@example.com', 'dan@example.com');
	is_deeply([ $job =~ /^ (\S+) +\| $id$/mg ],
		\@waiting, '... and invites everyone on the waiting list');
	is_deeply(
		[ sort(received($job)) ],
		[ map { "$_: 200" } @waiting ],
		'... which is what Clerk received');
	return;
}

sub check_outbox
{
	my ($said) = @_;
	my @sent = $said =~ /^ (\S+) \| sent  \| +1 \| 00:00:0\d\.\d+$/mg;
	my @emails = ('fay@example.com', 'gil@example.com');

	like($said, qr/eve\@example\.com.*^ROLLBACK$/ms,
		'the outbox is shown with an insert that is rolled back');
	is_deeply(\@sent, \@emails,
		'... and one that is committed and sent within seconds');
	is_deeply(
		[ sort(received($said)) ],
		[ map { "$_: 200" } @emails ],
		'... and Clerk received the second one only, each address once');
	return;
}

sub check_outage
{
	my ($said) = @_;
	my ($down, $up) = split(/^Clerk is back\./m, $said);
	my @emails = ('hal@example.com', 'ida@example.com');
	my $last_error = 'could not connect to Clerk';

	is_deeply(
		[ $down =~ /^ (\S+) \| queued \| +0 \| $last_error$/mg ],
		\@emails, 'while Clerk is down the outbox says what is wrong');
	like($down, qr/^ postgres \| $last_error$/m, '... and so does the worker');
	like($up, qr/^ $_ \| sent  \| +1 \| +\| [\d:.]+ +\| [\d:.]+ *$/m,
		"... and $_ is sent when it is back")
	  foreach @emails;
	is_deeply(
		[ sort(received($said)) ],
		[ map { "$_: 200" } @emails ],
		'... as Clerk received it, each address once');
	return;
}

sub check_lost_answer
{
	my ($said) = @_;

	like($said, qr/^ x-drop\S+ \| sent  \| +1 \| orginv_\w+$/m,
		'after a lost answer the outbox has the invitation');
	is_deeply(
		[ map { /: (.*)/ } received($said) ],
		['no answer'], '... which Clerk was asked for once');
	like($said, qr{^  GET /v1/organizations/org_acme/invitations -> 200$}m,
		'... and looked up');
	return;
}

# What a part of the output says that Clerk received: whom it was asked to
# invite, and what it answered.
sub received
{
	my ($said) = @_;
	my @requests;

	while ($said =~
		m{^  POST /v1/organizations/org_acme/invitations -> (\d+|no answer)(?:, 1 created)?\n    (.*)$}mg)
	{
		my ($status, $body) = ($1, $2);
		my ($email) = $body =~ /"email_address": "([^"]+)"/;

		push @requests, "$email: $status";
	}
	return @requests;
}
