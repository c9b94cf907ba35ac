# CALL clerk_send_invitations() sends what is due in the outbox, and the row
# tells what became of it: sent, skipped, failed, or again later.  Whatever
# happens to an answer, an address gets one invitation: none is lost, none is
# sent twice.
use strict;
use warnings;
use utf8;

use ClerkTest;
use DeliveryTest;
use Encode qw(encode_utf8);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $ahead = ClerkTest::Fake->start('--clock-offset', '3600');
my $behind = ClerkTest::Fake->start('--clock-offset', '-3600');
my $node = delivery_cluster('main', $clerk);

# Invitations that are there before the outbox has them.
foreach my $fake ($clerk, $ahead, $behind)
{
	$node->safe_psql('postgres',
		use_clerk($fake) . invite('pending@example.com'));
}
my $invited_before = time;

check_sent();
check_refusals();
check_configuration_errors();
check_rate_limit();
check_outage();
check_try_later();
check_lost_answers();
check_unknown_outcome_is_kept();
check_settled_meanwhile();
check_used_up_attempts();
check_what_clerk_has_already();
check_clocks();
check_same_address_twice();
check_lookup_query();
check_connections();
check_secrets();

$node->stop;
done_testing();

sub check_sent
{
	my $id = enqueue(
		email_address => 'ann@example.com',
		inviter_user_id => 'user_ines',
		redirect_url => 'https://app.example.com/welcome',
		public_metadata => '{"team": "red"}',
		private_metadata => '{"plan": 7}',
		expires_in_days => 14,
		notify => 'false');
	my $before = row($id);

	is($before->{state}, 'queued', 'a new row is queued');
	is($before->{attempts}, 0, '... and has not been tried');
	is(scalar $clerk->requests_for('ann@example.com'),
		0, '... and nothing is sent by the INSERT');

	my $call = send_invitations();
	is($call->{sqlstate}, '', 'sending succeeds');
	like(
		$call->{stderr},
		qr/NOTICE:.*1 sent, 0 skipped, 0 failed, 0 postponed/,
		'... and says what it has done');

	my ($request) = $clerk->requests_for('ann@example.com');
	is( $request->{path},
		'/v1/organizations/org_test/invitations',
		"the row's organization is in the path");
	is_deeply(
		$request->{body},
		{
			email_address => 'ann@example.com',
			role => 'org:member',
			inviter_user_id => 'user_ines',
			redirect_url => 'https://app.example.com/welcome',
			public_metadata => { team => 'red' },
			private_metadata => { plan => 7 },
			expires_in_days => 14,
			notify => JSON::PP::false
		},
		"every column is sent under Clerk's name for it");

	my ($invitation) = $clerk->invitations_for('ann@example.com');
	my $row = row($id);
	is($row->{state}, 'sent', 'the row is sent');
	is($row->{attempts}, 1, '... at the first attempt');
	is($row->{invitation_id}, $invitation->{id},
		"... and has the invitation's id");
	is($row->{status}, 'pending', "... and the invitation's status");
	ok($row->{has_url}, "... and the invitation's url");
	is_deeply(
		[ @{$row}{qw(http_status error_code error_message trace_id)} ],
		[ (undef) x 4 ],
		'... and no error');
	is(value($id, "next_attempt_at IS NULL"), 't', '... and no next attempt');
	is( value(
			$id,
			'enqueued_at <= first_claimed_at AND '
			  . 'first_claimed_at = claimed_at AND '
			  . 'claimed_at <= settled_at AND settled_at <= clock_timestamp()'
		),
		't',
		'... and its times are in order');
	is( value($id, "expires_at BETWEEN now() + interval '13 days 23 hours'"
			  . " AND now() + interval '14 days'"),
		't',
		'... and expires when Clerk says');

	my $requests = () = $clerk->journal;
	$call = send_invitations();
	is($call->{stderr}, '', 'with nothing due sending says nothing');
	is(scalar(() = $clerk->journal), $requests, '... and asks Clerk nothing');

	# What a good answer may look like.
	my @good = qw(minimal extra stale);
	enqueue(email_address => "x-$_--good\@example.com") foreach @good;
	send_invitations();
	foreach my $name (@good)
	{
		my $row = row_of("x-$name--good\@example.com");
		is("$row->{state} $row->{attempts}",
			'sent 1', "an answer of the kind $name is one that succeeds");
	}
	return;
}

