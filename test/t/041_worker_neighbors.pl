# Workers stay out of everybody's way: other databases and their workers, CREATE
# and DROP DATABASE, CREATE and DROP EXTENSION, changes of the owner, VACUUM, and
# a server that has no room for a worker, or no memory to tell it.
use strict;
use warnings;

use ClerkTest;
use RateLimitDriver;
use WorkerTest;
use PostgreSQL::Test::Utils;
use Test::More;

# What hangs is an error, long before the test is given up.
my $BOUNDED = "SET statement_timeout = '30 s';";

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = worker_cluster(
	'main', $clerk,
	conf => q(
max_worker_processes = 10
clerk_invite.request_timeout = '1 h'
));

check_several_databases();
check_create_and_drop_database();
check_drop_own_database();
check_nothing_is_held();
check_drop_extension();
check_owner();
check_read_only_database();
check_no_slot();
check_no_room();
check_no_memory();

$node->stop;
done_testing();

sub check_several_databases
{
	my @databases = ('postgres', map { "db$_" } 1 .. 4);
	my @psql;

	make_database($node, $_) foreach @databases[ 1 .. 4 ];
	foreach my $database (@databases)
	{
		my $psql = start_psql($node, "\\c $database");
		my $inserts = join(';', map { enqueue_sql("$database-$_\@example.com") } 1 .. 20);

		send_to_psql($psql,
			"$inserts; " . enqueue_sql('1 day', "$database-future\@example.com") . ';');
		push @psql, $psql;
	}
	output_of_psql($_) foreach @psql;
	$_->{harness}->finish foreach @psql;
	foreach my $database (@databases)
	{
		my @emails = map { "$database-$_\@example.com" } 1 .. 20;

		wait_for_states($node, $database, 'sent 1', @emails);
		is(created($clerk, @emails), join(' ', (1) x 20),
			"one of five databases at a time: $database has sent what is its own, once");
		wait_for_worker($node, $database);
	}
	is_deeply([ workers($node) ], [ sort @databases ],
		'each database has a worker of its own');
	is( $node->safe_psql('postgres',
			"SELECT count(DISTINCT pid) FROM pg_stat_activity AS a "
			  . "JOIN clerk_worker_status() AS w USING (pid) WHERE a.datname = w.database"),
		'5',
		'... in a process that is connected to it');
	return;
}

# While workers wait, and one has a request under way.
sub check_create_and_drop_database
{
	my $email = 'x-hang-after--neighbor@example.com';

	enqueue($node, 'db1', $email);
	wait_until('a request hangs', sub { requests($clerk, $email) eq '1' });
	foreach my $statement (
		'CREATE DATABASE other',
		'DROP DATABASE other',
		'CREATE DATABASE other TEMPLATE template0',
		'DROP DATABASE other WITH (FORCE)',
		'CHECKPOINT')
	{
		is(attempt($node, 'postgres', "$BOUNDED $statement;")->{stderr} =~ s/^WARNING.*//mr,
			'', "$statement does not wait for workers");
	}
	is(states($node, 'db1', $email), 'sending 1', '... nor disturbs their requests');
	return;
}

sub check_drop_own_database
{
	# One that has nothing open is about to leave.
	make_database($node, 'brief');
	enqueue($node, 'brief', 'brief@example.com');
	wait_for_states($node, 'brief', 'sent 1', 'brief@example.com');
	my $drop = attempt($node, 'postgres', "$BOUNDED DROP DATABASE brief;");
	is($drop->{sqlstate}, '', 'DROP DATABASE waits for a worker that has nothing left to do');

	# One that waits for a row stays.
	wait_for_worker($node, 'db2');
	$drop = attempt($node, 'postgres', "$BOUNDED DROP DATABASE db2;");
	is($drop->{sqlstate}, '55006', 'DROP DATABASE fails if a row is open');
	$node->safe_psql('db2', 'DELETE FROM clerk_invitation_outbox');
	$drop = attempt($node, 'postgres', "$BOUNDED DROP DATABASE db2;");
	is($drop->{sqlstate}, '', '... unless the row is deleted');

	# One that is in the middle of a request.
	my $worker = worker_of($node, 'db1');
	my $log = -s $node->logfile;
	$drop = attempt($node, 'postgres', "$BOUNDED DROP DATABASE db1 WITH (FORCE);");
	is($drop->{sqlstate}, '', 'DROP DATABASE WITH (FORCE) ends a worker');
	wait_until('its process is gone', sub { !kill(0, $worker) });
	wait_until('its slot is free',
		sub { join(' ', workers($node)) eq 'db3 db4 postgres' });
	pass('... and clerk_worker_status() knows nothing of it any more');
	unlike(slurp_file($node->logfile, $log), qr/FATAL:  (?!terminating)/,
		'... and the process that came in its place has left without a word');

	# Its place is free for another database, under the same name, too.
	make_database($node, 'db1');
	enqueue($node, 'db1', 'anew@example.com');
	wait_for_states($node, 'db1', 'sent 1', 'anew@example.com');
	pass('a new database of the same name gets a worker');
	return;
}

