# The ways to build: in the tree and by VPATH from another folder, by several
# jobs at a time, with LLVM bitcode where the server has LLVM, by clang.  What is
# installed is complete, and a server loads it.
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

build_in_tree();
build_elsewhere();
build_by_clang();

done_testing();

sub build_in_tree
{
	my $tree = copy_of_source('tree');

	make('in the tree', "$folder/tree-root", '-C', $tree);
	return;
}

# As PostgreSQL's documentation of PGXS has it, from a relative path, too.
sub build_elsewhere
{
	my $tree = copy_of_source('pristine');

	foreach my $path ($tree, '../../pristine')
	{
		my $name = $path =~ /^\// ? 'whole' : 'relative';
		my $build = "$folder/build/$name";

		mkdir "$folder/build";
		mkdir $build;
		make("by VPATH, with a $name path",
			"$folder/$name-root", '-C', $build, '-f', "$path/Makefile");
	}
	is_deeply([ grep { /\.(o|bc|so)$/ } files_in($tree) ],
		[], '... and nothing is written into the tree');
	return;
}

sub build_by_clang
{
	my $tree = copy_of_source('clang');

  SKIP:
	{
		skip 'there is no clang', 3 if $clang eq '';
		make('by clang', "$folder/clang-root", '-C', $tree, "CC=$clang",
			'COPT=-Wno-unused-command-line-argument -Wno-unknown-warning-option');
	}
	return;
}

# Builds and installs, three assertions.
sub make
{
	my ($how, $root, @arguments) = @_;
	my $log = "$folder/make.log";
	my $status = system(
		'sh', '-c', 'exec "$@" >"$0" 2>&1',
		$log, 'make', '-s', '-j', '3', @arguments,
		"DESTDIR=$root",
		$has_llvm && $clang ne '' ? () : 'with_llvm=no', 'install');

	is($status, 0, "it builds $how") or diag(slurp_file($log));
	chomp(my $pkglibdir = `pg_config --pkglibdir`);
	chomp(my $sharedir = `pg_config --sharedir`);
	my @installed = map { -s "$root$_" ? () : $_ } (
		"$pkglibdir/clerk_invite.so",
		"$sharedir/extension/clerk_invite.control",
		"$sharedir/extension/clerk_invite--1.0.sql");
	is_deeply(\@installed, [], '... and installs all of it');
  SKIP:
	{
		skip 'the server has no LLVM', 1 unless $has_llvm && $clang ne '';
		is_deeply(
			[ sort map { /clerk_invite\/(.*)\.bc$/ ? $1 : () } files_in($root) ],
			[ map { s/\.c$//r } @sources ],
			'... with bitcode for each file of the source');
	}
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