sub check_refusals
{
	my @refusals = (
		{
			title => 'an organization that does not exist',
			row => { organization_id => 'org_missing' },
			status => 404,
			code => 'organization_not_found_or_unauthorized',
			message => qr/does not exist/
		},
		{
			title => 'a role that does not exist',
			row => { role => 'org:missing' },
			status => 404,
			code => 'resource_not_found',
			message => qr/role/
		},
		{
			title => 'an inviter from elsewhere',
			row => { inviter_user_id => 'user_stranger' },
			status => 403,
			code => 'not_a_member_in_organization',
			message => qr/inviter is not a member/
		},
		(map { refusal(@$_) }
			[ 402, 'insufficient_seats', qr/no seats left/ ],
			[ 403, 'organization_membership_quota_exceeded', qr/limit/ ],
			[ 400, 'dev_monthly_email_limit_exceeded', qr/monthly e-mail limit/ ],
			[ 413, 'request_body_too_large', qr/too large/ ],
			[ 422, 'form_param_value_invalid', qr/Clerk/ ]),
		{
			title => 'a status that nobody knows',
			row => { email_address => 'x-gone--1@example.com' },
			status => 410,
			code => 'gone',
			message => qr/Clerk refused the request/
		},
		{
			title => 'several errors at once',
			row => { email_address => 'x-several-errors--1@example.com' },
			status => 422,
			code => 'form_param_format_invalid',
			message =>
			  qr/\[form_param_format_invalid\]; .*\[form_param_missing\]/
		},
		{
			title => 'an error without its list',
			row => { email_address => 'x-errors-not-array--1@example.com' },
			status => 400,
			code => undef,
			message => qr/Clerk refused the request/
		},
		{
			title => 'an error that names no request',
			row => { email_address => 'x-no-ids--1@example.com' },
			status => 400,
			code => 'bad_request',
			message => qr/Clerk refused the request/,
			no_trace => 1
		},
		{
			title => 'an error that repeats the key',
			row => { email_address => 'x-echo-key--1@example.com' },
			status => 400,
			code => 'bad_request',
			message => qr/The key \*+ is not liked/
		});
	my $number = 0;

	foreach my $refusal (@refusals)
	{
		$refusal->{row}{email_address} //= 'refused' . ++$number . '@example.com';
		$refusal->{id} = enqueue(%{ $refusal->{row} });
	}
	my $good = enqueue(email_address => 'among_refusals@example.com');
	my $call = send_invitations();
	my $count = @refusals;

	is($call->{sqlstate}, '', 'refusals are no error of the CALL');
	like($call->{stderr}, qr/1 sent, 0 skipped, $count failed, 0 postponed/,
		'... which counts them');
	is(row($good)->{state}, 'sent',
		'a row among others that fail is sent');
	foreach my $refusal (@refusals)
	{
		my $title = $refusal->{title};
		my $row = row($refusal->{id});

		is("$row->{state} after $row->{attempts}",
			'failed after 1', "$title fails the row at once");
		is($row->{http_status}, $refusal->{status},
			"$title: the row has the HTTP status");
		is($row->{error_code}, $refusal->{code},
			"$title: the row has Clerk's code");
		like($row->{error_message}, $refusal->{message},
			"$title: the row says what was wrong");
		is(defined $row->{trace_id} ? 'known' : 'unknown',
			$refusal->{no_trace} ? 'unknown' : 'known',
			"$title: the row has the trace id, if there is one");
		is( value(
				$refusal->{id},
				'settled_at >= claimed_at AND next_attempt_at IS NULL AND '
				  . 'invitation_id IS NULL AND url IS NULL'),
			't',
			"$title: the row is settled, without an invitation");
	}
	return;
}

sub refusal
{
	my ($status, $code, $message) = @_;

	return {
		title => $code,
		row => { email_address => "x-error-$status-$code--1\@example.com" },
		status => $status,
		code => $code,
		message => $message
	};
}

