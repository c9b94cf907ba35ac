# Requests to Clerk are counted for the whole server: whoever sends one, from
# whichever database, draws on the same budget of the same key, and it comes
# back as the window slides on.
use strict;
use warnings;

use ClerkTest;
use IO::Socket::INET;
use MisbehavingServer;
use PostgreSQL::Test::Utils;
use RateLimitDriver;
use Test::More;

# What every server has to spare for libraries that were not preloaded, in
# bytes (ipci.c).
my $SLOP = 100_000;

# Endpoints as rate_limit.h numbers them.
my ($SINGLE, $BULK, $LIST) = (0, 1, 2);

# What the driver's clock says at first.
my $START = '2030-01-01 00:00:00+00';

# A window whose buckets are of a second each.
my $WINDOW = 127;

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = clerk_cluster('main', $clerk);
my $library = ClerkTest::library_name($node);
my $instances = 0;

check_memory_and_counting();
check_sharing();
check_delivery();
check_closing();

RateLimitDriver::install($node);
check_closed_list();
check_take();
check_settling();
check_closed_endpoint();
check_concurrent_takes();
check_simulation();
check_steps_of_clock();
check_changed_window();
check_many_instances();

check_window();
check_restart();
check_no_memory();
check_preloaded();
$node->stop;
done_testing();

sub check_memory_and_counting
{
	is(shared_memory(), '', 'no shared memory is taken before it is needed');
	is( status(),
		'single 250 0 250 now open, bulk 50 0 50 now open',
		'a budget is whole at first, and by default as large as Clerk\'s');
	cmp_ok(shared_memory(), '<=', $SLOP / 4,
		'most of the memory to spare is left to others');

	sql(invite('ann@example.com'));
	is( status(),
		'single 250 1 249 now open, bulk 50 0 50 now open',
		'a synchronous call counts');
	attempt($node, 'postgres', invite('ann@example.com'));
	is(used(), 2, '... and so does one that Clerk refuses');
	attempt($node, 'postgres', invite('x-drop--1@example.com'));
	is(used(), 3, '... and one whose answer is lost');
	attempt($node, 'postgres',
		"SET statement_timeout = '500 ms'; " . invite('x-hang--1@example.com'));
	is(used(), 4, '... and one that is canceled');
	sql('BEGIN; ' . invite('back@example.com') . '; ROLLBACK;');
	is(used(), 5, '... and one whose transaction is rolled back');
	attempt($node, 'postgres', invite('no address'));
	is(used(), 5, '... but not one that is refused here');

	my $small = 'SET clerk_invite.single_requests_per_hour = 3;';
	is( status($small),
		'single 3 5 0 later open, bulk 50 0 50 now open',
		'a budget that is used up is not less than nothing');
	sql($small . invite('one-more@example.com'));
	is(used(), 6, '... and does not hold synchronous calls back');
	is( sql($small
			  . "SELECT available_at BETWEEN now() + interval '59 min'"
			  . " AND now() + interval '61 min'"
			  . " FROM clerk_rate_limit_status() WHERE endpoint = 'single'"),
		't',
		'... and comes back an hour later');
	is( status('SET clerk_invite.bulk_requests_per_hour = 0;'),
		'single 250 6 244 now open, bulk 0 0 0 never open',
		'without a budget there never is one');
	return;
}

sub check_sharing
{
	my $before = used();

	$node->safe_psql('postgres', 'CREATE DATABASE another');
	$node->safe_psql('another', 'CREATE EXTENSION clerk_invite');
	$node->safe_psql('another', invite('shared@example.com'));
	is(used(), $before + 1, 'databases with one key share its budget');
	is(status('', 'another'), status(), '... and see the same');

	ClerkTest::write_key($node->data_dir . '/another.key',
		'sk_test_another00000000000000000000000000');
	$node->safe_psql('postgres',
		"ALTER DATABASE another SET clerk_invite.secret_key_file = 'another.key'");
	like(status('', 'another'), qr/^single 250 0 250 /,
		'a database with another key has a budget of its own');
	is( attempt($node, 'another', invite('refused@example.com'))->{sqlstate},
		'28000', 'a key that Clerk does not accept ...');
	like(status('', 'another'), qr/^single 250 1 249 /,
		'... has its requests counted, too');
	is(used(), $before + 1, '... apart from those of others');

	foreach my $suffix ('/', '/v1', '/v1/')
	{
		is(used("SET clerk_invite.api_url = '" . $clerk->url . "$suffix';"),
			$before + 1, "an address ending in $suffix is the same Clerk");
	}
	is(used("SET clerk_invite.api_url = 'http://localhost';"),
		0, 'another address is another Clerk');
	is( attempt($node, 'postgres',
			"SET clerk_invite.secret_key_file = '';"
			  . 'SELECT clerk_rate_limit_status()')->{sqlstate},
		'55000',
		'without a key there is no budget to tell of');
	return;
}

