# A row that may have been sent keeps that knowledge until a look-up has
# answered, whatever becomes of the look-up: it is neither sent again nor taken
# for somebody else's.  A look-up that is refused again and again is repeated
# ever more rarely, and an administrator can end it.
use strict;
use warnings;

use ClerkTest;
use DeliveryTest;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = delivery_cluster('main', $clerk);

my $ROWS = 20;

# What keeps look-ups from having their turn, and how they get it again.
my @OBSTACLES = (
	[ 'the key is refused', sub { refuse_lookups('error-401-clerk_key_invalid', 1000) } ],
	[ 'the endpoint is closed', sub { refuse_lookups('429-1', 1000) } ],
	[ 'Clerk cannot be reached', undef, "SET clerk_invite.api_url = 'http://127.0.0.1:1';" ],
	[
		'the pass is canceled',
		sub { refuse_lookups('hang', 1000) },
		"SET statement_timeout = '300ms';"
	],
	[
		'answers come to nothing',
		sub { refuse_lookups('drop', 1000) },
		"SET clerk_invite.request_timeout = '300ms';"
	]);

check_lookups_without_turn($_) foreach @OBSTACLES;
check_revoked_meanwhile();
check_arrival_during_lookup();
check_other_invitation_pending();
check_cancellation();
check_clock_set_back();
check_organization_gone();
check_growing_delay();
check_lookups_in_a_while();
check_abandon();

$node->stop;
done_testing();

# The answers of all are lost, then only some look-ups have their turn.
sub check_lookups_without_turn
{
	my ($obstacle) = @_;
	my ($title, $begin, $settings) = @$obstacle;
	my @ids = lose_answers();

	hinder($begin, $settings);
	is(summary(@ids), "verifying $ROWS",
		"if $title, each row stays verifying");
	is( of_rows('bool_and(first_claimed_at IS NOT NULL AND attempts = 1)', @ids),
		't',
		'... and knows since when it may have been sent');
	release();
	is(summary(@ids), "sent $ROWS", '... until look-ups find the invitations');
	is(of_rows('count(invitation_id) = count(DISTINCT invitation_id)', @ids),
		't', '... each its own');
	is_created_once(@ids);
	return;
}

sub check_revoked_meanwhile
{
	my @ids = lose_answers();

	hinder(sub { refuse_lookups('error-401-clerk_key_invalid', 1000) });
	foreach my $email (emails(@ids))
	{
		$clerk->control('revoke_as_admin', { id => $_->{id} })
		  foreach $clerk->invitations_for($email);
	}
	release();
	is(of_rows('string_agg(DISTINCT state || $$ $$ || status, $$,$$)', @ids),
		'sent revoked', 'an invitation that was revoked meanwhile is found');
	is_created_once(@ids);
	return;
}

# A look-up that begins before a request can have arrived shows nothing, even if
# its answer comes after that: the request arrives in between.
sub check_arrival_during_lookup
{
	my $email = 'x-drop-once--arrives-later@example.com';
	my $id = enqueue(email_address => $email);
	my $sender = start_psql($node, "SET clerk_invite.verify_delay = '1s';");
	my $before = lookups();

	refuse_lookups('slow-1500', 1);
	send_to_psql($sender, 'CALL clerk_send_invitations();');
	wait_until('a look-up is under way', sub { lookups() > $before });
	$clerk->control('invite', { organization_id => 'org_test', email_address => $email });
	$clerk->control('revoke_as_admin', { id => $_->{id} }) foreach $clerk->invitations_for($email);
	output_of_psql($sender);
	$sender->{harness}->finish;
	make_due();
	send_until_settled($node);
	is(value($id, 'state || $$ $$ || status'), 'sent revoked',
		'a request that arrives during a look-up is found by the next one');
	is_created_once($id);
	return;
}

# Clerk refuses a request while somebody else's invitation is pending, but one
# without an answer may arrive when that is revoked.
sub check_other_invitation_pending
{
	my $email = 'x-drop--pending@example.com';
	my $verify_delay = "SET clerk_invite.verify_delay = '1h';";
	my $id = enqueue(email_address => $email);

	# Created long before the row is claimed.
	$clerk->control('clock', { offset => -3600 });
	$clerk->control('invite', { organization_id => 'org_test', email_address => $email });
	$clerk->control('clock', { offset => 0 });
	send_invitations($verify_delay);
	is(state_of($id), 'verifying 1',
		'while a request may arrive, the invitation of somebody else does not count');
	make_due();
	send_until_settled($node);
	is(state_of($id), 'skipped 1', '... but then it does');
	return;
}