sub check_configuration_errors
{
	my @ids = map { enqueue(email_address => "key$_\@example.com") } 1 .. 3;
	my $wrong = $ClerkTest::KEY =~ s/0000/1111/r;

	ClerkTest::write_key($node->data_dir . '/wrong.key', $wrong);
	foreach my $case (
		[
			'28000',
			'a key that Clerk does not accept',
			"SET clerk_invite.secret_key_file = 'wrong.key';"
		],
		[ '55000', 'no key', "SET clerk_invite.secret_key_file = '';" ],
		[
			'55000',
			'an address that cannot be used',
			"SET clerk_invite.api_url = 'http://clerk.example.com';"
		])
	{
		my ($sqlstate, $title, $settings) = @$case;

		make_due();
		my $call = send_invitations($settings);
		is($call->{sqlstate}, $sqlstate, "$title is an error of the CALL");
		like($call->{stderr}, qr/stopped sending invitations/,
			'... which says that it has stopped');
		is_deeply(
			[ map { state_of($_) } @ids ],
			[ ('queued 0') x 3 ],
			'... and leaves rows queued, without an attempt');
		ok(index($call->{stderr}, $wrong) < 0, '... and shows no key');
	}
	send_until_settled($node);
	is_deeply(
		[ map { state_of($_) } @ids ],
		[ ('sent 1') x 3 ],
		'once the settings are right, everything is sent');
	is_deeply(
		[ map { created("key$_\@example.com") } 1 .. 3 ],
		[ (1) x 3 ], '... once');
	return;
}

sub check_rate_limit
{
	my $fake = ClerkTest::Fake->start;
	my $one_by_one =
	  use_clerk($fake) . 'SET clerk_invite.max_concurrent_requests = 1;';
	my $limited = enqueue(email_address => 'x-429-2-once--1@example.com');
	my $next = enqueue(email_address => 'after429@example.com');
	my $call = send_invitations($one_by_one);

	is($call->{sqlstate}, '', 'a rate limit is no error of the CALL');
	like(
		$call->{stderr},
		qr/NOTICE:  00000: Clerk's rate limits are exhausted until 2/,
		'... which says until when it lasts');
	is(state_of($limited), 'queued 0',
		'a rate limit leaves the row queued, without an attempt');
	my $row = row($limited);
	is("$row->{http_status} $row->{error_code}",
		'429 too_many_requests', '... and the row says why');
	is(state_of($next), 'queued 0', 'a rate limit stops the pass');
	is(scalar $fake->requests_for('after429@example.com'),
		0, '... and nothing more is sent');
	send_invitations($one_by_one);
	is(scalar(() = $fake->requests_for('x-429-2-once--1@example.com')),
		1, '... by another pass either, before Retry-After is over');
	wait_until(
		'the row is sent once Retry-After is over',
		sub {
			send_invitations($one_by_one);
			return state_of($limited) eq 'sent 1';
		});
	is(state_of($next), 'sent 1', '... and so is what was left');
	is( scalar(() = $fake->requests_for('x-429-2-once--1@example.com')),
		2, '... with one more request');

	foreach my $name (qw(429-none 429-empty))
	{
		my $other = ClerkTest::Fake->start;
		my $settings = use_clerk($other);
		my $id = enqueue(email_address => "x-$name-once--1\@example.com");

		send_invitations($settings) for 1 .. 2;
		is(state_of($id), 'queued 0',
			"a rate limit of the kind $name leaves the row queued");
		is(scalar(() = $other->requests_for("x-$name-once--1\@example.com")),
			1, '... and closes the endpoint for a while');
		$node->safe_psql('postgres', "SELECT clerk_cancel_invitation($id)");
		$other->stop;
	}
	$fake->stop;
	return;
}

sub check_outage
{
	my $fake = ClerkTest::Fake->start;
	my $port = $fake->{port};
	my $settings = use_clerk($fake);
	my @ids = map { enqueue(email_address => "outage$_\@example.com") } 1 .. 15;

	$fake->stop;
	foreach my $round (1 .. 3)
	{
		make_due();
		my $call = send_invitations($settings);
		is($call->{sqlstate}, '', "outage, CALL $round: it is no error");
		like(
			$call->{stderr},
			qr/WARNING:  08001: stopped sending invitations: could not connect/,
			"outage, CALL $round: it is a warning");
		is_deeply(
			[ map { state_of($_) } @ids ],
			[ ('queued 0') x 15 ],
			"outage, CALL $round: all rows stay queued, without an attempt");
	}
	is( value($ids[0], "error_message LIKE '%could not connect%' OR error_message IS NULL"),
		't', 'the row says what the matter is');

	$fake = ClerkTest::Fake->start('--port', $port);
	send_until_settled($node, $settings);
	is_deeply(
		[ map { state_of($_) } @ids ],
		[ ('sent 1') x 15 ],
		'after the outage everything is sent');
	is_deeply(
		[ map { created("outage$_\@example.com", $fake) } 1 .. 15 ],
		[ (1) x 15 ], '... once');
	return;
}

