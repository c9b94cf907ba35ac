# Whatever of a hub, its publishers and the way to Clerk is killed while
# invitations flow: none is lost, none is sent twice, none is sent for what was
# rolled back, and what became of each of them arrives at its publisher.
#
# CLERK_HUB_INVITATIONS in the environment is how many there are (300), and
# CLERK_HUB_SEED the seed of what happens when.
use strict;
use warnings;

use ClerkTest;
use Hub;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $INVITATIONS = $ENV{CLERK_HUB_INVITATIONS} // 300;
my $SEED = $ENV{CLERK_HUB_SEED} // time;

# Clerk's numbers, in a shorter hour.
my $HOUR = 4;

# How many rows an application inserts while something is killed.
my $ROWS_A_SESSION = 20;

note "CLERK_HUB_SEED=$SEED";
srand($SEED);

my $clerk = ClerkTest::Fake->start('--window', $HOUR);
my $door = Hub::Door->open($clerk);
my $conf = "clerk_invite.rate_limit_window = '${HOUR}s'\nclerk_invite.verify_delay = '300ms'\n";
my $hub = Hub->start('hub', undef, conf => $conf . "clerk_invite.api_url = '" . $door->url . "'\n");
my @publishers = map {
	Hub::Publisher->start($_,
		initdb => [ '--wal-segsize', '1' ],
		conf => "min_wal_size = 2MB\nmax_slot_wal_keep_size = -1\n")
} qw(shop forum);
my $number = 0;
my $made = 0;

foreach my $publisher (@publishers)
{
	$publisher->sql(
		q(CREATE TABLE members (org_id text, email text PRIMARY KEY);
		CREATE TRIGGER invite AFTER INSERT ON members REFERENCING NEW TABLE AS n FOR EACH STATEMENT
			EXECUTE FUNCTION clerk_invitation_trigger('org_id', '', 'email', '=org:member');));
	$hub->add($publisher);
	$hub->start_reports($publisher);
}
check_crashes();
check_lost_slot();
check_rebuilt_hub();
done_testing();

sub check_crashes
{
	my @events = (
		(map { my $how = $_; [ "$how of the hub", sub { Hub::crash($hub->node, $how) } ] } qw(SIGKILL immediate)),
		(map {
				my $publisher = $_;
				map { my $how = $_; [ "$how of $publisher->{name}", sub { Hub::crash($publisher->node, $how) } ] }
				  qw(SIGKILL immediate)
			} @publishers),
		[ 'SIGKILL of the way to Clerk', sub { $door->kill; $door->reopen } ],
		[ 'an end of the reports', sub { $hub->stop_reports; $hub->start_reports($_) foreach @publishers } ]);
	my @left;

	while ($made < $INVITATIONS)
	{
		# Each of them happens, in any order, before one happens again.
		@left = @events unless @left;
		my $event = splice(@left, int(rand(@left)), 1);
		my @sessions = map { insert_members($_) } @publishers;
		my $moment = rand(0.2);

		select(undef, undef, undef, $moment);
		note sprintf('%s after %.2f s', $event->[0], $moment);
		$event->[1]->();
		foreach my $session (@sessions)
		{
			$session->finish;
		}
		$made = 0;
		$made += $_->sql('SELECT count(*) FROM members') foreach @publishers;
	}
	check_result('whatever is killed');
	is_deeply([ grep { $_->{status} == 429 } $clerk->journal ],
		[], 'two publishers share one budget: Clerk refuses nothing');
	cmp_ok(scalar(grep { ref $_->{body} eq 'ARRAY' } $clerk->journal), '>', 0, '... of which both limits are used');
	return;
}

# An application that inserts members, in a transaction each, and rolls back
# some, or a savepoint.
sub insert_members
{
	my ($publisher) = @_;
	my $sql = '';
	my $file = PostgreSQL::Test::Utils::tempdir() . "/$publisher->{name}$number.sql";

	for (1 .. $ROWS_A_SESSION)
	{
		my $what = rand();
		my $row = member($publisher);

		$sql .=
		    $what < 0.1 ? 'BEGIN; ' . member($publisher, 'gone') . " ROLLBACK;\n"
		  : $what < 0.2 ? 'BEGIN; SAVEPOINT s; ' . member($publisher, 'gone') . " ROLLBACK TO s; $row COMMIT;\n"
		  : "$row\n";
	}
	# A file, because psql is to go on by itself.
	append_to_file($file, $sql);
	return IPC::Run::start(
		[ 'psql', '-XAtq', '-U', 'app_owner', '-d', $publisher->node->connstr('app'), '-f', $file ],
		'<', \undef,
		'>', \my $stdout,
		'2>', \my $stderr);
}

