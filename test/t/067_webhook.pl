# Webhooks: what is Clerk's changes statuses as a refresh does, and nothing else
# does.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;
use WebhookTest;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $secret = new_secret();
my $node = clerk_cluster(
	'main', $clerk,
	conf => "log_statement = none\n",
	extra => [ '--encoding=UTF8', '--locale=C' ]);
my $secret_file = $node->data_dir . '/webhook.secret';

check_unconfigured();
ClerkTest::write_key($secret_file, $secret);
reconfigure($node, "clerk_invite.webhook_secret_file = 'webhook.secret'");
check_events();
check_order();
check_headers();
check_refusals();
check_replay();
check_times();
check_secret_file();
check_privileges();
check_triggers();
check_rollback();
check_encodings();
check_retention();
check_secrecy();
$node->stop;
done_testing();

sub sent
{
	my ($email) = @_;

	$node->safe_psql('postgres',
		"INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES ('org_test', '$email', 'org:member');
		CALL clerk_send_invitations();");
	return value("SELECT invitation_id FROM clerk_invitation_outbox WHERE email_address = '$email'");
}

sub value
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# Status, and whether there is a url.
sub status_of
{
	my ($id) = @_;

	return value(
		"SELECT status || ' ' || (url IS NOT NULL) FROM clerk_invitation_outbox WHERE invitation_id = '$id'");
}

sub done
{
	my ($body, %params) = @_;
	my $result = receive($node, signed($body, secret => $secret, %params));

	return $result->{sqlstate} || $result->{stdout};
}

sub check_unconfigured
{
	my $result = receive($node, signed('{}', secret => $secret));

	is($result->{sqlstate}, '55000', 'without a secret nothing is received');
	like($result->{stderr}, qr/No webhook secret is configured\./, '... which is said');
	return;
}

sub check_events
{
	my %id = map { $_ => sent("$_\@example.com") } qw(accepted revoked created);

	is(done(event('accepted', $id{accepted})), 'updated', 'an invitation is accepted');
	is(status_of($id{accepted}), 'accepted false', '... which its row says, without a url');
	is(done(event('revoked', $id{revoked})), 'updated', 'an invitation is revoked');
	is(status_of($id{revoked}), 'revoked false', '... which its row says, without a url');
	is(done(event('created', $id{created})), 'unchanged', 'an invitation is created');
	is(status_of($id{created}), 'pending true', '... which its row said already');
	is(done(event('accepted', 'orginv_elsewhere')), 'unknown', 'an unknown invitation is no error');
	is(done('{"type": "user.created", "data": {"id": "user_1"}}'),
		'ignored', '... nor is another event');
	is(done('{"type": "organizationInvitation.renamed", "data": null}'),
		'ignored', '... even one about invitations that nobody has heard of');
	return;
}

sub check_order
{
	my $id = sent('order@example.com');

	is(done(event('accepted', $id)), 'updated', 'accepted comes first');
	is(done(event('created', $id)), 'unchanged', '... created later');
	is(done(event('revoked', $id)), 'unchanged', '... and whatever else');
	is(status_of($id), 'accepted false', 'a status never goes back');
	return;
}

# All ways in which frameworks tell headers.
sub check_headers
{
	my $id = sent('headers@example.com');
	my $webhook = signed(event('created', $id), secret => $secret);
	my %headers = %{ $webhook->{headers} };

	foreach my $case (
		[ 'of Standard Webhooks', signed($webhook->{body}, secret => $secret, prefix => 'webhook-') ],
		[ 'in capitals', signed($webhook->{body}, secret => $secret, prefix => 'SVIX-') ],
		[ 'as Go has them', { body => $webhook->{body}, headers => { map { $_ => [ $headers{$_} ] } keys %headers } } ],
		[
			'with others',
			signed_with(
				$webhook->{body},
				sub { 'host' => 'example.com', 'x-list' => [ 1, 2 ], 'svix-extra' => undef, 'webhook-id' => 7 })
		],
		[ 'with two signatures',
			signed_with($webhook->{body}, sub { my ($s) = @_; ('svix-signature' => "v1,AAAA v1a,$s $s") }) ])
	{
		my ($title, $one) = @$case;

		is(receive($node, $one)->{stdout}, 'unchanged', "headers $title");
	}
	return;
}

# With some headers added, or replaced.
sub signed_with
{
	my ($body, $more, %params) = @_;
	my $webhook = signed($body, secret => $secret, %params);

	%{ $webhook->{headers} } =
	  (%{ $webhook->{headers} }, $more->($webhook->{headers}{'svix-signature'}));
	return $webhook;
}

# 32 bytes take 43 characters of base64, of which the last one has two bits to
# spare: a decoder that ignores them accepts four spellings.
sub spelled_otherwise
{
	my ($signature) = @_;
	my @digits = ('A' .. 'Z', 'a' .. 'z', 0 .. 9, '+', '/');
	my ($rest, $last) = $signature =~ /^(v1,.{42})(.)=$/ or die "unexpected signature: $signature";
	my ($value) = grep { $digits[$_] eq $last } 0 .. 63;

	return "$rest$digits[$value + 1]=";
}

sub check_refusals
{
	my $id = sent('refused@example.com');
	my $body = event('accepted', $id);
	my $with = sub { my (%headers) = @_; return signed_with($body, sub { %headers }) };
	my @cases = (
		[ 'PT401', 'another secret', signed($body, secret => new_secret()) ],
		[ 'PT401', 'another body', { %{ signed($body, secret => $secret) }, body => "$body " } ],
		[ 'PT401', 'another id', $with->('svix-id' => 'msg_other') ],
		[ 'PT401', 'another time', $with->('svix-timestamp' => time + 1 . '') ],
		[ 'PT401', 'an id beyond ASCII', $with->('svix-id' => "msg_\x{e4}") ],
		[ 'PT401', 'no signature in the header', $with->('svix-signature' => '') ],
		[ 'PT401', 'a signature of another version', $with->('svix-signature' => 'v2,' . ('A' x 43) . '=') ],
		[ 'PT401', 'a signature that is no base64', $with->('svix-signature' => 'v1,' . ('*' x 44)) ],
		[ 'PT401', 'the right signature in another spelling',
			signed_with($body, sub { ('svix-signature' => spelled_otherwise($_[0])) }) ],
		[ 'PT401', 'a signature that is too long', $with->('svix-signature' => 'v1,' . ('A' x 10000)) ],
		[ 'PT401', 'a signature that is too short', $with->('svix-signature' => 'v1,AAAA') ],
		[ 'PT401', 'an old time', signed($body, secret => $secret, time => time - 310) ],
		[ 'PT401', 'a time to come', signed($body, secret => $secret, time => time + 310) ],
		[ 'PT400', 'a time that is no number', signed($body, secret => $secret, time => 'now') ],
		[ 'PT400', 'a negative time', signed($body, secret => $secret, time => -1) ],
		[ 'PT400', 'a time that is too large', signed($body, secret => $secret, time => '9' x 30) ],
		[ 'PT400', 'an empty time', signed($body, secret => $secret, time => '') ],
		[ 'PT400', 'a header that is missing', { body => $body, headers => { 'svix-id' => 'msg_1', 'svix-timestamp' => time . '' } } ],
		[ 'PT400', 'headers of two kinds', { body => $body, headers => { 'svix-id' => 'msg_1', 'webhook-timestamp' => time . '', 'svix-signature' => 'v1,' } } ],
		[ 'PT400', 'a header that is no string', $with->('svix-signature' => 17) ],
		[ 'PT400', 'a header of two values', $with->('svix-signature' => [ 'v1,a', 'v1,b' ]) ],
		[ 'PT400', 'an empty id', $with->('svix-id' => '') ],
		[ 'PT400', 'no headers', { body => $body, headers => {} } ],
		[ 'PT400', 'headers in an array', { body => $body, headers => [] } ],
		[ 'PT400', 'headers that are NULL', { body => $body, headers => undef } ],
		[ 'PT400', 'a body that is NULL', { body => undef, headers => {} } ],
		map { [ 'PT400', "the body $_", signed($_, secret => $secret) ] } (
			'', 'true', '[]', '{', '{}', '{"type": 1}', '{"type": "organizationInvitation.accepted"}',
			'{"type": "organizationInvitation.accepted", "data": "orginv_1"}',
			'{"type": "organizationInvitation.accepted", "data": []}',
			'{"type": "organizationInvitation.accepted", "data": {}}',
			'{"type": "organizationInvitation.accepted", "data": {"id": null}}',
			'{"type": "organizationInvitation.accepted", "data": {"id": 5}}',
			'{"type": "organizationInvitation.accepted", "data": {"id": "../x"}}',
			'{"type": "organizationInvitation.accepted", "data": {"id": ""}}'));

	foreach my $case (@cases)
	{
		my ($sqlstate, $title, $webhook) = @$case;
		my $result = receive($node, $webhook);

		is($result->{sqlstate}, $sqlstate, "refused: $title");
		unlike($result->{stderr}, qr/whsec_|__clerk_ticket/, '... without secrets');
	}
	is(status_of($id), 'pending true', 'nothing has changed');
	is(value('SELECT count(*) FROM clerk_webhook_receipt WHERE id LIKE $$msg_other%$$'),
		'0', 'nothing is kept of what is not signed');
	return;
}

# A copy is refused; what Svix sends again is not, but has no effect.
sub check_replay
{
	my $id = sent('replay@example.com');
	my $first = signed(event('created', $id), secret => $secret, id => 'msg_again', time => time - 10);
	my $again = signed(event('accepted', $id), secret => $secret, id => 'msg_again', time => time);

	is(receive($node, $first)->{stdout}, 'unchanged', 'a webhook is received');
	my $result = receive($node, $first);
	is($result->{sqlstate}, 'PT401', '... and a copy of it refused');
	like($result->{stderr}, qr/webhook has been received before/, '... by what it is');
	is(receive($node, $again)->{stdout}, 'duplicate', '... and nothing is done if it is sent again');
	is(receive($node, $_)->{sqlstate}, 'PT401', '... of which a copy is refused, too') foreach $first, $again;
	is(status_of($id), 'pending true', '... whatever it says');

	# Two at the same time.
	my @sql = map { receive_sql(signed(event('created', $id), secret => $secret, id => 'msg_race')) } 1 .. 2;
	my $first_session = start_psql($node, 'BEGIN;');
	my $second_session = start_psql($node, '\\set VERBOSITY sqlstate');
	my ($done) = run_in_psql($first_session, $sql[0]);
	like($done, qr/unchanged/, 'a session receives a webhook');
	my $waiting = backend_of($second_session);
	send_to_psql($second_session, $sql[1]);
	$node->poll_query_until('postgres',
		"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $waiting")
	  or die 'the second session does not wait';
	run_in_psql($first_session, 'COMMIT;');
	like(join('', output_of_psql($second_session)), qr/PT401|duplicate/, '... and another one the same, without an effect');
	foreach ($first_session, $second_session)
	{
		send_to_psql($_, '\\q');
		$_->{harness}->finish;
	}
	return;
}

sub check_times
{
	my $body = event('accepted', 'orginv_times');

	foreach my $offset (-290, -1, 0, 290)
	{
		is(done($body, time => time + $offset), 'unknown', "$offset seconds are tolerated");
	}
	return;
}

# Secrets can be replaced while both are in use.
sub check_secret_file
{
	my $body = event('accepted', 'orginv_secrets');
	my $next = new_secret(64);
	my $try = sub { my $result = receive($node, signed($body, secret => $_[0])); return $result->{sqlstate} || $result->{stdout} };

	ClerkTest::write_key($secret_file, "\n $secret \r\n$next\n\n");
	is($try->($secret), 'unknown', 'a file has two secrets: one');
	is($try->($next), 'unknown', '... and the other');
	ClerkTest::write_key($secret_file, $next);
	is($try->($secret), 'PT401', 'the old one is removed');
	is($try->($next), 'unknown', '... and the new one stays');
	foreach my $case (
		[ 'no prefix', substr($secret, 6), qr/begins with "whsec_"/ ],
		[ 'a short secret', new_secret(23), qr/24 to 64 bytes/ ],
		[ 'a long secret', new_secret(65), qr/24 to 64 bytes/ ],
		[ 'no base64', 'whsec_' . '*' x 32, qr/24 to 64 bytes/ ],
		[ 'nothing', " \n", qr/is empty/ ],
		[ 'a NUL', "$secret\0", qr/invalid character/ ],
		[ 'one bad line', "$secret\nsk_test_x", qr/begins with "whsec_"/ ],
		[ 'too many secrets', "$secret\n" x 9, qr/too many secrets/ ])
	{
		my ($title, $content, $message) = @$case;

		ClerkTest::write_key($secret_file, $content);
		my $result = receive($node, signed($body, secret => $secret));
		is($result->{sqlstate}, '55000', "a file with $title is refused");
		like($result->{stderr}, $message, '... by a sentence');
		unlike($result->{stderr}, qr/\Q${\substr($secret, 10, 10)}/, '... without the secret');
	}
	ClerkTest::write_key($secret_file, $secret, 0644);
	my $result = receive($node, signed($body, secret => $secret));
	is($result->{sqlstate}, '55000', 'a file that others can read is refused');
	like($result->{stderr}, qr/The webhook secret file must have permissions u=rw/, '... by a sentence');
	ClerkTest::write_key($secret_file, $secret);
	is($try->($secret), 'unknown', 'the next statement reads a file that is good again');
	return;
}

# Whoever has EXECUTE needs nothing else, and may do nothing else.
sub check_privileges
{
	my $id = sent('privileges@example.com');
	my $webhook = signed(event('accepted', $id), secret => $secret);

	$node->safe_psql('postgres', 'CREATE ROLE web LOGIN; CREATE ROLE reader LOGIN');
	is(receive($node, $webhook, before => 'SET ROLE web;')->{sqlstate}, '42501', 'PUBLIC may not receive webhooks');
	$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION clerk_receive_webhook(text, jsonb) TO web');
	is(attempt($node, 'postgres', 'SELECT clerk_cancel_invitation(0); SET ROLE web; SHOW clerk_invite.webhook_secret_file')->{sqlstate},
		'42501', 'who may, does not see the path of the secrets');
	is(attempt($node, 'postgres', "SET ROLE web; SELECT * FROM $_")->{sqlstate},
		'42501', "... nor $_") foreach qw(clerk_webhook_receipt clerk_invitation_outbox);
	is(attempt($node, 'postgres', 'SELECT clerk_cancel_invitation(0); SET ROLE web; SET clerk_invite.webhook_secret_file = $$/tmp/mine$$')->{sqlstate},
		'42501', '... and cannot choose others');
	is(receive($node, $webhook, before => 'BEGIN READ ONLY;')->{sqlstate},
		'25006', 'a read-only transaction receives nothing');
	my $result = receive($node, $webhook, before => 'SET ROLE web;');
	is($result->{stdout}, 'updated', 'EXECUTE is enough');
	return;
}

# As a refresh does: user triggers run as the outbox's owner.
sub check_triggers
{
	my $id = sent('trigger@example.com');

	$node->safe_psql(
		'postgres', q(
		CREATE ROLE outbox_owner LOGIN;
		GRANT CREATE ON SCHEMA public TO outbox_owner;
		ALTER TABLE clerk_invitation_outbox OWNER TO outbox_owner;
		SET ROLE outbox_owner;
		CREATE TABLE seen (who text, status text);
		CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS
			$$BEGIN INSERT INTO public.seen VALUES (current_user, new.status); NOTIFY accepted; RETURN NULL; END$$;
		CREATE TRIGGER watch AFTER UPDATE OF status ON clerk_invitation_outbox
			FOR EACH ROW EXECUTE FUNCTION watch();));
	my $listener = start_psql($node, 'LISTEN accepted;');
	backend_of($listener);
	my $result = receive($node, signed(event('accepted', $id), secret => $secret), before => 'SET ROLE web;');
	is($result->{stdout}, 'updated', 'a trigger of a user\'s does not stop it');
	is(value('SELECT who, status FROM seen'), 'outbox_owner|accepted', '... and runs as the owner of the outbox');
	like(join('', run_in_psql($listener, 'SELECT 1;')), qr/notification "accepted"/, '... and can notify');
	send_to_psql($listener, "\\q");
	$listener->{harness}->finish;
	$node->safe_psql('postgres', 'DROP TRIGGER watch ON clerk_invitation_outbox');
	return;
}

# What is rolled back can be received once more.
sub check_rollback
{
	my $id = sent('rollback@example.com');
	my $webhook = signed(event('accepted', $id), secret => $secret);

	$node->safe_psql('postgres', 'ALTER TABLE clerk_invitation_outbox ADD CONSTRAINT no_status CHECK (status <> $$accepted$$) NOT VALID');
	is(receive($node, $webhook)->{sqlstate}, '23514', 'what the database refuses is an error');
	$node->safe_psql('postgres', 'ALTER TABLE clerk_invitation_outbox DROP CONSTRAINT no_status');
	is(receive($node, $webhook)->{stdout}, 'updated', '... and is received when it is sent again');
	is(status_of($id), 'accepted false', '... with its effect');
	return;
}

# The signature is that of the UTF-8 that was received.
sub check_encodings
{
	$node->safe_psql('postgres', q(CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0));
	$node->safe_psql('latin1', 'CREATE EXTENSION clerk_invite');
	my $utf8 = event('accepted', 'orginv_latin1') =~ s/}$/, "note": "Gr\xc3\xbc\xc3\x9fe"}/r;
	my $webhook = signed($utf8, secret => $secret);

	foreach my $database (qw(latin1 postgres))
	{
		my $result = attempt($node, $database, "SET client_encoding = 'UTF8';" . receive_sql($webhook));
		is($result->{sqlstate} || $result->{stdout}, 'unknown', "characters beyond ASCII, in $database");
	}
	return;
}

sub check_retention
{
	$node->safe_psql('postgres',
		q(UPDATE clerk_webhook_receipt SET sent_at = sent_at - interval '1 hour'));
	is(done(event('accepted', 'orginv_last')), 'unknown', 'one more is received');
	is(value('SELECT count(*) FROM clerk_webhook_receipt'), '1', '... and the old ones are forgotten');
	return;
}

sub check_secrecy
{
	my $log = slurp_file($node->logfile);

	ok($log !~ /\Q${\substr($secret, 6)}/, 'the log does not have the secret');
	return;
}
