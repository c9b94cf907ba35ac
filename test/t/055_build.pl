# Other ways to build than check.sh's own: by VPATH from another directory, by
# several jobs at a time, with LLVM bitcode where the server has LLVM, and by
# clang.  What is installed is complete, and tests in C compile.
use strict;
use warnings;

use ClerkTest;
use Cwd qw(abs_path);
use File::Find qw(find);
use PostgreSQL::Test::Utils;
use Test::More;

my $source = abs_path("$ClerkTest::TEST_FOLDER/..");
my $folder = abs_path(PostgreSQL::Test::Utils::tempdir());
my $makefile_global = `pg_config --pgxs`;
$makefile_global =~ s{makefiles/pgxs\.mk\s*$}{Makefile.global};
my $has_llvm = slurp_file($makefile_global) =~ /^with_llvm\s*=\s*yes$/m;
my $clang = `command -v clang`;
chomp $clang;
my @sources = sources();

build_elsewhere();
build_by_clang();
check_drivers();

done_testing();

# As PostgreSQL's documentation of PGXS has it, by a relative path.
sub build_elsewhere
{
	my $tree = copy_of_source('tree');
	my $build = "$folder/build";

	mkdir $build;
	make('by VPATH', "$folder/build-root", '-C', $build, '-f', '../tree/Makefile',
		'COPT=-O0');
	is_deeply([ grep { /\.(o|bc|so)$/ } files_in($tree) ],
		[], '... and writes nothing into the tree');
	return;
}

sub build_by_clang
{
	my $tree = copy_of_source('clang');

  SKIP:
	{
		skip 'there is no clang', 2 if $clang eq '';
		make(
			'by clang', "$folder/clang-root", '-C', $tree, "CC=$clang",
			'COPT=-O0 -Wno-unused-command-line-argument -Wno-unknown-warning-option',
			'with_llvm=no');
	}
	return;
}

# The C code of tests that check.sh does not run fits the source as well.
sub check_drivers
{
	my ($compiler) = split ' ', $ENV{CC} || `pg_config --cc`;
	my @flags = (
		"-I$source/src", '-isystem', `pg_config --includedir-server` =~ s/\n//r,
		split(' ', `curl-config --cflags`));
	my @drivers = glob("$source/test/fuzz/*.c");

	cmp_ok(scalar @drivers, '>', 1, 'there are drivers');
	foreach my $driver (@drivers)
	{
		my $log = "$folder/driver.log";
		my $status = system('sh', '-c', 'exec "$@" >"$0" 2>&1',
			$log, $compiler, '-fsyntax-only', '-Wall', '-Werror', @flags, $driver);

		is($status, 0, '... and ' . ($driver =~ s/.*\///r) . ' compiles') or diag(slurp_file($log));
	}
	return;
}

# Builds and installs; two assertions, and one about bitcode where there is any.
sub make
{
	my ($how, $root, @arguments) = @_;
	my $log = "$folder/make.log";
	my $with_bitcode = $has_llvm && $clang ne '' && !grep { $_ eq 'with_llvm=no' } @arguments;
	my @llvm = $with_bitcode ? () : 'with_llvm=no';
	my $status = system(
		'sh', '-c', 'exec "$@" >"$0" 2>&1',
		$log, 'make', '-s', '-j', '3', @arguments,
		"DESTDIR=$root",
		@llvm, 'install');

	is($status, 0, "it builds $how") or diag(slurp_file($log));
	chomp(my $pkglibdir = `pg_config --pkglibdir`);
	chomp(my $sharedir = `pg_config --sharedir`);
	my @installed = map { -s "$root$_" ? () : $_ } (
		"$pkglibdir/clerk_invite.so",
		"$sharedir/extension/clerk_invite.control",
		"$sharedir/extension/clerk_invite--1.0.sql");
	is_deeply(\@installed, [], '... and installs all of it');
	is_deeply(
		[ sort map { /clerk_invite\/(.*)\.bc$/ ? $1 : () } files_in($root) ],
		[ map { s/\.c$//r } @sources ],
		'... with bitcode for each file of the source') if $with_bitcode;
	return;
}

sub copy_of_source
{
	my ($name) = @_;

	mkdir "$folder/$name";
	system_or_bail('sh', '-c',
		    "tar -C '$source' -cf - Makefile META.json clerk_invite.control"
		  . " clerk_invite--1.0.sql --exclude '*.o' --exclude '*.bc' src"
		  . " | tar -C '$folder/$name' -xf -");
	return "$folder/$name";
}

sub sources
{
	return sort map { /^\Q$source\E\/(src\/.*\.c)$/ ? $1 : () }
	  files_in("$source/src");
}

sub files_in
{
	my ($top) = @_;
	my @files;

	find({ wanted => sub { push @files, $_ if -f }, no_chdir => 1 }, $top);
	return @files;
}
