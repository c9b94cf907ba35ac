# What shares a bulk request ends as if each had been sent by itself: whatever
# Clerk refuses, for whose sake it may be, and whatever happens to the answer,
# each address gets one invitation, and nobody pays for another one's fault.
use strict;
use warnings;

use ClerkTest;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Two of an organization are worth a bulk request already.
my $SETTINGS = q(
clerk_invite.single_requests_per_hour = 100000
clerk_invite.bulk_requests_per_hour = 100000
clerk_invite.verify_delay = '50ms'
clerk_invite.retry_delay = '20ms'
clerk_invite.retry_delay_max = '100ms'
clerk_invite.request_timeout = '1500ms'
clerk_invite.max_concurrent_requests = 50
clerk_invite.max_attempts = 5
);
my @LIMITS = ('--single-limit', '100000', '--bulk-limit', '100000');

my $clerk = ClerkTest::Fake->start(@LIMITS);

# What it has been asked, and whom it has invited, by the last settle().
my @journal;
my %invitations;

my $node = clerk_cluster('main', $clerk, conf => $SETTINGS);

# Invitations that are there before the outbox has them.
$node->safe_psql('postgres',
	"SELECT clerk_create_organization_invitation('org_$_', NULL, 'pending\@$_.example.com', 'org:member')"
) foreach qw(pending pendingcase);
my $invited_before = time;

check_answers();
check_refusals();
check_parts();
check_refused_then_lost();
check_lost_answers();
check_poison();
check_quota();
check_rate_limit();
check_used_up_budgets();
check_what_stops_the_queue();
check_same_address();
check_changed_after_planning();
check_pending();

$node->stop;
done_testing();

# Answers to batches that were carried out.
sub check_answers
{
	my @plain = enqueue_batch('plain', map { "plain$_" } 1 .. 12);

	settle();
	is(ends(@plain), join(', ', ('sent 1') x 12),
		'what is sent in bulk is sent');
	like(batches('plain'), qr/^(10 2|2 10)$/,
		'... in as few requests as can be, in any order');
	is(own_invitations('plain'), 't',
		'... and each row has the invitation of its own address, though their order differs');
	is( $node->safe_psql(
			'postgres', q(
			SELECT bool_and(url IS NOT NULL AND status = 'pending'
				AND expires_at > now() AND next_attempt_at IS NULL
				AND http_status IS NULL AND error_message IS NULL
				AND first_claimed_at = claimed_at AND claimed_at <= settled_at)
			FROM clerk_invitation_outbox WHERE organization_id = 'org_plain')),
		't',
		'... with its status, its url and its times');
	my ($request) = journal_of('plain');
	is( $request->{path},
		'/v1/organizations/org_plain/invitations/bulk',
		"... by their organization's path");

	my $own = own_columns();
	is($own, 't', 'in a batch each invitation has its own columns');

	foreach my $name (qw(other-case left-out minimal extra))
	{
		my $org = $name =~ s/-//gr;
		my @emails = enqueue_batch($org, 'a', "x-$name--", 'b');

		settle();
		is(ends(@emails), 'sent 1, sent 1, sent 1',
			"$name: every row is sent");
		is(own_invitations($org), 't', '... and has its own invitation');
		is(batches($org), '3', '... by one request');
		is(looks($org), $name eq 'left-out' ? 1 : 0,
			'... and only what the answer lacks is looked up');
		is(errors($org), '', '... and no error is left');
	}
	return;
}