sub check_try_later
{
	my $settings = q(
		SET clerk_invite.retry_delay = '10s';
		SET clerk_invite.retry_delay_max = '30s';
		SET clerk_invite.max_attempts = 5;);
	my $id = enqueue(email_address => 'x-error-409-conflict--1@example.com');

	foreach my $attempt ([ 1, 10 ], [ 2, 20 ], [ 3, 30 ], [ 4, 30 ])
	{
		my ($number, $delay) = @$attempt;
		my $most = $delay * 1.25;

		make_due();
		send_invitations($settings);
		is(state_of($id), "queued $number",
			"a conflict is tried again after attempt $number");
		is( value(
				$id,
				"next_attempt_at > claimed_at + interval '$delay s' AND "
				  . "next_attempt_at < now() + interval '$most s'"),
			't',
			"... in $delay to $most seconds");
		is(row($id)->{error_code}, 'conflict', '... and the row says why');
	}
	make_due();
	send_invitations($settings);
	is(state_of($id), 'failed 5', 'after max_attempts the row has failed');
	is(row($id)->{http_status}, 409, '... for the same reason');
	is( scalar(() =
			  $clerk->requests_for('x-error-409-conflict--1@example.com')),
		5,
		'... and was sent as often');

	# Up to a quarter more, at random: what has failed together comes back apart.
	my @ids = map { enqueue(email_address => "x-error-409-conflict--apart$_\@example.com") }
	  1 .. 8;
	send_invitations($settings);
	is(state_of($_), 'queued 1', 'a row of several is tried again') foreach @ids;
	is( $node->safe_psql(
			'postgres', q(
			SELECT max(delay) - min(delay) > interval '200 ms'
			FROM (SELECT next_attempt_at - claimed_at AS delay
				FROM clerk_invitation_outbox WHERE email_address LIKE '%--apart%') AS d)),
		't',
		'... at a time of its own');
	$node->safe_psql('postgres', "SELECT clerk_cancel_invitation($_)") foreach @ids;

	$id = enqueue(email_address => 'x-error-409-resource_locked-once--1@example.com');
	send_until_settled($node);
	is(state_of($id), 'sent 2', 'a conflict that ends is sent');
	is( value($id, 'error_code IS NULL AND http_status IS NULL AND '
			  . 'error_message IS NULL AND trace_id IS NULL AND '
			  . 'first_claimed_at < claimed_at'),
		't',
		'... and has no error left');
	return;
}

sub check_lost_answers
{
	# Created, and the answer says nothing of it.
	my @done = qw(
	  drop-after reset-after 500-after 502-after 503-after 504-after
	  half-body truncated hang-after trickle-after huge-after huge-header
	  html-502-after html-200-after empty-200-after empty-500-after
	  nested-after not-object-after redirect-after
	  nul escaped-nul echo-url odd-times
	  wrong-type-id wrong-type-email_address wrong-type-created_at);
	# Not created, and the answer does not say so.
	my @undone = qw(
	  drop-before-once reset-before-once 500-before-once 502-once 503-once
	  504-once hang-once trickle-once html-502-once html-200-once
	  empty-200-once empty-500-once nested-once not-object-once redirect-once
	  huge-once);
	my $settings = q(
		SET clerk_invite.request_timeout = '1500ms';
		SET clerk_invite.max_concurrent_requests = 50;);
	my %id = map { $_ => enqueue(email_address => "x-$_--lost\@example.com") }
	  @done, @undone;

	send_until_settled($node, $settings);
	foreach my $case ((map { [ $_, 1 ] } @done), (map { [ $_, 2 ] } @undone))
	{
		my ($name, $attempts) = @$case;
		my $email = "x-$name--lost\@example.com";
		my @invitations = $clerk->invitations_for($email);
		my $row = row($id{$name});

		is(state_of($id{$name}), "sent $attempts",
			"after $name the row is sent at attempt $attempts");
		is(scalar @invitations, 1, '... and there is one invitation');
		is($row->{invitation_id}, $invitations[0]{id}, '... which is its own');
		is(scalar(() = $clerk->requests_for($email)),
			$attempts, '... and it was not sent more often');
		is($row->{error_message}, undef, '... and no error is left');
	}
	return;
}

