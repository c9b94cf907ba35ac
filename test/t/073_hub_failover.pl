# A hub, or a publisher, is replaced by its asynchronous standby, which lacks
# what happened last: nobody is invited twice, and whoever the publisher still
# has a request for is invited.
use strict;
use warnings;

use ClerkTest;
use Hub;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000', '--bulk-limit', '100000');

check_promoted_hub();
check_promoted_publisher('forum', 0);
check_promoted_publisher('blog', 1);
done_testing();

sub check_promoted_hub
{
	my $hub = Hub->start('hub', $clerk, allows_streaming => 1);
	my $publisher = Hub::Publisher->start('shop');
	my $standby = standby_of($hub->node, 'spare_hub');
	my %emails;

	$hub->add($publisher);
	$hub->start_reports($publisher);
	$emails{replicated} = enqueue($publisher, 'replicated', 5);
	wait_for_sent($publisher, @{ $emails{replicated} });
	$emails{canceled} = enqueue($publisher, 'canceled', 1, q('infinity'));
	$publisher->wait_for('SELECT waiting FROM clerk_invitation_progress', '0');
	catch_up($hub->node, $standby);
	$standby->stop;

	# The standby has neither these rows nor the news of the one above.
	$emails{reported} = enqueue($publisher, 'reported', 5);
	wait_for_sent($publisher, @{ $emails{reported} });
	$publisher->sql(
		q(SELECT clerk_cancel_invitation(id) FROM clerk_invitation_outbox WHERE send_after = 'infinity'));
	$publisher->wait_for(
		q(SELECT state FROM clerk_invitation_outbox WHERE send_after = 'infinity'), 'canceled');
	$hub->stop_reports;
	$emails{sent} = enqueue($publisher, 'sent', 5);
	wait_until('the hub has sent them',
		sub { !grep { !$clerk->invitations_for($_) } @{ $emails{sent} } });
	unlike($publisher->states(@{ $emails{sent} }), qr/sent/, 'there is something that the publisher does not know');
	$hub->node->stop('immediate');
	$emails{waiting} = enqueue($publisher, 'waiting', 5);

	$standby->start;
	$standby->promote;
	my $promoted = Hub->on($standby);
	$promoted->add($publisher);
	$promoted->start_reports($publisher);
	$emails{later} = enqueue($publisher, 'later', 5);
	$publisher->wait_for(
		q(SELECT string_agg(DISTINCT state, ' ' ORDER BY state) FROM clerk_invitation_outbox), 'canceled sent');
	pass('a promoted hub goes on, and every state arrives');
	foreach my $when (qw(replicated reported sent waiting later))
	{
		is(created_once(@{ $emails{$when} }), 5, "... and invites once: $when");
	}
	is(created_once(@{ $emails{canceled} }), 0, '... and nobody whose invitation was canceled');
	is_deeply([ ids_at($publisher) ], [ ids_at_clerk($publisher->{name}) ], '... and each row has its own');
	$promoted->stop_reports;
	$_->stop foreach $standby, $publisher->node;
	return;
}