# Every column of a row goes with its own address.
sub own_columns
{
	$node->safe_psql(
		'postgres', q(
		INSERT INTO clerk_invitation_outbox (organization_id, inviter_user_id,
			email_address, role, redirect_url, public_metadata,
			private_metadata, expires_in_days, notify)
		SELECT 'org_columns', 'user_' || n, 'columns' || n || '@example.com',
			'org:r' || n, 'https://example.com/' || n,
			jsonb_build_object('n', n), jsonb_build_object('p', n), n, n % 2 = 0
		FROM generate_series(1, 3) AS n));
	settle();
	my ($request) = journal_of('columns');
	foreach my $wanted (@{ $request->{body} })
	{
		my ($n) = $wanted->{email_address} =~ /(\d)/;
		my $got = join(' ',
			@{$wanted}{qw(inviter_user_id role redirect_url expires_in_days)},
			$wanted->{public_metadata}{n},
			$wanted->{private_metadata}{p},
			$wanted->{notify} ? 'yes' : 'no');

		return "row $n: $got"
		  if $got ne "user_$n org:r$n https://example.com/$n $n $n $n "
		  . ($n % 2 == 0 ? 'yes' : 'no');
	}
	return @{ $request->{body} } == 3 ? 't' : 'not together';
}

# A batch is refused for the sake of one: that one gets what it deserves, and
# the others are sent, with as few requests as can be.
sub check_refusals
{
	my @cases = (
		{
			name => 'error-403-not_allowed_access',
			title => 'named in meta.identifiers',
			end => 'failed 2',
			others => 'sent 2',
			batches => '3 2',
			error => '403 not_allowed_access'
		},
		{
			name => 'error-400-already_a_member_in_organization',
			title => 'named in the message',
			end => 'skipped 2',
			others => 'sent 2',
			batches => '3 2',
			error => '400 already_a_member_in_organization'
		},
		{
			name => 'member1',
			title => 'really a member',
			end => 'skipped 2',
			others => 'sent 2',
			batches => '3 2',
			error => '400 already_a_member_in_organization'
		},
		{
			name => 'error-422-form_param_format_invalid',
			title => 'nobody named',
			end => 'failed 2',
			others => 'sent 2',
			batches => '3',
			error => '422 form_param_format_invalid'
		},
		{
			name => 'error-402-insufficient_seats',
			title => 'nobody named, and a quota',
			end => 'failed 2',
			others => 'sent 2',
			batches => '3',
			error => '402 insufficient_seats'
		},
		# Clerk has an invitation that its lists lack.
		{
			name => 'error-400-duplicate_record',
			title => 'named as pending, but not in a list',
			end => 'skipped 1',
			others => 'sent 2',
			batches => '3 2',
			error => '400 duplicate_record'
		},
		{
			name => 'error-400-organization_invitation_not_unique',
			title => 'named as not unique, but not in a list',
			end => 'skipped 1',
			others => 'sent 2',
			batches => '3 2',
			error => '400 organization_invitation_not_unique'
		},
		# What was refused once only.
		(
			map {
				{
					name => "error-$_->[0]-once",
					title => "$_->[0] once",
					end => 'sent 2',
					others => 'sent 2',
					batches => $_->[1]
				}
			}[ '403-not_allowed_access', '3 2' ],
			[ '400-already_a_member_in_organization', '3 2' ],
			[ '422-form_param_format_invalid', '3' ]));
	my $number = 0;

	foreach my $case (@cases)
	{
		my $culprit = $case->{name} =~ /^member/ ? $case->{name} : "x-$case->{name}--";

		$case->{org} = 'refused' . ++$number;
		$case->{emails} =
		  [ enqueue_batch($case->{org}, 'a', $culprit, 'b') ];
	}
	settle();
	foreach my $case (@cases)
	{
		my $org = $case->{org};
		my $title = "refused, $case->{title}";
		my @emails = @{ $case->{emails} };

		is(ends($emails[1]), $case->{end},
			"$title: the row ends as it must");
		is(ends(@emails[ 0, 2 ]), "$case->{others}, $case->{others}",
			"$title: the others are sent");
		is(batches($org), $case->{batches},
			"$title: the batches are as few as can be");
		is(errors($org), $case->{error} // '',
			"$title: the table says what was wrong with whom");
		is(own_invitations($org), 't', "$title: each has its own invitation");
		is_deeply(
			[ split(/ /, asked(@emails)) ],
			[ map { /(\d+)/ } ends($emails[0]), ends($emails[1]), ends($emails[2]) ],
			"$title: attempts are what Clerk has seen");
	}

	# Two that are named one after the other, again and again.
	my @two = enqueue_batch('two', 'a',
		map { "x-error-400-duplicate_record--$_" } 1, 2);
	settle(
		q(SET clerk_invite.verify_delay = 0; SET clerk_invite.retry_delay = '1ms';)
	);
	is(ends(@two), 'sent 3, skipped 1, skipped 2',
		'what is named as pending, but not in a list, does not affect others of its kind');
	is(batches('two'), '3 2',
		'... and is in a batch no more, once it was named');

	# One row of the batch has a role that does not exist.
	my @emails = enqueue_batch('roles', 'a', 'b', 'c');
	$node->safe_psql('postgres',
		"UPDATE clerk_invitation_outbox SET role = 'org:missing' WHERE email_address = '$emails[1]'");
	settle();
	is(ends(@emails), 'sent 2, failed 2, sent 2',
		'a role that does not exist fails its own row');
	is(errors('roles'), '404 resource_not_found', '... which says so');
	return;
}

