# pg_cron's jobs invite people, whether it runs them through a connection or in
# a background worker, and a job that fails says why.
use strict;
use warnings;

use ClerkTest;
use CronTest;
use Test::More;

skip_without_pg_cron();

my @clusters = cron_clusters();

# People who wait, a job that invites them, and one whose invitation is already
# there.  The jobs are those of a role that may do just this.
foreach my $cluster (@clusters)
{
	my $node = $cluster->{node};

	$node->safe_psql('postgres', invite('pending@example.com'));
	$node->safe_psql(
		'postgres', q(
		CREATE ROLE marketing LOGIN;
		GRANT USAGE ON SCHEMA cron TO marketing;
		GRANT EXECUTE ON FUNCTION clerk_create_organization_invitation TO marketing;
		CREATE TABLE waiting_list (
			email text PRIMARY KEY,
			joined_at timestamptz NOT NULL DEFAULT now(),
			invited_at timestamptz,
			invitation_id text
		);
		GRANT SELECT, UPDATE ON waiting_list TO marketing;
		INSERT INTO waiting_list (email)
			SELECT 'waiting' || i || '@example.com' FROM generate_series(1, 5) AS i;
		INSERT INTO waiting_list (email, invited_at, invitation_id)
			VALUES ('earlier@example.com', now(), 'orginv_earlier');
	));
	$node->safe_psql(
		'postgres', q(
		SELECT cron.schedule('invite', '* * * * *', $$
			WITH invited AS (
				SELECT person.email, invitation.id
				FROM waiting_list AS person,
					clerk_create_organization_invitation(
						'org_test', NULL, person.email, 'org:member') AS invitation
				WHERE person.invited_at IS NULL
			)
			UPDATE waiting_list AS person
			SET invited_at = now(), invitation_id = invited.id
			FROM invited
			WHERE person.email = invited.email
		$$);
		SELECT cron.schedule('again', '* * * * *', $$
			SELECT id FROM clerk_create_organization_invitation(
				'org_test', NULL, 'pending@example.com', 'org:member')
		$$);
		), extra_params => [ '-U', 'marketing' ]);
}

# One column of a job's first run that ended like this; empty if there is none.
sub of_run
{
	my ($cluster, $job, $status, $column) = @_;

	return $cluster->{node}->safe_psql(
		'postgres', qq(
		SELECT $column FROM cron.job_run_details JOIN cron.job USING (jobid)
		WHERE jobname = '$job' AND status = '$status' ORDER BY runid LIMIT 1));
}

foreach my $cluster (@clusters)
{
	my ($name, $node, $clerk) = @{$cluster}{qw(name node clerk)};

	wait_for_cron(
		sub {
			return of_run($cluster, 'invite', 'succeeded', 'status')
			  && of_run($cluster, 'again', 'failed', 'status');
		});
	is(of_run($cluster, 'invite', 'succeeded', 'status'),
		'succeeded', "$name: the job that invites succeeds");

	my %invited = map { split(/\|/) } split(
		/\n/,
		$node->safe_psql(
			'postgres', 'SELECT email, invitation_id FROM waiting_list'));
	my %created = map { $_->{email_address} => $_->{id} }
	  map { @{ $_->{created} } } $clerk->journal;
	my @waiting = map { "waiting$_\@example.com" } 1 .. 5;
	is_deeply(
		[ map { $invited{$_} } @waiting ],
		[ map { $created{$_} } @waiting ],
		"$name: the job keeps the id of each invitation");
	is_deeply(
		[ map { scalar(() = $clerk->requests_for($_)) } @waiting ],
		[ (1) x 5 ],
		"$name: everyone who waited is asked for once");
	is(scalar(() = $clerk->requests_for('earlier@example.com')),
		0, "$name: nobody is invited who has been before");

	my $message = of_run($cluster, 'again', 'failed', 'return_message');
	ok( $message =~
		  /could not invite "pending\@example\.com" to organization "org_test"/,
		"$name: the job that fails says what it could not do");
	ok($message =~ /already pending/, "$name: the job that fails says why");

	check_what_jobs_leave_behind($cluster, 'waiting_list');
}

done_testing();