# Half of them in one organization, whose invitations share requests.
sub member
{
	my ($publisher, $kind) = @_;
	my $name = ($kind // 'kept') . ++$number;
	my $org = $number % 2 ? "org_$publisher->{name}" : "org_$number";

	return "INSERT INTO members VALUES ('$org', '$name\@$publisher->{name}.example.com');";
}

# Waits until all is settled, and compares what Clerk has with the members that
# have committed.
sub check_result
{
	my ($title) = @_;
	my %created;

	foreach my $publisher (@publishers)
	{
		$publisher->wait_for(
			q(SELECT count(*) FROM clerk_invitation_outbox WHERE state IN ('queued', 'sending', 'verifying')
				AND send_after < 'infinity'), '0');
		is( $publisher->sql(
				q(SELECT string_agg(DISTINCT state || ' ' || status, ', ') FROM clerk_invitation_outbox WHERE send_after < 'infinity')),
			'sent pending', "$title, every state arrives at $publisher->{name}");
	}
	push @{ $created{ $_->{email_address} } }, $_->{id} foreach $clerk->all_invitations;
	my @wanted = map {
		split(/\n/, $_->sql(
			'SELECT email_address FROM clerk_invitation_outbox WHERE send_after < $$infinity$$ ORDER BY 1'))
	} @publishers;
	my @members = map { split(/\n/, $_->sql('SELECT email FROM members ORDER BY 1')) } @publishers;
	my @ids = map { split(/\n/, $_->sql('SELECT invitation_id FROM clerk_invitation_outbox WHERE invitation_id IS NOT NULL')) } @publishers;

	is_deeply(\@wanted, \@members, '... of the invitations for all members');
	is_deeply([ grep { !$created{$_} } @members ], [], '... none is lost');
	is_deeply([ grep { @{ $created{$_} } > 1 } sort keys %created ], [], '... none is there twice');
	is_deeply([ grep { /^gone/ } sort keys %created ], [], '... none is there for what was rolled back');
	is_deeply([ sort @ids ], [ sort map { @$_ } values %created ], '... and each row has its own');
	return;
}

# A publisher that has given up what the hub had yet to receive.
sub check_lost_slot
{
	my ($publisher) = @publishers;
	my $node = $publisher->node;
	my $slot = slot_of($publisher);

	# The hub has one that is not to be sent.
	$publisher->sql(
		q(SELECT clerk_enqueue_organization_invitation('org_1', NULL, 'never@example.com', 'org:member', send_after => 'infinity')));
	$publisher->wait_for('SELECT waiting FROM clerk_invitation_progress', '0');
	$hub->node->stop('immediate');
	$node->safe_psql('postgres', 'ALTER SYSTEM SET max_slot_wal_keep_size = 1');
	$node->reload;
	$publisher->sql(join(' ', map { member($publisher) } 1 .. 10));
	for (1 .. 4)
	{
		$node->safe_psql('postgres', 'CREATE TABLE filler (n int); DROP TABLE filler; SELECT pg_switch_wal()');
	}
	$node->safe_psql('postgres', 'CHECKPOINT');
	is( $node->safe_psql('postgres', "SELECT wal_status FROM pg_replication_slots WHERE slot_name = '$slot'"),
		'lost', 'a hub that is down for too long loses its slot');
	is($publisher->sql('SELECT waiting FROM clerk_invitation_progress'), '10', '... which progress shows');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET max_slot_wal_keep_size');
	$node->reload;
	$hub->node->start;
	check_result('when the slot was lost');
	is( $hub->sql($publisher, q(SELECT count(*) FROM clerk_invitation_outbox WHERE email_address = 'never@example.com')),
		'1', '... and what the hub had is not there twice');
	return;
}

sub slot_of
{
	my ($publisher) = @_;

	return $publisher->sql(
		q(SELECT slot_name FROM pg_replication_slots WHERE database = 'app' AND slot_name LIKE 'clerk_hub_%'));
}

# Nothing is left of the first hub but what it has told Clerk and publishers.
sub check_rebuilt_hub
{
	my ($publisher) = @publishers;
	my $old_slot = slot_of($publisher);
	my @emails;

	$hub->stop_reports;
	$publisher->sql(join(' ', map { member($publisher) } 1 .. 8));
	@emails = split(/\n/, $publisher->sql('SELECT email FROM members ORDER BY length(email) DESC, email DESC LIMIT 8'));
	wait_until('the first hub has sent them', sub { !grep { !$clerk->invitations_for($_) } @emails });
	isnt($publisher->states(@emails), join(' ', ('sent') x 8), 'what the first hub has sent is not known');
	my $run = try_second_hub();
	like($run->{stderr}, qr/another hub is connected/, 'a publisher has one hub');
	$hub->node->stop('immediate');
	$publisher->sql(join(' ', map { member($publisher) } 1 .. 8));

	my $first = $hub;
	$hub = second_hub();
	foreach (@publishers)
	{
		$hub->add($_);
		$hub->start_reports($_);
	}
	check_result('when the hub is rebuilt from nothing');
	isnt(slot_of($publisher), $old_slot, 'the first hub has no slot any more');

	# Nothing good comes from the first one.
	$first->node->start;
	$run = $first->try_to_add($publisher);
	like($run->{stderr}, qr/another hub is connected/, '... and is refused when it comes back');
	like(attempt($first->node, $publisher->{name}, 'CALL clerk_hub.report()')->{stderr},
		qr/has lost the replication slot|another hub has taken over/, '... whatever it wants to report');
	$first->node->stop;
	return;
}

my $second;

sub second_hub
{
	$second //= Hub->start('second', undef,
		conf => $conf . "clerk_invite.api_url = '" . $door->url . "'\n");
	return $second;
}

sub try_second_hub
{
	return second_hub()->try_to_add($publishers[0]);
}
