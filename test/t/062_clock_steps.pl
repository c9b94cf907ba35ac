# Times that were stored while our clock was ahead are brought back: what is
# queued does not wait for the clock to catch up.  A clock of Clerk's that is set
# makes nobody's invitation a stranger's.
use strict;
use warnings;

use ClerkTest;
use DeliveryTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = delivery_cluster('main', $clerk);

# As a clock that is a day ahead has them stored.
my %stored = (
	enqueued => "send_after = now() + interval '1 day',
		enqueued_at = now() + interval '1 day'",
	later => "send_after = now() + interval '1 day' + interval '2 hours',
		enqueued_at = now() + interval '1 day'",
	tried => "attempts = 1, claimed_at = now() + interval '1 day',
		first_claimed_at = now() + interval '1 day',
		next_attempt_at = now() + interval '1 day 1 minute'",
	verifying => "state = 'verifying', attempts = 1,
		claimed_at = now() + interval '1 day',
		first_claimed_at = now() + interval '1 day',
		next_attempt_at = now() + interval '1 day 1 minute'",
	# By a clock that was right.
	scheduled => "send_after = now() + interval '1 day'");
my %id = map { $_ => enqueue(email_address => "$_\@example.com") } sort keys %stored;

as_sender("UPDATE clerk_invitation_outbox SET $stored{$_} WHERE id = $id{$_}")
  foreach sort keys %stored;
my $log = -s $node->logfile;
send_until('what is due is sent', qw(enqueued tried verifying));
like(slurp_file($node->logfile, $log),
	qr/rescheduled 4 invitations that were stored while the clock was ahead/,
	'... which the log tells');
is( value(
		$id{later},
		"state || ' ' || (send_after - now() BETWEEN interval '110 min' AND interval '2 h')"
	),
	'queued true',
	'what was to wait for two hours waits for two hours');
is( value(
		$id{scheduled},
		"state || ' ' || (send_after - now() BETWEEN interval '23 h' AND interval '24 h')"
	),
	'queued true',
	'what was put off by hand stays so');
is(created("$_\@example.com"), 1, "$_ is created once")
  foreach qw(enqueued tried verifying);

# A row that somebody has locked keeps no sender waiting.
my $locked = enqueue(email_address => 'locked@example.com');
as_sender("UPDATE clerk_invitation_outbox SET $stored{enqueued} WHERE id = $locked");
my $holder = start_psql($node, '');
run_in_psql($holder,
	"BEGIN; SELECT id FROM clerk_invitation_outbox WHERE id = $locked FOR UPDATE;");
my $call = send_invitations("SET statement_timeout = '60s';");
is($call->{sqlstate}, '', 'a row that is locked keeps nobody waiting');
run_in_psql($holder, 'ROLLBACK;');
$holder->{harness}->finish;
send_invitations();
is(state_of($locked), 'sent 1', '... and is brought back later');

check_clerks_clock($_) foreach 300, -300;
check_clock_that_responses_have_shown(0, 'that only another response has shown');
check_clock_that_responses_have_shown(1, '... also if the server has crashed');
check_claim_after_crash();
check_invitation_from_the_future();

$node->stop;
done_testing();

# Somebody else has invited while Clerk's clock was ahead.
sub check_invitation_from_the_future
{
	my $id = enqueue(email_address => 'future@example.com', send_after => '2099-01-01');

	$clerk->control('clock', { offset => 300 });
	$clerk->control('invite', { organization_id => 'org_test', email_address => 'future@example.com' });
	$clerk->control('clock', { offset => 0 });
	# So that it is known what time it is at Clerk.
	enqueue(email_address => 'present@example.com');
	send_invitations();
	$node->safe_psql('postgres', "UPDATE clerk_invitation_outbox SET send_after = now() WHERE id = $id");
	wait_until(
		'it is looked up',
		sub {
			send_invitations();
			return state_of($id) !~ /^(?:queued|verifying)/;
		});
	is(state_of($id), 'skipped 1', 'an invitation from the future is not taken for ours');
	return;
}