sub check_unknown_outcome_is_kept
{
	my $email = 'x-drop-after--kept@example.com';
	my $settings = 'SET clerk_invite.max_attempts = 1;';
	my $id = enqueue(email_address => $email);

	foreach my $behaviour (
		'503', 'drop', 'html-200',
		'error-404-bad_request', 'error-401-clerk_key_invalid',
		'error-409-conflict', 'truncated', '429-1')
	{
		misbehave_in_lookups($behaviour);
		make_due();
		send_invitations($settings);
		is(state_of($id), 'verifying 1',
			"a look that ends with $behaviour leaves the outcome unknown");
		is( $node->safe_psql('postgres', "SELECT clerk_cancel_invitation($id)"),
			'f',
			'... and it cannot be canceled');
	}
	wait_until(
		'a look that succeeds finds the invitation',
		sub {
			make_due();
			send_invitations($settings);
			return state_of($id) eq 'sent 1';
		});
	is(created($email), 1, '... the only one');
	is(scalar(() = $clerk->requests_for($email)),
		1, '... since it was sent once');
	return;
}

sub check_settled_meanwhile
{
	foreach my $case ([ 'accept', 'accepted' ], [ 'revoke_as_admin', 'revoked' ],
		[ 'expire', 'expired' ])
	{
		my ($operation, $status) = @$case;
		my $email = "x-500-after--$status\@example.com";
		my $id = enqueue(email_address => $email);

		misbehave_in_lookups('503');
		send_invitations();
		is(state_of($id), 'verifying 1', "$operation: the outcome is unknown");
		my ($invitation) = $clerk->invitations_for($email);
		$clerk->control($operation, { id => $invitation->{id} });
		send_until_settled($node);
		my $row = row($id);
		is("$row->{state} $row->{status} $row->{invitation_id}",
			"sent $status $invitation->{id}",
			"an invitation that was $status meanwhile is the row's");
		is(created($email), 1, '... and there is no other');
	}
	return;
}

sub check_used_up_attempts
{
	my $email = 'x-500--used-up@example.com';
	my $id = enqueue(email_address => $email);
	my $settings = 'SET clerk_invite.max_attempts = 3;';

	send_until_settled($node, $settings);
	is(state_of($id), 'failed 3',
		'a row whose every attempt was lost has failed in the end');
	is(scalar(() = $clerk->requests_for($email)),
		3, '... and was sent as often as it may be');
	is(row($id)->{http_status}, 500, '... and says what was the matter');
	is((lookups_for($email))[-1]{status}, 200,
		'... after a look that found nothing');
	is(created($email), 0, '... as there is nothing');
	cmp_ok(
		(lookups_for($email))[-1]{seq}, '>',
		($clerk->requests_for($email))[-1]{seq},
		'... after the last attempt');

	# The last attempt's sender has died: what the row says then is our own.
	$id = enqueue(
		email_address => 'given-up@example.com',
		state => 'sending',
		attempts => 3,
		first_claimed_at => 'yesterday',
		claimed_at => 'yesterday');
	send_until_settled($node, $settings);
	is(state_of($id), 'failed 3',
		'a row whose last attempt ended with its sender has failed');
	like(row($id)->{error_message}, qr/ended without a response, and Clerk has no such invitation/,
		'... and says so');
	is((lookups_for('given-up@example.com'))[-1]{status}, 200, '... after a look');
	return;
}

sub check_what_clerk_has_already
{
	age_of_pending();
	my $pending = enqueue(email_address => 'pending@example.com');
	my $case = enqueue(email_address => 'PENDING@Example.com');
	my $member = enqueue(email_address => 'member1@example.com');
	my $call = send_invitations();

	send_until_settled($node);
	is(state_of($pending), 'skipped 1',
		'an address that was invited before is skipped');
	is(state_of($case), 'skipped 1', '... whatever its case');
	is(created('pending@example.com'), 1, '... and not invited again');
	is(row($pending)->{invitation_id},
		undef, "... and the invitation is not taken for the row's");
	is(row($pending)->{error_code},
		'organization_invitation_not_unique', '... which says why');
	is(state_of($member), 'skipped 1', 'a member is skipped');
	is(row($member)->{error_code},
		'already_a_member_in_organization', '... and the row says why');
	is( value($pending, 'settled_at IS NOT NULL AND next_attempt_at IS NULL'),
		't', 'what is skipped is settled');
	return;
}