# No transaction, no snapshot and no lock but the sender's while Clerk is slow.
sub check_nothing_is_held
{
	my $email = 'x-hang-after--held@example.com';

	enqueue($node, 'db3', $email);
	wait_until('a request hangs', sub { requests($clerk, $email) eq '1' });
	my $worker = worker_of($node, 'db3');
	is( $node->safe_psql(
			'db3', qq(
			SELECT state, backend_xid, backend_xmin, xact_start, query
			FROM pg_stat_activity WHERE pid = $worker)),
		'active||||sending invitations',
		'while a request is under way, a worker holds no transaction and no snapshot');
	is( $node->safe_psql(
			'db3', qq(
			SELECT string_agg(locktype, ' ') FROM pg_locks WHERE pid = $worker)),
		'advisory',
		"... and no lock but the sender's");
	$node->safe_psql('db3', 'CREATE TABLE t AS SELECT 1 AS a; DELETE FROM t');
	$node->safe_psql('db3', "$BOUNDED VACUUM t");
	is($node->safe_psql('db3', "SELECT pg_relation_size('t')"),
		'0', '... so VACUUM removes what is dead');
	is(attempt($node, 'db3', "$BOUNDED VACUUM (FULL) clerk_invitation_outbox;")->{sqlstate},
		'', '... and even rewrites the outbox');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($worker)");
	wait_for_states($node, 'db3', 'sent 1', $email);
	is(requests($clerk, $email), '1',
		'a worker whose request is canceled verifies the row by itself');
	is(worker_of($node, 'db3'), $worker, '... and goes on');
	return;
}

sub check_drop_extension
{
	my $hanging = 'x-hang-after--dropped@example.com';
	my $worker = worker_of($node, 'db4');
	my $drop = "$BOUNDED DROP EXTENSION clerk_invite;";

	is(attempt($node, 'db4', $drop)->{sqlstate},
		'', 'DROP EXTENSION does not wait for a worker that waits');
	$node->safe_psql('db4', 'CREATE SCHEMA s; CREATE EXTENSION clerk_invite SCHEMA s');
	$node->safe_psql('db4', 'SET search_path = s; ' . enqueue_sql('recreated@example.com'));
	wait_until('it is sent', sub { created($clerk, 'recreated@example.com') eq '1' });
	is(worker_of($node, 'db4'), $worker,
		'after CREATE EXTENSION, in another schema, the same worker sends');
	wait_until_gone($node, 'db4');

	$node->safe_psql('db4', 'SET search_path = s; ' . enqueue_sql($hanging));
	wait_until('a request hangs', sub { requests($clerk, $hanging) eq '1' });
	$worker = worker_of($node, 'db4');
	is(attempt($node, 'db4', $drop)->{sqlstate},
		'', 'DROP EXTENSION does not wait for a request');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($worker)");
	wait_until_gone($node, 'db4');
	pass('a worker whose extension is gone leaves');
	$node->safe_psql('db4', 'CREATE EXTENSION clerk_invite');
	enqueue($node, 'db4', 'once-more@example.com');
	wait_for_states($node, 'db4', 'sent 1', 'once-more@example.com');
	pass('... and the next commit after CREATE EXTENSION starts another one');
	$node->safe_psql('postgres', 'CREATE DATABASE bare');
	is(attempt($node, 'bare', 'SELECT 1;')->{sqlstate},
		'', 'a database without the extension has no part in it');
	return;
}

# The rows belong to a role that comes, changes its name and goes.
sub check_owner
{
	$node->safe_psql('postgres', 'CREATE ROLE ann SUPERUSER');
	$node->safe_psql('postgres', 'CREATE DATABASE owned');
	$node->safe_psql('owned', 'SET ROLE ann; CREATE EXTENSION clerk_invite');
	$node->safe_psql('owned', enqueue_sql('1 day', 'owned-future@example.com'));
	my $worker = wait_for_worker($node, 'owned');

	foreach my $step (
		[ 'renamed', 'ALTER ROLE ann RENAME TO bob' ],
		[ 'no longer a superuser', 'ALTER ROLE bob NOSUPERUSER' ],
		[
			'dropped',
			'REASSIGN OWNED BY bob TO postgres; DROP OWNED BY bob; DROP ROLE bob'
		])
	{
		my ($title, $sql) = @$step;
		my $email = 'owner-' . ($title =~ s/\W+/-/gr) . '@example.com';

		is(attempt($node, 'owned', "$BOUNDED $sql;")->{stderr},
			'', "the owner can be $title while a worker waits");
		enqueue($node, 'owned', $email);
		wait_for_states($node, 'owned', 'sent 1', $email);
		is(worker_of($node, 'owned'), $worker, '... which goes on sending');
	}
	return;
}

