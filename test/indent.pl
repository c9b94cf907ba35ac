#!/usr/bin/perl
# indent.pl [--check] - puts src/ into PostgreSQL's style, or tells whether it is
#
# pg_bsd_indent does the work, with the options that PostgreSQL gives it.  What
# PostgreSQL's pgindent does around that and this code needs is done here:
# prototypes go on one line with their return type, and a return type stands a
# blank from its star.
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir tempfile);

my @OPTIONS = qw(-bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1
  -i4 -l79 -lp -lpl -nip -npro -sac -tpg -ts4);

my $check = grep { $_ eq '--check' } @ARGV;
my $here = dirname(abs_path(__FILE__));
my $typedefs = "$here/typedefs.list";
my $badly_indented = 0;

# pg_bsd_indent leaves a backup in the working directory.
chdir(tempdir(CLEANUP => 1));

sub contents
{
	my ($name) = @_;
	open(my $file, '<', $name) or die "could not open $name: $!";
	local $/;
	return scalar <$file>;
}

sub indented
{
	my ($source) = @_;
	my ($file, $name) = tempfile(UNLINK => 1);
	my $identifier = qr/[a-zA-Z_]\w*/;

	print $file $source;
	close $file;
	system("pg_bsd_indent @OPTIONS -U$typedefs $name >$name.log 2>&1");
	my $complaints = contents("$name.log");
	my $result = contents($name);
	unlink "$name.log";
	die "pg_bsd_indent: $complaints" if $complaints =~ /\S/;

	$result =~ s/^($identifier[^\n(=;{}]*)\n($identifier\((?:[^;{}]*?)\)[^;{}()]*;)$/
		$1 . ($1 =~ m{\*$} ? '' : ' ') . $2/gmex;
	$result =~ s/^($identifier)[ \t]+\*$/$1 */gm;
	$result =~ s/[ \t]+$//gm;
	return $result;
}

for my $name (sort map { glob("$here/../src/$_") } qw(*.[ch] */*.[ch]))
{
	my $before = contents($name);
	my $after = indented($before);
	next if $before eq $after;

	$badly_indented++;
	if ($check)
	{
		my ($file, $wanted) = tempfile(UNLINK => 1);
		print $file $after;
		close $file;
		print `diff -u '$name' '$wanted'`;
	}
	else
	{
		open(my $file, '>', $name) or die "could not write $name: $!";
		print $file $after;
		close $file;
	}
}
exit($check && $badly_indented > 0);
