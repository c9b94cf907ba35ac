# Where the secret key comes from, which keys and key files are refused, and
# who may set and see the settings that it comes from; and that the table of all
# settings in the documentation is right.
use strict;
use warnings;

use ClerkTest;
use File::Copy qw(copy);
use POSIX qw(mkfifo);
use PostgreSQL::Test::Utils;
use Test::More;

# A key for each source, and a Clerk that accepts only that one: who accepts a
# request tells which key was sent.
my @sources = qw(file setting environment);
my %key = map { $_ => "sk_test_from_the_${_}_00000000000000000000" } @sources;
my %clerk =
  map { $_ => ClerkTest::Fake->start('--secret-key', $key{$_}) } @sources;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $key_file = "$folder/key";
ClerkTest::write_key($key_file, $key{file});

my $invitations = 0;
my $node = clerk_cluster('main', $clerk{file},
	conf => "clerk_invite.secret_key_file = ''\n");
my $library = ClerkTest::library_name($node);

sub restart_with_environment
{
	my ($value) = @_;

	local $ENV{CLERK_SECRET_KEY} = $value;
	delete $ENV{CLERK_SECRET_KEY} unless defined $value;
	$node->restart;
	return;
}

# Takes effect with the next restart.
sub preload
{
	my ($libraries) = @_;

	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = '$libraries'");
	return;
}

# SQL that invites someone new.
sub invite_someone
{
	$invitations++;
	return invite("someone$invitations\@example.com", 'status') . ";\n";
}

sub use_file
{
	my ($file) = @_;

	return "SET clerk_invite.secret_key_file = '$file';\n";
}

# The source whose key a session sends that begins with this SQL.
sub source_used
{
	my ($sql, %params) = @_;
	my @used;

	foreach my $source (@sources)
	{
		my $result = attempt(
			$node,
			$params{database} // 'postgres',
			"$sql\nSET clerk_invite.api_url = '"
			  . $clerk{$source}->url . "';\n"
			  . invite_someone());
		push @used, $source if $result->{stdout} =~ /^pending$/m;
	}
	return "@used";
}