sub check_clocks
{
	age_of_pending();
	foreach my $case ([ $ahead, 'ahead' ], [ $behind, 'behind' ])
	{
		my ($fake, $name) = @$case;
		my $settings = use_clerk($fake);
		my $lost = "x-drop-after--$name\@example.com";
		my $unsent = "x-drop-once--$name\@example.com";
		my $pending = enqueue(email_address => 'pending@example.com');
		my @ids = map { enqueue(email_address => $_) } $lost, $unsent;

		send_until_settled($node, $settings);
		is(state_of($ids[0]), 'sent 1',
			"with a clock an hour $name a lost answer is found");
		is(created($lost, $fake), 1, '... and nothing is sent twice');
		is(state_of($ids[1]), 'sent 2',
			"with a clock an hour $name a lost request is repeated");
		is(created($unsent, $fake), 1, '... once');
		is(state_of($pending), 'skipped 1',
			"with a clock an hour $name an older invitation is told from ours");
	}
	return;
}

sub check_same_address_twice
{
	foreach my $email ('twice@example.com', 'x-drop-after--twice@example.com',
		'x-drop-once--twice@example.com')
	{
		my @ids = map { enqueue(email_address => $email) } 1 .. 2;

		send_until_settled($node);
		is( join(' ', sort map { row($_)->{state} } @ids),
			'sent skipped',
			"of two rows for $email one is sent and one skipped");
		is(created($email), 1, '... with one invitation');
	}
	return;
}

sub check_lookup_query
{
	$node->safe_psql('postgres',
		"CREATE DATABASE utf8 TEMPLATE template0 ENCODING 'UTF8'"
		  . " LC_COLLATE 'C' LC_CTYPE 'C'");
	$node->safe_psql('utf8', 'CREATE EXTENSION clerk_invite');
	foreach my $tag (
		'plus+tag', 'per%cent', '%2B', 'am&per=sand',
		'ha#sh?query', 'sla/sh', "quo'te", 'back\\slash',
		'umläut', 'Großbuchstabe', '日本')
	{
		my $email = "x-drop-after--$tag\@exämple.com";
		my $quoted = encode_utf8($email =~ s/'/''/gr);

		$node->safe_psql(
			'utf8', qq(
			SET client_encoding = 'UTF8';
			SET client_min_messages = error;
			SELECT clerk_enqueue_organization_invitation(
				'org_test', NULL, '$quoted', 'org:member');
			CALL clerk_send_invitations();));
		my $shown = encode_utf8($tag);
		is( $node->safe_psql('utf8',
				'SELECT state FROM clerk_invitation_outbox ORDER BY id DESC LIMIT 1'),
			'sent',
			"an address with $shown is found");
		is(scalar lookups_for($email),
			1, '... by the one look that was needed');
		is(created($email), 1, '... and invited once');
	}
	return;
}

# A batch has four requests for each that may be under way at a time.  When its
# last one is alone, the connections of the others are kept for the next batch.
sub check_connections
{
	my $most = 10;
	my %connections;

	$node->safe_psql(
		'postgres', qq(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role)
		SELECT 'org_kept' || n, 'x-slow-5--kept' || n || '\@example.com', 'org:member'
		FROM generate_series(1, 12 * $most) AS n;
		SET clerk_invite.max_concurrent_requests = $most;
		CALL clerk_send_invitations();));
	$connections{ $_->{connection} } = 1
	  foreach grep { $_->{path} =~ /org_kept/ } $clerk->journal;
	cmp_ok(scalar keys %connections, '<=', $most,
		'three batches of requests share the connections of the first');
	return;
}

sub check_secrets
{
	my $text = said()
	  . slurp_file($node->logfile)
	  . $node->safe_psql(
		'postgres', q(
		SELECT string_agg(concat_ws(' ', error_code, error_message, trace_id), E'\n')
		FROM clerk_invitation_outbox));

	like($text, qr/invitations: \d+ sent/, 'there is something to look through');
	ok(index($text, $ClerkTest::KEY) < 0,
		'no key is in what rows, log and messages say');
	ok(index($text, '?ticket=') < 0, 'no url is in what rows, log and messages say');
	return;
}

sub use_clerk
{
	my ($fake) = @_;

	return "SET clerk_invite.api_url = '" . $fake->url . "'; ";
}

sub age_of_pending
{
	wait_until('the pending invitations are old enough',
		sub { time > $invited_before + 3 });
	return;
}
