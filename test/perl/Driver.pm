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

# Builds the library from test/NAME.c; returns its file.
sub build
{
	my ($name) = @_;
	my $library = abs_path(PostgreSQL::Test::Utils::tempdir()) . "/$name.so";

	chomp(my $headers = `pg_config --includedir-server`);
	# Its own copy of the functions, not the extension's.  INSTRUMENT has flags
	# for code that watches them, and DRIVERS the folder for its counts; see
	# instrumented.sh.
	my @counts = $ENV{DRIVERS} ? ('-dumpdir', "$ENV{DRIVERS}/$$-") : ();
	system_or_bail(
		$ENV{CC} || 'cc', split(' ', $ENV{INSTRUMENT} // ''), @counts,
		'-shared', '-fPIC', '-Wl,-Bsymbolic',
		'-I', "$ClerkTest::TEST_FOLDER/../src", '-I', $headers,
		'-o', $library, "$ClerkTest::TEST_FOLDER/$name.c");
	return $library;
}

1;