# A file with exactly these bytes.
sub file_of
{
	my ($content, $mode) = @_;
	my $file = "$folder/case" . ++$invitations;

	append_to_file($file, $content);
	chmod($mode // 0600, $file) or die "could not chmod $file: $!";
	return $file;
}

# Keys that no source may give, and what is said about them.
my $misfit = qr/The key contains an invalid character\./;
my @bad_keys = (
	[
		'a publishable key', 'pk_test_00000000000000000000',
		qr/This is a publishable key; a secret key begins with "sk_"\./
	],
	[ 'a key with a space', 'sk_test_0000 0000000000000000', $misfit ],
	[ 'a key with a line feed', "sk_test_0000\n0000000000000000", $misfit ],
	[ 'a key with a carriage return', "sk_test_0000\r000000000000", $misfit ],
	[ 'a key beyond ASCII', "sk_test_0000\xc3\xbc0000000000000000", $misfit ],
	[ 'a key that is too long', 'sk_' . '0' x 253, qr/The key is too long\./ ]
);

# The order of the sources.

preload($library);
restart_with_environment($key{environment});
is(source_used(''), 'environment',
	'the environment of the server is a source of its own');
reconfigure($node, "clerk_invite.secret_key = '$key{setting}'");
is(source_used(''), 'setting', 'secret_key comes before the environment');
is(source_used(use_file($key_file)),
	'file', 'secret_key_file comes before both');
restart_with_environment(undef);
is(source_used(''), 'setting', 'secret_key is a source of its own');
reconfigure($node, "clerk_invite.secret_key = ''");
is(source_used(use_file($key_file)),
	'file', 'secret_key_file is a source of its own');

my $result = attempt($node, 'postgres', invite_someone());
is($result->{sqlstate}, '55000', 'nobody is invited without a key');
like(
	$result->{stderr},
	qr/HINT:  .*"clerk_invite\.secret_key_file", "clerk_invite\.secret_key", and .* CLERK_SECRET_KEY/,
	'the error without a key names the three sources');
is(attempt($node, 'postgres', use_file(file_of('sk_test_wrong')) . invite_someone())
	  ->{sqlstate},
	'28000', 'a key that Clerk does not know is invalid authorization');

# Key files.

foreach my $case (
	[ 'with a line feed at its end', "$key{file}\n" ],
	[ 'without a line feed at its end', $key{file} ],
	[ 'with the line end of Windows', "$key{file}\r\n" ],
	[ 'with white space on all sides', "\n \t$key{file} \t\n\n" ],
	[ 'that even its owner may only read', $key{file}, 0400 ])
{
	my ($what, $content, $mode) = @$case;

	is(source_used(use_file(file_of($content, $mode))),
		'file', "a key file $what is accepted");
}

my $open_file = file_of($key{file}, 0644);
mkfifo("$folder/fifo", 0600) or die "could not make a fifo: $!";
mkdir("$folder/directory", 0700) or die "could not make a directory: $!";
symlink($key_file, "$folder/good_link") or die "could not link: $!";
symlink($open_file, "$folder/open_link") or die "could not link: $!";
symlink("$folder/nowhere", "$folder/dead_link") or die "could not link: $!";

is(source_used(use_file("$folder/good_link")),
	'file', 'a symbolic link to a good key file is accepted');
is( attempt(
		$node, 'postgres',
		use_file(file_of('sk_' . '0' x 252)) . invite_someone())->{sqlstate},
	'28000',
	'a key of 255 bytes is sent');

my $not_private = qr/The key file must have permissions u=rw/;
my $not_regular = qr/The key file is not a regular file\./;
my $no_file = qr/Could not open the key file: No such file or directory\./;
foreach my $case (
	[ 'that its group may read', file_of($key{file}, 0640), $not_private ],
	[ 'that its group may write', file_of($key{file}, 0620), $not_private ],
	[ 'that others may read', file_of($key{file}, 0604), $not_private ],
	[ 'behind a link, that all may read', "$folder/open_link", $not_private ],
	[ 'that is a directory', "$folder/directory", $not_regular ],
	[ 'that is a named pipe', "$folder/fifo", $not_regular ],
	[ 'that does not exist', "$folder/nowhere", $no_file ],
	[ 'behind a link to nowhere', "$folder/dead_link", $no_file ],
	[
		'that its owner may not read',
		file_of($key{file}, 0200),
		qr/Could not open the key file: Permission denied\./
	],
	[ 'that is empty', file_of(''), qr/The key is empty\./ ],
	[ 'with white space only', file_of(" \n"), qr/The key is empty\./ ],
	[
		'with a megabyte of text',
		file_of('sk_' . '0' x 1_000_000),
		qr/The key is too long\./
	],
	[ 'with two keys', file_of("$key{file}\n$key{setting}\n"), $misfit ],
	[ 'with a NUL byte', file_of("$key{file}\0\n"), $misfit ],
	map { [ "with $_->[0]", file_of($_->[1]), $_->[2] ] } @bad_keys)
{
	my ($what, $file, $reason) = @$case;

	# The timeout is for the named pipe.
	$result = attempt($node, 'postgres',
		"SET statement_timeout = '10s';\n" . use_file($file) . invite_someone());
	is($result->{sqlstate}, '55000', "a key file $what is refused");
	like($result->{stderr}, qr/DETAIL:  $reason/,
		"it is said what is wrong with a key file $what");
}

# A running session follows its key file.

copy($key_file, "$folder/good");
append_to_file("$folder/wrong", "sk_test_wrong\n");
$result = attempt(
	$node,
	'postgres',
	use_file($key_file) . join(
		'',
		map { "$_\n" . invite_someone() . "\\echo :SQLSTATE\n" } (
			'',
			"\\! cat '$folder/wrong' >'$key_file'",
			"\\! cat '$folder/good' >'$key_file'",
			"\\! chmod 0644 '$key_file'",
			"\\! chmod 0600 '$key_file'",
			"\\! mv '$key_file' '$key_file.gone'",
			"\\! mv '$key_file.gone' '$key_file'")));
is_deeply(
	[ grep { $_ ne 'pending' } split(/\n/, $result->{stdout}) ],
	[qw(00000 28000 00000 55000 00000 55000 00000)],
	'content, mode and presence of the key file count at once in a running session'
);

# Bad keys elsewhere, and no way around them.

restart_with_environment($key{environment});
foreach my $case (
	[ 'that is missing', "$folder/nowhere" ],
	[ 'that is open to all', $open_file ],
	[ 'with a publishable key', file_of('pk_test_0000000000000000') ])
{
	my ($what, $file) = @$case;

	is(source_used(use_file($file)),
		'', "no other source stands in for a key file $what");
}
foreach my $case (@bad_keys)
{
	my ($what, $bad_key, $reason) = @$case;
	my $quoted = $bad_key =~ s/\n/\\n/r =~ s/\r/\\r/r;

	reconfigure($node, "clerk_invite.secret_key = '$quoted'");
	$result = attempt($node, 'postgres', invite_someone());
	is($result->{sqlstate}, '55000', "secret_key is refused with $what");
	like($result->{stderr}, $reason,
		"it is said what is wrong with secret_key with $what");
	is(source_used(''), '',
		"the environment does not stand in for secret_key with $what");
}
$node->append_conf('postgresql.conf',
	"clerk_invite.secret_key = 'pk_test_00000000000000000000'");
restart_with_environment($key{environment});
is(source_used(''), '',
	'the environment does not stand in for a bad secret_key that the server starts with'
);
$node->append_conf('postgresql.conf', "clerk_invite.secret_key = ''");
preload('');
foreach my $case (@bad_keys)
{
	my ($what, $bad_key, $reason) = @$case;

	restart_with_environment($bad_key);
	$result = attempt($node, 'postgres', invite_someone());
	is($result->{sqlstate}, '55000', "the environment is refused with $what");
	like($result->{stderr}, qr/DETAIL:  $reason/,
		"it is said what is wrong with the environment with $what");
}
restart_with_environment('');
is(attempt($node, 'postgres', invite_someone())->{sqlstate},
	'55000', 'an empty environment variable is no key');

# Who may set secret_key, and where.

my $preload = "-c session_preload_libraries=$library";
foreach my $case (
	[ 'SET', "SET clerk_invite.secret_key = '$key{setting}'" ],
	[
		'set_config()',
		"SELECT set_config('clerk_invite.secret_key', '$key{setting}', false)"
	],
	[
		'ALTER DATABASE',
		"ALTER DATABASE postgres SET clerk_invite.secret_key = '$key{setting}'"
	],
	[
		'ALTER ROLE',
		"ALTER ROLE CURRENT_USER SET clerk_invite.secret_key = '$key{setting}'"
	])
{
	my ($what, $statement) = @$case;

	is(attempt($node, 'postgres', "LOAD '$library';\n$statement")
		  ->{sqlstate},
		'55P02', "$what does not set secret_key after LOAD");

	local $ENV{PGOPTIONS} = $preload;
	is(attempt($node, 'postgres', $statement)->{sqlstate},
		'55P02', "$what does not set secret_key in a session with preload");
}
is( source_used("SET clerk_invite.secret_key = '$key{setting}';"),
	'',
	'SET before the library is loaded does not set secret_key either');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_db_role_setting'),
	0, 'no secret_key has reached the catalog that everyone can read');