# The answer is lost, the invitation is revoked, and Clerk's clock is set before
# the address is looked up.
sub check_clerks_clock
{
	my ($step) = @_;
	my $own = enqueue(email_address => "x-drop-after-once--$step\@example.com");
	my $other = enqueue(email_address => "other$step\@example.com");

	# Somebody else's, from before all that.
	$clerk->control('clock', { offset => -60 });
	$clerk->control('invite', { organization_id => 'org_test', email_address => value($other, 'email_address') });
	$clerk->control('clock', { offset => 0 });
	misbehave_in_lookups('503') for 1 .. 2;
	send_invitations();
	is(state_of($own) . ', ' . state_of($other), 'verifying 1, verifying 1',
		'two outcomes are unknown');
	$clerk->control('revoke_as_admin', { id => $_->{id} })
	  foreach $clerk->invitations_for(value($own, 'email_address'));
	$clerk->control('clock', { offset => $step });
	make_due();
	wait_until(
		'both are looked up',
		sub {
			send_invitations();
			return !grep { state_of($_) =~ /^(?:queued|verifying)/ } $own, $other;
		});
	is(state_of($own) . ' ' . value($own, 'status'), 'sent 1 revoked',
		"Clerk's clock is set by $step s: an invitation from before is found");
	is(created(value($own, 'email_address')), 1, '... and is the only one');
	# Set back, it makes an older invitation look newer, too.
	is(state_of($other), 'skipped 1',
		'... and one of somebody else is not taken for ours') if $step > 0;
	$clerk->control('clock', { offset => 0 });
	return;
}

# An invitation is created by a clock that was neither at the claim nor is at
# the lookup, and is behind both.
sub check_clock_that_responses_have_shown
{
	my ($crash, $title) = @_;
	my $email = "x-drop-after-once--shown$crash\@example.com";

	$clerk->control('clock', { offset => 0 });
	enqueue(email_address => "now$crash\@example.com");
	send_invitations();
	$clerk->control('clock', { offset => -300 });
	my $own = enqueue(email_address => $email);
	misbehave_in_lookups('503');
	send_invitations();
	is(state_of($own), 'verifying 1', 'an outcome is unknown');
	crash() if $crash;
	find_revoked($own, 100, "Clerk's clock is set twice: an invitation is found by a clock $title");
	return;
}

# No response has been received since the crash, before the claim.
sub check_claim_after_crash
{
	$clerk->control('clock', { offset => 0 });
	enqueue(email_address => 'uncrashed@example.com');
	send_invitations();
	crash();
	my $own = enqueue(email_address => 'x-drop-after-once--crashed@example.com');

	misbehave_in_lookups('drop');
	send_invitations();
	is(state_of($own), 'verifying 1', 'an outcome is unknown after a crash');
	find_revoked($own, 300, "Clerk's clock is set after a crash, before any response: an invitation is found");
	return;
}

sub crash
{
	$node->stop('immediate');
	$node->start;
	return;
}

# The row's invitation is revoked, and Clerk's clock is set before the lookup.
sub find_revoked
{
	my ($id, $offset, $title) = @_;

	$clerk->control('revoke_as_admin', { id => $_->{id} })
	  foreach $clerk->invitations_for(value($id, 'email_address'));
	$clerk->control('clock', { offset => $offset });
	make_due();
	wait_until(
		'it is looked up',
		sub {
			send_invitations();
			return state_of($id) !~ /^(?:queued|verifying)/;
		});
	is(state_of($id) . ' ' . value($id, 'status'), 'sent 1 revoked', $title);
	is(created(value($id, 'email_address')), 1, '... and is the only one');
	$clerk->control('clock', { offset => 0 });
	return;
}

sub send_until
{
	my ($title, @names) = @_;

	wait_until(
		$title,
		sub {
			send_invitations();
			return !grep { state_of($id{$_}) !~ /^sent/ } @names;
		});
	pass($title);
	return;
}