# Rows that only the old primary had are gone, and their numbers are given out
# again.  The slot is gone as well, unless the provider copies it.  Then the new
# primary's WAL has positions that the old one's had, with other contents.  Before
# PostgreSQL 17, servers do not copy slots; this plays a provider that does.
sub check_promoted_publisher
{
	my ($name, $keeps_slot) = @_;
	my $hub = Hub->start("hub_of_$name", $clerk);
	my $publisher = Hub::Publisher->start($name);
	my $standby = standby_of($publisher->node, "spare_$name", $ENV{CLERK_PUBLISHER_PATH});
	my $slot;
	my %emails;

	$hub->add($publisher);
	$hub->start_reports($publisher);
	$emails{replicated} = enqueue($publisher, 'replicated', 5);
	wait_for_sent($publisher, @{ $emails{replicated} });
	catch_up($publisher->node, $standby);
	$slot = $publisher->sql('SELECT slot_name FROM pg_replication_slots WHERE database = current_database()');
	copy_slot($publisher->node, $standby, $slot) if $keeps_slot && has_failover_slots($standby);
	$hub->node->stop;
	$emails{waiting} = enqueue($publisher, 'waiting', 5);
	catch_up($publisher->node, $standby);
	$standby->stop;
	$hub->node->start;
	wait_for_sent($publisher, @{ $emails{waiting} });
	$publisher->node->safe_psql('postgres', 'SELECT pg_switch_wal()');
	$emails{lost} = enqueue($publisher, 'lost', 5);
	wait_for_sent($publisher, @{ $emails{lost} });
	$publisher->node->stop('immediate');

	$standby->start;
	$standby->promote;
	my $promoted = bless { name => $name, node => $standby }, 'Hub::Publisher';
	$standby->safe_psql('app', "SELECT pg_create_logical_replication_slot('$slot', 'pgoutput')")
	  if $keeps_slot && !has_failover_slots($standby);
	$hub->stop_reports;
	$hub->add($promoted);
	$hub->start_reports($promoted);
	$emails{later} = enqueue($promoted, 'later', 7);
	$promoted->wait_for(
		q(SELECT string_agg(DISTINCT state, ' ') FROM clerk_invitation_outbox), 'sent');
	pass('a promoted publisher ' . ($keeps_slot ? 'with' : 'without') . ' the slot is served, and every state arrives');
	is(created_once(@{ $emails{$_} }), 5, "... and invited is once: $_") foreach qw(replicated waiting lost);
	is(created_once(@{ $emails{later} }), 7, '... and once: later');
	is($promoted->sql('SELECT count(*) FROM clerk_invitation_outbox'),
		'17', '... what the old primary alone had is not there');
	my %lost = map { map { $_->{id} => 1 } $clerk->invitations_for($_) } @{ $emails{lost} };
	is_deeply([ ids_at($promoted) ],
		[ grep { !$lost{$_} } ids_at_clerk($promoted->{name}) ], '... and each row has its own');
	$hub->stop_reports;
	$_->stop foreach $standby, $hub->node;
	return;
}

# An asynchronous standby that is running.
sub standby_of
{
	my ($primary, $name, $path) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name, install_path => $path);

	$primary->backup($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	# A backup does not keep the permissions that a file with a key must have.
	chmod(0600, glob($standby->data_dir . '/*.key'));
	$standby->start;
	return $standby;
}

sub has_failover_slots
{
	return $_[0]->pg_version >= 17;
}

# Has the standby a copy of this slot of the primary's.
sub copy_slot
{
	my ($primary, $standby, $slot) = @_;
	my $physical = $standby->name;

	$primary->safe_psql('postgres', "SELECT pg_create_physical_replication_slot('$physical')");
	$standby->append_conf('postgresql.conf', <<"END");
hot_standby_feedback = on
sync_replication_slots = on
primary_slot_name = '$physical'
primary_conninfo = 'host=${\ $primary->host} port=${\ $primary->port} dbname=postgres'
END
	$standby->restart;
	# A slot that lags behind the standby is not copied; this lets it advance.
	wait_until('the slot is synchronized', sub {
		$primary->safe_psql('postgres', 'SELECT pg_log_standby_snapshot()');
		return $standby->safe_psql('postgres',
			"SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = '$slot'") eq 't';
	});
	return;
}

# Until the standby has all that its primary has written.
sub catch_up
{
	my ($primary, $standby) = @_;
	my $end = $primary->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');

	$standby->poll_query_until('postgres', "SELECT pg_last_wal_replay_lsn() >= '$end'")
	  or die 'the standby does not catch up';
	return;
}

# Inserts that many invitations, and returns their addresses.
sub enqueue
{
	my ($publisher, $what, $count, $send_after) = @_;
	my @emails = map { "$what$_\@$publisher->{name}.example.com" } 1 .. $count;

	$send_after //= 'now()';
	$publisher->sql(
		'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role, send_after) VALUES '
		  . join(', ', map { "('org_1', '$_', 'org:member', $send_after)" } @emails));
	return \@emails;
}

sub wait_for_sent
{
	my ($publisher, @emails) = @_;
	my $emails = join(', ', map { "'$_'" } @emails);

	$publisher->wait_for(
		"SELECT count(*) FROM clerk_invitation_outbox WHERE state = 'sent' AND email_address IN ($emails)",
		scalar(@emails));
	return;
}

# How many of these have one invitation, and no more.
sub created_once
{
	return scalar(grep { my @found = $clerk->invitations_for($_); @found == 1 } @_);
}

sub ids_at
{
	my ($publisher) = @_;

	return sort split(/\n/,
		$publisher->sql('SELECT invitation_id FROM clerk_invitation_outbox WHERE invitation_id IS NOT NULL'));
}

sub ids_at_clerk
{
	my ($name) = @_;

	return sort map { $_->{id} } grep { $_->{email_address} =~ /\@$name\./ } $clerk->all_invitations;
}