# A key that every role can read, since it was set before the library was loaded.

my $alter_system = sub {
	my ($value) = @_;
	my $change =
	  $value eq ''
	  ? 'RESET clerk_invite.secret_key'
	  : "SET clerk_invite.secret_key = '$value'";

	$node->safe_psql('postgres', "LOAD '$library'; ALTER SYSTEM $change");
	reconfigure($node, '');
	return;
};
my $include = sub {
	my ($value) = @_;
	my $file = $node->data_dir . '/key.conf';

	unlink $file;
	append_to_file($file, "clerk_invite.secret_key = '$value'\n");
	reconfigure($node, "include 'key.conf'");
	return;
};
check_readable(
	'in postgresql.conf',
	sub { reconfigure($node, "clerk_invite.secret_key = '$_[0]'") });
check_readable('in an included file', $include);
check_readable('by ALTER SYSTEM', $alter_system);
check_readable('on the command line', sub { restart_with_option($_[0]) }, 1);
check_readable_worker();
check_client_option();

# Sets a key in some way, without the library preloaded and with it, and takes
# it back.  Where a restart brings it, it does not stay.
sub check_readable
{
	my ($how, $set, $restarts) = @_;

	$set->($key{setting});
	$node->safe_psql('postgres',
		q(SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'due@example.com', 'org:member'))
	);
	is( $node->safe_psql('postgres', 'SHOW clerk_invite.secret_key'),
		$key{setting}, "a key that is set $how can be read");
	foreach my $preload ('', "-c session_preload_libraries=$library")
	{
		local $ENV{PGOPTIONS} = $preload;
		my $title = "a key that is set $how is refused"
		  . ($preload && ' in a session with preload');

		is(source_used(''), '', $title);
		foreach my $sql (
			invite_someone(),
			q(SELECT * FROM clerk_create_organization_invitation_bulk('org_test',
			'[{"email_address": "a@example.com", "role": "org:member"}]');),
			q(SELECT * FROM clerk_list_organization_invitations('org_test');),
			'CALL clerk_send_invitations();')
		{
			$result = attempt($node, 'postgres', $sql);
			my ($function) = $sql =~ /(clerk_\w+)/;

			is($result->{sqlstate}, '55000', "... by $function()");
			like(
				$result->{stderr},
				qr/^DETAIL:  Every role can read "clerk_invite\.secret_key", because the library was not preloaded/m,
				'... which says why');
			like(
				$result->{stderr},
				qr/^HINT:  Put the key into a file and set "clerk_invite\.secret_key_file", or add clerk_invite to "shared_preload_libraries"\.$/m,
				'... and what to do');
			unlike($result->{stderr}, qr/WARNING/, '... once');
		}
	}
	is( $node->safe_psql(
			'postgres', q(
			DELETE FROM clerk_invitation_outbox RETURNING state, attempts)),
		'queued|0',
		'... and what is in the outbox waits');
	is(source_used(use_file($key_file)), 'file', '... but not that of a file');
	preload($library);
	if ($restarts)
	{
		$set->($key{setting});
	}
	else
	{
		restart_with_environment($key{environment});
		is(source_used(''), 'setting',
			"a key that is set $how is taken where the library is preloaded");
	}
	is(source_used(''), 'setting',
		'... and comes before the environment');
	preload('');
	if ($restarts)
	{
		# A restart would keep what is on the command line.
		$node->stop;
		$node->start;
	}
	else
	{
		$set->('');
	}
	restart_with_environment($key{environment});
	is(source_used(''), 'environment',
		'a key in the environment needs no preload');
	return;
}