sub check_delivery
{
	my $nobody = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1);
	my $there = "SET clerk_invite.api_url = 'http://127.0.0.1:"
	  . $nobody->sockport . "';";
	my $before = used();

	close $nobody;
	is(attempt($node, 'postgres', $there . invite('ann@example.com'))->{sqlstate},
		'08001', 'where nothing listens, nothing is sent ...');
	is(used($there), 0, '... and does not count');
	is( attempt($node, 'postgres',
			"SET clerk_invite.api_url = 'http://example.com';"
			  . invite('ann@example.com'))->{sqlstate},
		'55000',
		'nor is anything sent to an unusable address ...');
	is(used("SET clerk_invite.api_url = 'http://example.com';"),
		0, '... and does not count');

	sql(enqueue(map { "outbox$_\@example.com" } 1 .. 7));
	send_until_settled($node, $there . 'DELETE FROM clerk_invitation_outbox;');
	is(used($there), 0, 'the outbox, empty, sends nothing');
	sql(enqueue(map { "outbox$_\@example.com" } 1 .. 7));
	attempt($node, 'postgres', $there . 'CALL clerk_send_invitations()');
	is(used($there), 0, 'what the outbox cannot send does not count');
	sql('UPDATE clerk_invitation_outbox SET next_attempt_at = NULL');
	send_until_settled($node, 'SET clerk_invite.bulk_requests_per_hour = 0;');
	is(used(), $before + 7, 'what the outbox sends counts');
	return;
}

sub check_closing
{
	# Newer versions of libcurl believe no more than six hours.
	foreach my $case (
		[ '429-30', 10, 30, 'as long as Clerk says' ],
		[ '429-none', 40, 60, 'for a minute if Clerk does not say how long' ],
		[ '429-99999999', 21000, 86400, 'for a day at most' ])
	{
		my ($name, $least, $most, $title) = @$case;
		my $closing = ClerkTest::Fake->start;
		my $there = "SET clerk_invite.api_url = '" . $closing->url . "';";

		is( attempt($node, 'postgres',
				$there . invite("x-$name--1\@example.com"))->{sqlstate},
			'53400',
			"a request meets a rate limit ($name)");
		is( status($there),
			'single 250 1 249 later closed, bulk 50 0 50 now open',
			'... which closes its endpoint, and only that');
		is( sql($there
				  . 'SELECT closed_until = available_at AND closed_until'
				  . " BETWEEN now() + interval '$least s'"
				  . " AND now() + interval '$most s'"
				  . " FROM clerk_rate_limit_status() WHERE endpoint = 'single'"),
			't',
			"... $title");
		sql($there . invite('nevertheless@example.com'));
		is( status($there),
			'single 250 2 248 later closed, bulk 50 0 50 now open',
			'... but does not hold synchronous calls back');
	}

	my $soon = ClerkTest::Fake->start;
	my $there = "SET clerk_invite.api_url = '" . $soon->url . "';";
	attempt($node, 'postgres', $there . invite('x-429-1--1@example.com'));
	wait_until('the endpoint is open again',
		sub { status($there) =~ /^single 250 1 249 now open/ });
	pass('a closed endpoint opens again');
	return;
}

