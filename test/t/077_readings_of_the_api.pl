# Where Clerk's documentation leaves open what a request means, results are right
# whichever way it turns out: several statuses in a request for a list, lists in
# another order than was asked for, and invitations that lists leave out.
use strict;
use warnings;

use ClerkTest;
use DeliveryTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Clerk tells its time in whole seconds.
my $DISTINCT = 2.2;

my @limits = ('--single-limit', '100000', '--bulk-limit', '100000');
my $clerk = ClerkTest::Fake->start(@limits);
my $node = delivery_cluster('main', $clerk);

# The fake that the present check is about, and where in its journal that begins.
my $fake = $clerk;
my $mark = 0;

my @lists = (
	[ "an organization's list", q(clerk_list_organization_invitations('org_test', %s)) ],
	[ "the instance's list", q(clerk_list_instance_organization_invitations(%s)) ]);

foreach my $reading (qw(refuse all first last))
{
	$fake = ClerkTest::Fake->start(@limits, '--repeated-status', $reading);
	check_lists($reading);
	check_refresh($reading);
}
$fake = $clerk;
check_unknown_status();
check_missing_status();
check_refused_lists();
foreach my $order (qw(created_at email_address))
{
	$fake = ClerkTest::Fake->start(@limits, '--ignore-order', $order);
	check_order($order);
	check_order_while_changing($order);
	check_refresh_in_order($order);
}
$fake = $clerk;
check_order_found_out_late();
check_from_domain();
check_from_domain_in_bulk();
check_from_domain_after_lost_request();
check_from_domain_beside_an_old_one();
check_revoked_before_look($_) foreach qw(revoke_as_admin expire);
check_refusal_before_crash();

$node->stop;
done_testing();

