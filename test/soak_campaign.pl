# soak_campaign.pl - the soak itself; see soak.sh
use strict;
use warnings;

# The modules send standard output to a log of their own.
my $terminal;

BEGIN
{
	open($terminal, '>&', \*STDOUT) or die "could not copy standard output: $!";
	$terminal->autoflush(1);
}

use Campaign;
use ClerkTest;
use Getopt::Long;
use List::Util qw(min);
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time sleep);
use WorkerTest;

# Faults that end the processes whose memory is watched.
my $DEADLY = qr/SIGKILL|immediate|terminate_backend\(\) of the sender|disk full/;

# A step takes so many seconds at least, and brings so many invitations.
my $STEP = 2;
my $INVITATIONS = 12;

# Growth that fails, in kB and in file descriptors.
my $MEMORY_LIMIT = 1024;
my $DESCRIPTOR_LIMIT = 4;

my %options = (minutes => 30, seed => time);

GetOptions(\%options, 'minutes=f', 'seed=i', 'disk=s')
  or die "usage: soak.sh --minutes N --seed S\n";
my $campaign = Campaign->new(
	seed => $options{seed},
	disk => $options{disk},
	without => $DEADLY,
	say => \&say_line);
my $node = $campaign->node;
my $begun = time;
my $end = $begun + 60 * $options{minutes};
my $calm_end = $begun + 54 * $options{minutes};
my $session;
my ($steps, $pid_of_session, $minute) = (0, 0, 0);
my (@samples, @failures);

# The worker does not end as long as there is something to wait for.
$node->safe_psql('postgres',
	q(INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after)
		VALUES ('org_later', 'much.later@example.com', 'org:member', '2099-01-01')));
$session = start_psql($node, 'SET client_min_messages = error;');
$pid_of_session = backend_of($session);
say_line("$options{minutes} minutes, seed $options{seed}");
say_line(join(' ', map { sprintf('%9s', $_) } '', qw(worker worker session session postmaster postmaster shared)));
say_line(join(' ', map { sprintf('%9s', $_) } qw(minute kB files kB files kB files kB), 'left'));

while (time < $calm_end)
{
	my $step_end = time + $STEP;

	$campaign->step($INVITATIONS);
	use_session();
	sleep($step_end - time) if $step_end > time;
	sample() if time >= $begun + 60 * ($minute + 1);
}
sample();
judge();
# The end of its input may not reach it, since others have inherited the pipe.
$session->{stdin} .= "\\q\n";
$session->{harness}->finish;

# What ends processes.
$campaign->use_faults($options{seed}, undef);
my $killing = 0;
while (time < $end)
{
	$campaign->step($INVITATIONS);
	$killing++;
}
$node->safe_psql('postgres',
	q(SELECT clerk_cancel_invitation(id) FROM clerk_invitation_outbox WHERE email_address = 'much.later@example.com'));
my @violations = $campaign->finish;
wait_until_gone($node);
my $left = leftovers();

push @failures, "left behind: $left" if $left;
push @failures, scalar(@violations) . ' violations', Ledger::describe(@violations) if @violations;
say_line($_) foreach $campaign->table;
say_line("$steps steps without, and $killing with faults that end processes");
say_line(@failures ? @failures : 'nothing has grown, and nothing is left');
$node->stop('immediate');
exit(@failures ? 1 : 0);

# A session that calls all functions, and meets the faults as well.
sub use_session
{
	my $email = 'sync.' . ++$steps . '@example.com';

	$session->{timer}->start($PostgreSQL::Test::Utils::timeout_default);
	run_in_psql($session, qq(
		SELECT id FROM clerk_create_organization_invitation('org_sync$steps', NULL, '$email', 'org:member');
		SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_sync$steps',
			'[{"email_address": "a$email", "role": "org:member"}, {"email_address": "sync.b$email", "role": "org:missing"}]');
		SELECT count(*) FROM clerk_list_organization_invitations('org_sync$steps');
		SELECT count(*) FROM clerk_list_instance_organization_invitations(query => '$email');
		SELECT count(*) FROM clerk_invitation_progress;
		SELECT count(*) FROM clerk_worker_status();
		CALL clerk_send_invitations();
	));
	return;
}

sub sample
{
	my $worker = worker_of($node, 'postgres');
	my $postmaster = (split(/\n/, slurp_file($node->data_dir . '/postmaster.pid')))[0];
	my $sample = {
		minute => ++$minute,
		worker => $worker,
		(map { $_->[0] . '_kB' => memory_of($_->[1]), $_->[0] . '_files' => files_of($_->[1]) }
			[ worker => $worker ], [ session => $pid_of_session ], [ postmaster => $postmaster ]),
		shared_kB => $node->safe_psql('postgres',
			q(SELECT coalesce(sum(allocated_size), 0)::bigint / 1024 FROM pg_shmem_allocations WHERE name LIKE 'clerk_invite%')),
		left => leftovers()
	};

	push @samples, $sample;
	say_line(join(' ', map { sprintf('%9s', $sample->{$_}) }
			  qw(minute worker_kB worker_files session_kB session_files postmaster_kB postmaster_files shared_kB),
			'left') =~ s/\s*left$/ $sample->{left}/r);
	return;
}

# What is there though no transaction is open: replication slots, prepared
# transactions, and locks of sessions that do not send now.
sub leftovers
{
	return $node->safe_psql('postgres', q(
		SELECT concat_ws(', ',
			(SELECT nullif(count(*), 0) || ' replication slots' FROM pg_replication_slots),
			(SELECT nullif(count(*), 0) || ' prepared transactions' FROM pg_prepared_xacts),
			(SELECT nullif(count(*), 0) || ' locks' FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
				WHERE pid <> pg_backend_pid() AND (a.state = 'idle' OR a.state IS NULL) AND l.locktype <> 'virtualxid'),
			(SELECT nullif(count(*), 0) || ' sessions in a transaction' FROM pg_stat_activity
				WHERE state LIKE 'idle in transaction%'),
			(SELECT nullif(greatest(count(*) - 1, 0), 0) || ' workers too many' FROM clerk_worker_status()))));
}

# Anonymous private memory, in kB.
sub memory_of
{
	my ($pid) = @_;

	return slurp_file("/proc/$pid/status") =~ /^RssAnon:\s*(\d+) kB$/m ? $1 : 0;
}

sub files_of
{
	my ($pid) = @_;
	my @files = glob("/proc/$pid/fd/*");

	return scalar @files;
}

# What has grown since a quarter of the time, when all has been done often.  The
# least of several samples counts, because a sample contains what is under way.
sub judge
{
	my @watched = @samples[ int(@samples / 4) .. $#samples ];
	my @late = splice(@watched, int(@watched / 2));

	@watched = @late unless @watched;
	push @failures, 'the worker has ended' if $watched[0]->{worker} != $late[-1]->{worker};
	foreach my $name (grep { /_kB$|_files$/ } sort keys %{ $late[0] })
	{
		my $growth = min(map { $_->{$name} } @late) - min(map { $_->{$name} } @watched);
		my $limit = $name =~ /_kB$/ ? $MEMORY_LIMIT : $DESCRIPTOR_LIMIT;

		say_line("growth of $name from minutes $watched[0]->{minute} to $watched[-1]->{minute}"
			  . " to minutes $late[0]->{minute} to $late[-1]->{minute}: $growth");
		push @failures, "$name has grown by $growth" if $growth >= $limit;
	}
	push @failures, map { "left in minute $_->{minute}: $_->{left}" } grep { $_->{left} } @samples;
	return;
}

sub say_line
{
	print $terminal "$_\n" foreach @_;
	return;
}