# Looking up what became of a request does not count, but can be refused.
sub check_closed_list
{
	my $full = MisbehavingServer->answering('429 Too Many Requests',
		['Retry-After: 40'], '');
	my $there = "SET clerk_invite.api_url = '" . $full->url . "';";

	sql('INSERT INTO clerk_invitation_outbox (organization_id, email_address,'
		  . ' role, state, attempts, first_claimed_at, claimed_at) VALUES'
		  . " ('org_test', 'unknown\@example.com', 'org:member', 'verifying',"
		  . ' 1, now(), now())');
	attempt($node, 'postgres', $there . 'CALL clerk_send_invitations()');
	is( status($there),
		'single 250 0 250 now open, bulk 50 0 50 now open',
		'a lookup that is refused closes no endpoint that creates');
	is( sql($there
			  . RateLimitDriver::session($node)
			  . "SELECT driver_closed_until(driver_instance("
			  . "'@{[$full->url]}', '$ClerkTest::KEY'), $LIST)"
			  . " BETWEEN now() + interval '20 s' AND now() + interval '40 s'"),
		't',
		'... but its own');
	return;
}

sub check_take
{
	my $new = new_instance();

	is( drive(
			"SELECT driver_take($new, $SINGLE, 200)",
			"SELECT driver_available_at() IS NULL",
			"SELECT driver_take($new, $SINGLE, 200)",
			'SELECT ' . seconds('driver_available_at()') . ' BETWEEN 127 AND 128',
			"SELECT driver_take($new, $SINGLE, 1)",
			"SELECT driver_used($new, $SINGLE)",
			"SELECT driver_used($new, $BULK)"),
		'200 t 50 t 0 250 0',
		'a sender gets what is left of the budget, and learns when there is more'
	);
	is( drive(
			"SELECT driver_take($new, $BULK, 51)",
			"SELECT driver_take($new, $LIST, 1000000)",
			'SELECT driver_available_at() IS NULL'),
		'50 1000000 t',
		'... for each endpoint by itself, and without limit for lookups');
	is( drive(
			clock(60), "SELECT driver_take($new, $SINGLE, 1)",
			clock(126.9), "SELECT driver_take($new, $SINGLE, 1)",
			clock(128), "SELECT driver_take($new, $SINGLE, 300)"),
		'0 0 250',
		'a budget is back when the window has slid past what used it');
	is( drive(
			'SET clerk_invite.single_requests_per_hour = 0',
			"SELECT driver_take(@{[new_instance()]}, $SINGLE, 1)",
			'SELECT driver_available_at()'),
		'0 infinity',
		'where nothing is allowed, nothing ever will be');

	$new = new_instance();
	is( drive(
			'SET clerk_invite.single_requests_per_hour = 10',
			map({ (clock($_), "SELECT driver_take($new, $SINGLE, 1)",
					"SELECT driver_answered(1, '$START'::timestamptz"
					  . " + interval '$_ s')") } 0.5, 20.5),
			"SELECT driver_take($new, $SINGLE, 99)",
			'SELECT ' . seconds('driver_available_at()'),
			"SELECT driver_answered(8, '$START'::timestamptz + interval '20.5 s')",
			clock(128), "SELECT driver_take($new, $SINGLE, 99)",
			'SELECT ' . seconds('driver_available_at()'),
			"SELECT driver_answered(1, '$START'::timestamptz + interval '128 s')",
			clock(148), "SELECT driver_take($new, $SINGLE, 99)"),
		'1 1 8 128 1 148 9',
		'what went out at different times comes back at different times');

	$new = new_instance();
	is( drive(
			"SELECT driver_count($new, $SINGLE) FROM generate_series(1, 240)",
			clock(50),
			"SELECT driver_count($new, $SINGLE) FROM generate_series(1, 60)",
			"SELECT driver_take($new, $SINGLE, 1)",
			'SELECT ' . seconds('driver_available_at()'),
			clock(128), "SELECT driver_take($new, $SINGLE, 999)"),
		'0 127 190',
		'what went out beyond the budget is waited for, too');
	return;
}

