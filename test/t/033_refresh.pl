# CALL clerk_refresh_invitations() tells from Clerk's lists what became of the
# invitations in the outbox, with few requests: a row gets a status only from an
# answer that names its invitation, and loses its url with being pending.
use strict;
use warnings;

use ClerkTest;
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Utils;
use Test::More;

my $INSTANCE = 'ListInstanceOrganizationInvitations';
my $ORGANIZATION = 'ListOrganizationInvitations';

my $clerk =
  ClerkTest::Fake->start('--single-limit', '100000', '--bulk-limit', '100000');
my $node = clerk_cluster(
	'main', $clerk,
	conf => q(
clerk_invite.single_requests_per_hour = 100000
clerk_invite.bulk_requests_per_hour = 100000
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
));

# What psql has said, and where in the journal the present check begins.
my $said = '';
my $mark = 0;

check_statuses();
check_trigger();
check_unknown_statuses();
check_thousand();
check_many_organizations();
check_old_changes();
check_large_instance();
check_refused_instance_list();
check_deleted_organization();
check_smaller_pages();
check_changing_list();
check_listing();
check_refusals_of_all();
check_failures();
check_nothing_is_held();
check_cancel();
check_two_at_a_time();
check_beside_a_sender();
check_beside_removal();
check_locked_row();
check_settled_when_found();
check_no_table_scan();
check_where_it_cannot_run();
check_privileges();
check_other_schema();
check_secrets();

$node->stop;
done_testing();

# Every status arrives, and nothing else of the row changes but its url.
sub check_statuses
{
	begin_check();
	is(refresh()->{stderr}, '', 'with nothing pending it says nothing');
	is(requests(), 0, '... and asks Clerk nothing');

	my @names = qw(accepted revoked expired pending);
	send_to('org_test', map { "$_\@example.com" } @names);
	my %id = ids();
	my $others = q(SELECT (to_jsonb(o) - '{status,url}'::text[])::text
		FROM clerk_invitation_outbox AS o ORDER BY id);
	my $before = query($others);
	$clerk->control('accept', { id => $id{'accepted@example.com'} });
	$clerk->control('revoke_as_admin', { id => $id{'revoked@example.com'} });
	$clerk->control('expire', { id => $id{'expired@example.com'} });

	my $call = refresh();
	is($call->{sqlstate}, '', 'refreshing succeeds');
	like(
		$call->{stderr},
		qr/NOTICE:.*pending invitations: 4, of which 3 have changed: 1 accepted, 1 revoked, 1 expired$/m,
		'... and tells how many have changed');
	foreach my $name (@names)
	{
		is( query(
				qq(SELECT status, url IS NULL FROM clerk_invitation_outbox
				WHERE email_address = '$name\@example.com')),
			"$name|" . ($name eq 'pending' ? 'f' : 't'),
			"what is $name at Clerk is $name in the outbox, with its url only while it is pending"
		);
	}
	is(query($others), $before, 'nothing else of a row changes');
	is(requests(), 4,
		'that takes a list for each status but one, and a look-up');

	begin_check(keep => 1);
	like(refresh()->{stderr}, qr/pending invitations: 1, of which 0 have changed/,
		'settled ones are not looked at again');
	is(requests(), 1, '... and a single one takes one request');
	return;
}

# What people do with it.
sub check_trigger
{
	begin_check();
	query(
		q(
		CREATE TABLE members (email text PRIMARY KEY, joined_at timestamptz);
		CREATE TABLE seen (old_status text, new_status text, new_url text, role name);
		CREATE FUNCTION note_joined() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			UPDATE public.members SET joined_at = now() WHERE email = NEW.email_address;
			INSERT INTO public.seen VALUES (OLD.status, NEW.status, NEW.url, current_user);
			RETURN NULL;
		END $$;
		CREATE TRIGGER joined AFTER UPDATE OF status ON clerk_invitation_outbox
		FOR EACH ROW
		WHEN (NEW.status = 'accepted' AND OLD.status IS DISTINCT FROM NEW.status)
		EXECUTE FUNCTION note_joined();
		INSERT INTO members VALUES ('ann@example.com'), ('bob@example.com');));
	send_to('org_test', 'ann@example.com', 'bob@example.com', 'cy@example.com');
	my %id = ids();
	$clerk->control('accept', { id => $id{'ann@example.com'} });
	$clerk->control('revoke_as_admin', { id => $id{'cy@example.com'} });
	refresh();
	is(query('SELECT email FROM members WHERE joined_at IS NOT NULL'),
		'ann@example.com', "a user's trigger acts on an acceptance");
	is( query('SELECT old_status, new_status, new_url IS NULL FROM seen'),
		'pending|accepted|t', '... once, and sees it before and after');

	# An error there is the user's to see, and loses nothing.
	query(
		q(ALTER TABLE members ADD CHECK (joined_at IS NULL OR email <> 'bob@example.com')));
	$clerk->control('accept', { id => $id{'bob@example.com'} });
	my $refresh = refresh();
	is($refresh->{sqlstate}, '', 'an error of the trigger ends no call');
	like(
		$refresh->{stderr},
		qr/could not record the status of invitation "\w+": SQLSTATE 23514/,
		'... but is told');
	is(status_of('bob@example.com'), 'pending', '... and the row stays');
	query('ALTER TABLE members DROP CONSTRAINT members_check');
	refresh();
	is(status_of('bob@example.com'), 'accepted', '... until the trigger takes it');
	query('DROP FUNCTION note_joined() CASCADE; DROP TABLE members, seen');
	return;
}

