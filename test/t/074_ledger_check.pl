# The check that the campaign relies on sees each kind of difference between an
# outbox and Clerk's ledger, and none where there is none.
use strict;
use warnings;

use ClerkTest;
use DeliveryTest;
use Ledger;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = delivery_cluster('main', $clerk);
my $ledger = Ledger->new($clerk);
my $number = 0;

# What is as it should be, whatever became of it.
my %addresses = map { $_ => "$_\@example.com" } qw(sent skipped member failed canceled);

# A minute ago.
$clerk->control('clock', { offset => -60 });
$clerk->control('invite', { organization_id => 'org_test', email_address => $addresses{skipped} });
$clerk->control('clock', { offset => 0 });
enqueue(email_address => $addresses{sent}) for 1 .. 2;
enqueue(email_address => $addresses{$_}) foreach qw(skipped member);
enqueue(email_address => $addresses{failed}, organization_id => 'org_missing');
$node->safe_psql('postgres',
	'SELECT clerk_cancel_invitation(' . enqueue(email_address => $addresses{canceled}) . ')');
send_until_settled($node);
my %as_it_should_be = (
	committed => [ values %addresses ],
	rolled_back => ['nobody@example.com'],
	may_fail => qr/^failed/,
	statuses => 1);
check('where all is well', {%as_it_should_be});
is_deeply(
	$ledger->states($node),
	{ sent => 1, skipped => 3, failed => 1, canceled => 1 },
	'rows are counted by state');

# Each of these is wrong in one way.
check('a committed row is not there', { committed => ['away@example.com'] }, 'lost');
check('a row that was rolled back is there', { rolled_back => [ $addresses{sent} ] }, 'present');
check('a row may not fail', { may_fail => qr/^other/ }, 'untrue');
check('a row has an invitation that Clerk never had', {}, 'lost twice',
	sub { change(sent(), "invitation_id = 'orginv_none'") });
check('a row that was sent has none', {}, 'lost twice',
	sub { change(sent(), 'invitation_id = NULL') });
check('two rows have the same', {}, 'shared untrue', sub {
	my $invitation = value(sent(), 'invitation_id');

	change(enqueue(email_address => 'second@example.com'), "state = 'sent', invitation_id = '$invitation'");
});
check('an address has one more than rows', {}, 'twice', sub {
	my $id = sent();

	revoke($id);
	enqueue(email_address => value($id, 'email_address'));
	send_until_settled($node);
	as_sender("DELETE FROM clerk_invitation_outbox WHERE id > $id");
});
check('a canceled row has an invitation', {}, 'unwanted',
	sub { change(sent(), "state = 'canceled', invitation_id = NULL") });
check('a row that is gone has one', {}, 'unwanted',
	sub { as_sender('DELETE FROM clerk_invitation_outbox WHERE id = ' . sent()) });
check('a skipped row has one', {}, 'untrue',
	sub { change(sent(), "state = 'skipped', invitation_id = NULL") });
check('a failed row has one', {}, 'untrue',
	sub { change(sent(), "state = 'failed', invitation_id = NULL") });
check('a row is skipped without a reason', {}, 'untrue',
	sub { change(enqueue(email_address => 'alone@example.com'), "state = 'skipped'") });
check('a row has what others had before', {}, 'untrue', sub {
	my ($others) = $clerk->invitations_for($addresses{skipped});

	change(enqueue(email_address => $addresses{skipped}),
		"state = 'sent', invitation_id = '$others->{id}', first_claimed_at = now() + interval '1 min'");
});
check('a status is old', { statuses => 1 }, 'untrue', sub { revoke(sent()) });

# An organization that is deleted takes its invitations along.
check('what became of a row cannot be known', { may_fail => qr/^(?:failed|other|person)/ }, '', sub {
	my $id = enqueue(email_address => 'x-500-after--gone@example.com', organization_id => 'org_leaving');

	misbehave_in_lookups('503');
	send_invitations();
	$clerk->control('delete_organization', { organization_id => 'org_leaving' });
	make_due();
	send_until_settled($node);
	is(state_of($id), 'failed 1', 'an organization is deleted before a row could be looked up');
});

check('a row is open', {}, 'open',
	sub { enqueue(email_address => 'open@example.com', send_after => '2099-01-01') });

my @many = map { { kind => 'open', text => "row $_" } } 1 .. 50;
is(scalar(() = Ledger::describe(@many)), 21, 'not all of a kind are described');

$node->stop;
done_testing();

# The kinds of violations that are there after a change and were not before.
sub check
{
	my ($title, $params, $kinds, $change) = @_;
	my %before = map { $_->{text} => 1 } $ledger->violations(outboxes => [$node]);

	$change->() if $change;
	my @new = grep { !$before{ $_->{text} } } $ledger->violations(outboxes => [$node], %$params);
	my %found = map { $_->{kind} => 1 } @new;

	is(join(' ', sort keys %found), $kinds // '', $title)
	  or note join("\n", Ledger::describe(@new));
	return;
}

# A row that is sent to somebody new.
sub sent
{
	my $id = enqueue(email_address => 'person' . ++$number . '@example.com');

	send_until_settled($node);
	return $id;
}

sub change
{
	my ($id, $what) = @_;

	as_sender("UPDATE clerk_invitation_outbox SET $what WHERE id = $id");
	return;
}

sub revoke
{
	my ($id) = @_;

	$clerk->control('revoke_as_admin', { id => value($id, 'invitation_id') });
	return;
}
