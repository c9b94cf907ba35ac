# Checkout - a copy of the checkout, to run its scripts in
#
#	my $checkout = Checkout->new;
#	$checkout->change('test/layering.sh', qr/echo 2/, 'echo 9');
#	my $run = $checkout->run('test/check.sh', CHECKS => 'layering');
#	is($run->{status}, 0, ...); like($run->{stdout}, ...)
#	is_deeply([ $checkout->left_behind ], [], ...)
#
# The scripts are what a newcomer runs, but for three things: they install and
# fetch no packages, it is known which folders they make for themselves, and those are
# removed a little later.  A server whose folder is removed may end by itself,
# which would hide that nobody has stopped it.

package Checkout;

use strict;
use warnings;

use Carp;
use ClerkTest ();
use Cwd qw(abs_path);
use IPC::Run ();
use PostgreSQL::Test::Utils;

# How long a process may take to end that has been told to.
my $GRACE = 5;

sub new
{
	my ($class) = @_;
	my $folder = PostgreSQL::Test::Utils::tempdir();
	my $self = bless {
		folder => "$folder/checkout",
		temporary => "$folder/temporary",
		workspaces => "$folder/workspaces",
		removals => "$folder/removals"
	}, $class;

	foreach my $name (@{$self}{qw(folder temporary)})
	{
		mkdir $name or croak "could not make $name: $!";
	}
	append_to_file($_, '') foreach @{$self}{qw(workspaces removals)};
	my $source = abs_path("$ClerkTest::TEST_FOLDER/..");
	system_or_bail('sh', '-c',
		    "tar -C '$source' -cf - Makefile clerk_invite.control"
		  . " clerk_invite--1.0.sql hub src test | tar -C '$self->{folder}' -xf -");
	$self->append('test/machine.sh', <<"EOF");
prepare_machine()
{
	:
}

install_where_available()
{
	:
}

fetch_program()
{
	:
}

mktemp()
{
	command mktemp "\$@" | tee -a '$self->{workspaces}'
}

rm()
{
	echo "\$*" >>'$self->{removals}'
}
EOF
	return $self;
}

# A Makefile whose "make install" is another recipe, which does nothing unless
# one is given, and whose "make installcheck" says these lines and ends with
# this status.
sub without_building
{
	my ($self, $install, $status, @said) = @_;
	my $check = join('', map { "\t\@echo '$_'\n" } @said);

	$install //= ':';
	$status //= 0;
	$self->replace('Makefile',
		"install:\n\t\@$install\n\ninstallcheck:\n$check\t\@exit $status\n");
	return;
}

# The same, but "make install" installs what these tests use themselves.
sub with_what_is_built
{
	my ($self) = @_;

	$self->without_building($ENV{CLERK_DESTDIR}
		? "cp -R '$ENV{CLERK_DESTDIR}' '\$(DESTDIR)'"
		: "mkdir '\$(DESTDIR)'");
	return;
}

# Puts another text where the pattern matches, which it must.
sub change
{
	my ($self, $file, $pattern, $text) = @_;
	my $content = slurp_file("$self->{folder}/$file");

	$content =~ s/$pattern/$text/ or croak "$file has nothing like $pattern";
	$self->replace($file, $content);
	return;
}

sub replace
{
	my ($self, $file, $content) = @_;

	unlink "$self->{folder}/$file";
	$self->append($file, $content);
	return;
}

sub append
{
	my ($self, $file, $content) = @_;

	append_to_file("$self->{folder}/$file", $content);
	return;
}

# Runs a script to its end.  Returns what came of it: status, stdout, stderr,
# and how many seconds it took.
sub run
{
	my ($self, $script, %environment) = @_;

	return $self->finish($self->start([$script], %environment));
}

# The same in two steps, and with arguments.
sub start
{
	my ($self, $command, %environment) = @_;
	my $run = { stdout => '', stderr => '', begun => time };

	local %ENV = (
		%ENV,
		PG_CONFIG => pg_config(),
		TMPDIR => $self->{temporary},
		%environment);
	$run->{harness} = IPC::Run::start(
		[ 'sh', @$command ],
		'<',
		\undef,
		'>',
		\$run->{stdout},
		'2>',
		\$run->{stderr},
		init => sub {
			# A group of its own, as a shell makes one on a terminal.
			setpgrp(0, 0);

			# A shell cannot trap what its parent ignores, as under nohup.
			$SIG{$_} = 'DEFAULT' foreach qw(INT HUP TERM);
			chdir $self->{folder} or die "could not chdir: $!";
		},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $run;
}

# Waits until the script has written something like this.
sub wait_for
{
	my ($self, $run, $pattern) = @_;

	until ($run->{stdout} =~ $pattern)
	{
		croak "the script has ended:\n$run->{stdout}$run->{stderr}"
		  unless $run->{harness}->pumpable;
		$run->{harness}->pump;
	}
	return;
}

# A signal to all that the script has started, as the terminal sends it.
sub signal_group
{
	my ($self, $run, $signal) = @_;
	my ($pid) = map { $_->{PID} } @{ $run->{harness}{KIDS} };

	kill($signal, -$pid) or croak "could not send SIG$signal: $!";
	return;
}

# A status as the shell has it: more than 128 for a signal.
sub finish
{
	my ($self, $run) = @_;

	$run->{harness}->finish;
	my ($status) = $run->{harness}->full_results;
	$run->{status} = $status & 127 ? 128 + ($status & 127) : $status >> 8;
	$run->{seconds} = time - $run->{begun};
	return $run;
}

sub pg_config
{
	my ($folder) = run_command([ 'pg_config', '--bindir' ]);

	return "$folder/pg_config";
}

# What is left of the scripts that have run: processes that work in a folder of
# theirs, or name one in arguments or environment; then files and folders.
sub left_behind
{
	my ($self) = @_;
	my @folders = split(/\n/, slurp_file($self->{workspaces}));
	my $deadline = time + $GRACE;
	my @processes;

	croak 'no script has made a folder' unless @folders;
	while (@processes = map { _processes_of($_) } @folders)
	{
		last if time > $deadline;
		select(undef, undef, undef, 0.05);
	}
	$self->_remove;
	return @processes, (grep { -e $_ } @folders),
	  glob("$self->{temporary}/*");
}

# What the scripts wanted to remove.
sub _remove
{
	my ($self) = @_;

	foreach my $arguments (split(/\n/, slurp_file($self->{removals})))
	{
		system('rm', split(/ /, $arguments));
	}
	return;
}

sub DESTROY
{
	my ($self) = @_;

	# Keep the test's own exit status.
	local ($?, $!);
	$self->_remove if -e $self->{removals};
	return;
}

sub _processes_of
{
	my ($folder) = @_;
	my @found;

	foreach my $process (glob('/proc/[0-9]*'))
	{
		my $arguments = _content("$process/cmdline");
		my @places = (
			readlink("$process/cwd") // '',
			$arguments, _content("$process/environ"));

		push @found, "$process: " . $arguments =~ tr/\0/ /r
		  if grep { index($_, $folder) >= 0 } @places;
	}
	return @found;
}

# Nothing if it cannot be read: it is somebody else's, or has ended.
sub _content
{
	my ($name) = @_;

	open(my $file, '<', $name) or return '';
	local $/;
	return <$file> // '';
}

1;
