# Many invitations with one call: how many requests are under way at a time,
# over which connections, and what a statement says that is ended meanwhile.
use strict;
use warnings;

use ClerkTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Milliseconds that an end may take, in the best of so many attempts: the
# machine may have other things to do.
my $PROMPT = 200;
my $ATTEMPTS = 3;

my $clerk = ClerkTest::Fake->start('--bulk-limit', '100000');
my $node = clerk_cluster('main', $clerk,
	conf => "clerk_invite.max_concurrent_requests = 4\n");
my $observer = start_psql($node, '');
my $calls = 0;

check_concurrency();
check_failure();
check_end('pg_cancel_backend', '57014');
check_end('pg_terminate_backend', '57P01');
check_unknown_before_end();
check_memory();

$observer->{harness}->finish;
$node->stop;
done_testing();

# SQL that invites these local parts, in tens, to an organization of their own,
# and counts those that there are; "x-..." makes its ten misbehave.
sub invite_all
{
	my ($org, @names) = @_;
	my $names = join(',', map { "$_\@$org.example.com" } @names);

	return "SELECT count(*) FROM clerk_create_organization_invitation_bulk('org_$org',"
	  . " (SELECT jsonb_agg(jsonb_build_object('email_address', email,"
	  . " 'role', 'org:member') ORDER BY n)"
	  . " FROM unnest('{$names}'::text[]) WITH ORDINALITY AS e (email, n)))";
}

# So many tens, each of which misbehaves in its own way.
sub tens
{
	my (@behaviours) = @_;
	my $ten = 0;

	return map {
		$ten++;
		my @names = map { "plain$ten-$_" } 1 .. 10;
		$names[4] = "x-$_--$ten" if $_;
		@names
	} @behaviours;
}

# The requests about an organization, oldest first.
sub requests_to
{
	my ($org) = @_;

	return grep { $_->{path} eq "/v1/organizations/org_$org/invitations/bulk" }
	  $clerk->journal;
}

sub created_in
{
	my ($org) = @_;

	return scalar grep { $_->{organization_id} eq "org_$org" }
	  $clerk->all_invitations;
}

# As many at a time as the setting says, over that many kept connections.
sub check_concurrency
{
	my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');

	# Nobody answers these, so that all that may be are under way.
	send_to_psql($psql, invite_all('full', tens(('hang') x 6)) . ';');
	wait_until('four requests are under way',
		sub { requests_to('full') >= 4 });
	my ($stdout) = run_in_psql($observer,
		'SELECT pg_cancel_backend(pid) FROM pg_stat_activity'
		  . " WHERE query LIKE '%org_full%' AND pid <> pg_backend_pid();");
	output_of_psql($psql);
	is(scalar requests_to('full'),
		4, 'as many requests are under way as the setting says');

	run_in_psql($psql, invite_all('reuse', tens(('slow-20') x 12)) . ';');
	($stdout) = run_in_psql($psql, invite_all('again', tens(('slow-20') x 12)) . ';');
	my %connections =
	  map { $_->{connection} => 1 } requests_to('reuse'), requests_to('again');
	is($stdout, "120\n", 'all are invited');
	is(scalar requests_to('reuse'), 12, 'ten share a request');
	cmp_ok(scalar keys %connections,
		'<=', 4, 'requests go over connections that are kept');
	cmp_ok(scalar keys %connections, '>', 1, '... several at a time');
	is_deeply(
		[ sort map { scalar @{ $_->{body} } } requests_to('again') ],
		[ (10) x 12 ],
		'each request is full');
	$psql->{harness}->finish;
	return;
}

# What is under way when a batch fails is waited for, and nothing else starts.
sub check_failure
{
	my $result = attempt($node, 'postgres',
		invite_all('failure', tens(('slow-300') x 3, '429-17', ('') x 4)));

	is($result->{sqlstate}, '53400', 'a batch that is refused fails the call');
	like(
		$result->{stderr},
		qr/Invitations created, which remain: 30; possibly created: 0; not created: 50\./,
		'... when those that were under way have their answers');
	like($result->{stderr}, qr/WARNING:.* 30 invitations created in Clerk/,
		'... and all of these are named by the rollback warning');
	is(created_in('failure'), 30, '... which are those that there are');
	is(scalar requests_to('failure'), 4, '... and nothing else was sent');
	return;
}

