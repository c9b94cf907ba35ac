# A next version, made here from the same sources, comes over version 1.0 while
# that is at work: first its library, as a package upgrade puts it there, then
# its SQL objects, by ALTER EXTENSION UPDATE.  Nothing in the outbox is lost,
# the worker is replaced, and where library and SQL objects do not fit, that is
# said, except to an INSERT, which goes through.
use strict;
use warnings;

use ClerkTest;
use WorkerTest;
use Cwd qw(abs_path);
use File::Copy qw(copy);
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'needs an extension in a folder of its own'
  unless $ENV{CLERK_DESTDIR};

my $SOURCE = abs_path("$ClerkTest::TEST_FOLDER/..");
my $MISFIT =
  qr/the clerk_invite library does not match the extension's SQL objects/;
my $NEXT_TO_OLD =
  qr/DETAIL:  The library is version 1\.1; the SQL objects are version 1\.0\.\n/;
my $OLD_TO_NEXT =
  qr/DETAIL:  The library is version 1\.0; the SQL objects are version 1\.1\.\n/;

# What calls Clerk.
my %CALLING = (
	clerk_create_organization_invitation => invite('direct@example.com'),
	clerk_get_organization_invitation =>
	  "SELECT id FROM clerk_get_organization_invitation('org_test', 'orginv_x')",
	clerk_revoke_organization_invitation =>
	  "SELECT id FROM clerk_revoke_organization_invitation('org_test', 'orginv_x')",
	clerk_list_organization_invitations =>
	  "SELECT count(*) FROM clerk_list_organization_invitations('org_test')",
	clerk_list_instance_organization_invitations =>
	  'SELECT count(*) FROM clerk_list_instance_organization_invitations()',
	clerk_send_invitations => 'CALL clerk_send_invitations(0)');

# What only tells something.
my @TELLING = (
	'SELECT count(*) FROM clerk_worker_status()',
	'SELECT count(*) FROM clerk_rate_limit_status()',
	'SELECT count(*) FROM clerk_invitation_progress');

# Each state, as far as rows can be brought there, and one in which nobody
# knows; "hang" is where the worker is all the while.
my %EMAILS = (
	sent => 'sent@example.com',
	skipped => 'member@example.com',
	failed => 'x-error-422-form_param_invalid--failed@example.com',
	canceled => 'canceled@example.com',
	later => 'later@example.com',
	verifying => 'x-reset-after--verifying@example.com',
	created => 'x-hang-after--created@example.com',
	not_created => 'x-hang-before-once--lost@example.com',
	queued => 'queued@example.com');

my $root = own_installation();
my $library = $root . output_of('pg_config', '--pkglibdir') . '/clerk_invite.so';
my $extension = $root . output_of('pg_config', '--sharedir') . '/extension';
my %built = build_next_version();

my $clerk = ClerkTest::Fake->start('--single-limit', '100000');
my $node = worker_cluster(
	'main', $clerk,
	conf => q(
clerk_invite.request_timeout = '1 h'
max_worker_processes = 4
));

make_database($node, 'other');
# Here a worker in trouble looks again when it is woken, and not before.
$node->safe_psql('postgres',
	"ALTER DATABASE other SET clerk_invite.retry_delay = '10 min'");
$node->safe_psql(
	$_, q(
	CREATE TABLE members (email text);
	CREATE TRIGGER invite AFTER INSERT ON members FOR EACH ROW
		EXECUTE FUNCTION clerk_invitation_trigger('=org_test', '', 'email', '=org:member')
)) foreach qw(postgres other);

my $old_session = start_psql($node, '', '-v', 'VERBOSITY=verbose');
run_in_psql($old_session, 'SELECT FROM clerk_worker_status();');
my $worker = fill_outbox();
check_compatible_library();
check_library_before_sql();
check_update();
check_sql_before_library();
check_replacement();
check_old_session();
check_waiting_database();
$old_session->{harness}->finish;
check_old_library_installed();
check_preloaded();