# Clerk does not promise to tell a status, and may know others.
sub check_unknown_statuses
{
	begin_check();
	send_to('org_test', $_)
	  foreach 'x-minimal--untold@example.com', 'told@example.com';
	is(query('SELECT count(*) FROM clerk_invitation_outbox WHERE status IS NULL'),
		1, 'there is a row without a status');
	refresh();
	is( status_of('x-minimal--untold@example.com'),
		'pending', 'it gets the one that Clerk tells later');
	is( query(
			q(SELECT url IS NULL FROM clerk_invitation_outbox
			WHERE email_address = 'told@example.com')),
		'f',
		'a pending one keeps its url');
	misbehave($ORGANIZATION, 'minimal');
	my $call = refresh();
	is($call->{sqlstate}, '', 'a list without statuses is no error');
	like($call->{stderr}, qr/of which 0 have changed/, '... and changes nothing');
	is(query(q(SELECT count(*) FROM clerk_invitation_outbox WHERE status = 'pending')),
		2, '... in no row');
	return;
}

# A thousand in one organization.
sub check_thousand
{
	begin_check();
	send_to('org_test', map { "thousand$_\@example.com" } 1 .. 1000);
	my %id = ids();
	my @changed = map { "thousand$_\@example.com" } 3, 400, 401, 402, 777, 1000;

	begin_check(keep => 1);
	refresh();
	is(requests(), 3, 'a thousand without a change take three requests');
	is_deeply(
		[ map { $_->{query}{limit}[0] } asked() ],
		[ (500) x 3 ],
		'... of the largest size');

	$clerk->control('accept', { id => $id{$_} }) foreach @changed;
	begin_check(keep => 1);
	like(refresh()->{stderr}, qr/1000, of which 6 have changed: 6 accepted/,
		'some of a thousand have changed');
	cmp_ok(requests(), '<=', 4, '... which takes one request more');
	is( query(
			q(SELECT string_agg(email_address, ' ' ORDER BY id)
			FROM clerk_invitation_outbox WHERE status = 'accepted')),
		"@changed",
		'... and these it is');
	is( query(
			q(SELECT count(*) FROM clerk_invitation_outbox
			WHERE (status = 'pending') = (url IS NULL))),
		0,
		'... with the others pending and their urls kept');
	return;
}

# A few in each of many organizations.
sub check_many_organizations
{
	begin_check();
	enqueue("org_many$_", "a$_\@example.com", "b$_\@example.com") foreach 1 .. 60;
	send_until_settled($node);
	my %id = ids();

	begin_check(keep => 1);
	refresh();
	is(requests($INSTANCE) . ' ' . requests($ORGANIZATION),
		'1 0', 'sixty organizations without a change take one request');

	$clerk->control('accept', { id => $id{"a$_\@example.com"} }) foreach 1 .. 60;
	begin_check(keep => 1);
	like(refresh()->{stderr}, qr/120, of which 60 have changed: 60 accepted/,
		'one has changed in each');
	is(requests($INSTANCE) . ' ' . requests($ORGANIZATION),
		'2 0', '... which takes two requests');

	# Where one list would answer, and one look does as well.
	query(q(DELETE FROM clerk_invitation_outbox
		WHERE email_address <> 'b7@example.com'));
	$clerk->control('accept', { id => $id{'b7@example.com'} });
	begin_check(keep => 1);
	refresh();
	is(status_of('b7@example.com'), 'accepted', 'the only one has changed');
	is(requests($INSTANCE) . ' ' . requests($ORGANIZATION),
		'0 1', '... and its own list tells so');
	return;
}

# What changed is far behind in the list of all that ever changed.
sub check_old_changes
{
	begin_check();
	send_to('org_test', map { "old$_\@example.com" } 1 .. 5);
	my %old = ids();
	send_to('org_test', map { "recent$_\@example.com" } 1 .. 1600);
	my %id = ids();
	settle_at_clerk(map { $id{"recent$_\@example.com"} } 1 .. 1600);
	query(q(DELETE FROM clerk_invitation_outbox WHERE email_address LIKE 'recent%'));
	$clerk->control('accept', { id => $_ }) foreach values %old;
	begin_check(keep => 1);
	like(refresh()->{stderr}, qr/5, of which 5 have changed: 5 accepted/,
		'changes behind 1,600 later ones are found');
	cmp_ok(requests(), '<=', 8,
		'... with little more than a request for each');
	return;
}

# The instance has much that is not ours.
sub check_large_instance
{
	begin_check();
	send_to('org_foreign', map { "foreign$_\@example.com" } 1 .. 2500);
	query('DELETE FROM clerk_invitation_outbox');
	send_to('org_test', map { "ours$_\@example.com" } 1 .. 2);
	my %id = ids();
	$clerk->control('accept', { id => $id{'ours1@example.com'} });
	begin_check(keep => 1);
	like(refresh()->{stderr}, qr/2, of which 1 have changed: 1 accepted/,
		'two among 2,500 of others are found');
	cmp_ok(requests(), '<=', 3, '... without reading them all');
	return;
}