# A session that is ended while some are created and others under way.
sub check_end
{
	my ($function, $sqlstate) = @_;
	my $best;

	for (1 .. $ATTEMPTS)
	{
		my $run = end_call($function);

		$best = $run if !$best || $run->{took} < $best->{took};
		last if $best->{took} < $PROMPT;
	}
	cmp_ok($best->{took}, '<', $PROMPT,
		"$function() ends the statement within $PROMPT ms");
	my @sqlstates = $best->{stderr} =~ /(?:ERROR|FATAL):  (\w{5}):/g;
	is("@sqlstates", $sqlstate, "... with $sqlstate");
	like(
		$best->{stderr},
		qr/WARNING:\ \ 08007:\ 4\ requests\ to\ Clerk\ had\ already\ been\ sent\n
		   DETAIL:\ \ Their\ invitations\ may\ have\ been\ created\.\n
		   HINT:\ \ Before\ you\ try\ again,\ check\ which\ of\ the\ invitations\ exist/x,
		'... and tells of all requests that are under way');

	# There is nobody left to tell of a rollback after a termination.
	like($best->{stderr}, qr/WARNING:.* 20 invitations created in Clerk/,
		'... and of what was created before')
	  if $function eq 'pg_cancel_backend';
	is(created_in($best->{org}), 20, '... which is what there is');
	return;
}

# Two tens are created; of the other four, the last one is only started when
# the session knows that.
sub end_call
{
	my ($function) = @_;
	my $org = 'end' . ++$calls;
	my $psql = start_psql($node, '', '-v', 'VERBOSITY=verbose');
	my $pid = backend_of($psql);

	send_to_psql($psql,
		invite_all($org, tens('', 'hang', '', 'hang', 'hang', 'hang')) . ';');
	wait_until('all tens were sent', sub { requests_to($org) == 6 });
	my $begun = time;
	run_in_psql($observer, "SELECT $function($pid);");
	my (undef, $stderr) = output_of_psql($psql);
	my $took = 1000 * (time - $begun);
	if ($function eq 'pg_cancel_backend')
	{
		my ($stdout) = run_in_psql($psql, invite_all("next$org", 'next') . ';');
		is($stdout, "1\n", 'the session goes on');
	}
	$psql->{harness}->finish;
	return { org => $org, took => $took, stderr => $stderr };
}

# An answer that was lost is not forgotten while others are waited for.  That
# another one is known to be created shows that the session had time to see it;
# each try leaves it more.
sub check_unknown_before_end
{
	my $stderr = '';

	for my $try (1 .. 10)
	{
		my $org = 'lost' . ++$calls;
		my $psql = start_psql($node, '');
		my $pid = backend_of($psql);

		send_to_psql($psql,
			invite_all($org, tens('drop-after', 'hang', 'slow-20')) . ';');
		wait_until('all tens were sent', sub { requests_to($org) == 3 });
		select(undef, undef, undef, 0.03 * $try);
		run_in_psql($observer, "SELECT pg_cancel_backend($pid);");
		(undef, $stderr) = output_of_psql($psql);
		$psql->{harness}->finish;
		last if $stderr =~ / 10 invitations created in Clerk/;
	}
	like($stderr, qr/ 10 invitations created in Clerk/,
		'a session is ended that has lost one answer, has one and waits for one');
	like(
		$stderr,
		qr/WARNING:  2 requests to Clerk had already been sent/,
		'... and tells of the one that was lost, too');
	return;
}

# Requests and answers are freed as they come.
sub check_memory
{
	my $psql = start_psql($node, '');

	run_in_psql($psql, invite_all('some', map { "some$_" } 1 .. 500) . ';');
	my $before = peak_memory_of($psql);
	my ($stdout) = run_in_psql($psql,
		invite_all('many', map { "many$_" } 1 .. 5_000) . ';');
	is($stdout, "5000\n", 'five thousand are invited with one call');
	cmp_ok(peak_memory_of($psql) - $before,
		'<', 30_000, '... in less than 30 MB');
	$psql->{harness}->finish;
	return;
}
