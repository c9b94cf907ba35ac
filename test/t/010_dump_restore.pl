# A database with the extension can be dumped and restored: invitations that
# are kept in tables, grants, and what uses the functions.  No dump holds the
# secret key, and restoring invites nobody.
use strict;
use warnings;

use ClerkTest;
use File::Spec;
use PostgreSQL::Test::Utils;
use Test::More;

my $clerk = ClerkTest::Fake->start;
my $node = clerk_cluster('main', $clerk);
my $other = clerk_cluster('other', $clerk);
my $folder = PostgreSQL::Test::Utils::tempdir();

$node->safe_psql('postgres', 'CREATE ROLE app LOGIN');
$other->safe_psql('postgres', 'CREATE ROLE app LOGIN');
$node->safe_psql('postgres', 'CREATE DATABASE product');
$node->safe_psql(
	'product', q(
	CREATE SCHEMA x;
	CREATE EXTENSION clerk_invite SCHEMA x;
	GRANT USAGE ON SCHEMA x TO app;
	GRANT EXECUTE ON FUNCTION x.clerk_create_organization_invitation TO app;

	CREATE TABLE members (
		email text PRIMARY KEY,
		invitation x.clerk_organization_invitation
	);
	GRANT SELECT, INSERT ON members TO app;

	CREATE FUNCTION invite_member() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		NEW.invitation = x.clerk_create_organization_invitation(
			'org_test', NULL, NEW.email, 'org:member',
			metadata => '{"team": "sales"}');
		RETURN NEW;
	END $$;
	CREATE TRIGGER invite_member BEFORE INSERT ON members
		FOR EACH ROW EXECUTE FUNCTION invite_member();

	INSERT INTO members VALUES ('ann@example.com'), ('bob@example.com');
));
$node->safe_psql('postgres',
	"ALTER DATABASE product SET clerk_invite.secret_key_file = 'clerk.key'");
# A key that is a setting as well: pg_dumpall writes some of those.
$node->append_conf('postgresql.conf',
	"clerk_invite.secret_key = '$ClerkTest::KEY'");
$node->reload;

my $rows = 'SELECT email, md5(invitation::text), (invitation).id,'
  . " (invitation).url LIKE '%ticket=%' FROM members ORDER BY email";
my $before = $node->safe_psql('product', $rows);
my $requests = () = $clerk->journal;

like($before, qr/^ann\@example\.com\|[0-9a-f]{32}\|orginv_\w+\|t$/m,
	'the table holds whole invitations');

# The dumps.

$node->command_ok(
	[
		'pg_dump', '-f', "$folder/dump.sql", '-d', $node->connstr('product')
	],
	'the database can be dumped as a script');
$node->command_ok(
	[
		'pg_dump', '-Fc', '-f', "$folder/dump.custom",
		'-d', $node->connstr('product')
	],
	'the database can be dumped as an archive');

my $script = slurp_file("$folder/dump.sql");
like(
	$script,
	qr/^CREATE EXTENSION IF NOT EXISTS clerk_invite WITH SCHEMA x;$/m,
	'the dump creates the extension in its schema');
ok($script !~ /^CREATE (FUNCTION|TYPE) x\./m,
	'the dump creates none of its objects');
ok($script !~ /^COMMENT ON (FUNCTION|TYPE|COLUMN) x\./m,
	'the dump comments on none of its objects');
like(
	$script,
	qr/^GRANT ALL ON FUNCTION x\.clerk_create_organization_invitation\(.*\) TO app;$/m,
	'the dump grants what was granted');
ok($script !~ /(REVOKE|GRANT) .* x\.clerk_create.* (FROM|TO) (PUBLIC|postgres);/i,
	'the dump leaves the privileges to the extension that it has by itself');

# Restored.

foreach my $case (
	[ $node, 'script', 'the same cluster' ],
	[ $node, 'archive', 'the same cluster' ],
	[ $other, 'script', 'another cluster' ],
	[ $other, 'archive', 'another cluster' ])
{
	my ($target, $form, $where) = @$case;
	my $database = "from_$form";
	my $what = "the $form restored into $where";

	$target->safe_psql('postgres', "CREATE DATABASE $database");
	if ($form eq 'script')
	{
		$target->command_ok(
			[
				'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-o',
				File::Spec->devnull, '-f', "$folder/dump.sql", '-d',
				$target->connstr($database)
			],
			"$what brings no error");
	}
	else
	{
		$target->command_ok(
			[
				'pg_restore', '--exit-on-error', '-d',
				$target->connstr($database), "$folder/dump.custom"
			],
			"$what brings no error");
	}

	is( $target->safe_psql(
			$database, q(
			SELECT extversion, extnamespace::regnamespace
			FROM pg_extension WHERE extname = 'clerk_invite')),
		'1.0|x',
		"$what has the extension in its schema");
	ok($target->safe_psql($database, $rows) eq $before,
		"$what has the same invitations");
	is( $target->safe_psql(
			$database, q(
			SELECT has_function_privilege('app', oid, 'EXECUTE'),
				has_function_privilege('pg_monitor', oid, 'EXECUTE')
			FROM pg_proc WHERE proname = 'clerk_create_organization_invitation')),
		't|f',
		"$what lets those call the function who could before");

	my $now = () = $clerk->journal;
	is($now, $requests, "$what has invited nobody");

	my $email = "new\@$database." . $target->name . '.example.com';
	is( attempt(
			$target, $database,
			"INSERT INTO members VALUES ('$email') RETURNING (invitation).status",
			extra_params => [ '-U', 'app' ])->{stdout},
		'pending',
		"$what invites new members through its trigger");
	$requests++;
	is(scalar(() = $clerk->requests_for($email)),
		1, "$what has sent that invitation once");
}

# The whole cluster.

$node->command_ok(
	[ 'pg_dumpall', '-f', "$folder/all.sql", '-d', $node->connstr('postgres') ],
	'the whole cluster can be dumped');
my $all = slurp_file("$folder/all.sql");
ok( $all =~
	  /^ALTER DATABASE product SET "clerk_invite\.secret_key_file" TO 'clerk\.key';$/m,
	'the dump of the cluster names the key file of a database');
ok(index($all, $ClerkTest::KEY) < 0,
	'the dump of the cluster does not hold the key');

done_testing();
