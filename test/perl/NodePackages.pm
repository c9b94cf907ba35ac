# NodePackages - programs for Node.js whose packages come from npm's registry
#
#	my $programs = NodePackages->install_or_skip('official_client', qw(package.json check.mjs));
#	my ($succeeded, $output) = $programs->run('node', 'check.mjs');
#
# Skips all tests if node, npm or the registry is missing.
# CLERK_TEST_REQUIRE_NODE in the environment makes that an error.

package NodePackages;

use strict;
use warnings;

use ClerkTest;
use File::Copy qw(copy);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

# Copies these files from a folder of test/ and installs what package.json asks
# for.
sub install_or_skip
{
	my ($class, $name, @files) = @_;
	my $self = bless { folder => PostgreSQL::Test::Utils::tempdir(), name => $name }, $class;

	foreach my $program (qw(node npm))
	{
		my ($succeeded) = $self->run($program, '--version');

		_do_without("$program is missing") unless $succeeded;
	}
	foreach my $file (@files)
	{
		copy("$ClerkTest::TEST_FOLDER/$name/$file", $self->{folder})
		  or die "could not copy $file: $!";
	}
	my ($installed, undef, $reason) = $self->run('npm', 'install', '--no-audit',
		'--no-fund', '--no-package-lock', '--engine-strict', '--fetch-retries=1');
	return $self if $installed;
	_do_without('node is too old for the packages')
	  if $reason =~ /EBADENGINE/;
	_do_without("npm's registry cannot be reached")
	  if $reason =~
	  /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT/;
	die "could not install the packages:\n$reason";
}

sub folder
{
	my ($self) = @_;

	return $self->{folder};
}

# Whether a program succeeds, its output and its errors.  They do not go into
# the test's output: they may hold an invitation's url.
sub run
{
	my ($self, @command) = @_;
	my ($output, $errors) = ('', '');

	local %ENV = $self->environment;
	my $succeeded = eval {
		IPC::Run::run(
			\@command, '>', \$output, '2>', \$errors,
			init => sub { chdir $self->{folder} or die "could not chdir: $!" });
	};

	append_to_file("$PostgreSQL::Test::Utils::log_path/$self->{name}.log",
		"@command\n" . ($errors =~ s/ticket=[\w.-]+/ticket=.../gr) . "\n");
	return ($succeeded, $output, $errors);
}

# Nothing of it stays behind in anyone's home.
sub environment
{
	my ($self) = @_;

	return (
		%ENV,
		HOME => $self->{folder},
		npm_config_cache => "$self->{folder}/cache",
		npm_config_update_notifier => 'false');
}

sub _do_without
{
	my ($reason) = @_;

	die "$reason\n" if $ENV{CLERK_TEST_REQUIRE_NODE};
	plan skip_all => $reason;
}

1;
