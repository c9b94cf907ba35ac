# An invitation that Clerk has for a row's address is the row's only if it was
# created since the row was first taken on; and whoever has locked a row keeps
# no sender waiting, nor makes it forget what it has sent.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Clerk tells its time in whole seconds: what was created longer ago than that,
# and a moment, can be told from what is created now.
my $DISTINCT = 2.2;

# How long a look that hangs holds up its wave: well over that.
my $TIMEOUT = 5;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = clerk_cluster(
	'main', $clerk,
	conf => q(
clerk_invite.bulk_requests_per_hour = 0
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
));

check_invited_before($clerk, "with Clerk's clock as ours");
check_invited_before(
	ClerkTest::Fake->start('--clock-offset', $_->[0]),
	"with Clerk's clock an hour $_->[1]")
  foreach [ 3600, 'ahead' ], [ -3600, 'behind' ];
check_invited_while_waiting();
check_locked_while_sending();
check_locked_while_looking_up();

$node->stop;
done_testing();

# Somebody else has invited them, not long ago.  The time of a look counts, not
# that of the slowest look beside it.
sub check_invited_before
{
	my ($fake, $title) = @_;
	my @emails = map { "before$_\@example.com" } 1 .. 3;
	my $lost = 'x-drop-after--beside@example.com';
	my $settings =
	  use_clerk($fake) . "SET clerk_invite.request_timeout = '${TIMEOUT}s';";

	invite_as_somebody_else($_, $fake) foreach @emails;
	wait_until_distinct();
	my @ids = map { enqueue($_) } @emails, $lost;
	# It may hit any of them; that one is looked up again.
	misbehave_in_look('hang', $fake);
	my $begun = time;
	send_until_settled($node, $settings);
	cmp_ok(time - $begun, '>', $TIMEOUT,
		"$title: one look has held up the others");
	is( states(@ids),
		'skipped 1, skipped 1, skipped 1, sent 1',
		"$title: who was invited shortly before is skipped");
	is(invitation_ids(@ids[ 0 .. 2 ]),
		'', "... and the invitation is not taken for the row's");
	is( invitation_ids($ids[3]),
		join(' ', created($lost, $fake)),
		'... while an answer that was lost is found');
	is_deeply(
		[ map { scalar created($_, $fake) } @emails, $lost ],
		[ (1) x 4 ],
		'... and each has one invitation');
	empty_outbox();
	return;
}

# A row that was taken on and certainly not sent has its time still before it:
# somebody else may be quicker.
sub check_invited_while_waiting
{
	my $wrong = $ClerkTest::KEY =~ s/0000/1111/r;

	ClerkTest::write_key($node->data_dir . '/wrong.key', $wrong);
	foreach my $case (
		[ 'Clerk cannot be reached', 'outage@example.com', '', 1 ],
		[
			'the key is wrong', 'key@example.com',
			"SET clerk_invite.secret_key_file = 'wrong.key';"
		],
		[ 'Clerk has enough', 'x-429-once--enough@example.com', '' ])
	{
		my ($title, $email, $settings, $outage) = @$case;
		my $fake = ClerkTest::Fake->start;
		my $here = use_clerk($fake);
		my $id = enqueue($email);

		$fake->stop if $outage;
		attempt($node, 'postgres',
			"$here $settings CALL clerk_send_invitations();");
		is(states($id), 'queued 0',
			"if $title, the row stays queued, without an attempt");
		is( of_rows(
				"concat_ws(' ', claimed_at IS NULL, first_claimed_at IS NULL)",
				'', $id),
			'f t',
			'... and as one that was not taken on yet');

		$fake = ClerkTest::Fake->start('--port', $fake->{port}) if $outage;
		invite_as_somebody_else($email, $fake);
		wait_until_distinct();
		send_until_settled($node, $here);
		is(states($id), 'skipped 1',
			'... and is skipped if somebody else has invited meanwhile');
		is(invitation_ids($id),
			'', "... whose invitation is not taken for the row's");
		is(scalar created($email, $fake), 1, '... and is the only one');
	}
	empty_outbox();
	return;
}