# The server with a key on its command line.
sub restart_with_option
{
	my ($value) = @_;

	$node->stop;
	PostgreSQL::Test::Utils::system_or_bail(
		'pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, '-o',
		"-c clerk_invite.secret_key=$value", 'start');
	$node->_update_pid(1);
	return;
}

# The worker says it once, and keeps what it cannot send.
sub check_readable_worker
{
	my $log = -s $node->logfile;
	my %seen;

	reconfigure($node,
		"clerk_invite.secret_key = '$key{setting}'\nclerk_invite.retry_delay = 1");
	$node->safe_psql(
		'postgres', q(
		SET clerk_invite.worker = on;
		ALTER DATABASE postgres SET clerk_invite.worker = on;
		SELECT clerk_enqueue_organization_invitation('org_test', NULL, 'w@example.com', 'org:member');));
	wait_until(
		'the worker has looked three times',
		sub {
			$seen{
				$node->safe_psql('postgres',
					q(SELECT pid, state_change FROM pg_stat_activity
					WHERE backend_type = 'clerk_invite worker' AND state = 'idle'))
			} = 1;
			return scalar(grep { $_ } keys %seen) >= 3;
		});
	my @said = slurp_file($node->logfile, $log) =~ /(stopped sending.*\n.*\n.*)/g;
	is(scalar @said, 1, 'the worker says once in the log that the key is refused');
	like(
		$said[0],
		qr/there is no usable secret key\n.*DETAIL:  Every role can read.*\n.*HINT:  Put the key into a file/,
		'... and why, and what to do');
	is( $node->safe_psql('postgres',
			q(SELECT state, attempts, error_message IS NULL FROM clerk_invitation_outbox)),
		'queued|0|t',
		'... and the row waits');
	$node->safe_psql(
		'postgres', q(
		ALTER DATABASE postgres RESET ALL;
		DELETE FROM clerk_invitation_outbox;));
	reconfigure($node,
		"clerk_invite.secret_key = ''\nclerk_invite.retry_delay = '10s'");
	return;
}