# Nothing is sent from a database that is frozen, and the worker says so, as
# long as it lasts; but is not in anybody's way.
sub check_read_only_database
{
	my $stopped = qr/LOG:  stopped sending invitations: the database is read-only/;
	my $said;

	make_database($node, 'readonly');
	$node->safe_psql('postgres',
		'ALTER DATABASE readonly SET default_transaction_read_only = on');
	my $log = -s $node->logfile;
	enqueue_in_frozen('readonly@example.com');
	wait_until('the worker says so',
		sub { last_error_of('readonly') eq 'the database is read-only because of "default_transaction_read_only"' });
	pass('in a database whose transactions are to be read-only a worker has trouble');
	my $worker = wait_for_worker($node, 'readonly');
	is($node->safe_psql('postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE datname = 'readonly'"),
		'0', '... waits without a connection');
	enqueue_in_frozen('frozen@example.com');
	wait_until('it has looked again',
		sub { worker_of($node, 'readonly') !~ /^(?:0|$worker)$/ });
	$node->reload;
	wait_for_worker($node, 'readonly');
	$said = slurp_file($node->logfile, $log);
	is(scalar(() = $said =~ /$stopped/g), 1, '... and tells the log once');
	unlike($said, qr/ERROR|FATAL|exited with exit code/, '... and nothing else');
	is(states($node, 'readonly', 'readonly@example.com', 'frozen@example.com'),
		'queued 0, queued 0', '... and sends nothing');
	$node->safe_psql('postgres', 'ALTER DATABASE readonly RENAME TO frozen');
	$node->safe_psql('postgres', 'ALTER DATABASE frozen RENAME TO readonly');
	pass('... nor is in the way of those who want the database for themselves');

	$node->safe_psql('postgres',
		'ALTER DATABASE readonly SET default_transaction_isolation = serializable;'
		  . 'ALTER DATABASE readonly RESET default_transaction_read_only');
	$node->safe_psql(
		'readonly', q(
		CREATE TABLE seen (isolation text);
		CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN
				INSERT INTO public.seen VALUES (current_setting('transaction_isolation'));
				RETURN NULL;
			END $$;
		CREATE TRIGGER see AFTER UPDATE ON clerk_invitation_outbox
			FOR EACH STATEMENT EXECUTE FUNCTION see();));
	enqueue($node, 'readonly', 'serializable@example.com');
	wait_for_states($node, 'readonly', 'sent 1', 'readonly@example.com',
		'frozen@example.com', 'serializable@example.com');
	is($node->safe_psql('readonly', 'SELECT DISTINCT isolation FROM seen'),
		'read committed', "a worker's transactions are read committed, whatever the database's default");
	like(slurp_file($node->logfile, $log), qr/LOG:  resumed sending invitations/,
		'when the database is not frozen any more, the log tells so');
	wait_until_gone($node, 'readonly');

	# One without anything to send has no worker, and so no trouble.
	$node->safe_psql('postgres',
		'ALTER DATABASE readonly SET default_transaction_read_only = on');
	$log = -s $node->logfile;
	$node->safe_psql('readonly',
		'SET default_transaction_read_only = off;'
		  . "UPDATE clerk_invitation_outbox SET role = role WHERE email_address = 'frozen\@example.com'");
	wait_until_gone($node, 'readonly');
	unlike(slurp_file($node->logfile, $log), $stopped,
		'a frozen database in which nothing is open is left without a word');

	enqueue_in_frozen('dropped@example.com');
	wait_until('the worker waits', sub { last_error_of('readonly') ne '' });
	wait_for_worker($node, 'readonly');
	is(attempt($node, 'postgres', "$BOUNDED DROP DATABASE readonly;")->{sqlstate},
		'', 'a frozen database can be dropped');
	$node->reload;
	wait_until('no worker of it is left',
		sub { $node->safe_psql('postgres', 'SELECT count(*) FROM clerk_worker_status() WHERE database IS NULL') eq '0' });
	unlike(slurp_file($node->logfile, $log), qr/FATAL/, '... and its worker leaves without a word');
	return;
}

sub enqueue_in_frozen
{
	my ($email) = @_;

	$node->safe_psql('readonly',
		'SET default_transaction_read_only = off; ' . enqueue_sql($email));
	return;
}

sub last_error_of
{
	my ($database) = @_;

	return $node->safe_psql('postgres',
		"SELECT last_error FROM clerk_worker_status() WHERE database = '$database'");
}

# So many databases have a worker and no more.
sub check_no_slot
{
	my @emails = map { "no-slot$_\@example.com" } 1, 2;

	foreach my $database (workers($node))
	{
		$node->safe_psql($database, 'TRUNCATE clerk_invitation_outbox');
	}
	wait_until_gone($node);
	install_slots_driver($node);
	is($node->safe_psql('postgres', 'SELECT driver_reserve_slots(40)'),
		'32', 'as many databases as there are slots can have a worker');

	my $log = -s $node->logfile;
	my $commit = attempt($node, 'db1', enqueue_sql($emails[0]) . ';');
	is($commit->{sqlstate}, '', 'a commit in another database succeeds');
	like(
		$commit->{stderr},
		qr/WARNING:  53400: could not start a background worker.*\nDETAIL:  Too many databases have a background worker\.\nHINT:  (?!.*max_worker_processes)/,
		'... with a warning that says why');
	like(
		slurp_file($node->logfile, $log),
		qr/WARNING:  could not start a background worker to send invitations/,
		'... which is in the log, too');
	is(states($node, 'db1', $emails[0]), 'queued 0', '... and the row waits');

	# As if they had been asked for in vain.
	$node->safe_psql('postgres', 'SELECT driver_age_starts(10)');
	$commit = attempt($node, 'db1', enqueue_sql($emails[1]) . ';');
	is($commit->{stderr}, '',
		'a slot whose worker never started is free for the next commit');
	wait_for_states($node, 'db1', 'sent 1', @emails);
	is(created($clerk, @emails), '1 1', '... and nothing is lost');
	wait_until_gone($node, 'db1');
	$node->restart;
	return;
}

# The server starts so many background workers and no more.
sub check_no_room
{
	my $log;

	$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
	$node->restart;
	enqueue($node, 'postgres', '1 day', 'occupant@example.com');
	wait_for_worker($node, 'postgres');

	$log = -s $node->logfile;
	my $commit = attempt($node, 'db1', enqueue_sql('no-room1@example.com') . ';');
	is($commit->{sqlstate}, '', 'a commit succeeds when the server has no room for a worker');
	like(
		$commit->{stderr},
		qr/WARNING:  53400: could not start a background worker to send invitations/,
		'... with a warning');
	like(
		slurp_file($node->logfile, $log),
		qr/WARNING:  could not start a background worker to send invitations.*max_worker_processes/s,
		'... which is in the log, too');
	$commit = attempt($node, 'db1', enqueue_sql('no-room2@example.com') . ';');
	like($commit->{stderr}, qr/WARNING:  53400:/, 'the next commit tries again');
	is(states($node, 'db1', 'no-room1@example.com', 'no-room2@example.com'),
		'queued 0, queued 0', '... and the rows wait');
	is_deeply([ workers($node) ], ['postgres'], '... without a worker');

	$node->safe_psql('postgres', 'TRUNCATE clerk_invitation_outbox');
	wait_until_gone($node);
	$commit = attempt($node, 'db1', enqueue_sql('no-room3@example.com') . ';');
	is($commit->{stderr}, '', 'when there is room, the next commit starts one');
	my @emails = map { "no-room$_\@example.com" } 1 .. 3;
	wait_for_states($node, 'db1', 'sent 1', @emails);
	is(created($clerk, @emails), '1 1 1', '... and nothing is lost');
	return;
}

# Whoever inserts shall not fail because nobody can be told of it.
sub check_no_memory
{
	RateLimitDriver::install($node);
	$node->restart;
	$node->safe_psql('postgres',
		RateLimitDriver::session($node) . 'SELECT driver_use_up_memory()');
	foreach my $time ('', ' again')
	{
		my $commit = attempt($node, 'postgres',
			enqueue_sql('no-memory@example.com') . "; SELECT 'still here';");
		is($commit->{sqlstate}, '', "a commit succeeds$time when the server has no shared memory to spare");
		like($commit->{stdout}, qr/still here/, '... and the session goes on');
		like(
			$commit->{stderr},
			qr/WARNING:  53200: could not notify a background worker of invitations to send/,
			'... with a warning');
	}
	my $status = attempt($node, 'postgres', 'SELECT * FROM clerk_worker_status();');
	is("$status->{stdout}$status->{sqlstate}", '', '... and clerk_worker_status() knows of no worker');
	is(states($node, 'postgres', 'no-memory@example.com'),
		'queued 0, queued 0', '... but the rows are there');
	return;
}
