# coverage.pl [--files REGEX] [--uncovered REGEX] [--least PERCENT] FOLDER...
#
# Prints which part of the lines of src/ was executed, for each file and in
# total, from the counts that gcov finds below the folders.  A source that was
# compiled several times, as a part of the module and of a library for tests,
# counts once.  --files limits the table to files whose path in src/ matches;
# --uncovered lists the lines and branches of such files that were never
# executed; with --least, it fails if the total is lower.
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Find qw(find);
use Getopt::Long;
use JSON::PP;

my $files = '';
my $uncovered;
my $least = 0;
GetOptions(
	'files=s' => \$files,
	'uncovered=s' => \$uncovered,
	'least=f' => \$least) or exit 2;

# By file: {lines}{number} is how often it was executed, {branches}{number} the
# counts of its branches.
my %sources;

read_counts($_) foreach sort +notes_below(@ARGV);
my @chosen = sort grep { /$files/ } keys %sources;
die "no counts below @ARGV\n" unless @chosen;
my $total = print_table(@chosen);
if (defined $uncovered)
{
	print_uncovered($_) foreach grep { /$uncovered/ } @chosen;
}
if ($total < $least)
{
	print "the total is less than $least %\n";
	exit 1;
}

# What the compiler has noted about each object.
sub notes_below
{
	my @notes;

	find(
		{
			no_chdir => 1,
			wanted => sub { push @notes, $_ if /\.gcno$/ }
		},
		map { abs_path($_) } @_);
	return @notes;
}

# Counts of an object that was never loaded are 0.
sub read_counts
{
	my ($notes) = @_;

	open(my $gcov, '-|', 'gcov', '--json-format', '--branch-probabilities',
		'--stdout', $notes)
	  or die "could not run gcov: $!\n";
	local $/;
	my $output = <$gcov>;
	close $gcov or die "gcov failed for $notes\n";
	foreach my $document (grep { /\S/ } split(/\n/, $output))
	{
		add_file($_) foreach @{ decode_json($document)->{files} };
	}
	return;
}

sub add_file
{
	my ($file) = @_;
	my ($path) = $file->{file} =~ m{^(?:.*/)?src/(.*\.c)$} or return;
	my $source = $sources{$path} //= { lines => {}, branches => {} };

	foreach my $line (@{ $file->{lines} })
	{
		my $number = $line->{line_number};
		my $branches = $source->{branches}{$number} //= [];

		$source->{lines}{$number} += $line->{count};
		$branches->[$_] += $line->{branches}[$_]{count}
		  foreach 0 .. $#{ $line->{branches} };
	}
	return;
}

# Returns the total, in percent.
sub print_table
{
	my ($all, $all_executed) = (0, 0);

	foreach my $path (@_)
	{
		my $lines = $sources{$path}{lines};
		my $executed = grep { $_ > 0 } values %$lines;

		print_row($executed, scalar keys %$lines, $path);
		$all += keys %$lines;
		$all_executed += $executed;
	}
	print_row($all_executed, $all, 'total');
	return $all == 0 ? 100 : 100 * $all_executed / $all;
}

sub print_row
{
	my ($executed, $all, $name) = @_;

	printf("%6.2f %%  %5d of %5d  %s\n",
		$all == 0 ? 100 : 100 * $executed / $all, $executed, $all, $name);
	return;
}

# Branches of lines that were executed.
sub print_uncovered
{
	my ($path) = @_;
	my $source = $sources{$path};

	foreach my $number (sort { $a <=> $b } keys %{ $source->{lines} })
	{
		my $branches = $source->{branches}{$number};
		my @missed = grep { !$branches->[$_] } 0 .. $#$branches;

		if ($source->{lines}{$number} == 0)
		{
			print "$path:$number: not executed\n";
		}
		elsif (@missed)
		{
			printf("%s:%d: %d of %d branches not taken\n",
				$path, $number, scalar @missed, scalar @$branches);
		}
	}
	return;
}