# A key may not be for the whole instance.
sub check_refused_instance_list
{
	foreach my $refusal ('error-403-not_allowed_access',
		'error-404-resource_not_found', '500')
	{
		begin_check();
		foreach my $n (1 .. 3)
		{
			enqueue("org_some$n", map { "some$n-$_\@example.com" } 1 .. 4);
		}
		send_until_settled($node);
		my %id = ids();
		$clerk->control('accept', { id => $id{"some2-$_\@example.com"} })
		  foreach 1 .. 3;
		$clerk->control('expire', { id => $id{"some3-1\@example.com"} });
		misbehave($INSTANCE, $refusal);
		begin_check(keep => 1);
		my $call = refresh();
		is($call->{sqlstate}, '', "$refusal for the instance's list is no error");
		like(
			$call->{stderr},
			qr/12, of which 4 have changed: 3 accepted, 0 revoked, 1 expired$/m,
			"... and organizations are asked one by one");
		unlike($call->{stderr}, qr/WARNING/, '... without a warning');
		is(requests($INSTANCE), 1, '... after one attempt');
		cmp_ok(requests($ORGANIZATION), '<=', 5, '... with few requests');
	}
	return;
}

# What is gone with its organization has no status, and stops nobody.
sub check_deleted_organization
{
	begin_check();
	send_to('org_deleted1', map { "deleted$_\@example.com" } 1 .. 30);
	send_to('org_alive', map { "alive$_\@example.com" } 1 .. 30);
	my %id = ids();
	$clerk->control('delete_organization', { organization_id => 'org_deleted1' });
	$clerk->control('accept', { id => $id{'alive30@example.com'} });
	$clerk->control('revoke_as_admin', { id => $id{'alive1@example.com'} });
	begin_check(keep => 1);
	my $call = refresh();
	is($call->{sqlstate}, '', 'a deleted organization is no error');
	like($call->{stderr}, qr/60, of which 2 have changed: 1 accepted, 1 revoked/,
		'... and the others are refreshed');
	like(
		$call->{stderr},
		qr/WARNING:.*nothing about 30 pending invitations\n.*DETAIL:.*organization does not exist\. Organizations: "org_deleted1"\./s,
		'... which is told, with its name');
	is( query(
			q(SELECT count(*) FROM clerk_invitation_outbox
			WHERE organization_id = 'org_deleted1' AND status = 'pending')),
		30,
		'its rows have no status that Clerk did not tell');
	cmp_ok(requests(), '<=', 4, '... at the cost of few requests');

	# Of many, the first.
	send_to("org_many$_", "many$_\@example.com") foreach 1 .. 6;
	$clerk->control('delete_organization', { organization_id => "org_many$_" })
	  foreach 1 .. 6;
	like(
		refresh()->{stderr},
		qr/Organizations: "org_deleted1", "org_many1", "org_many2", "org_many3", "org_many4", and 2 more\./,
		'... and of many deleted ones some are named');
	return;
}

# An answer of more than 4 MiB is given up, and asked for in smaller pages; and
# Clerk may choose smaller ones.
sub check_smaller_pages
{
	begin_check();
	query(
		q(INSERT INTO clerk_invitation_outbox
			(organization_id, email_address, role, public_metadata, private_metadata)
		SELECT 'org_test', 'big' || i || '@example.com', 'org:member',
			jsonb_build_object('a', repeat('x', 8000)),
			jsonb_build_object('b', repeat('y', 8000))
		FROM generate_series(1, 300) AS i));
	send_until_settled($node);
	my %id = ids();
	$clerk->control('accept', { id => $id{'big300@example.com'} });
	$clerk->control('accept', { id => $id{'big2@example.com'} });
	begin_check(keep => 1);
	like(refresh()->{stderr}, qr/300, of which 2 have changed: 2 accepted/,
		'lists larger than an answer may be are read');
	is(join(' ', map { $_->{query}{limit}[0] } asked()),
		'500 200 200 200', '... in smaller pages');

	misbehave($ORGANIZATION, 'page-of-30', 3);
	$clerk->control('accept', { id => $id{'big3@example.com'} });
	like(refresh()->{stderr}, qr/298, of which 1 have changed: 1 accepted/,
		'pages smaller than was asked for are read');
	foreach my $odd (qw(first-page any-order ties-reversed wrong-type-created_at truncated))
	{
		my ($pending) = query(q(SELECT min(invitation_id)
			FROM clerk_invitation_outbox WHERE status = 'pending'));

		$clerk->control('accept', { id => $pending });
		misbehave($ORGANIZATION, $odd, 2);
		like(refresh()->{stderr}, qr/of which 1 have changed: 1 accepted/,
			"a list of the kind $odd does not lead astray");
		is(query(qq(SELECT status FROM clerk_invitation_outbox
				WHERE invitation_id = '$pending')),
			'accepted', '... to another row');
		undo_misbehaviour();
	}
	return;
}

# While pages are read, invitations leave the list; nobody gets a wrong status.
sub check_changing_list
{
	begin_check();
	send_to('org_test', map { "changing$_\@example.com" } 1 .. 700);
	my %id = ids();
	my $psql = start_psql($node, 'SET client_min_messages = warning;');

	misbehave($ORGANIZATION, 'slow-1000');
	begin_check(keep => 1);
	send_to_psql($psql, 'CALL clerk_refresh_invitations();');
	wait_until('the first page is on its way', sub { requests() > 0 });
	settle_at_clerk(map { $id{"changing$_\@example.com"} } 1 .. 300);
	my (undef, $stderr) = output_of_psql($psql);
	is($stderr, '', 'a list that changes while it is read is no error');
	is(count_wrong(), 0, '... and gives nobody a wrong status');
	refresh();
	is(query(q(SELECT count(*) FROM clerk_invitation_outbox WHERE status = 'accepted')),
		300, '... and the next call has them all');
	is(count_wrong(), 0, '... as they are at Clerk');
	$psql->{harness}->finish;
	return;
}