# Somebody tries to cancel all the time: what is canceled was never created.
sub check_cancellation
{
	my @ids = lose_answers();

	for (1 .. 3)
	{
		hinder(sub { refuse_lookups('error-401-clerk_key_invalid', 1000) });
		is( of_rows('bool_or(clerk_cancel_invitation(id))', @ids),
			'f', 'a row that may have been sent cannot be canceled');
	}
	release();
	is(summary(@ids), "sent $ROWS", '... and is sent in the end');
	is_created_once(@ids);
	return;
}

# As if the clock had been set back between claim and look-up: the times that
# were stored are later, by the clock that can be set.
sub check_clock_set_back
{
	foreach my $offset (0, 3600, -3600)
	{
		my $fake = ClerkTest::Fake->start('--clock-offset', $offset);
		my $settings = "SET clerk_invite.api_url = '" . $fake->url . "';";
		my @emails =
		  map { "x-drop-after--back$_-" . abs($offset) . '@example.com' } 1 .. 5;
		my @ids = map { enqueue(email_address => $_) } @emails;

		$fake->control('misbehave',
			{ operation => 'ListOrganizationInvitations',
			  behaviour => '503', times => 10 });
		send_invitations("$settings");
		is(summary(@ids), 'verifying 5', 'answers are lost');
		as_sender(
			'UPDATE clerk_invitation_outbox SET '
			  . "first_claimed_at = first_claimed_at + interval '3 s', "
			  . "claimed_at = claimed_at + interval '3 s' "
			  . 'WHERE id IN (' . join(', ', @ids) . ')');
		$fake->control('misbehave',
			{ operation => 'ListOrganizationInvitations',
			  behaviour => '503', times => 0 });
		make_due();
		send_until_settled($node, $settings);
		is(summary(@ids), 'sent 5',
			"... and found after the clock was set back, if Clerk's differs by $offset s"
		);
		is(created($_, $fake), 1, '... the only one') foreach @emails;
	}
	return;
}

sub check_organization_gone
{
	my $id = enqueue(
		organization_id => 'org_gone',
		email_address => 'x-500-after--gone@example.com');

	refuse_lookups('503');
	send_invitations();
	is(state_of($id), 'verifying 1', 'an outcome is unknown');
	refuse_lookups(undef);
	$clerk->control('delete_organization', { organization_id => 'org_gone' });
	make_due();
	send_invitations();
	is(state_of($id), 'failed 1', '... and the organization is deleted');
	is(row($id)->{error_code}, 'outcome_unknown', '... which the row says');
	like(
		row($id)->{error_message},
		qr/the organization no longer exists/,
		'... in words, too');
	return;
}

sub check_growing_delay
{
	my $id = enqueue(email_address => 'x-drop-after--grows@example.com');
	my $settings = "SET clerk_invite.retry_delay = '10s'; "
	  . "SET clerk_invite.retry_delay_max = '100s';";

	foreach my $failures (1 .. 6)
	{
		my $seconds = 10 * 2**($failures - 1);
		$seconds = 100 if $seconds > 100;

		refuse_lookups($failures % 2 ? 'truncated' : 'error-403-not_allowed_access');
		make_due();
		send_invitations($settings);
		is(state_of($id), 'verifying 1', "look-up $failures is refused");
		is(value($id, 'consecutive_failures'), $failures, '... and counted');
		is( value(
				$id,
				"next_attempt_at - now() BETWEEN interval '$seconds s' - interval '5 s' "
				  . "AND interval '$seconds s' * 1.25"),
			't',
			"... and the next one comes in $seconds s or a little more");
	}
	refuse_lookups(undef);
	make_due();
	send_until_settled($node);
	is(state_of($id), 'sent 1', '... until one is answered');
	is(value($id, 'consecutive_failures'), 0, '... which ends the count');
	return;
}

# Far below what Clerk takes of all requests: 100 in ten seconds, on a
# development instance.
sub check_lookups_in_a_while
{
	my $before = lookups();
	my $begun = time;

	$node->safe_psql(
		'postgres',
		q(INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, state, attempts,
			 first_claimed_at, claimed_at)
		SELECT 'org_many', 'many' || i || '@example.com', 'org:member',
			'verifying', 1, now(), now() FROM generate_series(1, 1000) AS i));
	refuse_lookups('error-403-not_allowed_access', 1000);
	$node->safe_psql('postgres',
		"SET client_min_messages = error;\n"
		  . "CALL clerk_send_invitations();\n" x 50);
	my $made = lookups() - $before;
	my $most = 40 * (1 + int((time - $begun) / 10));
	cmp_ok($made, '>', 0, 'rows are looked up');
	cmp_ok($made, '<=', $most, '... not many in ten seconds');
	like(
		send_invitations("SET clerk_invite.max_concurrent_requests = 100;")->{stderr},
		qr/exhausted until|^$|postponed/,
		'... and the rest has to wait');
	refuse_lookups(undef);
	as_sender("DELETE FROM clerk_invitation_outbox WHERE organization_id = 'org_many'");
	return;
}