# A row that is locked when its answer is there is settled by a later pass.
sub check_locked_while_sending
{
	my @emails = map { "x-slow-1000--$_\@example.com" } qw(locked free);
	my @ids = map { enqueue($_) } @emails;
	my $sender = start_psql($node, '', '-v', 'VERBOSITY=verbose');
	my $holder = start_psql($node, '');
	my $log = -s $node->logfile;

	send_to_psql($sender,
		"SET statement_timeout = '20s'; CALL clerk_send_invitations();");
	wait_until(
		'both are sent',
		sub { !grep { !$clerk->requests_for($_) } @emails });
	lock_row($holder, $ids[0]);
	is(states(@ids), 'sending 1, sending 1',
		'a row is locked while its request is on its way');
	my (undef, $said) = output_of_psql($sender);
	unlike($said, qr/ERROR/, 'the sender does not wait for the lock');
	is(states(@ids), 'sending 1, sent 1',
		'... and settles what is not locked');
	like(
		slurp_file($node->logfile, $log),
		qr/LOG:  invitation $ids[0] of the outbox is locked/,
		'... and says in the log what is');

	(undef, $said) = run_in_psql($sender, 'CALL clerk_send_invitations();');
	is($said, '', 'the next sender does not wait for it either');
	is(states(@ids), 'sending 1, sent 1', '... and leaves the row as it is');

	run_in_psql($holder, 'COMMIT;');
	run_in_psql($sender, 'CALL clerk_send_invitations();');
	is(states(@ids), 'sent 1, sent 1',
		'a pass after the lock has gone settles the row');
	is( invitation_ids(@ids),
		join(' ', map { created($_) } @emails),
		'... with the invitation that was created');
	is_deeply(
		[ map { scalar(() = $clerk->requests_for($_)) } @emails ],
		[ 1, 1 ],
		'... and nothing was sent twice');
	is(created_in_journal($emails[0]),
		1, '... and Clerk has created it once');
	$_->{harness}->finish foreach $sender, $holder;
	empty_outbox();
	return;
}

# The same while the row is looked up.  A sender that cannot settle it must not
# go on asking Clerk.
sub check_locked_while_looking_up
{
	my $email = 'x-drop-after--looked-up@example.com';
	my $id = enqueue($email);
	my $sender = start_psql($node, '');
	my $holder = start_psql($node, '');

	misbehave_in_look('slow-1000', $clerk);
	send_to_psql($sender,
		"SET statement_timeout = '5s'; CALL clerk_send_invitations();");
	wait_until('the row is looked up', sub { lookups_for($email) });
	lock_row($holder, $id);
	is(states($id), 'verifying 1',
		'a row is locked while it is looked up');
	my (undef, $said) = output_of_psql($sender);
	unlike($said, qr/ERROR/, 'the sender does not wait for the lock');
	cmp_ok(scalar lookups_for($email),
		'<=', 2, '... nor asks Clerk about it again and again');
	is(states($id), 'verifying 1', '... and leaves the row as it is');

	run_in_psql($holder, 'COMMIT;');
	send_until_settled($node);
	is(states($id), 'sent 1',
		'a pass after the lock has gone settles the row');
	is(invitation_ids($id),
		join(' ', created($email)),
		'... with the invitation that was created');
	is(scalar(() = $clerk->requests_for($email)),
		1, '... which was sent once');
	$_->{harness}->finish foreach $sender, $holder;
	empty_outbox();
	return;
}

# Puts a row into the outbox; returns its id.
sub enqueue
{
	my ($email) = @_;

	return $node->safe_psql('postgres',
		"SELECT clerk_enqueue_organization_invitation('org_test', NULL, '$email', 'org:member')"
	);
}

# Keeps the row locked until the session commits.
sub lock_row
{
	my ($psql, $id) = @_;
	my ($stdout) = run_in_psql($psql,
		"BEGIN; SELECT state FROM clerk_invitation_outbox WHERE id = $id FOR UPDATE;"
	);

	isnt($stdout, '', 'a session has locked the row');
	return;
}

sub use_clerk
{
	my ($fake) = @_;

	return "SET clerk_invite.api_url = '" . $fake->url . "'; ";
}

sub invite_as_somebody_else
{
	my ($email, $fake) = @_;

	$node->safe_psql('postgres', use_clerk($fake) . invite($email));
	return;
}

# Waits until what has been created can be told from what will be.
sub wait_until_distinct
{
	my $then = time + $DISTINCT;

	wait_until('enough time has passed', sub { time > $then });
	return;
}

sub misbehave_in_look
{
	my ($behaviour, $fake) = @_;

	$fake->control(
		'misbehave',
		{
			operation => 'ListOrganizationInvitations',
			behaviour => $behaviour
		});
	return;
}

sub lookups_for
{
	my ($email) = @_;

	return grep { $_->{method} eq 'GET'
		  && ($_->{query}{email_address}[0] // '') eq $email } $clerk->journal;
}

# The ids of all invitations that were ever created for an address.
sub created
{
	my ($email, $fake) = @_;

	return map { $_->{id} } ($fake // $clerk)->invitations_for($email);
}

# How many of them the journal tells of.
sub created_in_journal
{
	my ($email) = @_;

	return scalar grep { $_->{email_address} eq $email }
	  map { @{ $_->{created} } } $clerk->journal;
}

# States and attempts of these rows.
sub states
{
	return of_rows("state || ' ' || attempts", ', ', @_);
}

# The ids of these rows' invitations.
sub invitation_ids
{
	return of_rows('invitation_id', ' ', @_);
}

# An expression over these rows, in the order of their ids.
sub of_rows
{
	my ($expression, $between, @ids) = @_;

	return $node->safe_psql('postgres',
		"SELECT string_agg($expression, '$between' ORDER BY id) "
		  . 'FROM clerk_invitation_outbox WHERE id IN ('
		  . join(', ', @ids)
		  . ')');
}

sub empty_outbox
{
	$node->safe_psql('postgres', 'TRUNCATE clerk_invitation_outbox');
	return;
}