sub check_settling
{
	my $new = new_instance();
	my $used = "SELECT driver_used($new, $SINGLE)";
	my $at = sub {
		my ($count, $seconds) = @_;
		return "SELECT driver_answered($count,"
		  . " '$START'::timestamptz + interval '$seconds s')";
	};

	is( drive(
			"SELECT driver_reserve($new, $SINGLE, 250)",
			'SELECT driver_give_back(100)', $used,
			"SELECT driver_start(40)", $used,
			'SELECT driver_not_sent(30)', $used,
			'SELECT driver_give_back(1000)', $used,
			'SELECT driver_not_sent(1000)', $used),
		'250 150 150 120 10 0',
		'what was certainly not sent can be taken again');

	# What a sender does that then does something else.
	my $sends = sub {
		$new = new_instance();
		$used = "SELECT driver_used($new, $SINGLE)";
		return join(';', @_, "SELECT driver_reserve($new, $SINGLE, 250)",
			'SELECT driver_start(10)');
	};
	is( drive(
			$sends->(), "SELECT driver_reserve($new, $SINGLE, 1000)",
			clock(100), $used),
		'250 240 250',
		'... as can what the same sender has reserved, and not started, when it begins anew');
	is( drive($sends->()) . ' ' . drive($used, clock(127), $used, clock(128), $used),
		'250 10 10 0',
		'... or when it has ended, but what was started counts until the window has passed');
	is( drive($sends->('BEGIN'), 'ROLLBACK', $used, clock(128), $used),
		'250 10 0',
		'... or when its transaction has failed');
	is( drive($sends->('BEGIN'), 'COMMIT', clock(200), $used),
		'250 250',
		'... but not after a commit, since a sender has several transactions');
	$new = new_instance();
	$used = "SELECT driver_used($new, $SINGLE)";
	is( drive(
			"SELECT driver_count($new, $SINGLE)", 'BEGIN',
			"SELECT driver_count($new, $SINGLE)", clock(10), 'ROLLBACK',
			clock(127), $used, clock(128), $used, clock(138), $used),
		'2 1 0',
		'a call that is not settled counts for a window from the end of its transaction');

	$new = new_instance();
	$used = "SELECT driver_used($new, $SINGLE)";
	is( drive(
			"SELECT driver_take($new, $SINGLE, 250)",
			clock(10.5), $at->(249, 0), $at->(1, 10.5), $used,
			clock(128), $used, clock(137.5), $used, clock(137.51), $used),
		'250 250 1 1 0',
		'a request that is answered counts from then on');

	# A burst leaves the window as soon as its last response has, to a 256th of
	# a bucket, here 3.9 ms; and not with its first, nor with its bucket.
	$new = new_instance();
	my $take = "SELECT driver_take($new, $SINGLE, 250)";
	is( drive(
			$take, clock(0.3), $at->(100, 0.1), $at->(150, 0.3),
			$take, "SELECT extract(epoch FROM driver_available_at() - '$START')",
			clock(127.3), $take, clock(127.301), $take),
		'250 0 127.300782 0 250',
		'a burst leaves the window when the window is over since its last response');

	$new = new_instance();
	$used = "SELECT driver_used($new, $SINGLE)";
	is( drive(
			"SELECT driver_take($new, $SINGLE, 2)",
			clock(200), $used, $at->(1, 200), $used, $at->(1, 0), $used,
			clock(400), $at->(1, 400), 'SELECT driver_not_sent(1)', $used),
		'2 2 2 1 0',
		'... also if it took longer than the window, but not if that was long ago');
	return;
}

sub check_closed_endpoint
{
	my $new = new_instance();
	my $close = sub {
		my ($seconds) = @_;
		return "SELECT driver_close($new, $BULK, $seconds)";
	};
	my $take = "SELECT driver_take($new, $BULK, 1)";

	is( drive($close->(100), $take, 'SELECT ' . seconds('driver_available_at()'),
			"SELECT driver_take($new, $SINGLE, 1)",
			$close->(50), clock(99.9), $take, clock(100), $take),
		'0 100 1 0 1',
		'nothing is given out for a closed endpoint, until the later of two times');
	is( drive($close->(100), step_clock(-3600), $take,
			'SELECT ' . seconds('driver_available_at()'),
			step_clock(86400), clock(99), $take,
			'SELECT ' . seconds('driver_available_at()'),
			clock(100), $take),
		'0 -3500 0 82900 1',
		'a clock that is put back, or ahead, keeps it closed for as long as it was to be');
	is( drive(step_clock(86400), $close->(100), step_clock(-86400), $take,
			'SELECT ' . seconds('driver_available_at()'),
			clock(100), $take),
		'0 100 1',
		'... also if the clock was wrong when it was closed');
	return;
}

