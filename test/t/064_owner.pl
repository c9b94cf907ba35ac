# The outbox may belong to a role that is no superuser: everything still works,
# with that role's rights.
use strict;
use warnings;

use ClerkTest;
use DeliveryTest;
use Test::More;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = delivery_cluster('main', $clerk);

$node->safe_psql(
	'postgres', q(
	CREATE ROLE keeper;
	CREATE ROLE app LOGIN;
	ALTER TABLE clerk_invitation_outbox OWNER TO keeper;
	GRANT EXECUTE ON FUNCTION clerk_enqueue_organization_invitation,
		clerk_cancel_invitation, clerk_retry_invitation,
		clerk_abandon_invitation, clerk_invitation_trigger TO app;
	GRANT EXECUTE ON PROCEDURE clerk_send_invitations, clerk_refresh_invitations TO app;
	CREATE SCHEMA AUTHORIZATION app;
	SET ROLE app;
	CREATE TABLE app.members (email text);
	CREATE TRIGGER invite AFTER INSERT ON app.members FOR EACH ROW
		EXECUTE FUNCTION public.clerk_invitation_trigger('=org_test', '', 'email', '=org:member');));

is(as_app("SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'function\@example.com', 'org:member') > 0"),
	't', 'the function enqueues');
as_app("INSERT INTO app.members VALUES ('trigger\@example.com')");
as_app('CALL clerk_send_invitations()');
is(states(), 'sent, sent', '... and so does the trigger, and a call sends');
my ($invitation) = $clerk->invitations_for('function@example.com');
$clerk->control('accept', { id => $invitation->{id} });
as_app('CALL clerk_refresh_invitations()');
is( $node->safe_psql('postgres',
		"SELECT status FROM clerk_invitation_outbox WHERE email_address LIKE 'function%'"
	),
	'accepted',
	'... and another refreshes');
is(as_app("SELECT clerk_cancel_invitation(clerk_enqueue_organization_invitation('org_test', NULL, 'canceled\@example.com', 'org:member'))"),
	't', 'what is queued can be canceled');
my $failed = as_app("SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'x-error-403-quota_exceeded-once--again\@example.com', 'org:member')");
as_app('CALL clerk_send_invitations()');
is(as_app("SELECT clerk_retry_invitation($failed)"), 't',
	'what has failed can be retried');
is(as_app("SELECT clerk_abandon_invitation($failed)"), 't', '... or given up');

reconfigure($node, 'clerk_invite.worker = on');
as_app("INSERT INTO app.members VALUES ('worker\@example.com')");
wait_until('the worker sends', sub { created('worker@example.com') == 1 });
pass('the worker sends');

$node->stop;
done_testing();

sub as_app
{
	my ($sql) = @_;

	return $node->safe_psql('postgres',
		"SET client_min_messages = error; SET ROLE app; $sql");
}

sub states
{
	return $node->safe_psql('postgres',
		"SELECT string_agg(state, ', ' ORDER BY id) FROM clerk_invitation_outbox");
}