# A client's option is everybody's own; it has no say in this.
sub check_client_option
{
	foreach my $preloaded (0, 1)
	{
		preload($preloaded ? $library : '');
		restart_with_environment($key{environment});
		local $ENV{PGOPTIONS} = "-c clerk_invite.secret_key=$key{setting}";
		is(source_used(''), '', 'a key among the options of a connection is not used');
	}
	preload('');
	restart_with_environment($key{environment});
	return;
}

# Who sees what.

$node->safe_psql(
	'postgres', qq(
	CREATE ROLE app LOGIN;
	ALTER ROLE app SET session_preload_libraries = '$library';
	CREATE ROLE reader LOGIN IN ROLE pg_read_all_settings;
	ALTER ROLE reader SET session_preload_libraries = '$library';
));
my %as_app = (extra_params => [ '-U', 'app' ]);
reconfigure($node, "clerk_invite.secret_key = '$key{setting}'");
my $shown = q(
	SHOW clerk_invite.secret_key;
	SELECT current_setting('clerk_invite.secret_key');
	SELECT setting, reset_val, boot_val FROM pg_settings
		WHERE name = 'clerk_invite.secret_key');
my $mask = "********\n********\n********|********|";

ok(attempt($node, 'postgres', "LOAD '$library';\n$shown")->{stdout} eq $mask,
	'a superuser is shown a mask for secret_key');
ok( attempt($node, 'postgres', $shown, extra_params => [ '-U', 'reader' ])
	  ->{stdout} eq $mask,
	'a role that may read all settings is shown a mask for secret_key');
foreach my $setting (qw(secret_key secret_key_file))
{
	is( attempt($node, 'postgres', "SHOW clerk_invite.$setting", %as_app)
		  ->{sqlstate},
		'42501',
		"an ordinary role cannot SHOW $setting");
	is( attempt(
			$node, 'postgres',
			"SELECT current_setting('clerk_invite.$setting', true)",
			%as_app)->{sqlstate},
		'42501',
		"an ordinary role cannot get at $setting with current_setting()");
}
is( attempt(
		$node,
		'postgres',
		q(SELECT name FROM pg_settings WHERE name ~ '^clerk_invite.secret'),
		%as_app)->{stdout},
	'',
	'an ordinary role does not find the two settings in pg_settings');
is( attempt(
		$node, 'postgres', "SET clerk_invite.secret_key_file = '$key_file'",
		%as_app)->{sqlstate},
	'42501',
	'an ordinary role cannot set secret_key_file');