$node->stop;
done_testing();

# Other tests use the installation that they share.
sub own_installation
{
	my $folder = PostgreSQL::Test::Utils::tempdir();

	system_or_bail('cp', '-R', "$ENV{CLERK_DESTDIR}/.", $folder);
	return $ENV{CLERK_DESTDIR} = $folder;
}

sub output_of
{
	my ($stdout) = run_command([@_]);

	return $stdout;
}

# Builds two libraries of the next version: one that serves the SQL objects of
# 1.0, too, and one that needs its own, and shared memory of another layout.
sub build_next_version
{
	my $folder = PostgreSQL::Test::Utils::tempdir();
	my %files = (compatible => "$folder/compatible.so", next => "$folder/next.so");
	my @make = ('make', '-s', '-j', '2', '-C', $folder, 'with_llvm=no',
		'COPT=-O0', 'all');

	system_or_bail('sh', '-c',
		    "cd '$SOURCE' && tar -cf - Makefile clerk_invite.control"
		  . " clerk_invite--1.0.sql src | tar -C '$folder' -xf -");
	change("$folder/clerk_invite.control", qr/^default_version = '\K1\.0/m, '1.1');
	system_or_bail(@make);
	copy_file("$folder/clerk_invite.so", $files{compatible});
	change("$folder/src/common/installed_extension.c",
		qr/^#define OLDEST_SQL_VERSION "\K1\.0/m, '1.1');
	change("$folder/src/worker/slots.c", qr/^#define SLOTS \K32$/m, '33');
	system_or_bail(@make);
	copy_file("$folder/clerk_invite.so", $files{next});
	copy_file($library, $files{old} = "$folder/old.so");
	$files{control} = "$folder/clerk_invite.control";
	return %files;
}

sub change
{
	my ($file, $pattern, $text) = @_;
	my $content = slurp_file($file);

	$content =~ s/$pattern/$text/ or die "$file has nothing to change";
	unlink $file;
	append_to_file($file, $content);
	return;
}

sub copy_file
{
	my ($from, $to) = @_;

	copy($from, $to) or die "could not copy $from to $to: $!";
	return;
}

# As a package manager does it: whoever has the old file open keeps it.
sub install_file
{
	my ($from, $to) = @_;

	copy_file($from, "$to.new");
	chmod 0755, "$to.new" or die "could not chmod $to.new: $!";
	rename "$to.new", $to or die "could not rename $to.new: $!";
	return;
}

# Rows of all kinds, and a worker that is in the middle of some; returns it.
sub fill_outbox
{
	enqueue($node, 'postgres', @EMAILS{qw(sent skipped failed)});
	enqueue($node, 'postgres', '1 day', @EMAILS{qw(canceled later)});
	$node->safe_psql('postgres',
		'SELECT clerk_cancel_invitation(id) FROM clerk_invitation_outbox '
		  . "WHERE email_address = '$EMAILS{canceled}'");
	wait_until('three are settled',
		sub { states($node, 'postgres', @EMAILS{qw(sent skipped failed)}) eq
			  'sent 1, skipped 1, failed 1' });
	# Some look-ups fail: the row is in that state for some time.
	$clerk->control('misbehave',
		{ operation => 'ListOrganizationInvitations', behaviour => '500', times => 40 });
	enqueue($node, 'postgres', $EMAILS{verifying});
	wait_until('the row is verifying',
		sub { states($node, 'postgres', $EMAILS{verifying}) =~ /^verifying/ });
	enqueue($node, 'postgres', @EMAILS{qw(created not_created)});
	wait_until('requests hang',
		sub { requests($clerk, @EMAILS{qw(created not_created)}) eq '1 1' });
	enqueue($node, 'postgres', $EMAILS{queued});
	is( $node->safe_psql('postgres',
			"SELECT string_agg(DISTINCT state, ' ' ORDER BY state) FROM clerk_invitation_outbox"),
		'canceled failed queued sending sent skipped verifying',
		'version 1.0 has rows in every state');
	return worker_of($node, 'postgres');
}

# A library that serves the older SQL objects needs no ALTER EXTENSION.
sub check_compatible_library
{
	install_file($built{compatible}, $library);
	like($node->safe_psql('postgres', $CALLING{clerk_create_organization_invitation}),
		qr/^orginv_/, 'a newer library serves SQL objects that are not too old for it');
	return;
}

# The package is upgraded, ALTER EXTENSION UPDATE has not been run.
sub check_library_before_sql
{
	install_file($built{next}, $library);
	install_file($built{control}, "$extension/clerk_invite.control");
	install_file("$SOURCE/test/upgrade/clerk_invite--1.0--1.1.sql",
		"$extension/clerk_invite--1.0--1.1.sql");
	foreach my $function (sort keys %CALLING)
	{
		my $result = attempt($node, 'postgres', $CALLING{$function});

		is($result->{sqlstate}, '55000', "$function() of a library that is too new fails");
		like($result->{stderr},
			qr/$MISFIT\n$NEXT_TO_OLD.*HINT:  Run ALTER EXTENSION clerk_invite UPDATE\.\n/,
			'... and says what to do');
	}
	check_inserts('postgres', 'library-first');
	is(attempt($node, 'postgres', $_)->{sqlstate}, '', "$_ works") foreach @TELLING;

	my ($stdout, $stderr) =
	  run_in_psql($old_session, invite('old-session@example.com') . ';');
	like($stdout, qr/^orginv_/, 'a session that has the old library goes on with it');
	is($stderr, '', '... and has nothing to complain of');

	# A worker that starts now.
	my $log = -s $node->logfile;
	$node->safe_psql('other', q(
		INSERT INTO clerk_invitation_outbox (organization_id, email_address, role,
			state, attempts, first_claimed_at, claimed_at)
		VALUES ('org_test', 'left-behind@example.com', 'org:member',
			'sending', 1, now(), now())));
	check_inserts('other', 'waiting');
	wait_for_worker($node, 'other');
	is( $node->safe_psql('postgres',
			"SELECT last_error FROM clerk_worker_status() WHERE database = 'other'"),
		"the clerk_invite library does not match the extension's SQL objects",
		'a worker with a library that is too new has trouble');
	like(
		slurp_file($node->logfile, $log),
		qr/stopped sending invitations: $MISFIT\n.*$NEXT_TO_OLD.*HINT:  Run ALTER/,
		'... and tells the log what to do');
	is(states($node, 'other', emails_of('waiting')),
		'queued 0, queued 0, queued 0', '... and sends nothing');
	is(states($node, 'other', 'left-behind@example.com'),
		'sending 1', '... nor touches a row that a sender has left behind');
	return;
}

# What puts rows into the outbox works, whichever is newer: three of them.
sub check_inserts
{
	my ($database, $tag) = @_;
	my $result = attempt($node, $database, inserts_of($tag));

	is($result->{stderr}, '', "members and invitations can be inserted: $tag");
	is($result->{stdout}, "t\nt", '... and canceled, and tried again');
	return;
}

sub emails_of
{
	my ($tag) = @_;

	return map { "$_-$tag\@example.com" } qw(trigger enqueued plain);
}

# As SQL; one row more is canceled, and another one has failed.
sub inserts_of
{
	my ($tag) = @_;
	my ($trigger, $enqueued, $plain) = emails_of($tag);

	return "INSERT INTO members VALUES ('$trigger'); "
	  . "DO \$\$ BEGIN PERFORM clerk_enqueue_organization_invitation('org_test', NULL, '$enqueued', 'org:member'); END \$\$; "
	  . enqueue_sql($plain) . '; '
	  . 'BEGIN; SELECT clerk_cancel_invitation(clerk_enqueue_organization_invitation('
	  . "'org_test', NULL, 'undone\@example.com', 'org:member')); "
	  . 'WITH failed AS (INSERT INTO clerk_invitation_outbox '
	  . '(organization_id, email_address, role, state) VALUES '
	  . "('org_test', 'undone\@example.com', 'org:member', 'failed') RETURNING id) "
	  . "SELECT true FROM failed; ROLLBACK;";
}

sub check_update
{
	my $columns = $node->safe_psql('postgres',
		q(SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute
		WHERE attrelid = 'clerk_invitation_outbox'::regclass AND attnum > 0));
	my $rows = "SELECT $columns FROM clerk_invitation_outbox ORDER BY id";
	my $before = $node->safe_psql('postgres', $rows);

	$node->safe_psql('postgres', 'ALTER EXTENSION clerk_invite UPDATE');
	is($node->safe_psql('postgres', $rows), $before,
		'ALTER EXTENSION UPDATE leaves every row as it was');
	is( $node->safe_psql('postgres',
			"SELECT extversion, obj_description('clerk_cancel_invitation'::regproc), "
			  . "(SELECT bool_and(campaign = 'none') FROM clerk_invitation_outbox) "
			  . "FROM pg_extension WHERE extname = 'clerk_invite'"),
		'1.1|cancels an invitation as version 1.1 does|t',
		'... and brings what is new');
	is(requests($clerk, @EMAILS{qw(created not_created queued)}),
		'1 1 0', '... while requests are under way');
	is(attempt($node, 'postgres', $_)->{sqlstate}, '', "$_ works now")
	  foreach @TELLING, invite('updated@example.com');
	return;
}

# A session that has the old library.
sub check_sql_before_library
{
	my (undef, $stderr) = run_in_psql($old_session, inserts_of('old-session') . ';');

	is($stderr, '', 'a session with the old library inserts members and invitations');
	foreach my $function (sort keys %CALLING)
	{
		(undef, $stderr) = run_in_psql($old_session, "$CALLING{$function};");
		like($stderr,
			qr/ERROR:  55000: $MISFIT\n$OLD_TO_NEXT.*HINT:  Reconnect\./,
			"... but for $function() it must connect again");
	}
	(undef, $stderr) = run_in_psql($old_session, join('; ', @TELLING, ''));
	is($stderr, '', '... while it can still look at the state of things');
	return;
}

# The worker has waited for Clerk all the time.
sub check_replacement
{
	my $log = -s $node->logfile;
	my @emails = (@EMAILS{qw(verifying created not_created queued)},
		emails_of('library-first'), emails_of('old-session'));

	$node->safe_psql('postgres', "SELECT pg_cancel_backend($worker)");
	wait_until('there is another worker',
		sub { worker_of($node, 'postgres') !~ /^(?:0|$worker)$/ });
	wait_until('the old one has ended', sub { !kill(0, $worker) });
	my $successor = wait_for_worker($node, 'postgres');
	like(slurp_file($node->logfile, $log),
		qr/LOG:  a worker with another version of the library continues to send invitations/,
		'the worker makes way for another one');
  SKIP:
	{
		skip 'there is no /proc', 1 unless -r "/proc/$successor/maps";
		my ($mapped) = slurp_file("/proc/$successor/maps") =~ /^(.*clerk_invite\.so.*)$/m;
		unlike($mapped, qr/deleted/, '... which has the library that is installed now');
	}
	wait_until('all is sent',
		sub { states($node, 'postgres', @emails) =~ /^sent \d(?:, sent \d){9}$/ });
	is(created($clerk, @emails), join(' ', (1) x @emails), '... each once');
	is(requests($clerk, grep { !/once/ } @emails),
		join(' ', (1) x (@emails - 1)), '... and asked for once, unless Clerk never had it');
	is( $node->safe_psql('postgres', 'SELECT string_agg(state, \' \' ORDER BY id) '
			  . 'FROM clerk_invitation_outbox WHERE email_address IN ('
			  . join(', ', map { "'$_'" } @EMAILS{qw(sent skipped failed canceled later)}) . ')'),
		'sent skipped failed canceled queued',
		'... and what was settled, or is due later, is as it was');
	return;
}

# A session with the old library knows nothing of the new worker, since that has
# its slot in memory of another layout.  The worker it starts finds the other.
sub check_old_session
{
	my $email = 'old-memory@example.com';
	my $successor = wait_for_worker($node, 'postgres');
	my $begun = time;

	run_in_psql($old_session, enqueue_sql($email) . ';');
	wait_for_states($node, 'postgres', 'sent 1', $email);
	cmp_ok(time - $begun, '<', 30,
		'a commit of an old session is seen before the worker looks by itself');
	is(worker_of($node, 'postgres'), $successor, '... by the worker that is there');
	return;
}

# Its worker has had trouble since the library was installed.
sub check_waiting_database
{
	my $log = -s $node->logfile;

	$node->safe_psql('other', 'ALTER EXTENSION clerk_invite UPDATE');
	wait_for_states($node, 'other', 'sent 1', emails_of('waiting'));
	wait_for_states($node, 'other', 'sent 2', 'left-behind@example.com');
	is(created($clerk, emails_of('waiting'), 'left-behind@example.com'), '1 1 1 1',
		'ALTER EXTENSION UPDATE wakes the worker that has waited for it');
	like(slurp_file($node->logfile, $log), qr/LOG:  resumed sending invitations/,
		'... which tells the log');
	return;
}

# The SQL objects are newer, and nobody has installed the library.
sub check_old_library_installed
{
	my $log = -s $node->logfile;
	my $first;

	wait_until_gone($node, 'other');
	install_file($built{old}, $library);
	enqueue($node, 'other', 'no-library@example.com');
	$first = wait_for_worker($node, 'other');
	is( $node->safe_psql('postgres',
			"SELECT last_error FROM clerk_worker_status() WHERE database = 'other'"),
		"the clerk_invite library does not match the extension's SQL objects",
		'a worker with a library that is too old has trouble');
	like(slurp_file($node->logfile, $log), qr/HINT:  Reconnect\. If the error persists, install/,
		'... and tells the log what to do');
	install_file($built{compatible}, $library);
	enqueue($node, 'other', 'library@example.com');
	wait_for_states($node, 'other', 'sent 1', 'no-library@example.com',
		'library@example.com');
	wait_until('it has ended', sub { !kill(0, $first) });
	pass('... and makes way for another one when it looks again');
	return;
}

# A library that is preloaded is that of the server's start.
sub check_preloaded
{
	my $name = ClerkTest::library_name($node);
	my $email = 'preloaded@example.com';
	my $log;

	install_file($built{old}, $library);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$name'");
	$node->restart;
	install_file($built{next}, $library);
	$log = -s $node->logfile;
	like(attempt($node, 'postgres', $CALLING{clerk_send_invitations})->{stderr},
		qr/ERROR:  55000: $MISFIT\n$OLD_TO_NEXT.*HINT:  .*Restart the server\./,
		'where the library is preloaded, a session is told of the restart');
	$node->safe_psql('postgres', enqueue_sql($email));
	wait_until('the log tells of it',
		sub { slurp_file($node->logfile, $log) =~ /stopped sending invitations: $MISFIT/ });
	enqueue($node, 'postgres', "another-$email");
	like(slurp_file($node->logfile, $log), qr/HINT:  .*Restart the server\./,
		'... and so is the log');
	$node->restart;
	wait_for_states($node, 'postgres', 'sent 1', $email, "another-$email");
	is(created($clerk, $email, "another-$email"), '1 1', 'after that, all is sent');
	return;
}
