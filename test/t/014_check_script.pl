# check.sh tells whether all is well: its last line counts, and it fails if any
# check has failed or none has run.  The checks that it is tried with are few,
# and take no time.
use strict;
use warnings;

use Checkout;
use PostgreSQL::Test::Utils;
use Test::More;

check_success();
check_failed_check();
check_nothing_ran();
check_build();
check_repository();
check_layering();
check_regress();
check_fake_clerk();
check_tap();

done_testing();

sub check_success
{
	my $checkout = small_checkout();
	my $run = $checkout->run('test/check.sh', CHECKS => 'layering');

	ends_with($run, '1 passed, 0 failed, 0 skipped', 0,
		'check.sh succeeds if a check passes');
	like($run->{stdout}, qr/^ok      layering$/m, '... and names it');
	is_deeply([ $checkout->left_behind ],
		[], '... and leaves no file and no process behind');
	$run = $checkout->run('test/check.sh', CHECKS => 'build layering');
	ends_with($run, '2 passed, 0 failed, 0 skipped', 0,
		'the build counts where it is asked for');
	return;
}

sub check_failed_check
{
	my $checkout = small_checkout();

	$checkout->append('src/common/settings.h', qq(#include "http/http.h"\n));
	my $run = $checkout->run('test/check.sh', CHECKS => 'layering tap');
	ends_with($run, '2 passed, 1 failed, 0 skipped', 1,
		'check.sh fails if one expectation is wrong');
	like($run->{stdout}, qr/^FAILED  layering$/m, '... and names the check');
	like(
		$run->{stdout},
		qr{^common/settings\.h includes http/http\.h, which is not below it$}m,
		'... and shows what it has to say');
	like($run->{stdout}, qr/^ok      tap \(2 assertions\)$/m,
		'... and goes on with the others');
	is_deeply([ $checkout->left_behind ],
		[], '... and leaves no file and no process behind');
	return;
}

# Each rule of layering.sh, broken once.
sub check_layering
{
	my %broken = (
		'a header of a higher layer' => [
			'src/clerk/error.h', qq(#include "worker/slots.h"\n),
			qr{^clerk/error\.h includes worker/slots\.h, which is not below it$}m
		],
		'a circle in a layer' => [
			'src/http/url_rules.h',
			qq(#include "http/http.h"\n),
			qr{^in http/ files include each other: }m
		],
		'libcurl outside http/' => [
			'src/clerk/operations.h', "#include <curl/curl.h>\n",
			qr{^these include libcurl's header outside http/: clerk/operations\.h$}m
		],
		'a version outside compat.h' => [
			'src/sql/arguments.c',
			"#if PG_VERSION_NUM >= 170000\n#endif\n",
			qr{^sql/arguments\.c:\d+:.*\n.*which is for compat\.h$}m
		],
		'a layer without a README' =>
		  [ 'src/layers/new.c', '', qr{^README\.md has no layer layers/$}m ],
		'a symbol of another name' => [
			'misnamed.c',
			"void misnamed(void) {}\n",
			qr/^symbol misnamed does not begin with clerk_$/m
		]);

	foreach my $what (sort keys %broken)
	{
		my ($file, $text, $complaint) = @{ $broken{$what} };
		my $checkout = small_checkout();

		mkdir "$checkout->{folder}/src/layers" if $file =~ m{^src/layers/};
		$checkout->append($file, $text);
		system_or_bail('cc', '-shared', '-o', "$checkout->{folder}/clerk_invite.so",
			"$checkout->{folder}/$file")
		  if $file eq 'misnamed.c';
		my $run = $checkout->run('test/layering.sh');
		is($run->{status}, 1, "the check of the layers refuses $what");
		like($run->{stdout}, $complaint, '... and says so');
	}
	return;
}

sub check_nothing_ran
{
	my $checkout = small_checkout();

	ends_with($checkout->run('test/check.sh', CHECKS => ' '),
		'0 passed, 0 failed, 0 skipped', 1,
		'check.sh fails if nothing has run');
	foreach my $names ('none', 'layering regres')
	{
		my $run = $checkout->run('test/check.sh', CHECKS => $names);
		my ($wrong) = $names =~ /(\w+)$/;

		ends_with($run, '0 passed, 1 failed, 0 skipped', 1,
			"check.sh fails if it is asked for \"$names\"");
		like($run->{stdout}, qr/^FAILED  $wrong: there is no such check$/m,
			'... and names what there is not');
	}
	return;
}

sub check_build
{
	my $checkout = small_checkout();

	$checkout->without_building('echo no compiler; exit 1');
	my $run = $checkout->run('test/check.sh', CHECKS => 'layering');
	ends_with($run, '0 passed, 1 failed, 0 skipped', 1,
		'check.sh fails if the build does, without trying anything else');
	like($run->{stdout}, qr/^no compiler$/m, '... and shows its output');
	return;
}

# In a repository what git knows counts, elsewhere all that is there.
sub check_repository
{
	my %file = (
		'src/large.sql' => [ '-' x (256 * 1024 + 1), 'has 262145 bytes' ],
		'src/nul.dat' => [ "text\0text", 'is not a text: it has a NUL byte' ],
		"src/Latin 'one'.txt" =>
		  [ "\xe4\n", 'is not a text: it is not UTF-8' ]);

	foreach my $in_git (0, 1)
	{
		my $where = $in_git ? 'in a repository' : 'without one';
		my $checkout = small_checkout();
		my $git = "git -C '$checkout->{folder}'";

		# In the repository one was removed, and the others are not known to it.
		$checkout->append('src/largest.sql', '-' x (256 * 1024));
		if ($in_git)
		{
			$checkout->append('src/removed.dat', "\0");
			system_or_bail('sh', '-c', "$git init --quiet; $git add --all .");
			unlink "$checkout->{folder}/src/removed.dat";
			$checkout->append($_, $file{$_}[0]) foreach sort keys %file;
		}
		ends_with(
			$checkout->run('test/check.sh', CHECKS => 'repository'),
			'1 passed, 0 failed, 0 skipped',
			0, "$where, check.sh succeeds if all files are texts");
		if ($in_git)
		{
			system_or_bail('sh', '-c', "$git add --all .");
		}
		else
		{
			$checkout->append($_, $file{$_}[0]) foreach sort keys %file;
		}
		my $run = $checkout->run('test/check.sh', CHECKS => 'repository');
		ends_with($run, '0 passed, 1 failed, 0 skipped', 1,
			"$where, check.sh fails if some are not, or are too large");
		like($run->{stdout}, qr/^\Q$_ $file{$_}[1]\E/m, "... and names $_")
		  foreach sort keys %file;
		unlike($run->{stdout}, qr/largest/, '... and no other');
	}
	return;
}

# pg_regress has two ways of saying it: one up to 15, and one from 16.
sub check_regress
{
	my $checkout = small_checkout();

	$checkout->append('test/throwaway_cluster.sh', <<'EOF');
start_cluster()
{
	:
}
EOF
	foreach my $case (
		[
			'two tests that pass, up to 15',
			'2 passed, 0 failed, 0 skipped', 0,
			'test arguments                    ... ok           59 ms',
			'test jsonb                        ... ok           24 ms'
		],
		[
			'a test that fails, up to 15',
			'1 passed, 1 failed, 0 skipped', 1,
			'test arguments                    ... ok           59 ms',
			'test jsonb                        ... FAILED       24 ms'
		],
		[
			'two tests that pass, from 16',
			'2 passed, 0 failed, 0 skipped', 0,
			'ok 1         - arguments                        59 ms',
			'ok 2         - jsonb                            24 ms'
		],
		[
			'a test that fails, from 16',
			'1 passed, 1 failed, 0 skipped', 1,
			'ok 1         - arguments                        59 ms',
			'not ok 2     - jsonb                            24 ms'
		],
		[
			'a server that cannot be reached',
			'0 passed, 1 failed, 0 skipped', 1,
			'psql: error: could not connect'
		],
		[ 'no test at all', '0 passed, 1 failed, 0 skipped', 0 ])
	{
		my ($title, $counts, $status, @said) = @$case;

		$checkout->without_building(':', $status, @said);
		ends_with($checkout->run('test/check.sh', CHECKS => 'regress'),
			$counts, $counts =~ / 0 failed/ ? 0 : 1,
			"check.sh counts in what pg_regress says: $title");
	}
	return;
}

sub check_fake_clerk
{
	my $checkout = small_checkout();
	my $tests = <<'EOF';
import unittest

class Tests(unittest.TestCase):
    def test_this(self):
        pass

    def test_that(self):
        self.assertEqual(1, %d)

unittest.main()
EOF

	foreach my $case (
		[
			'two that pass',
			'2 passed, 0 failed, 0 skipped',
			0, sprintf($tests, 1)
		],
		[
			'one that fails',
			'1 passed, 1 failed, 0 skipped',
			1, sprintf($tests, 2)
		],
		[
			'a file that does not start',
			'0 passed, 1 failed, 0 skipped',
			1, "import nothing_of_that_name\n"
		],
		[
			'none at all',
			'0 passed, 1 failed, 0 skipped',
			1, "import unittest\nunittest.main()\n"
		])
	{
		my ($title, $counts, $status, $file) = @$case;

		$checkout->replace('test/fake_clerk_test.py', $file);
		ends_with($checkout->run('test/check.sh', CHECKS => 'fake_clerk'),
			$counts, $status,
			"check.sh counts the fake Clerk's own tests: $title");
	}
	return;
}

# Beside a file with two assertions that hold.
sub check_tap
{
	my $checkout = small_checkout();

	foreach my $case (
		[
			'one that does not hold',
			'3 passed, 1 failed, 0 skipped',
			1, said('1..2', 'ok 1 - this', 'not ok 2 - that')
		],
		[
			'a test that dies',
			'3 passed, 1 failed, 0 skipped',
			1, said('1..2', 'ok 1 - this') . 'die;'
		],
		[
			'a test that does not start',
			'2 passed, 1 failed, 0 skipped',
			1, 'use nothing_of_that_name;'
		],
		[
			'a test that asserts nothing',
			'2 passed, 1 failed, 0 skipped',
			1, '1;'
		],
		[
			'one that is skipped',
			'3 passed, 0 failed, 1 skipped',
			0, said('1..2', 'ok 1 - this', 'ok 2 # skip no such program')
		],
		[
			'a test that is skipped',
			'2 passed, 0 failed, 1 skipped',
			0, said('1..0 # SKIP no such program')
		])
	{
		my ($title, $counts, $status, $file) = @$case;

		$checkout->replace('test/t/002_second.pl', $file);
		ends_with($checkout->run('test/check.sh', CHECKS => 'tap'),
			$counts, $status, "check.sh counts assertions: $title");
	}
	$checkout->replace('test/t/001_first.pl', said('1..1', 'not ok 1 - this'));
	$checkout->replace('test/t/002_second.pl', 'die;');
	ends_with($checkout->run('test/check.sh', CHECKS => 'tap'),
		'0 passed, 2 failed, 0 skipped', 1,
		'check.sh counts a test that dies beside one that does not hold');
	$checkout->replace("test/t/00$_.pl", said('1..0 # SKIP no such program'))
	  foreach '1_first', '2_second';
	ends_with($checkout->run('test/check.sh', CHECKS => 'tap'),
		'0 passed, 1 failed, 2 skipped', 1,
		'check.sh fails if all assertions are skipped');
	return;
}

# A test that says these lines.
sub said
{
	return '$| = 1; ' . join('', map { "print qq($_\\n);" } @_);
}

# One that need not be built, with one TAP test of two assertions.
sub small_checkout
{
	my $checkout = Checkout->new;

	$checkout->without_building;
	unlink glob("$checkout->{folder}/test/t/*");
	$checkout->replace('test/t/001_first.pl',
		said('1..2', 'ok 1 - this', 'ok 2 - that'));
	return $checkout;
}

# Compares a run's last line, and its status.
sub ends_with
{
	my ($run, $last_line, $status, $title) = @_;
	my ($said) = $run->{stdout} =~ /([^\n]*)\n\z/;

	is(($said // '') . "; status $run->{status}",
		"$last_line; status $status", $title)
	  or diag($run->{stdout}, $run->{stderr});
	return;
}
