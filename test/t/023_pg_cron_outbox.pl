# pg_cron delivers the outbox without clerk_invite's own worker: one job puts
# those on a waiting list into it, each once, another one calls
# clerk_send_invitations(), whether pg_cron runs them through a connection or in
# a background worker.  A third one learns who has accepted.
use strict;
use warnings;

use ClerkTest;
use CronTest;
use Test::More;

skip_without_pg_cron();

my @clusters = cron_clusters();
my @waiting = map { "waiting$_\@example.com" } 1 .. 12;
my @queued = map { "queued$_\@example.com" } 1 .. 3;

# The jobs are those of a role that may do just this.
foreach my $cluster (@clusters)
{
	$cluster->{node}->safe_psql(
		'postgres', q(
		CREATE ROLE marketing LOGIN;
		GRANT USAGE ON SCHEMA cron TO marketing;
		GRANT INSERT ON clerk_invitation_outbox TO marketing;
		GRANT USAGE ON SEQUENCE clerk_invitation_outbox_id_seq TO marketing;
		GRANT EXECUTE ON PROCEDURE clerk_send_invitations TO marketing;
		GRANT EXECUTE ON PROCEDURE clerk_refresh_invitations TO marketing;
		CREATE TABLE waiting_list (
			email text PRIMARY KEY,
			invited_at timestamptz
		);
		GRANT SELECT, UPDATE ON waiting_list TO marketing;
		INSERT INTO waiting_list (email)
			SELECT 'waiting' || i || '@example.com' FROM generate_series(1, 12) AS i;
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
			SELECT 'org_test', 'queued' || i || '@example.com', 'org:member'
			FROM generate_series(1, 3) AS i;
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role,
				state, settled_at, invitation_id, status, url)
			SELECT organization_id, email_address, role,
				'sent', now(), id, status, url
			FROM clerk_create_organization_invitation(
				'org_test', NULL, 'joined@example.com', 'org:member');));
	my ($joined) = $cluster->{clerk}->invitations_for('joined@example.com');
	$cluster->{clerk}->control('accept', { id => $joined->{id} });
	$cluster->{node}->safe_psql(
		'postgres', q(
		SELECT cron.schedule('enqueue', '* * * * *', $$
			WITH joined AS (
				UPDATE waiting_list SET invited_at = now()
				WHERE invited_at IS NULL RETURNING email
			)
			INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
			SELECT 'org_test', email, 'org:member' FROM joined
		$$);
		SELECT cron.schedule('send', '* * * * *', 'CALL clerk_send_invitations()');
		SELECT cron.schedule('refresh', '* * * * *', 'CALL clerk_refresh_invitations()');
		), extra_params => [ '-U', 'marketing' ]);
}

foreach my $cluster (@clusters)
{
	my ($name, $node, $clerk) = @{$cluster}{qw(name node clerk)};
	my $state = sub {
		return $node->safe_psql('postgres', $_[0]);
	};

	# Both jobs start in the same minute: what one of them puts there the other
	# one may miss, and sends it a minute later.  By then the first one has seen
	# those who are invited already.
	wait_for_cron(
		sub {
			return $state->(
				q(
				SELECT (SELECT count(*) = 16 AND bool_and(state = 'sent')
							AND bool_or(status = 'accepted')
						FROM clerk_invitation_outbox)
					AND (SELECT bool_and(status = 'succeeded')
						FROM cron.job_run_details)
					AND (SELECT count(*) FILTER (WHERE jobname = 'enqueue') >= 2
							AND count(*) FILTER (WHERE jobname = 'send') >= 1
						FROM cron.job_run_details JOIN cron.job USING (jobid))))
			  eq 't';
		});
	is( $state->(
			q(
			SELECT DISTINCT jobname, d.status
			FROM cron.job_run_details AS d JOIN cron.job USING (jobid)
			ORDER BY jobname)),
		"enqueue|succeeded\nrefresh|succeeded\nsend|succeeded",
		"$name: the jobs succeed");
	is( $state->(
			'SELECT state, count(*) FROM clerk_invitation_outbox GROUP BY state'),
		'sent|16',
		"$name: everyone who waited or was in the outbox is sent an invitation");
	is( $state->(
			q(SELECT email_address, url IS NULL FROM clerk_invitation_outbox
			WHERE status = 'accepted')),
		'joined@example.com|t',
		"$name: who has accepted is in the outbox, without a url");
	is_deeply(
		[ map { scalar(() = $clerk->requests_for($_)) } @waiting, @queued ],
		[ (1) x 15 ],
		"$name: ... and is asked for once");
	is_deeply(
		[ map { scalar(() = $clerk->invitations_for($_)) } @waiting, @queued ],
		[ (1) x 15 ],
		"$name: ... and has one invitation");
	cmp_ok(
		$state->(
			q(SELECT count(*) FROM cron.job_run_details JOIN cron.job USING (jobid)
			WHERE jobname = 'enqueue')),
		'>=',
		2,
		"$name: ... though the waiting list was looked at again");

	check_what_jobs_leave_behind($cluster, 'clerk_send_invitations');
}

done_testing();