# More sessions than processors, all at once, until nothing is left.
sub check_concurrent_takes
{
	my $new = new_instance();
	my $gate = start_psql($node, '');
	my @senders = map { start_psql($node, '') } 1 .. 8;

	run_in_psql($gate, 'SELECT pg_advisory_lock(1);');
	send_to_psql(
		$_, RateLimitDriver::session($node) . qq(
		SET clerk_invite.single_requests_per_hour = 5000;
		SELECT pg_advisory_lock_shared(1);
		SELECT sum(driver_take($new, $SINGLE, 1 + n % 3))
		FROM generate_series(1, 2000) AS n;)) foreach @senders;
	wait_until('all wait at the gate',
		sub { sql('SELECT count(*) FROM pg_locks WHERE NOT granted') == 8 });
	run_in_psql($gate, 'SELECT pg_advisory_unlock(1);');
	my @taken = map { (output_of_psql($_))[0] =~ /^(\d+)$/m } @senders;
	$_->{harness}->finish foreach $gate, @senders;
	my $sum = 0;
	$sum += $_ foreach @taken;
	is($sum, 5000, 'many sessions at once get the budget, and not one request more');
	cmp_ok((grep { $_ > 0 } @taken), '>', 1, '... several of them some of it');
	return;
}

# A sender that takes all it can get, against a Clerk that counts each request
# at some time before its answer, which now and then is late.
sub check_simulation
{
	my $new = new_instance();

	sql(RateLimitDriver::session($node) . qq(
		SET clerk_invite.single_requests_per_hour = 25;
		SELECT driver_set_window(127000);
		CREATE TABLE counted (number serial, at timestamptz);
		SELECT setseed(0.5);
		DO \$\$
		DECLARE
			now timestamptz := '$START';
			counted_at timestamptz;
			granted integer;
		BEGIN
			WHILE (SELECT count(*) < 2500 FROM counted) LOOP
				PERFORM driver_set_clock(now);
				granted := driver_take($new, $SINGLE, 1 + (random() * 9)::integer);
				IF granted = 0 THEN
					now := driver_available_at();
					CONTINUE;
				END IF;
				FOR i IN 1 .. granted LOOP
					counted_at := now + interval '100 ms'
						* CASE WHEN random() < 0.01 THEN 50 ELSE random() END;
					now := counted_at + random() * interval '100 ms';
					INSERT INTO counted (at) VALUES (counted_at);
					PERFORM driver_set_clock(now);
					PERFORM driver_answered(1, now);
				END LOOP;
			END LOOP;
		END
		\$\$;));
	is( sql(qq(
			SELECT count(*) FROM counted AS a JOIN counted AS b
				ON b.number = a.number + 25
			WHERE b.at < a.at + interval '127 s')),
		0,
		'no window at Clerk, wherever it begins, ever has a request too many');
	cmp_ok(
		sql(qq(
			SELECT 2500 / (25 * (extract(epoch FROM max(at) - min(at)) / 127 + 1))
			FROM counted)),
		'>', 0.99,
		'... and no more than one in a hundred requests is missed');
	sql('DROP TABLE counted');
	return;
}

# What the clock of day shows has nothing to do with how much time has passed.
sub check_steps_of_clock
{
	my ($new, $used);

	foreach my $case (
		[ 86400, 'a clock that is put ahead gives no budget back early' ],
		[ -86400, 'a clock that is put back keeps none for longer' ],
		# 1970
		[ -1893456000, 'nor does a clock that was never set' ])
	{
		my ($step, $title) = @$case;
		$new = new_instance();
		$used = "SELECT driver_used($new, $SINGLE)";
		is( drive(
				"SELECT driver_take($new, $SINGLE, 250)",
				"SELECT driver_answered(250, '$START')",
				step_clock($step), $used,
				"SELECT driver_take($new, $SINGLE, 250)",
				'SELECT ' . seconds('driver_available_at()'),
				clock(127), $used, clock(128), $used),
			"250 250 0 @{[$step + 127]} 250 0",
			$title);
	}

	foreach my $step (86400, -86400)
	{
		$new = new_instance();
		$used = "SELECT driver_used($new, $SINGLE)";
		is( drive(
				"SELECT driver_take($new, $SINGLE, 1)",
				clock(10), step_clock($step),
				"SELECT driver_answered(1, '$START'::timestamptz + interval '5 s')",
				clock(137), $used, clock(138), $used),
			'1 1 0',
			'an answer whose time was by another clock counts as of now');
	}
	return;
}

