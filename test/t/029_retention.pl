# clerk_invite.retention: what was settled long ago is removed after a pass,
# whoever makes it; everything else stays.
use strict;
use warnings;

use ClerkTest;
use Test::More;
use WorkerTest;

# As many as a transaction removes at most; outbox.c has it.
my $AT_A_TIME = 10000;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = clerk_cluster('main', $clerk,
	conf => "clerk_invite.bulk_requests_per_hour = 0\n");
my $CALL = "SET clerk_invite.retention = '1h'; CALL clerk_send_invitations()";

check_call();
check_locked_row();
check_backlog();
check_worker();

$node->stop;
done_testing();

sub check_call
{
	my $final = "'sent', 'skipped', 'failed', 'canceled'";

	# A row that is open may have a time of an end that was none.
	$node->safe_psql(
		'postgres', qq(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address,
			role, state, settled_at, send_after)
		SELECT 'org_test', age || '-' || state || '\@example.com', 'org:member',
			state, now() - ago, now() + interval '1 day'
		FROM unnest(ARRAY[$final, 'queued', 'verifying']) AS state,
			(VALUES ('old', interval '61 minutes'),
				('young', interval '59 minutes')) AS v (age, ago);
		INSERT INTO clerk_invitation_outbox (organization_id, email_address,
			role, state)
		VALUES ('org_test', 'timeless\@example.com', 'org:member', 'sent');));
	enqueue($node, 'postgres', 'new@example.com');

	$node->safe_psql('postgres', 'CALL clerk_send_invitations()');
	is(left(), '14', 'nothing is removed unless a time is set');
	is(states($node, 'postgres', 'new@example.com'),
		'sent 1', '... by a CALL that sends');
	$node->safe_psql('postgres', $CALL);
	is( $node->safe_psql(
			'postgres',
			'SELECT string_agg(split_part(email_address, chr(64), 1), chr(10) '
			  . 'ORDER BY email_address COLLATE "C") FROM clerk_invitation_outbox'
		),
		join("\n",
			'new', 'old-queued',
			'old-verifying', 'timeless',
			map { "young-$_" }
			  qw(canceled failed queued sent skipped verifying)),
		'a CALL removes what has been settled for longer, and nothing else');
	return;
}

# Nobody may keep a sender waiting.
sub check_locked_row
{
	old_rows(2);
	my $holder = start_psql($node, 'BEGIN;');
	my ($id) = run_in_psql($holder,
		"SELECT min(id) FROM clerk_invitation_outbox WHERE email_address LIKE 'many%' \\gset\n"
		  . 'SELECT id FROM clerk_invitation_outbox WHERE id = :min FOR UPDATE;');
	chomp $id;

	my $call =
	  attempt($node, 'postgres', "SET statement_timeout = '60s'; $CALL");
	is($call->{sqlstate}, '', 'a row that somebody has locked holds nobody up');
	is(many_left(), '1', '... it stays, and another one goes');
	run_in_psql($holder, 'ROLLBACK;');
	$holder->{harness}->finish;
	$node->safe_psql('postgres', $CALL);
	is(many_left(), '0', '... until nobody has it locked');
	return;
}

# Behind more rows for later than a transaction removes.
sub check_backlog
{
	my $rows = 2 * $AT_A_TIME + 1000;

	$node->safe_psql(
		'postgres', qq(
		INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, send_after)
		SELECT 'org_test', 'later' || i || '\@example.com', 'org:member',
			now() + interval '1 year'
		FROM generate_series(1, $AT_A_TIME + 1) AS i;
		CREATE TABLE removal (transaction bigint, rows bigint);
		CREATE FUNCTION note_removal() RETURNS trigger
		LANGUAGE plpgsql SET search_path = public AS \$\$
		BEGIN
			INSERT INTO removal
				SELECT txid_current(), count(*) FROM removed HAVING count(*) > 0;
			RETURN NULL;
		END \$\$;
		CREATE TRIGGER note_removal AFTER DELETE ON clerk_invitation_outbox
			REFERENCING OLD TABLE AS removed
			FOR EACH STATEMENT EXECUTE FUNCTION note_removal();));
	old_rows($rows);
	$node->safe_psql('postgres', $CALL);
	is(many_left(), '0', 'one CALL removes a backlog');
	is( $node->safe_psql(
			'postgres',
			'SELECT count(DISTINCT transaction), sum(rows), max(rows) FROM removal'
		),
		"3|$rows|$AT_A_TIME",
		'... in transactions that are no larger than others');
	$node->safe_psql(
		'postgres', q(
		DROP TRIGGER note_removal ON clerk_invitation_outbox;
		DELETE FROM clerk_invitation_outbox WHERE email_address LIKE 'later%'));
	return;
}

sub check_worker
{
	my $before = left();

	old_rows(5);
	reconfigure($node,
		"clerk_invite.worker = on\nclerk_invite.retention = '1h'");
	enqueue($node, 'postgres', 'worker@example.com');
	wait_for_states($node, 'postgres', 'sent 1', 'worker@example.com');
	wait_until('the worker removes old rows', sub { many_left() eq '0' });
	is(left(), $before + 1,
		'the worker removes what has been settled for longer, and nothing else');
	return;
}

# Puts so many rows into the outbox that were sent long ago.
sub old_rows
{
	my ($count) = @_;

	$node->safe_psql(
		'postgres', qq(
		INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, state, settled_at)
		SELECT 'org_test', 'many' || i || '\@example.com', 'org:member', 'sent',
			now() - interval '2 hours'
		FROM generate_series(1, $count) AS i));
	return;
}

sub many_left
{
	return left("WHERE email_address LIKE 'many%'");
}

sub left
{
	my ($where) = @_;

	return $node->safe_psql('postgres',
		'SELECT count(*) FROM clerk_invitation_outbox ' . ($where // ''));
}
