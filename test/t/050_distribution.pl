# What is uploaded to PGXN: META.json keeps to PGXN's specification and agrees
# with the control file, and "make dist" packs an archive from which the
# extension can be built.
use strict;
use warnings;

use ClerkTest;
use Cwd qw(abs_path);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

# PGXN's specification 1.0.0, https://pgxn.org/spec/: versions are Semantic
# Versions 1.0.0, and what has a name is a term.
my $VERSION = qr/(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*)){2}(?:-?[a-zA-Z][-0-9A-Za-z]*)?/;
my $TERM = qr{[^[:cntrl:][:space:]/\\]{2,}};
my @LICENSES = qw(agpl_3 apache_1_1 apache_2_0 artistic_1 artistic_2 bsd freebsd
  gfdl_1_2 gfdl_1_3 gpl_1 gpl_2 gpl_3 lgpl_2_1 lgpl_3_0 mit mozilla_1_0
  mozilla_1_1 openssl perl_5 postgresql qpl_1_0 ssleay sun zlib open_source
  restricted unrestricted unknown);
my @MANDATORY = qw(abstract license maintainer meta-spec name provides version);
my @OPTIONAL = qw(description generated_by no_index prereqs release_status
  resources tags);

my $source = abs_path("$ClerkTest::TEST_FOLDER/..");
my $meta = decode_json(slurp_file("$source/META.json"));
my ($sql_version) = slurp_file("$source/clerk_invite.control") =~
  /^default_version = '([^']+)'$/m;

check_fields();
check_versions();
check_archive();

done_testing();

sub check_fields
{
	is_deeply([ grep { !exists $meta->{$_} } @MANDATORY ],
		[], 'META.json has every field that PGXN demands');
	is_deeply([ grep { !known_field($_) } keys %$meta ],
		[], '... and none that PGXN does not know');
	is_deeply(
		[
			grep { ref $meta->{$_} || $meta->{$_} !~ /\S/ }
			  qw(abstract description license name version)
		],
		[], '... and text where PGXN wants text');
	like($meta->{'meta-spec'}{version},
		qr/^1\.0\.[0-9]+$/, '... by version 1.0 of the specification');
	is_deeply(
		[ grep { !/^$TERM$/ } $meta->{name}, keys %{ $meta->{provides} } ],
		[], '... and names that are terms');
	is_deeply([ grep { ref || !/\S/ } list_of($meta->{maintainer}) ],
		[], '... and maintainers who have names');
	is_deeply([ grep { !known_license($_) } list_of($meta->{license}) ],
		[], '... and a license that PGXN knows');
	is_deeply([ grep { !/^[^[:cntrl:]\/\\]{1,255}$/ } @{ $meta->{tags} } ],
		[], '... and tags that PGXN accepts');
	return;
}

sub check_versions
{
	my $provided = $meta->{provides}{clerk_invite};

	is_deeply(
		[ grep { !/^$VERSION$/ } $meta->{version}, $provided->{version} ],
		[], 'the versions are Semantic Versions');
	is($meta->{version} =~ s/\.[0-9]+$//r,
		$sql_version, 'the release has the control file\'s version');
	is($provided->{version}, $meta->{version},
		'what it provides has the release\'s version');
	is($provided->{file}, "clerk_invite--$sql_version.sql",
		'what it provides is the script of the control file\'s version');
	is($meta->{prereqs}{runtime}{requires}{PostgreSQL},
		'14.0.0', 'it requires PostgreSQL 14, as a Semantic Version');
	like(slurp_file("$source/CHANGELOG.md"),
		qr/^## \Q$meta->{version}\E /m, 'the changelog has the release');
	like(slurp_file("$source/debian/changelog"),
		qr/^clerk-invite \(\Q$meta->{version}\E-/, '... and so has Debian\'s');
	like(slurp_file("$source/rpm/clerk_invite.spec"),
		qr/^Version:\s+\Q$meta->{version}\E$/m, '... and the RPM package is of it');
	return;
}

# The archive is that of a repository in which the checkout is committed.
sub check_archive
{
	my $repository = PostgreSQL::Test::Utils::tempdir();
	my $name = "clerk_invite-$meta->{version}";
	my $zip = "$repository/$name.zip";

	system_or_bail('sh', '-c',
		"tar -C '$source' -cf - --exclude=./.git . | tar -C '$repository' -xf -");
	commit_all($repository);
	append_to_file("$repository/Makefile", "# not committed\n");
	system_or_bail('make', '-s', '-C', $repository, 'dist');
	ok(-f $zip, "make dist makes $name.zip");

	my $unpacked = PostgreSQL::Test::Utils::tempdir();
	system_or_bail('python3', '-m', 'zipfile', '-e', $zip, $unpacked);
	is_deeply([ files_in($unpacked) ], [$name], '... with one folder in it');

	my $folder = "$unpacked/$name";
	is_deeply(
		[
			grep { !-e "$folder/$_" }
			  qw(META.json Makefile README.md CHANGELOG.md CONTRIBUTING.md
			  SECURITY.md LICENSE src sql expected test docs docs/README.md
			  monitoring clerk_invite.control),
			map { @$_{qw(file docfile)} } values %{ $meta->{provides} }
		],
		[], '... which has all that it must');
	is_deeply(
		[
			grep { -e "$folder/$_" }
			  qw(.git .ci .editorconfig .github .gitignore .gitattributes)
		],
		[], '... and nothing that concerns the repository alone');
	unlike(slurp_file("$folder/Makefile"),
		qr/not committed/, '... as it was committed');

	# Without optimization, since nobody is going to run it.
	system_or_bail('make', '-s', '-j', '2', '-C', $folder, 'with_llvm=no',
		'COPT=-O0', 'install', "DESTDIR=$unpacked/root");
	my ($sharedir) = run_command([ 'pg_config', '--sharedir' ]);
	ok(-f "$unpacked/root$sharedir/extension/$meta->{provides}{clerk_invite}{file}",
		'the extension can be built and installed from it');
	return;
}

sub known_field
{
	my ($name) = @_;

	return $name =~ /^[xX]_/ || grep { $_ eq $name } @MANDATORY, @OPTIONAL;
}

sub known_license
{
	my ($name) = @_;

	return grep { $_ eq $name } @LICENSES;
}

sub list_of
{
	my ($value) = @_;

	return ref $value ? @$value : $value;
}

sub files_in
{
	my ($folder) = @_;

	opendir(my $handle, $folder) or die "could not open $folder: $!";
	return grep { !/^\.\.?$/ } readdir($handle);
}

# Makes a folder a repository with one commit, whoever runs this.
sub commit_all
{
	my ($folder) = @_;
	my @git = (
		'git', '-C', $folder, '-c', 'user.name=test',
		'-c', 'user.email=test@example.com');

	system_or_bail(@git, 'init', '-q');
	system_or_bail(@git, 'add', '--all');
	system_or_bail(@git, 'commit', '-q', '-m', 'everything');
	return;
}
