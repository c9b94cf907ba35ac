# Driver - functions of a file in src/, from SQL
#
#	my $library = Driver::build('packing_driver');
#	$node->safe_psql('postgres', "CREATE FUNCTION ... AS '$library'");
#
# test/NAME.c contains the file once more, and wraps its functions.

package Driver;

use strict;
use warnings;

use ClerkTest ();
use Cwd qw(abs_path);
use PostgreSQL::Test::Utils;

# Builds the library from test/NAME.c; returns its file.  INSTRUMENT has flags for
# code that watches it, and DRIVERS the folder for its counts; see
# instrumented.sh.
sub build
{
	my ($name) = @_;
	my @counts = $ENV{DRIVERS} ? ('-dumpdir', "$ENV{DRIVERS}/$$-") : ();

	return _build($name, split(' ', $ENV{INSTRUMENT} // ''), @counts);
}

# The same for a library that replaces functions of any program, by LD_PRELOAD:
# nothing watches it.
sub build_replacement
{
	my ($name) = @_;

	return _build($name);
}

sub _build
{
	my ($name, @options) = @_;
	my $library = abs_path(PostgreSQL::Test::Utils::tempdir()) . "/$name.so";

	chomp(my $headers = `pg_config --includedir-server`);
	# Its own copy of the functions, not the extension's.
	system_or_bail(
		$ENV{CC} || 'cc', @options, '-shared', '-fPIC', '-Wl,-Bsymbolic',
		'-I', "$ClerkTest::TEST_FOLDER/../src", '-I', $headers,
		'-o', $library, "$ClerkTest::TEST_FOLDER/$name.c");
	return $library;
}

1;