# 9 accepted, 6 revoked, and a page more of those that are pending.
sub check_lists
{
	my ($reading) = @_;
	my @ids = invite_bulk(map { sprintf('list%03d@example.com', $_) } 1 .. 230);

	$fake->control('accept', { id => $_ }) foreach @ids[ 0 .. 7, 229 ];
	$fake->control('revoke_as_admin', { id => $_ }) foreach @ids[ 8 .. 13 ];
	foreach my $list (@lists)
	{
		my ($title, $call) = @$list;

		foreach my $case (
			[ '{accepted,revoked}' => 15 ],
			[ '{revoked,accepted}' => 15 ],
			[ '{revoked,expired}' => 6 ],
			[ '{accepted,accepted}' => 9 ],
			[ '{pending,accepted,revoked,expired}' => 230 ],
			[ '{pending,accepted}' => 224 ])
		{
			my ($statuses, $count) = @$case;

			is( list("count(*), count(DISTINCT id), bool_and(status = ANY ('$statuses'))",
					sprintf($call, "'$statuses'")),
				"$count|$count|t",
				"$reading: $title has the $count that are $statuses");
		}
		is( list(
				"string_agg(email_address, ' ')",
				sprintf($call, q('{revoked,accepted}'))),
			join(' ',
				map { $_->{email_address} }
				grep { $_->{status} ne 'pending' } $fake->all_invitations),
			'... in order of creation');

		begin();
		is(list('id', "(SELECT id FROM " . sprintf($call, q('{revoked,accepted}')) . ' LIMIT 5) AS l')
			  =~ tr/\n//, 4, "$reading: $title gives the first 5");
		is(requests(), 1, '... for one request');
	}
	is_deeply([ grep { @{ $_->{query}{status} // [] } > 1 } $fake->journal ],
		[], "$reading: no request has two statuses");
	return;
}

# Every status arrives, for more than a request for each would take.
sub check_refresh
{
	my ($reading) = @_;
	my @statuses = (('accepted') x 4, ('revoked') x 3, ('expired') x 2, 'pending');

	empty();
	enqueue_all('org_test', map { "refresh$_\@example.com" } 0 .. $#statuses);
	enqueue_all('org_other', map { "other$_\@example.com" } 0 .. $#statuses);
	send_until_settled($node, use_clerk());
	change_at_clerk($_, $statuses[ $_->{email_address} =~ /(\d)@/ ? $1 : 0 ])
	  foreach $fake->all_invitations;
	begin();
	like(
		refresh()->{stderr},
		qr/pending invitations: 20, of which 18 have changed: 8 accepted, 6 revoked, 4 expired$/m,
		"$reading: a refresh learns what has changed");
	is( rows("string_agg(status, ' ' ORDER BY organization_id, email_address)"),
		"@statuses @statuses",
		'... of each');
	cmp_ok(requests(), '<=', 5, '... with few requests');
	return;
}

# What Clerk refuses by itself must not be ignored among others.
sub check_unknown_status
{
	foreach my $list (@lists)
	{
		my ($title, $call) = @$list;
		my $select = use_clerk() . 'SELECT * FROM ';

		$fake->expect_violations(qr/query\.status\.0: violates enum/);
		is(attempt($node, 'postgres', $select . sprintf($call, q('{open}')))->{sqlstate},
			'22023', "$title: Clerk refuses a status that it does not know");
		begin();
		my $refusal = attempt($node, 'postgres',
			$select . sprintf($call, q('{pending,acepted}')));
		is($refusal->{sqlstate}, '22023', '... and among others it is refused');
		like($refusal->{stderr}, qr/unknown status: "acepted"/, '... by name');
		is(requests(), 0, '... without a request');
	}
	return;
}

# A filter cannot go by what Clerk does not tell.
sub check_missing_status
{
	invite_bulk('untold@example.com');
	misbehave('without-status');
	my $refusal = attempt($node, 'postgres',
		use_clerk() . 'SELECT * FROM ' . sprintf($lists[0][1], q('{pending,accepted}')));
	is($refusal->{sqlstate}, '08006', 'a list to be filtered without statuses is unusable');
	misbehave('without-status');
	is(list('count(*)', sprintf($lists[0][1], q('{pending}'))),
		1, '... and is usable if Clerk has filtered it');
	return;
}

# A server that refuses the parameters of lists still answers look-ups.
sub check_refused_lists
{
	empty();
	enqueue_all('org_test', map { "refused$_\@example.com" } 1 .. 3);
	send_until_settled($node, use_clerk());
	change_at_clerk($_, 'accepted') foreach $fake->all_invitations;
	$fake->control('misbehave',
		{ operation => 'ListInstanceOrganizationInvitations',
		  behaviour => 'error-422-form_param_value_invalid', times => 9 });
	misbehave('error-422-form_param_value_invalid');
	like(refresh()->{stderr}, qr/of which 3 have changed: 3 accepted/,
		'if lists are refused, each invitation is looked up');
	$fake->control('misbehave',
		{ operation => 'ListInstanceOrganizationInvitations',
		  behaviour => 'drop', times => 0 });
	return;
}

sub check_order
{
	my ($order) = @_;

	invite_bulk(map { sprintf('order%03d@example.com', ($_ * 7) % 450) } 1 .. 450);
	foreach my $list (@lists)
	{
		my ($title, $call) = @$list;

		begin();
		is(list('count(*), count(DISTINCT id)', sprintf($call, q('{pending}'))),
			'450|450', "$title has each once, whatever its order ($order)");
		is(requests(), 3, '... for no more requests');
		is(list('count(*), count(DISTINCT id)', sprintf($call, q('{pending,revoked}'))),
			'450|450', '... and if it is filtered here');
	}
	return;
}

# Some leave and others join, while a cursor is at the beginning.
sub check_order_while_changing
{
	my ($order) = @_;
	my @ids = invite_bulk(map { sprintf('leaving%03d@example.com', $_) } 1 .. 600);
	my $psql = start_psql($node, use_clerk());
	my $call = sprintf($lists[0][1], q('{pending}'));
	my ($read) = run_in_psql($psql,
		"BEGIN; DECLARE c CURSOR FOR SELECT ($call).email_address; FETCH 100 FROM c;");
	my %left;

	foreach my $n (1 .. 90, 300 .. 320, 520 .. 600)
	{
		$left{ sprintf('leaving%03d@example.com', $n) } = 1;
		$fake->control('revoke_as_admin', { id => $ids[ $n - 1 ] });
	}
	$node->safe_psql('postgres', use_clerk() . invite('new@example.com'));
	my ($rest, $stderr) = run_in_psql($psql, 'FETCH ALL FROM c; COMMIT;');
	my %times;
	$times{$_}++ foreach split /\n/, $read . $rest;
	is($stderr, '', "a list in another order that changes is no error ($order)");
	is(join(' ', grep { $times{$_} > 1 } sort keys %times), '', '... repeats nothing');
	is( join(' ',
			grep { !$left{$_} && !$times{$_} }
			map { sprintf('leaving%03d@example.com', $_) } 1 .. 600),
		'',
		'... and loses nothing that is there throughout');
	$psql->{harness}->finish;
	return;
}

sub check_refresh_in_order
{
	my ($order) = @_;

	empty();
	enqueue_all('org_test', map { "sorted$_\@example.com" } 1 .. 700);
	send_until_settled($node, use_clerk());
	change_at_clerk($_, 'accepted')
	  foreach grep { $_->{email_address} =~ /sorted(3|333|699)@/ } $fake->all_invitations;
	begin();
	like(refresh()->{stderr}, qr/700, of which 3 have changed: 3 accepted/,
		"a refresh reads lists in another order ($order)");
	cmp_ok(requests(), '<=', 4, '... with few requests');
	return;
}

# A server whose order shows only on the second page: what was returned is not
# returned again.
sub check_order_found_out_late
{
	invite_bulk(map { sprintf('late%03d@example.com', $_) } 1 .. 450);
	my $psql = start_psql($node, use_clerk());
	my ($read) = run_in_psql($psql,
		'BEGIN; DECLARE c CURSOR FOR SELECT ('
		  . sprintf($lists[0][1], q('{pending}'))
		  . ').id; FETCH 150 FROM c;');
	misbehave('any-order', 9);
	my ($rest, $stderr) = run_in_psql($psql, 'FETCH ALL FROM c; COMMIT;');
	misbehave('any-order', 0);
	my @ids = split /\n/, $read . $rest;
	my %distinct = map { $_ => 1 } @ids;
	is($stderr, '', 'an order that changes between two pages is no error');
	is(@ids . ' ' . keys %distinct, '450 450', '... and the list has each once');
	$psql->{harness}->finish;
	return;
}

# One request tells, or two for an address that has another normalized form.
sub check_from_domain
{
	foreach my $case ([ 'domain@example.com' => 1 ], [ 'Domain@Upper.example.com' => 2 ])
	{
		my ($email, $requests) = @$case;

		empty();
		from_domain($email);
		my $id = enqueue(email_address => $email);
		send_until_settled($node);
		is(state_of($id), "skipped $requests",
			"$email was invited from its domain, and is skipped");
		is(scalar($clerk->requests_for($email)), $requests, '... after as many requests');
		is(value($id, 'error_code'), 'organization_invitation_not_unique',
			'... with the reason');
		cmp_ok(scalar(() = lookups_for($email)), '>=', 2, '... and lists that had nothing twice');
	}
	return;
}

sub check_from_domain_in_bulk
{
	empty();
	from_domain('bulk3@example.com');
	enqueue_all('org_test', map { "bulk$_\@example.com" } 1 .. 8);
	send_until_settled($node, 'SET clerk_invite.bulk_requests_per_hour = 1000;');
	is( rows("string_agg(state, ' ' ORDER BY email_address)"),
		'sent sent skipped sent sent sent sent sent',
		'of those in a bulk request only that one is skipped');
	is(scalar(() = $clerk->requests_for('bulk3@example.com')), 1, '... after one request');
	return;
}

# Nothing says what became of the first request until the second is refused.
sub check_from_domain_after_lost_request
{
	my $email = 'x-drop-before-once--domain@example.com';

	empty();
	my $id = enqueue(email_address => $email);
	send_invitations();
	from_domain($email);
	send_until_settled($node);
	is(state_of($id), 'skipped 2', 'a refusal after a lost request is read the same way');

	# A request that arrives late is the row's own.
	$email = 'x-drop-before-once--late@example.com';
	$id = enqueue(email_address => $email);
	wait_until(
		'the row is to be sent again',
		sub {
			send_invitations(
				"SET clerk_invite.retry_delay_max = '1h'; SET clerk_invite.retry_delay = '1h';");
			make_due() if state_of($id) eq 'verifying 1';
			state_of($id) eq 'queued 1';
		});
	$node->safe_psql('postgres', invite($email));
	make_due();
	send_until_settled($node);
	is(state_of($id), 'sent 2', 'what a late request has created is found');
	is(value($id, 'invitation_id'), join(' ', map { $_->{id} } $clerk->invitations_for($email)),
		'... and known to the row');
	return;
}

# What was revoked before cannot be why Clerk refuses.
sub check_from_domain_beside_an_old_one
{
	my $email = 'old@example.com';

	empty();
	my $old = $node->safe_psql('postgres', invite($email));
	$clerk->control('revoke_as_admin', { id => $old });
	from_domain($email);
	my $then = time + $DISTINCT;
	wait_until('the revocation is old', sub { time > $then });
	my $id = enqueue(email_address => $email);
	send_until_settled($node);
	is(state_of($id), 'skipped 1',
		'an invitation that was revoked before is not taken for the reason');
	return;
}

# Somebody else's invitation ends between the refusal and the look-up: the row's
# is created after all.
sub check_revoked_before_look
{
	my ($way) = @_;
	my $email = "$way\@example.com";

	empty();
	my $theirs = $node->safe_psql('postgres', invite($email));
	my $then = time + $DISTINCT;
	wait_until('it can be told from a new one', sub { time > $then });
	my $id = enqueue(email_address => $email);
	misbehave('503', 1);
	send_invitations();
	is(state_of($id), 'verifying 1', "$way: Clerk refuses because of somebody else's");
	$clerk->control($way, { id => $theirs });
	send_until_settled($node);
	is(state_of($id), 'sent 2', '... which ends, so that the row is sent');
	return;
}

# A refusal of an earlier request says nothing about a later one whose sender
# has died.
sub check_refusal_before_crash
{
	empty();
	my $id = enqueue(email_address => 'crash@example.com');
	as_sender(
		q(UPDATE clerk_invitation_outbox SET state = 'sending', attempts = 2,
			error_code = 'organization_invitation_not_unique', http_status = 400,
			error_message = 'refused', claimed_at = now(), first_claimed_at = now()));
	send_until_settled($node);
	is(state_of($id), 'sent 3', 'after a crash, an earlier refusal does not settle the row');
	return;
}

# Makes Clerk and the outbox forget what they had.
sub empty
{
	$fake->control('reset');
	$node->safe_psql('postgres', 'TRUNCATE clerk_invitation_outbox');
	return;
}

# Makes Clerk forget what it had, and invites; returns the ids in the same order.
sub invite_bulk
{
	my (@emails) = @_;
	my $json = join(',',
		map { qq({"email_address": "$_", "role": "org:member"}) } @emails);

	$fake->control('reset');
	return split /\n/,
	  $node->safe_psql('postgres',
		use_clerk()
		  . "SELECT id FROM clerk_create_organization_invitation_bulk('org_test', '[$json]')");
}

sub enqueue_all
{
	my ($organization, @emails) = @_;
	my $list = join(',', map { "'$_'" } @emails);

	$node->safe_psql('postgres',
		'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)'
		  . " SELECT '$organization', email, 'org:member' FROM unnest(ARRAY[$list]) AS email");
	return;
}

sub from_domain
{
	my ($email) = @_;

	$clerk->control('invite_from_domain',
		{ organization_id => 'org_test', email_address => $email });
	return;
}

sub change_at_clerk
{
	my ($invitation, $status) = @_;
	my %ways = (accepted => 'accept', revoked => 'revoke_as_admin', expired => 'expire');

	$fake->control($ways{$status}, { id => $invitation->{id} })
	  if $ways{$status};
	return;
}

sub misbehave
{
	my ($behaviour, $times) = @_;

	$fake->control('misbehave',
		{ operation => 'ListOrganizationInvitations',
		  behaviour => $behaviour, times => $times // 1 });
	return;
}

sub refresh
{
	return attempt($node, 'postgres', use_clerk() . 'CALL clerk_refresh_invitations();');
}

sub list
{
	my ($columns, $call) = @_;

	return $node->safe_psql('postgres', use_clerk() . "SELECT $columns FROM $call");
}

sub rows
{
	return $node->safe_psql('postgres', "SELECT $_[0] FROM clerk_invitation_outbox");
}

sub use_clerk
{
	return "SET clerk_invite.api_url = '" . $fake->url . "';"
	  . ' SET clerk_invite.bulk_requests_per_hour = 100000;'
	  . ' SET clerk_invite.single_requests_per_hour = 100000;';
}

# What is asked from now on counts.
sub begin
{
	$mark = () = $fake->journal;
	return;
}

sub requests
{
	return (() = $fake->journal) - $mark;
}