# Were bulk not all-or-nothing: what stands before the culprit is created.
sub check_parts
{
	my @codes = qw(
	  422-form_param_format_invalid 403-not_allowed_access
	  400-already_a_member_in_organization 409-conflict 500-internal_clerk_error);
	my %emails;

	foreach my $code (@codes)
	{
		my $org = 'part' . ($code =~ s/\D//gr) . length($code);

		$emails{$org} =
		  [ enqueue_batch($org, 'a', 'b', "x-partly-error-$code-once--", 'c') ];
	}
	settle();
	foreach my $org (sort keys %emails)
	{
		my @emails = @{ $emails{$org} };
		my ($code) = $emails[2] =~ /^x-(.*)-once/;

		is(ends(@emails) =~ s/ \d//gr, 'sent, sent, sent, sent',
			"$code: every row is sent");
		is(invited(@emails), '1 1 1 1', '... and invited once');
		is(own_invitations($org), 't', '... by its own invitation');
		is(errors($org), '', '... and no error is left');
	}
	return;
}

# What a batch was refused for is not what its other rows are: if the next one
# is lost with its sender, they are not taken for members.
sub check_refused_then_lost
{
	my @emails = enqueue_batch('thenlost', 'named', 'a', 'b');
	my $sender = start_psql($node, "SET clerk_invite.request_timeout = '1 h';");
	my $pid = backend_of($sender);

	$clerk->control(
		'misbehave',
		{
			operation => 'CreateOrganizationInvitationBulk',
			behaviour => $_
		}) foreach 'error-400-already_a_member_in_organization', 'hang';
	send_to_psql($sender, 'CALL clerk_send_invitations();');
	wait_until('the second batch is under way',
		sub { batches('thenlost', $clerk) eq '3 2' });
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	output_of_psql($sender);
	$sender->{harness}->finish;
	is(ends(@emails), 'sending 2, sending 2, sending 2',
		'a sender is canceled between a refusal and its end');
	settle();
	is(ends(@emails), 'sent 2, sent 3, sent 3',
		'those who were refused for another one are sent in the end');
	is(invited(@emails), '1 1 1', '... once');
	return;
}

# Whatever becomes of an answer, there is one invitation for each in the end.
sub check_lost_answers
{
	# Created, and the answer says nothing of it.
	my @done = qw(
	  drop-after reset-after hang-after 500-after html-502-after half-body
	  truncated html-200-after empty-200-after not-object-after nul
	  wrong-type-data wrong-type-id wrong-type-email_address);
	# Not created, and the answer does not say so.
	my @undone = qw(
	  drop-before-once reset-before-once hang-once 500-before-once
	  html-502-once html-200-once not-object-once empty-200-once);
	my %emails;

	foreach my $name (@done, @undone)
	{
		my $org = 'lost' . ($name =~ s/\W|_//gr);

		$emails{$name} = [ enqueue_batch($org, 'a', "x-$name--", 'b', 'c') ];
	}
	settle();
	foreach my $case ((map { [ $_, 1 ] } @done), (map { [ $_, 2 ] } @undone))
	{
		my ($name, $attempts) = @$case;
		my $org = 'lost' . ($name =~ s/\W|_//gr);
		my @emails = @{ $emails{$name} };

		is(ends(@emails), join(', ', ("sent $attempts") x 4),
			"after $name each row is sent at attempt $attempts");
		is(invited(@emails), '1 1 1 1', '... with one invitation each');
		is(own_invitations($org), 't', '... which is its own');
		is(asked(@emails), join(' ', ($attempts) x 4),
			'... and none was sent more often');
		cmp_ok(looks($org), $attempts == 1 ? '==' : '>=',
			4, '... since each address was looked up');
		is(errors($org), '', '... and no error is left');
	}
	return;
}

# One row that no batch survives must not take the others with it.
sub check_poison
{
	foreach my $case (
		[ '500', '500 internal_clerk_error' ],
		[ 'error-409-conflict', '409 conflict' ],
		[ 'drop', ' ' ])
	{
		my ($name, $error) = @$case;
		my $org = 'poison' . ($name =~ s/\D//gr);
		my @emails = enqueue_batch($org, 'a', 'b', "x-$name--", 'c');

		settle();
		is(ends($emails[2]) =~ s/ \d//r, 'failed',
			"a row that always ends with $name fails");
		is(errors($org), $error, '... and says why');
		is(ends(@emails[ 0, 1, 3 ]) =~ s/ \d//gr, 'sent, sent, sent',
			'... and the others of its batch are sent');
		is(invited(@emails), '1 1 0 1', '... once');
	}

	# Not even where there is no other attempt.
	foreach my $name ('error-409-conflict', '500', 'drop')
	{
		my $org = 'once' . ($name =~ s/\D//gr);
		my @emails = enqueue_batch($org, 'a', "x-$name--", 'b');

		settle('SET clerk_invite.max_attempts = 1;');
		is(ends(@emails), 'sent 2, failed 2, sent 2',
			"with $name another row's fault fails nobody, whatever max_attempts is");
		is(invited(@emails), '1 0 1', '... and each is invited once');
		is(batches($org), '3', '... alone after one batch');
	}
	# One that has shared nothing has no attempt more than that.
	my ($alone) = enqueue_batch('oncealone', 'x-500--');
	settle('SET clerk_invite.max_attempts = 1;');
	is(ends($alone), 'failed 1', 'while a row of its own request has that one attempt');
	return;
}

sub check_quota
{
	my $fake = ClerkTest::Fake->start(@LIMITS, '--membership-cap', '3');
	my @emails = enqueue_batch('quota', map { "quota$_" } 1 .. 5);

	send_until_settled($node, use_clerk($fake));
	is(join(', ', sort split(/, /, ends(@emails))),
		'failed 2, failed 2, sent 2, sent 2, sent 2',
		'of a batch over the quota as many are sent as may be');
	is( join(' ', sort split(/ /, created($fake, @emails))),
		'0 0 1 1 1', '... once');
	is( errors('quota'),
		join(', ', ('403 organization_membership_quota_exceeded') x 2),
		'... and the others say why not');
	return;
}

# After a 429 the bulk endpoint is closed; the other one goes on.
sub check_rate_limit
{
	my $fake = ClerkTest::Fake->start(@LIMITS);
	my $settings =
	  use_clerk($fake) . 'SET clerk_invite.max_concurrent_requests = 1;';
	my @first = enqueue_batch('limit1', map { "limit$_" } 1 .. 3);
	my @second = enqueue_batch('limit2', map { "limit$_" } 4 .. 6);

	$fake->control(
		'misbehave',
		{
			operation => 'CreateOrganizationInvitationBulk',
			behaviour => '429-17'
		});
	my $call = attempt($node, 'postgres',
		$settings . 'CALL clerk_send_invitations();');
	is($call->{sqlstate}, '', 'a rate limit of bulk requests is no error');
	is(ends(@first), 'sent 1, sent 1, sent 1',
		'what was refused is sent one by one, and the refusal was no attempt');
	is(ends(@second), 'sent 1, sent 1, sent 1',
		'... and so are other batches');
	is(batches('limit1', $fake) . batches('limit2', $fake),
		'3', '... without another bulk request');
	is(created($fake, @first, @second), '1 1 1 1 1 1', '... once');
	is( $node->safe_psql(
			'postgres', "$settings
			SELECT endpoint, closed_until - now() BETWEEN interval '5 s' AND interval '17 s'
			FROM clerk_rate_limit_status() ORDER BY 1"),
		"bulk|t\nsingle|",
		'... and only the bulk endpoint is closed, as long as Clerk says');
	return;
}

# If the other budget is used up as well, what is left waits.
sub check_used_up_budgets
{
	my $fake = ClerkTest::Fake->start('--bulk-limit', '0');
	my @emails = enqueue_batch('budget', map { "budget$_" } 1 .. 5);
	my $call = attempt($node, 'postgres',
		use_clerk($fake)
		  . 'SET clerk_invite.single_requests_per_hour = 3;'
		  . 'SET clerk_invite.bulk_requests_per_hour = 3;'
		  . 'CALL clerk_send_invitations();');

	is($call->{sqlstate}, '', 'two budgets that are used up are no error');
	like(
		$call->{stderr},
		qr/NOTICE:  00000: Clerk's rate limits are exhausted until/,
		'... but are told');
	is(ends(@emails), 'sent 1, sent 1, sent 1, queued 0, queued 0',
		'what the budgets allow is sent, the oldest first');
	is(batches('budget', $fake), '5', '... after one bulk request in vain');
	$node->safe_psql('postgres',
		"SELECT clerk_cancel_invitation(id) FROM clerk_invitation_outbox WHERE organization_id = 'org_budget'");
	return;
}

# A key that Clerk does not accept, an address where nobody listens.
sub check_what_stops_the_queue
{
	my @emails = enqueue_batch('stop', map { "stop$_" } 1 .. 3);
	my $nobody = ClerkTest::Fake->start;
	my $nowhere = use_clerk($nobody);

	$nobody->stop;
	$clerk->control(
		'misbehave',
		{
			operation => 'CreateOrganizationInvitationBulk',
			behaviour => 'error-401-clerk_key_invalid'
		});
	foreach my $case ([ '28000', 'a 401', '' ], [ '', 'an outage', $nowhere ])
	{
		my ($sqlstate, $title, $settings) = @$case;
		my $call = attempt($node, 'postgres',
			$settings . 'CALL clerk_send_invitations();');

		is($call->{sqlstate}, $sqlstate, "$title stops the queue");
		like($call->{stderr}, qr/stopped sending invitations/, '... and says so');
		is(ends(@emails), join(', ', ('queued 0') x 3),
			"... and $title leaves a batch queued, without an attempt");
	}
	settle();
	is(ends(@emails), join(', ', ('sent 1') x 3),
		'when that is over the batch is sent');
	is(batches('stop'), '3 3', '... as a batch');
	return;
}

# What Clerk does with an address twice in a batch nobody knows: never send it.
sub check_same_address
{
	my @emails = enqueue_batch('twice', 'a', 'twice', 'b', 'twice', 'TWICE', 'c');

	settle();
	is( ends(@emails[ 0, 2, 5 ]),
		'sent 1, sent 1, sent 1',
		'an address that is there twice does not disturb others');
	is( $node->safe_psql(
			'postgres', q(
			SELECT string_agg(state, ' ' ORDER BY state) FROM clerk_invitation_outbox
			WHERE lower(email_address) LIKE 'twice@%')),
		'sent skipped skipped',
		'... and one of its rows is sent, the others are skipped');
	is(scalar(grep { @{ same_addresses($_) } } journal_of('twice')),
		0, '... and no request has it twice');
	is( scalar(
			grep { $_->{email_address} =~ /^twice@/i } map { invitations_of($_) }
			  'twice@twice.example.com', 'TWICE@twice.example.com'),
		1,
		'... so that there is one invitation');

	# Nor while the first one's outcome is unknown.
	@emails = enqueue_batch('twicelost', 'x-drop-after--', 'x-drop-after--', 'b');
	settle();
	is( ends(@emails[ 1, 2 ]) =~ s/ \d//gr,
		'sent, skipped, sent',
		'nor is it sent twice when an answer is lost');
	is(invited(@emails[ 1, 2 ]), '1 1', '... with one invitation');
	return;
}

# A queued row may be changed at any time: what is sent is what it says when it
# is taken on, to the organization that it says then.
sub check_changed_after_planning
{
	my $sender = start_psql($node, '');
	my @emails;

	# A wave of four requests, one after the other; the rest is planned already.
	my @first = map {
		enqueue_batch("planned$_", $_ == 1 ? 'x-slow-600--' : 'a', 'b')
	} 1 .. 4;
	my $moved = (enqueue_batch('planned5', 'a', 'moved', 'b'))[1];
	my @copied = enqueue_batch('planned6', 'a', 'copy', 'b');
	send_to_psql($sender,
		'SET clerk_invite.max_concurrent_requests = 1; CALL clerk_send_invitations();');
	wait_until('the first wave is under way',
		sub { ends($first[0]) eq 'sending 1' });
	$node->safe_psql(
		'postgres', qq(
		UPDATE clerk_invitation_outbox SET organization_id = 'org_elsewhere'
			WHERE email_address = '$moved';
		UPDATE clerk_invitation_outbox SET email_address = upper('$copied[0]')
			WHERE email_address = '$copied[1]';));
	output_of_psql($sender);
	$sender->{harness}->finish;
	settle();

	is( join(' ', map { $_->{organization_id} } invitations_of($moved)),
		'org_elsewhere',
		'who is moved to another organization after the plan was made is invited there only');
	is( join(' ', sort map { (split)[0] } split(/, /, states($node, 'postgres', $copied[0], uc $copied[0]))),
		'sent skipped',
		'an address that is changed to one of its batch is not sent beside it');
	is(scalar(grep { @{ same_addresses($_) } } journal_of('planned6')),
		0, '... in no request');
	is(ends($copied[2]), 'sent 1', '... and disturbs nobody');
	return;
}

# Clerk tells its time in whole seconds: what is to be told from an invitation
# of a row's own must be older by more than that.
sub check_pending
{
	wait_until('the pending invitations are old enough',
		sub { time > $invited_before + 3 });
	foreach my $case ([ 'pending', 'pending' ], [ 'pendingcase', 'PENDING' ])
	{
		my ($org, $address) = @$case;
		my @emails = enqueue_batch($org, 'a', $address, 'b');

		settle();
		is(ends(@emails), 'sent 2, skipped 1, sent 2',
			"$address, which is pending already, is skipped");
		is(batches($org), '3 2', '... and the others are sent together');
		is(errors($org), '400 organization_invitation_not_unique',
			'... and the row says why');
		is( scalar(() = map { invitations_of("$_\@$org.example.com") } 'pending', 'PENDING'),
			1, '... and there is no other invitation');
		is( $node->safe_psql('postgres',
				"SELECT invitation_id IS NULL FROM clerk_invitation_outbox WHERE email_address = '$emails[1]'"),
			't', "... nor is it taken for the row's");
	}
	return;
}

# Sends until nothing is open, and reads what Clerk has to say of it.
sub settle
{
	my ($settings) = @_;

	send_until_settled($node, $settings);
	@journal = $clerk->journal;
	%invitations = ();
	push @{ $invitations{ $_->{email_address} } }, $_
	  foreach $clerk->all_invitations;
	return;
}

# Every invitation of an address, how many each of these has, and how often
# Clerk was asked for each.
sub invitations_of
{
	my ($email) = @_;

	return @{ $invitations{$email} // [] };
}

sub invited
{
	return join(' ', map { scalar(() = invitations_of($_)) } @_);
}

sub asked
{
	my %times;

	foreach my $request (@journal)
	{
		my $body = $request->{body};

		$times{ $_->{email_address} }++
		  foreach ref $body eq 'ARRAY' ? @$body : ref $body eq 'HASH' ? $body : ();
	}
	return join(' ', map { $times{$_} // 0 } @_);
}

# Puts these local parts into the outbox, for an organization and a domain of
# their own, in one transaction; returns the addresses.
sub enqueue_batch
{
	my ($org, @names) = @_;
	my @emails = map { "$_\@$org.example.com" } @names;

	$node->safe_psql(
		'postgres',
		'INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES '
		  . join(', ', map { "('org_$org', '$_', 'org:member')" } @emails));
	return @emails;
}

# State and attempts of the rows for these addresses, in the order of ids.
sub ends
{
	return states($node, 'postgres', @_);
}

# Status and code of an organization's rows that tell of an error; each of them
# must have the message and, if Clerk has answered, the trace id.
sub errors
{
	my ($org) = @_;

	return $node->safe_psql(
		'postgres', qq(
		SELECT string_agg(concat(http_status, ' ', error_code,
			CASE WHEN error_message IS NULL OR (trace_id IS NULL AND http_status IS NOT NULL)
			THEN ' incomplete' END), ', ' ORDER BY id)
		FROM clerk_invitation_outbox WHERE organization_id = 'org_$org'
		AND coalesce(http_status::text, error_code, error_message, trace_id) IS NOT NULL));
}

# Whether the rows of an organization that are sent, and only they, have an
# invitation, the one that was created for their address.
sub own_invitations
{
	my ($org) = @_;
	my $rows = $node->safe_psql(
		'postgres', qq(
		SELECT email_address, coalesce(invitation_id, '') FROM clerk_invitation_outbox
		WHERE organization_id = 'org_$org'));

	foreach my $line (split(/\n/, $rows))
	{
		my ($email, $id) = split(/\|/, $line, -1);
		my $created = join(' ', map { $_->{id} } invitations_of($email));

		return "$email has $id, and Clerk $created" if $id ne $created;
	}
	return 't';
}

# What a fake was asked to create in bulk for an organization.
sub journal_of
{
	my ($org, $fake) = @_;

	return
	  grep { $_->{path} eq "/v1/organizations/org_$org/invitations/bulk" }
	  $fake ? $fake->journal : @journal;
}

# The sizes of these requests.
sub batches
{
	my ($org, $fake) = @_;

	return join(' ', map { scalar @{ $_->{body} } } journal_of($org, $fake));
}

# Addresses that a bulk request has more than once.
sub same_addresses
{
	my ($request) = @_;
	my %times;

	$times{ lc $_->{email_address} }++ foreach @{ $request->{body} };
	return [ grep { $times{$_} > 1 } keys %times ];
}

# How often addresses of an organization were looked up.
sub looks
{
	my ($org) = @_;

	return
	  scalar grep { $_->{path} eq "/v1/organizations/org_$org/invitations" && $_->{method} eq 'GET' }
	  @journal;
}

sub use_clerk
{
	my ($fake) = @_;

	return "SET clerk_invite.api_url = '" . $fake->url . "'; ";
}
