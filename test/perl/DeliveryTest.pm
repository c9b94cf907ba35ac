# DeliveryTest - what the tests of clerk_send_invitations() have in common
#
#	my $node = delivery_cluster('main', $clerk);
#	my $id = enqueue(email_address => 'ann@example.com');
#	send_invitations();
#	is(state_of($id), 'sent 1', 'it is sent');
#
# A test has one cluster and, unless it says otherwise, one fake Clerk.

package DeliveryTest;

use strict;
use warnings;

use Exporter 'import';
use ClerkTest;
use JSON::PP qw(decode_json);

our @EXPORT = qw(
  delivery_cluster
  said
  enqueue
  send_invitations
  make_due
  as_sender
  row
  row_of
  state_of
  value
  created
  lookups_for
  misbehave_in_lookups
);

# Short delays, so that what is to be tried again is due at once; each row has a
# request of its own.
my $SETTINGS = q(
clerk_invite.bulk_requests_per_hour = 0
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
);

my ($node, $clerk);

# What psql has said when it sent.
my $said = '';

# A cluster where nobody sends but who is told to.
sub delivery_cluster
{
	my ($name, $fake) = @_;

	$clerk = $fake;
	$node = clerk_cluster($name, $clerk, conf => $SETTINGS);
	return $node;
}

# To be searched for secrets.
sub said
{
	return $said;
}

sub enqueue
{
	my %row = (organization_id => 'org_test', role => 'org:member', @_);
	my @names = sort keys %row;
	my $values = join(', ', map { "'" . ($row{$_} =~ s/'/''/gr) . "'" } @names);

	return $node->safe_psql('postgres',
		    'INSERT INTO clerk_invitation_outbox ('
		  . join(', ', @names)
		  . ") VALUES ($values) RETURNING id");
}

sub send_invitations
{
	my ($settings, $most) = @_;
	my $call = attempt($node, 'postgres',
		($settings // '') . 'CALL clerk_send_invitations(' . ($most // '') . ');');

	$said .= $call->{stderr};
	return $call;
}

sub make_due
{
	as_sender(
		q(UPDATE clerk_invitation_outbox SET next_attempt_at = now()
			WHERE state IN ('queued', 'verifying') AND next_attempt_at IS NOT NULL));
	return;
}

# SQL that the outbox's guard would refuse.
sub as_sender
{
	my ($sql) = @_;

	$node->safe_psql('postgres',
		"SET session_replication_role = replica; $sql");
	return;
}

sub row
{
	my ($id) = @_;

	return decode_json(
		$node->safe_psql(
			'postgres', qq(
			SELECT to_jsonb(o) - 'url' || jsonb_build_object('has_url', url IS NOT NULL)
			FROM clerk_invitation_outbox AS o WHERE id = $id)));
}

sub row_of
{
	my ($email) = @_;

	return row(
		$node->safe_psql('postgres',
			"SELECT id FROM clerk_invitation_outbox WHERE email_address = '$email'"
		));
}

sub state_of
{
	my ($id) = @_;

	return $node->safe_psql('postgres',
		"SELECT state || ' ' || attempts FROM clerk_invitation_outbox WHERE id = $id"
	);
}

sub value
{
	my ($id, $expression) = @_;

	return $node->safe_psql('postgres',
		"SELECT $expression FROM clerk_invitation_outbox WHERE id = $id");
}

sub created
{
	my ($email, $fake) = @_;

	return scalar(() = ($fake // $clerk)->invitations_for($email));
}

sub lookups_for
{
	my ($email) = @_;

	return grep { $_->{method} eq 'GET'
		  && ($_->{query}{email_address}[0] // '') eq $email } $clerk->journal;
}

sub misbehave_in_lookups
{
	my ($behaviour) = @_;

	$clerk->control(
		'misbehave',
		{
			operation => 'ListOrganizationInvitations',
			behaviour => $behaviour
		});
	return;
}

1;