# The functions that list read the same way: each invitation once.
sub check_listing
{
	begin_check();
	send_to('org_test', map { "listed$_\@example.com" } 1 .. 700);
	my %id = ids();
	my $list = q(SELECT count(*), count(DISTINCT id), count(DISTINCT email_address)
		FROM clerk_list_organization_invitations('org_test', '{pending}'));

	is(query($list), '700|700|700', 'a list of several pages has each once');
	foreach my $odd ('page-of-30', 'ties-reversed')
	{
		misbehave($ORGANIZATION, $odd, 3);
		is(query($list), '700|700|700', "... also with pages of the kind $odd");
		undo_misbehaviour();
	}
	misbehave($ORGANIZATION, $_) foreach 'extra', 'slow-1500';
	begin_check(keep => 1);
	my $psql = start_psql($node, '');
	send_to_psql($psql, q(SELECT email_address
		FROM clerk_list_organization_invitations('org_test', '{pending}');));
	wait_until('the second page is on its way', sub { requests() >= 2 });
	settle_at_clerk(map { $id{"listed$_\@example.com"} } 1 .. 350);
	my ($listed, $stderr) = output_of_psql($psql);
	my %listed;
	$listed{$_}++ foreach split /\n/, $listed;
	$psql->{harness}->finish;
	is($stderr, '', 'a list that changes while it is read is no error');
	is( join(' ', grep { ($listed{"listed$_\@example.com"} // 0) != 1 } 351 .. 700),
		'',
		'... and has once what belongs to it throughout');
	undo_misbehaviour();
	return;
}

# What concerns every request ends the call; the next one goes on.
sub check_refusals_of_all
{
	foreach my $case (
		[ '401', 'error-401-clerk_key_invalid', '28000', qr/ERROR:.*stopped refreshing invitations: Clerk does not accept the secret key/ ],
		[ '429', '429-7', '', qr/WARNING:.*stopped refreshing invitations: Clerk's rate limit was exceeded/ ])
	{
		my ($title, $behaviour, $sqlstate, $text) = @$case;

		begin_check();
		send_to("org_all$_", "all$_\@example.com", "more$_\@example.com")
		  foreach 1 .. 3;
		my %id = ids();
		$clerk->control('accept', { id => $id{'all1@example.com'} });
		misbehave($INSTANCE, $behaviour);
		begin_check(keep => 1);
		my $call = refresh();
		is($call->{sqlstate}, $sqlstate, "after $title the call ends as said");
		like($call->{stderr}, $text, '... and says why');
		is(requests(), 1, '... and does not ask again');
		is(status_of('all1@example.com'), 'pending', '... and changes nothing');
		refresh();
		is(status_of('all1@example.com'), 'accepted', 'the next call goes on');
	}

	# Lists that senders were refused are left alone for as long.
	begin_check();
	send_to("org_closed$_", "closed$_\@example.com", "more$_\@example.com")
	  foreach 1 .. 3;
	my %id = ids();
	$clerk->control('accept', { id => $id{'closed1@example.com'} });
	misbehave($INSTANCE, 'error-403-not_allowed_access', 2);
	misbehave($ORGANIZATION, '429-2');
	refresh();
	begin_check(keep => 1);
	my $call = refresh();
	like($call->{stderr}, qr/NOTICE:.*Clerk accepts no list requests until /,
		'a list that Clerk has closed is not asked for');
	is(requests($ORGANIZATION), 0, '... at all');
	wait_until(
		'Clerk takes lists again',
		sub {
			refresh();
			return status_of('closed1@example.com') eq 'accepted';
		});
	pass('... until it is open again');

	my $settings = "SET clerk_invite.secret_key_file = ''; ";
	send_to('org_test', 'nokey@example.com');
	is(refresh("SET clerk_invite.api_url = 'http://example.com'; ")->{sqlstate},
		'55000', 'an address that cannot be used is an error');
	is( attempt(
			$node, 'postgres',
			"SET clerk_invite.api_url = 'http://example.com';"
			  . "SELECT * FROM clerk_list_organization_invitations('org_test')")
		  ->{sqlstate},
		'55000',
		'... also for the list of an organization');
	is(refresh($settings)->{sqlstate}, '55000', 'without a key it is an error');
	like(refresh("SET clerk_invite.api_url = 'http://127.0.0.1:1'; ")->{stderr},
		qr/WARNING:.*stopped refreshing invitations: could not connect to Clerk/,
		'without Clerk it is a warning');
	return;
}

# Clerk fails now and then, or altogether.
sub check_failures
{
	begin_check();
	foreach my $n (1 .. 10)
	{
		enqueue("org_fail$n", map { "fail$n-$_\@example.com" } 1 .. 2);
	}
	send_until_settled($node);
	my %id = ids();
	$clerk->control('accept', { id => $id{"fail$_-1\@example.com"} }) foreach 1 .. 10;
	misbehave($INSTANCE, '500', 3);
	misbehave($ORGANIZATION, '503', 2);
	refresh();
	cmp_ok(
		query(q(SELECT count(*) FROM clerk_invitation_outbox WHERE status = 'accepted')),
		'>=', 9, 'two failures keep nobody else from being refreshed');
	undo_misbehaviour();
	refresh();
	is(query(q(SELECT count(*) FROM clerk_invitation_outbox WHERE status = 'accepted')),
		10, '... and the next call has all');

	$clerk->control('down', { down => \1 });
	begin_check(keep => 1);
	my $call = refresh();
	is($call->{sqlstate}, '', 'an outage is no error');
	like($call->{stderr},
		qr/WARNING:.*stopped refreshing invitations: Clerk returned a server error/,
		'... but a warning');
	is(requests(), 4, '... after one attempt and three more');
	$clerk->control('down', { down => \0 });
	return;
}

# A request may take long; meanwhile vacuum and schema changes go on.
sub check_nothing_is_held
{
	begin_check();
	send_to("org_held$_", "held$_\@example.com") foreach 1 .. 2;
	my %id = ids();
	my $psql = start_psql($node, 'SET client_min_messages = warning;');
	my $pid = backend_of($psql);

	$clerk->control('accept', { id => $id{'held1@example.com'} });
	misbehave($INSTANCE, 'slow-1500', 2);
	begin_check(keep => 1);
	send_to_psql($psql, 'CALL clerk_refresh_invitations();');
	wait_until('a list is on its way', sub { requests($INSTANCE) });
	is( query(
			qq(
			SELECT wait_event_type, backend_xmin, backend_xid,
				(SELECT count(*) FROM pg_locks AS l WHERE l.pid = a.pid
				 AND locktype <> 'virtualxid')
			FROM pg_stat_activity AS a WHERE pid = $pid)),
		'Extension|||0',
		'while a list is on its way neither snapshot nor transaction id nor lock is held'
	);
	is( attempt(
			$node, 'postgres', q(
			SET lock_timeout = '1s';
			BEGIN;
			LOCK TABLE clerk_invitation_outbox IN ACCESS EXCLUSIVE MODE;
			COMMIT;))->{sqlstate},
		'',
		'... and the outbox can be locked');
	is(status_of('held1@example.com'), 'pending', '... since it is on its way');
	output_of_psql($psql);
	$psql->{harness}->finish;
	is(status_of('held1@example.com'), 'accepted', '... and arrives');
	undo_misbehaviour();
	return;
}

# What was learned stays, the rest is learned later.
sub check_cancel
{
	begin_check();
	foreach my $n (1 .. 2)
	{
		send_to("org_cancel$n", map { "cancel$n-$_\@example.com" } 1 .. 2);
	}
	my %id = ids();
	$clerk->control('accept', { id => $_ }) foreach values %id;
	my $psql = start_psql($node, '');
	my $pid = backend_of($psql);

	misbehave($INSTANCE, 'error-403-not_allowed_access');
	misbehave($ORGANIZATION, $_) foreach 'extra', 'extra', 'hang';
	begin_check(keep => 1);
	send_to_psql($psql, 'CALL clerk_refresh_invitations();');
	wait_until('the third list of organizations is on its way',
		sub { requests($ORGANIZATION) == 3 });
	query("SELECT pg_cancel_backend($pid)");
	my (undef, $stderr) = output_of_psql($psql);
	like($stderr, qr/canceling statement due to user request/,
		'it can be canceled while it waits');
	is(query(q(SELECT count(*) FROM clerk_invitation_outbox WHERE status = 'accepted')),
		2, '... and keeps what it has learned');
	is((run_in_psql($psql, 'SELECT 1;'))[0], "1\n", '... and the session goes on');
	run_in_psql($psql, 'CALL clerk_refresh_invitations();');
	is(query(q(SELECT count(*) FROM clerk_invitation_outbox WHERE status = 'accepted')),
		4, '... and learns the rest');
	$psql->{harness}->finish;
	undo_misbehaviour();
	return;
}

# The trigger fires once for each change, whoever is first.
sub check_two_at_a_time
{
	begin_check();
	query(
		q(
		CREATE TABLE changes (id bigint, status text);
		CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.changes VALUES (NEW.id, NEW.status);
			RETURN NULL;
		END $$;
		CREATE TRIGGER change AFTER UPDATE OF status ON clerk_invitation_outbox
		FOR EACH ROW WHEN (OLD.status = 'pending') EXECUTE FUNCTION note_change();));
	send_to('org_test', map { "two$_\@example.com" } 1 .. 600);
	query('TRUNCATE changes');
	my %id = ids();
	settle_at_clerk(map { $id{"two$_\@example.com"} } 1 .. 400);
	my @psqls = map { start_psql($node, 'SET client_min_messages = warning;') } 1, 2;
	send_to_psql($_, 'CALL clerk_refresh_invitations();') foreach @psqls;
	my @errors = map { (output_of_psql($_))[1] } @psqls;
	is("@errors", ' ', 'two at a time say nothing');
	refresh();
	is(query('SELECT count(*), count(DISTINCT id) FROM changes'),
		'400|400', '... and change each row once');
	is(count_wrong(), 0, '... to what it is at Clerk');
	$_->{harness}->finish foreach @psqls;
	query('DROP FUNCTION note_change() CASCADE; DROP TABLE changes');
	return;
}

# Neither waits for the other.
sub check_beside_a_sender
{
	begin_check();
	send_to("org_beside$_", "beside$_\@example.com") foreach 1 .. 2;
	my %id = ids();
	$clerk->control('accept', { id => $id{'beside1@example.com'} });

	my $psql = start_psql($node, 'SET client_min_messages = warning;');
	begin_check(keep => 1);
	enqueue('org_test', 'x-slow-1500--beside@example.com');
	send_to_psql($psql, 'CALL clerk_send_invitations();');
	wait_until('a sender is at work',
		sub { is_asked_about('x-slow-1500--beside@example.com') });
	refresh();
	is( query(q(SELECT string_agg(state || ' ' || coalesce(status, '-'), ', ' ORDER BY id)
			FROM clerk_invitation_outbox)),
		'sent accepted, sent pending, sending -',
		'a refresh beside a sender does its work, and leaves what is under way');
	output_of_psql($psql);

	send_to('org_beside4', 'beside4@example.com');
	misbehave($INSTANCE, 'slow-1500');
	begin_check(keep => 1);
	send_to_psql($psql, 'CALL clerk_refresh_invitations();');
	wait_until('a refresh is at work', sub { requests($INSTANCE) });
	enqueue('org_test', 'beside3@example.com');
	query('SET client_min_messages = warning; CALL clerk_send_invitations()');
	is(status_of('beside3@example.com'), 'pending', 'a sender beside a refresh sends');
	is((output_of_psql($psql))[1], '', '... and disturbs nothing');
	$psql->{harness}->finish;
	is(count_wrong(), 0, '... and nobody has a wrong status');

	# What somebody has changed meanwhile stays as it is.
	my %id_now = ids();
	$clerk->control('accept', { id => $id_now{'beside2@example.com'} });
	$psql = start_psql($node, 'SET client_min_messages = warning;');
	misbehave($INSTANCE, 'slow-1500', 2);
	begin_check(keep => 1);
	send_to_psql($psql, 'CALL clerk_refresh_invitations();');
	wait_until('a refresh is at work', sub { requests($INSTANCE) });
	query(q(UPDATE clerk_invitation_outbox SET status = 'by hand'
		WHERE email_address = 'beside2@example.com'));
	output_of_psql($psql);
	$psql->{harness}->finish;
	is(status_of('beside2@example.com'), 'by hand',
		'a status that was changed meanwhile is left alone');
	undo_misbehaviour();
	return;
}

# Rows may go while their list is on its way: by hand, and by retention.
sub check_beside_removal
{
	begin_check();
	send_to('org_test', map { "removal$_\@example.com" } 1 .. 6);
	my %id = ids();
	settle_at_clerk(values %id);
	query(q(UPDATE clerk_invitation_outbox SET settled_at = now() - interval '2 days'
		WHERE email_address ~ '[34]'));

	my $removing = start_psql($node, '');
	my $psql = start_psql($node,
		q(SET client_min_messages = warning; SET statement_timeout = '20s';));
	misbehave($INSTANCE, 'slow-1500');
	misbehave($ORGANIZATION, 'slow-1500', 2);
	begin_check(keep => 1);
	send_to_psql($psql, 'CALL clerk_refresh_invitations();');
	wait_until('a list is on its way', sub { requests() });
	query(q(DELETE FROM clerk_invitation_outbox WHERE email_address ~ '1'));
	run_in_psql($removing, q(BEGIN;
		DELETE FROM clerk_invitation_outbox WHERE email_address ~ '2';));
	query(q(SET client_min_messages = warning; SET clerk_invite.retention = '1d';
		CALL clerk_send_invitations()));
	my (undef, $stderr) = output_of_psql($psql);
	is($stderr, '', 'rows that are removed meanwhile are no error');
	is( query(q(SELECT string_agg(email_address || ' ' || status, ', ' ORDER BY id)
			FROM clerk_invitation_outbox)),
		'removal2@example.com pending, removal5@example.com accepted, removal6@example.com accepted',
		'... stay removed, and keep nobody else from being refreshed');
	run_in_psql($removing, 'COMMIT;');
	is(query('SELECT count(*) FROM clerk_invitation_outbox'), 2,
		'... nor does the refresh keep anybody from removing them');
	$_->{harness}->finish foreach $psql, $removing;
	undo_misbehaviour();
	return;
}

# Nobody may keep it waiting either.
sub check_locked_row
{
	begin_check();
	send_to('org_test', map { "locked$_\@example.com" } 1 .. 3);
	my %id = ids();
	$clerk->control('accept', { id => $_ }) foreach values %id;
	my $psql = start_psql($node, '');
	run_in_psql($psql,
		q(BEGIN; SELECT 1 FROM clerk_invitation_outbox
		WHERE email_address = 'locked2@example.com' FOR UPDATE;));
	like(refresh("SET statement_timeout = '20s'; ")->{stderr},
		qr/3, of which 2 have changed/, 'a row that somebody has locked is left out');
	run_in_psql($psql, 'ROLLBACK;');
	$psql->{harness}->finish;
	like(refresh()->{stderr}, qr/1, of which 1 have changed/,
		'... and has its turn later');
	return;
}

# An invitation that was accepted before its row was settled has no url to keep.
sub check_settled_when_found
{
	begin_check();
	my $email = 'x-drop-after--found@example.com';
	query(
		q(
		CREATE TABLE joined (email text);
		CREATE FUNCTION note_joined() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.joined VALUES (NEW.email_address);
			RETURN NULL;
		END $$;
		CREATE TRIGGER joined AFTER UPDATE OF status ON clerk_invitation_outbox
		FOR EACH ROW
		WHEN (NEW.status = 'accepted' AND OLD.status IS DISTINCT FROM NEW.status)
		EXECUTE FUNCTION note_joined();));
	enqueue('org_test', $email);
	misbehave($ORGANIZATION, 'slow-1500');
	my $psql = start_psql($node, 'SET client_min_messages = error;');
	send_to_psql($psql, 'CALL clerk_send_invitations();');
	wait_until('the invitation is there', sub { $clerk->invitations_for($email) });
	my ($invitation) = $clerk->invitations_for($email);
	$clerk->control('accept', { id => $invitation->{id} });
	output_of_psql($psql);
	$psql->{harness}->finish;
	undo_misbehaviour();
	send_until_settled($node);
	refresh();
	is( query(
			qq(SELECT state, status, url IS NULL FROM clerk_invitation_outbox
			WHERE email_address = '$email')),
		'sent|accepted|t',
		'what is found accepted has its status and no url');
	is(query('SELECT * FROM joined'), $email, '... and fires the same trigger');
	query('DROP FUNCTION note_joined() CASCADE; DROP TABLE joined');
	return;
}

# However large the outbox is, only what is pending is read.
sub check_no_table_scan
{
	my $scans =
	  q(SELECT seq_scan, seq_tup_read FROM pg_stat_user_tables
		WHERE relname = 'clerk_invitation_outbox');

	begin_check();
	send_to('org_test', map { "few$_\@example.com" } 1 .. 3);
	my %id = ids();
	query(
		q(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role,
			state, settled_at, invitation_id, status)
		SELECT 'org_test', 'settled' || i || '@example.com', 'org:member',
			'sent', now(), 'orginv_settled' || i, 'accepted'
		FROM generate_series(1, 20000) AS i));
	query('ANALYZE clerk_invitation_outbox');
	$clerk->control('accept', { id => $_ }) foreach values %id;

	my $psql = start_psql($node, q(SET client_min_messages = warning;
		SET track_functions = 'none';));
	run_in_psql($psql, 'SELECT 1;');
	my $plan = sub {
		return query(
			q(SET enable_seqscan = off; SET enable_bitmapscan = off;
			EXPLAIN (COSTS OFF) ) . $_[0]);
	};
	like(
		$plan->(
			q(SELECT organization_id, invitation_id, email_address
			FROM clerk_invitation_outbox
			WHERE state = 'sent' AND invitation_id IS NOT NULL AND
				coalesce(status, 'pending') = 'pending' AND NOT copied
			ORDER BY organization_id)),
		qr/\AIndex Scan using clerk_invitation_outbox_pending/,
		'an index finds what is pending');
	$node->safe_psql('postgres', 'SELECT pg_stat_reset()');
	my ($out, $said_there) = run_in_psql(
		$psql, q(
		LOAD 'auto_explain';
		SET auto_explain.log_min_duration = 0;
		SET auto_explain.log_nested_statements = on;
		SET auto_explain.log_level = log;
		SET client_min_messages = log;
		CALL clerk_refresh_invitations();));
	$psql->{harness}->finish;
	like($said_there, qr/Index Scan using clerk_invitation_outbox_pending/,
		'the call goes by that index');
	like($said_there, qr/Index Scan using clerk_invitation_outbox_invitation_id/,
		'... and finds rows by their invitations');
	unlike($said_there, qr/Seq Scan on clerk/, '... and scans no table');
	is(status_of('few1@example.com'), 'accepted', '... and does its work');
	return;
}

sub check_where_it_cannot_run
{
	begin_check();
	send_to('org_test', 'where@example.com');
	my %id = ids();
	$clerk->control('accept', { id => $id{'where@example.com'} });
	query(
		q(CREATE FUNCTION refreshing_function() RETURNS void LANGUAGE plpgsql
		AS 'BEGIN CALL clerk_refresh_invitations(); END'));
	foreach my $case (
		[ '2D000', 'in a transaction block', 'BEGIN; CALL clerk_refresh_invitations(); COMMIT;' ],
		[ '2D000', 'in a function', 'SELECT refreshing_function();' ],
		[
			'25006', 'in a read-only transaction',
			'SET default_transaction_read_only = on; CALL clerk_refresh_invitations();'
		])
	{
		my ($sqlstate, $title, $sql) = @$case;

		is(attempt($node, 'postgres', $sql)->{sqlstate},
			$sqlstate, "$title refreshing is refused");
		is(status_of('where@example.com'), 'pending', '... and changes nothing');
	}
	foreach my $level ('serializable', 'repeatable read')
	{
		is(refresh("SET default_transaction_isolation = '$level'; ")->{sqlstate},
			'', "with $level as the default refreshing succeeds");
	}
	is(status_of('where@example.com'), 'accepted', '... and does its work');
	return;
}

sub check_privileges
{
	begin_check();
	send_to('org_test', 'role@example.com');
	my %id = ids();
	$clerk->control('accept', { id => $id{'role@example.com'} });
	query(
		q(
		CREATE ROLE refresher LOGIN;
		CREATE ROLE stranger LOGIN;
		GRANT EXECUTE ON PROCEDURE clerk_refresh_invitations TO refresher;
		CREATE SCHEMA hostile AUTHORIZATION refresher;));
	is( attempt(
			$node, 'postgres',
			'CALL clerk_refresh_invitations()',
			extra_params => [ '-U', 'stranger' ])->{sqlstate},
		'42501',
		'nobody can refresh without EXECUTE');
	is( attempt(
			$node, 'postgres', q(
			CREATE FUNCTION hostile.equal(text, text) RETURNS boolean
			LANGUAGE plpgsql AS $$BEGIN RAISE 'hostile as %', current_user; END$$;
			CREATE OPERATOR hostile.= (FUNCTION = hostile.equal, LEFTARG = text, RIGHTARG = text);
			SET search_path = hostile, pg_catalog, public;
			CALL public.clerk_refresh_invitations();
			SELECT current_user;),
			extra_params => [ '-U', 'refresher' ])->{stdout},
		'refresher',
		'a role with nothing but EXECUTE can, whatever its search_path, and stays itself'
	);
	is(status_of('role@example.com'), 'accepted', '... and it does');
	query('DROP SCHEMA hostile CASCADE');
	return;
}

sub check_other_schema
{
	begin_check();
	query('CREATE DATABASE other');
	$node->safe_psql(
		'other', q(
		CREATE SCHEMA "Odd %s schema";
		CREATE EXTENSION clerk_invite SCHEMA "Odd %s schema";
		INSERT INTO "Odd %s schema".clerk_invitation_outbox
			(organization_id, email_address, role)
			VALUES ('org_test', 'schema@example.com', 'org:member');
		SET client_min_messages = warning;));
	$node->safe_psql('other',
		'SET client_min_messages = warning; CALL "Odd %s schema".clerk_send_invitations();');
	my ($invitation) = $clerk->invitations_for('schema@example.com');
	$clerk->control('accept', { id => $invitation->{id} });
	is( $node->safe_psql(
			'other', q(
			SET client_min_messages = warning;
			CALL "Odd %s schema".clerk_refresh_invitations();
			SELECT status FROM "Odd %s schema".clerk_invitation_outbox;)),
		'accepted',
		'it works in another schema');
	return;
}

sub check_secrets
{
	my $text = $said . slurp_file($node->logfile);

	like($text, qr/pending invitations: \d+/, 'there is something to look through');
	ok(index($text, $ClerkTest::KEY) < 0, 'no key is in what was said and logged');
	ok(index($text, '?ticket=') < 0, 'no url is in what was said and logged');
	return;
}

# An empty outbox and a Clerk that knows nothing, unless they are kept; what is
# asked from now on counts.
sub begin_check
{
	my (%params) = @_;

	unless ($params{keep})
	{
		$clerk->control('reset');
		query('DELETE FROM clerk_invitation_outbox');
	}
	$mark = -s $clerk->{journal};
	return;
}

sub undo_misbehaviour
{
	misbehave($_, 'extra', 0) foreach $INSTANCE, $ORGANIZATION;
	return;
}

# Invites addresses by way of the outbox.
sub send_to
{
	my ($organization, @emails) = @_;

	enqueue($organization, @emails);
	send_until_settled($node);
	return;
}

sub enqueue
{
	my ($organization, @emails) = @_;
	my $list = join(',', map { "'$_'" } @emails);

	query(
		qq(INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
		SELECT '$organization', email, 'org:member' FROM unnest(ARRAY[$list]) AS email));
	return;
}

# The invitations' ids by address.
sub ids
{
	return map { split /\|/ } split /\n/,
	  query('SELECT email_address, invitation_id FROM clerk_invitation_outbox');
}

# Has many accepted at Clerk, by invitation.
sub settle_at_clerk
{
	$clerk->control('accept', { id => $_ }) foreach @_;
	return;
}

# Rows that do not have the status that they have at Clerk, or an old one.
sub count_wrong
{
	my %at_clerk = map { $_->{id} => $_->{status} } $clerk->all_invitations;
	my $wrong = 0;

	foreach (split /\n/,
		query(q(SELECT invitation_id, status FROM clerk_invitation_outbox
			WHERE state = 'sent')))
	{
		my ($id, $status) = split /\|/;

		$wrong++ unless $status eq 'pending' || $status eq $at_clerk{$id};
	}
	return $wrong;
}

# Refreshes in a session with these settings; as attempt().
sub refresh
{
	my ($settings) = @_;
	my $call = attempt($node, 'postgres',
		($settings // '') . 'CALL clerk_refresh_invitations();');

	$said .= $call->{stderr};
	return $call;
}

# What Clerk was asked since begin_check(), of an operation or of both.
sub asked
{
	my ($operation) = @_;
	my $journal = slurp_file($clerk->{journal}, $mark);

	return grep {
		!defined $operation
		  || ($operation eq $INSTANCE) ==
		  ($_->{path} eq '/v1/organization_invitations')
	} map { decode_json($_) } grep { /"method": ?"GET"/ } split /\n/, $journal;
}

# Whether an address is in a request since then.
sub is_asked_about
{
	return index(slurp_file($clerk->{journal}, $mark), $_[0]) >= 0;
}

sub requests
{
	return scalar(() = asked(@_));
}

sub misbehave
{
	my ($operation, $behaviour, $times) = @_;

	# An order of the fake's is for the operation's next requests.
	$clerk->control(
		'misbehave',
		{
			operation => $operation,
			behaviour => $behaviour,
			times => $times // 1
		});
	return;
}

sub status_of
{
	my ($email) = @_;

	return query(
		"SELECT status FROM clerk_invitation_outbox WHERE email_address = '$email'");
}

sub query
{
	return $node->safe_psql('postgres', $_[0]);
}