sub check_changed_window
{
	my $new = new_instance();
	my $used = "SELECT driver_used($new, $SINGLE)";
	my $answered = "SELECT driver_answered(9, '$START')";

	is( drive(
			"SELECT driver_take($new, $SINGLE, 9)", $answered,
			clock(100), 'SELECT driver_set_window(1270000)', $used,
			clock(1300), $used,
			clock(1380), $used,
			"SELECT driver_take($new, $SINGLE, 9)",
			"SELECT driver_answered(9, '$START'::timestamptz + interval '1380 s')",
			'SELECT driver_set_window(127000)', $used,
			clock(1400), $used, clock(1600), $used),
		'9 9 9 0 9 9 9 0',
		'a window that is changed keeps the counts, for that window at most');

	# A session that has not read the new configuration yet, in turn with one
	# that has: both see what was counted at 0 leave the new window.
	$new = new_instance();
	$used = "SELECT driver_used($new, $SINGLE)";
	my $window = sub {
		my ($seconds, $read_at) = @_;
		return ("SELECT driver_set_window(${seconds}000)",
			"SELECT driver_set_reload_time('$START'::timestamptz"
			  . " + interval '$read_at s')");
	};
	my @new_one = $window->(254, 1);
	my @old_one = $window->(127, -1);
	is( drive(
			@old_one, "SELECT driver_take($new, $SINGLE, 9)", $answered,
			clock(2), @new_one, $used,
			map({ (clock($_ * 50), @old_one, $used, @new_one, $used) } 1 .. 5),
			clock(258), @old_one, $used, @new_one, $used,
			$window->(127, 200), "SELECT driver_take($new, $SINGLE, 9)",
			"SELECT driver_answered(9, '$START'::timestamptz + interval '258 s')",
			clock(380), @new_one, $used, clock(386), $used),
		'9 9 9 9 9 9 9 9 9 9 9 9 0 0 9 9 0',
		'a process that has yet to read the new window leaves the counts alone');

	# One that read it when the clock was a day ahead knows nothing better.
	$new = new_instance();
	$used = "SELECT driver_used($new, $SINGLE)";
	is( drive(
			$window->(254, 86400),
			"SELECT driver_take($new, $SINGLE, 9)", $answered,
			$window->(127, 0), clock(10), $used, clock(138), $used),
		'9 9 0',
		'... unless that one has read it by a clock that was ahead');
	return;
}

# A seventeenth instance takes the place of the one that was not used longest.
sub check_many_instances
{
	my @many = map { new_instance() } 1 .. 16;

	drive(map { "SELECT driver_take($_, $SINGLE, 1)" } @many);
	drive("SELECT driver_take($many[0], $SINGLE, 1)",
		"SELECT driver_take(@{[new_instance()]}, $SINGLE, 1)");
	is( drive(map { "SELECT driver_used($_, $SINGLE)" } @many),
		join(' ', 2, 0, (1) x 14),
		'what is forgotten when there are too many is what was not used longest');
	return;
}

sub check_window
{
	my $other = ClerkTest::Fake->start;
	my $there = "SET clerk_invite.api_url = '" . $other->url . "';";

	$node->append_conf('postgresql.conf',
		"clerk_invite.rate_limit_window = '3s'");
	$node->reload;
	wait_until('the window is changed',
		sub {
			sql("LOAD '$library'; SHOW clerk_invite.rate_limit_window") eq '3s';
		});
	sql($there . invite('soon-forgotten@example.com') . ' \; '
		. 'SELECT used FROM clerk_rate_limit_status()');
	sql($there . invite("soon-forgotten$_\@example.com")) foreach 1 .. 2;
	cmp_ok(used($there), '>', 0, 'requests count in the window ...');
	wait_until('the window has slid past them', sub { used($there) == 0 });
	pass('... and no longer after it');
	is( attempt($node, 'postgres',
			"LOAD '$library'; SET clerk_invite.rate_limit_window = '1s'")->{sqlstate},
		'55P02',
		'the window is the same for all sessions');
	$node->append_conf('postgresql.conf',
		"clerk_invite.rate_limit_window = '1h'");
	return;
}