sub check_abandon
{
	my $email = 'x-drop-after--abandoned@example.com';
	my $id = enqueue(email_address => $email);

	refuse_lookups('error-403-not_allowed_access', 3);
	send_invitations();
	is(state_of($id), 'verifying 1', 'an outcome will never be known');
	is($node->safe_psql('postgres', "SELECT clerk_abandon_invitation($id, 'nobody can tell')"),
		't', '... and is given up');
	is(state_of($id), 'failed 1', '... so that the row has failed');
	is(row($id)->{error_code}, 'outcome_unknown', '... and says why');
	like(
		row($id)->{error_message},
		qr/^abandoned by role ".+": nobody can tell; before that: /,
		'... and who did that');
	is($node->safe_psql('postgres', "SELECT clerk_abandon_invitation($id)"),
		'f', 'what is settled cannot be given up');
	is($node->safe_psql('postgres', 'SELECT clerk_abandon_invitation(NULL)'),
		'', 'no number gives null');

	refuse_lookups(undef);
	$node->safe_psql('postgres', "SELECT clerk_retry_invitation($id)");
	send_until_settled($node);
	is(state_of($id), 'sent 1', 'a retry finds the invitation after all');
	is(created($email), 1, '... the only one');

	my $queued = enqueue(
		email_address => 'queued@example.com',
		send_after => '2099-01-01');
	is($node->safe_psql('postgres', "SELECT clerk_abandon_invitation($queued)"),
		't', 'what is queued is given up, too');
	is(state_of($queued), 'canceled 0', '... which cancels it');
	return;
}

# Enqueues an organization each, and has Clerk create them and say nothing.
sub lose_answers
{
	my @ids = map {
		enqueue(
			organization_id => "org_$_",
			email_address => "x-drop-after--$_-" . rand() . '@example.com')
	} 1 .. $ROWS;

	refuse_lookups('503', 1000);
	send_invitations();
	refuse_lookups(undef);
	is(summary(@ids), "verifying $ROWS", 'the answers of all are lost');
	return @ids;
}

# A pass in which look-ups fare like that.
sub hinder
{
	my ($begin, $settings) = @_;

	$begin->() if $begin;
	make_due();
	send_invitations($settings);
	refuse_lookups(undef);
	return;
}

# Looked up by one session after another, since each has look-ups of its own.
sub release
{
	wait_until('the endpoint is open again',
		sub { $node->safe_psql('postgres', 'SELECT 1') });
	make_due();
	send_until_settled($node);
	return;
}

sub refuse_lookups
{
	my ($behaviour, $times) = @_;

	$clerk->control(
		'misbehave',
		{
			operation => 'ListOrganizationInvitations',
			behaviour => $behaviour // '503',
			times => defined $behaviour ? $times // 4 : 0
		});
	return;
}

sub lookups
{
	return scalar grep { $_->{method} eq 'GET' } $clerk->journal;
}

sub emails
{
	my (@ids) = @_;

	return split(/\n/, $node->safe_psql('postgres',
		'SELECT email_address FROM clerk_invitation_outbox WHERE id IN ('
		  . join(', ', @ids) . ')'));
}

sub is_created_once
{
	my (@ids) = @_;

	is(scalar(grep { created($_) != 1 } emails(@ids)),
		0, '... and nobody was invited twice');
	return;
}

sub of_rows
{
	my ($expression, @ids) = @_;

	return $node->safe_psql('postgres',
		"SELECT $expression FROM clerk_invitation_outbox WHERE id IN ("
		  . join(', ', @ids) . ')');
}

# How many are in each state.
sub summary
{
	my (@ids) = @_;

	return $node->safe_psql('postgres',
		"SELECT string_agg(state || ' ' || count, ', ' ORDER BY state) FROM "
		  . '(SELECT state, count(*) FROM clerk_invitation_outbox WHERE id IN ('
		  . join(', ', @ids) . ') GROUP BY state) AS s');
}
