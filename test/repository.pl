# repository.pl LIST - is every file of the repository a text of a sensible size?
#
# LIST is a file with the names of the files to look at, a NUL byte after each,
# relative to the checkout.  A text has no NUL byte, which is how git tells one,
# and is UTF-8, which hardly anything is that is not one.
use strict;
use warnings;

use File::Basename qw(dirname);

my $LARGEST = 256 * 1024;

my ($list) = @ARGV;
my $bad = 0;
my $good = 0;

sub content_of
{
	my ($name) = @_;

	open(my $file, '<:raw', $name) or die "could not open $name: $!";
	local $/;
	return <$file> // '';
}

sub complaint_about
{
	my ($name) = @_;
	my $size = -s $name;

	return "has $size bytes; $LARGEST are the most" if $size > $LARGEST;
	my $content = content_of($name);
	return 'is not a text: it has a NUL byte' if $content =~ /\0/;
	return 'is not a text: it is not UTF-8' unless utf8::decode($content);
	return;
}

my @names = split(/\0/, content_of($list));
chdir(dirname($0) . '/..') or die "could not chdir: $!";
foreach my $name (@names)
{
	# What was removed, but not from git's index yet.
	next unless -f $name && !-l $name;
	my $complaint = complaint_about($name);

	if ($complaint)
	{
		print $name =~ s/^\.\///r, " $complaint\n";
		$bad++;
	}
	$good++;
}
die "no file was looked at\n" unless $good;
exit($bad ? 1 : 0);