my $warning = qr/WARNING:  01000: parameter "clerk_invite\.secret_key" can be read by every role/;
my $two_calls = invite_someone() . invite_someone();
reconfigure($node,
	"clerk_invite.secret_key = '$key{setting}'\nclerk_invite.secret_key_file = '$key_file'"
);
my $warnings =
  () = attempt($node, 'postgres', $two_calls)->{stderr} =~ /$warning/g;
is($warnings, 1,
	'a session that loads the library by a call, and uses a key file, is warned once that secret_key can be read'
);
{
	local $ENV{PGOPTIONS} = $preload;
	unlike(attempt($node, 'postgres', $two_calls)->{stderr},
		$warning, 'a session that preloads the library is not warned');
}
reconfigure($node,
	"clerk_invite.secret_key = ''\nclerk_invite.secret_key_file = ''");

# The documentation has a table of all settings; pg_settings has the same in
# other words.

my %milliseconds = ('' => 1, ms => 1, s => 1000, h => 3600_000);
my %context = (
	superuser => 'superuser',
	everyone => 'user',
	'`postgresql.conf` and `ALTER SYSTEM` only' => 'sighup');
my @documented;
foreach my $row (slurp_file("$ClerkTest::TEST_FOLDER/../docs/settings.md") =~
	/^(\[`\w+`\]\(#.*)$/mg)
{
	my ($name, $type, $default, $who) = split(/ \| /, $row);
	my ($unit) = $type =~ /, (\w+)$/;

	$name =~ s/^\[`(\w+)`.*/clerk_invite.$1/;
	$default = $default eq 'empty' ? '' : $default =~ s/`//gr;
	$default = $1 * $milliseconds{ $2 // '' }
	  if $unit && $default =~ /^(\d+)([a-z]+)?$/;
	push @documented,
	  join('|',
		$name, $type =~ s/,.*//r, $unit // '', $default, $context{$who} // $who);
}
my @defined = split(
	/\n/,
	$node->safe_psql(
		'postgres', qq(
		LOAD '$library';
		SELECT name, CASE vartype WHEN 'bool' THEN 'boolean' ELSE vartype END,
			CASE unit WHEN 'ms' THEN 'milliseconds' WHEN 's' THEN 'seconds' END,
			boot_val, context
		FROM pg_settings WHERE name LIKE 'clerk\\_invite.%')));
cmp_ok(scalar @defined, '>', 10, 'there are settings');
is( join("\n", sort @documented),
	join("\n", sort @defined),
	'the documentation tells type, unit, default and context of every setting');

# A key file for one database.

$node->safe_psql('postgres', 'CREATE DATABASE other OWNER app');
$node->safe_psql('other', 'CREATE EXTENSION clerk_invite');
$node->safe_psql('postgres',
	"ALTER DATABASE other SET clerk_invite.secret_key_file = '$key_file'");
is(source_used('', database => 'other'),
	'file', 'a superuser can give one database a key file of its own');
is(source_used(''), 'environment', 'the other databases keep theirs');

# What an ordinary role tries before the library is loaded.

my $change_file =
  "ALTER DATABASE other SET clerk_invite.secret_key_file = '$key_file.app'";
is(attempt($node, 'other', $change_file, %as_app)->{sqlstate},
	'42501', 'an ordinary owner of a database cannot change its key file');
$node->safe_psql('postgres', 'ALTER ROLE app RESET session_preload_libraries');
is(attempt($node, 'other', $change_file, %as_app)->{sqlstate},
	'42501',
	'the owner cannot change the key file before the library is loaded either');

$node->safe_psql('postgres',
	'GRANT EXECUTE ON FUNCTION clerk_create_organization_invitation TO app');
foreach my $case (
	[ 'secret_key_file', $key_file ],
	[ 'api_url', $clerk{environment}->url ])
{
	my ($setting, $value) = @$case;

	# Either would let this Clerk accept the key.
	is( attempt(
			$node,
			'postgres',
			"SET clerk_invite.$setting = '$value';\n" . invite_someone(),
			%as_app)->{sqlstate},
		'28000',
		"$setting is not what an ordinary role has set before the library was loaded"
	);
}

done_testing();