sub check_restart
{
	my $before;

	$node->restart;
	$before = used();
	sql(invite('before-restart@example.com'));
	is(used(), $before + 1, 'requests are counted after a restart, too');
	$node->restart;
	is(used(), $before + 1, '... and a restart forgets nothing');
	return;
}

sub check_no_memory
{
	$node->restart;
	sql(RateLimitDriver::session($node) . 'SELECT driver_use_up_memory()');
	is( sql(RateLimitDriver::session($node)
			  . 'SELECT sum(abs(driver_find_memory(n))) FROM generate_series(0, 3) AS n'),
		0,
		'looking for memory in vain leaves interrupts held off as often as they were');
	is( attempt($node, 'postgres', invite('no-memory@example.com'))->{sqlstate},
		'53200', 'where the server has no memory to spare, that is an error ...');
	is(scalar(() = $clerk->requests_for('no-memory@example.com')),
		0, '... and nothing is sent');
	is(attempt($node, 'postgres', 'SELECT clerk_rate_limit_status()')->{sqlstate},
		'53200', '... again and again');
	return;
}

sub check_preloaded
{
	my $free = 'SELECT size FROM pg_shmem_allocations WHERE name IS NULL';

	$node->restart;
	my $spare = sql($free);
	sql(invite('not-preloaded@example.com'));
	my $size = shared_memory();
	my $before = used();

	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = '$library'");
	$node->restart;
	# A segment is rounded up to whole pages of 8 kB.
	cmp_ok(sql($free), '>=', $spare + $size - 8192,
		'a library that is preloaded asks for its memory');
	sql(invite('preloaded@example.com'));
	is(used(), $before + 1, '... and counts');
	is(shared_memory(), $size, '... in as much memory');
	$node->safe_psql('another',
		'ALTER DATABASE another RESET clerk_invite.secret_key_file');
	$node->safe_psql('another', invite('preloaded-too@example.com'));
	is(used(), $before + 2, '... for all databases');
	return;
}

sub sql
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# Bytes that the library has; '' if none.
sub shared_memory
{
	return sql("SELECT size FROM pg_shmem_allocations"
		  . " WHERE name LIKE 'clerk_invite rate limit %'");
}

# The endpoints as a session sees them that runs this SQL before: name, limit,
# used, remaining, when it is available, whether it is closed.
sub status
{
	my ($settings, $database) = @_;

	$settings //= '';
	return $node->safe_psql(
		$database // 'postgres', qq(
		$settings
		SELECT string_agg(format('%s %s %s %s %s %s', endpoint,
			requests_per_window, used, remaining,
			CASE WHEN available_at IS NULL THEN 'now'
				WHEN available_at = 'infinity' THEN 'never'
				WHEN available_at > now() THEN 'later' END,
			CASE WHEN closed_until > now() THEN 'closed'
				WHEN closed_until IS NULL THEN 'open' END),
			', ' ORDER BY endpoint DESC)
		FROM clerk_rate_limit_status()));
}

# How many requests for one invitation have been sent.
sub used
{
	my ($settings) = @_;

	return (split(/ /, status($settings)))[2];
}

# SQL that enqueues addresses.
sub enqueue
{
	return join(
		'',
		map {
			"SELECT clerk_enqueue_organization_invitation('org_test', NULL,"
			  . " '$_', 'org:member');"
		} @_);
}

# An instance that nobody has used.
sub new_instance
{
	return ++$instances;
}

# Runs these statements in a session whose clock stands at $START and whose
# window is $WINDOW seconds; returns what they return.
sub drive
{
	my @lines = split /\n/, sql(
		join(
			";\n",
			RateLimitDriver::session($node)
			  . "SELECT driver_set_window(${WINDOW}000)",
			clock(0), @_));

	return join(' ', grep { $_ ne '' } @lines);
}

# SQL that sets the session's clock, in seconds after $START.
sub clock
{
	my ($seconds) = @_;

	return "SELECT driver_set_clock('$START'::timestamptz"
	  . " + interval '$seconds s')";
}

# SQL that sets the clock of day alone ahead or back, by so many seconds.
sub step_clock
{
	my ($seconds) = @_;

	return "SELECT driver_step_clock($seconds)";
}

# SQL for a time in seconds after $START.
sub seconds
{
	my ($time) = @_;

	return "extract(epoch FROM $time - timestamptz '$START')::integer";
}
